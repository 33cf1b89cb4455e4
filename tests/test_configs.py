"""Every config is a diff of the default one, and the full-size ones fit the devices that they name."""

import pathlib
import subprocess
import sys
import textwrap

import pytest
from absl import flags
from ml_collections import ConfigDict
from test_memory import shape

from experiments import command_line, knobs, plan, preflight
from experiments.configs import code, dearman, default, grpo, reasoning_gym, therapy
from experiments.configs import int as intervention
from int_jax import domains, lora, memory
from int_jax.sharding import RULES_DECODE
from int_jax.stages import StageError

ROOT = pathlib.Path(__file__).resolve().parent.parent
# ml_collections reads config files so
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def planned(c, name, devices=8, proposer_model=None):
    model = shape(name, dtype=c.dtype, param_dtype=c.param_dtype)
    return plan.stages(c, model, plan.mesh_of(c, devices), proposer_model)


def flat(c, prefix="") -> dict:
    out = {}
    for key, value in c.items():
        group = hasattr(value, "items") and len(value)
        out |= flat(value, f"{prefix}{key}.") if group else {prefix + key: value}
    return out


@pytest.mark.parametrize("module", [intervention, grpo])
@pytest.mark.parametrize("variant", ["", *intervention.VARIANTS])
def test_a_config_has_the_knobs_of_the_default_and_no_others(module, variant):
    c = module.get_config(variant)
    known, found = default.get_config(), flat(c)
    known.domain = default.domain(c.domain.name)
    known = flat(known)
    assert found.keys() - known.keys() <= {"chat.enable_thinking"}  # a knob of a model's template
    assert known.keys() - found.keys() <= {"chat"}
    for key in known.keys() & found.keys():
        assert type(found[key]) is type(known[key]), key


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("huge", "no variant 'huge': choose one of tiny, .*llama3_8b"),
        *(
            (variant, f"{variant}: NAME@HOSTS takes")
            for variant in ("tiny@2", "qwen3_4b@", "qwen3_4b@0", "qwen3_4b@two")
        ),
    ],
)
def test_an_unknown_variant_names_those_that_exist(variant, words):
    with pytest.raises(ValueError, match=words):
        intervention.get_config(variant)


@pytest.mark.parametrize("name", intervention.FULL)
def test_on_several_hosts_each_device_holds_no_more(name):
    one, four = (intervention.get_config(f"{name}@{hosts}") for hosts in (1, 4))
    assert four.mesh.to_dict() == {"data": 4, "model": 8}
    alone = {stage.name: stage.bytes for stage in planned(one, name)}
    for stage in planned(four, name, devices=32):
        # Beside an eighth of the model, a host holds what an update gathers whole along "data".
        assert stage.bytes <= one.device_gib * memory.GIB and stage.bytes <= 1.05 * alone[stage.name], (
            stage.name
        )


def test_the_proposers_model_is_planned_for():
    c = intervention.get_config("qwen3_0_6b")
    c.update(slots=8, proposals={"max_prompt": 8_000})
    other = shape("llama3_8b", dtype="bfloat16")
    without = {stage.name: stage.bytes for stage in planned(c, "qwen3_0_6b")}
    weights = memory.Sizes(other, plan.mesh_of(c, 8)).params("bfloat16", RULES_DECODE)
    for stage in planned(c, "qwen3_0_6b", proposer_model=other):
        assert stage.bytes - without[stage.name] >= weights, stage.name
        if stage.name != "proposals":
            assert stage.bytes - without[stage.name] == weights


@pytest.mark.parametrize("name", intervention.FULL)
def test_full_size_runs_have_the_paper_s_settings_and_fit(name):
    c, paper = intervention.get_config(name), default.get_config()
    paper.domain = default.domain("math")
    paper = flat(paper)
    ours = {key for key, value in flat(c).items() if paper.get(key) != value}
    assert ours <= {
        *(
            "name",
            "model",
            "dtype",
            "problems.hard",
            "mesh.data",
            "mesh.model",
            "device_gib",
            "slots",
            "train.rows",
        ),
        "chat.enable_thinking",
    }
    stages = planned(c, name)
    assert [stage.name for stage in stages] == [
        *("attempts", "proposals", "guided", "sft", "rl: rollouts", "rl: updates", "eval", "drift")
    ]
    memory.refuse(stages, round(c.device_gib * memory.GIB))


def test_with_a_kernel_no_row_is_copied_and_a_cache_of_its_own_size_is_planned_for():
    c = intervention.get_config("qwen3_4b")
    plain = {stage.name: stage.bytes for stage in planned(c, "qwen3_4b")}
    for attention in ("tpu", "gpu"):
        c.attention = attention
        for stage in planned(c, "qwen3_4b"):
            less = stage.name in ("attempts", "proposals", "guided", "rl: rollouts", "eval")
            assert stage.bytes < plain[stage.name] if less else stage.bytes == plain[stage.name]
    c.cache_gib = 100.0
    with pytest.raises(ValueError, match=r"attempts needs .* is pages, 100.0 GiB; turn .*cache_gib"):
        memory.refuse(planned(c, "qwen3_4b"), round(90 * memory.GIB))


def test_a_kernel_that_cannot_serve_the_model_is_refused():
    c = intervention.get_config("qwen3_4b")
    c.attention, c.dtype = "gpu", "float16"
    with pytest.raises(ValueError, match=r"config.attention = 'gpu': .* the model computes in float16"):
        planned(c, "qwen3_4b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": 256}, "proposals needs .* side by side, .* turn slots"),
        ({"train": {"rows": 32}}, "sft needs .* activations, .* turn train.rows"),
        ({"train": {"rows": 8, "remat": False}}, "sft needs .* activations, .* train.remat"),
    ],
)
def test_a_change_that_does_not_fit_names_the_knob(change, words):
    c = intervention.get_config("qwen3_4b")
    c.update(change)
    with pytest.raises(ValueError, match=words):
        memory.refuse(planned(c, "qwen3_4b"), round(c.device_gib * memory.GIB))


@pytest.mark.parametrize(
    ("change", "scores"),
    [
        ({}, False),
        ({"kl": 0.1}, True),
        ({"passes": 2}, True),
        ({"minibatches": 2}, True),
        ({"minibatches": 2, "old": "sampler"}, False),
    ],
)
def test_rollouts_are_scored_where_the_updates_need_it(change, scores):
    c = intervention.get_config("qwen3_0_6b")
    c.rl.update(change)
    assert ("rl: scoring" in {stage.name for stage in planned(c, "qwen3_0_6b")}) == scores


def test_adapters_leave_the_base_model_once_and_no_moments_of_it():
    c = intervention.get_config("qwen3_4b")
    full = {stage.name: stage for stage in planned(c, "qwen3_4b")}
    c.lora.rank = 16
    adapters = lora.Lora(16, 16.0, tuple(lora.MATRICES))
    sizes = memory.Sizes(shape("qwen3_4b", dtype=c.dtype, param_dtype=c.param_dtype), plan.mesh_of(c, 8))
    base, one = sizes.params("bfloat16", RULES_DECODE), sizes.trained("float32", adapters)
    # 252 matrices of 36 layers: rank x (inputs + outputs) each.
    q, kv, ffw = 2560 + 32 * 128, 2560 + 8 * 128, 2560 + 9728
    whole = memory.Sizes(sizes.config, plan.mesh_of(ConfigDict({"mesh": {"data": 1, "model": 1}}), 1))
    assert whole.trained("float32", adapters) == 4 * 36 * 16 * (2 * q + 2 * kv + 3 * ffw)
    for stage in planned(c, "qwen3_4b"):
        assert stage.bytes < full[stage.name].bytes, stage.name
        names = [item.name for item in stage.items]
        assert "base model" not in names
        held = sum(
            i.bytes
            for i in stage.items
            if i.name in ("base model to sample from", "parameters to sample from")
        )
        # Drawn from a policy: its merged matrices beside the base model. Drawn from the base model: this alone.
        assert held == (2 if stage.name in ("rl: rollouts", "eval") else 1) * base, stage.name
        for item in (i for i in stage.items if "Adam" in i.name):
            assert item.bytes == 2 * one


def test_rl_alone_plans_no_interventions():
    c = grpo.get_config("qwen3_4b")
    names = {stage.name for stage in planned(c, "qwen3_4b")}
    assert {"attempts", "rl: updates"} <= names and not names & {"proposals", "guided", "sft"}
    c.problems.hard = ()
    assert {stage.name for stage in planned(c, "qwen3_4b")} == names - {"attempts"}


@pytest.mark.slow
def test_the_plan_is_printed_from_config_json_alone(tmp_path):
    (tmp_path / "config.json").write_text((ROOT / "tests" / "shapes" / "qwen3_0_6b.json").read_text())
    command = [
        *(sys.executable, "experiments/plan.py", "--config", "experiments/configs/int.py:qwen3_0_6b"),
        f"--config.model={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("memory plan, GiB a device of 131.0") and "rl: updates" in done.stdout
    done = subprocess.run([*command, "--config.slots=256"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("\nint_jax: proposals needs")


# --- the command line ---


def parsed(monkeypatch, config: str, *overrides: str):
    """The config as run.py has it after these overrides."""
    values = flags.FlagValues()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["run.py", f"--config=experiments/configs/{config}", *overrides])
    command_line.define_config(values)
    command_line.parse(sys.argv, values)
    return values.config


@pytest.mark.parametrize(
    ("config", "override", "value"),
    [
        ("int.py:tiny", "domain.knobs.lengths=(5, 6)", (5, 6)),
        ("int.py:tiny", "domain.knobs.exponent=3", 3.0),
        ("int.py:rehearsal", "domain.knobs.grader=tolerant", "tolerant"),
        ("int.py:rehearsal", "domain.knobs.prompts=mine", "mine"),
        ("code.py", "domain.knobs.changes=(1, 4)", (1, 4)),
        ("code.py:smoke", "domain.knobs.unguarded=True", True),
        ("reasoning_gym.py", "domain.knobs.deadline_s=2.5", 2.5),
        ("reasoning_gym.py", "domain.knobs.instruction=", ""),
        (
            "reasoning_gym.py:chain_sum",
            'domain.knobs.tasks={"chain_sum": {"max_terms": 3}}',
            {"chain_sum": {"max_terms": 3}},
        ),
        ("int.py:tiny", 'chat={"enable_thinking": False}', {"enable_thinking": False}),
        ("int.py:tiny", "sft.learning_rate=1", 1.0),
        ("int.py:tiny", "seeds=3", (3,)),
        ("int.py:tiny", "proposals.compare=()", ()),
        ("int.py:tiny", 'rl.rewards={"answered": 1}', {"answered": 1}),
    ],
)
def test_a_knob_is_set_on_the_command_line(monkeypatch, config, override, value):
    c = parsed(monkeypatch, config, f"--config.{override}")
    default.check(c)
    for name in override.partition("=")[0].split("."):
        c = c[name]
    c = c.to_dict() if hasattr(c, "to_dict") else c
    assert c == value and type(c) is type(value)


LAB = {
    "lab_c/days.py": """
        from typing import ClassVar
        from int_jax.domains.arithmetic import Arithmetic
        from int_jax.knobs import Knob
        class Days(Arithmetic):
            name = "days"
            KNOBS: ClassVar = {"lengths": Knob(3, "a number where arithmetic has two"), "grader": Knob("day", "rule")}
        build = Days
    """,
    "lab_c/broken.py": "1 / 0",
}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with modules of one's own, on the path."""
    for name, text in LAB.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "lab_c"]:
        del sys.modules[name]


@pytest.mark.parametrize("config", ["int.py:tiny", "int.py:rehearsal", "reasoning_gym.py"])
@pytest.mark.parametrize("spelled", ["=", " "])
@pytest.mark.parametrize("path", [True, False])
def test_a_domain_of_ones_own_has_its_own_knobs_on_the_command_line(monkeypatch, lab, config, spelled, path):
    """Of the domain's types: those of the config's own domain with the same names are others."""
    name = str(lab / "lab_c" / "days.py") if path else "lab_c.days"
    flag = [f"--config.domain.name={name}"] if spelled == "=" else ["--config.domain.name", name]
    c = parsed(monkeypatch, config, "--config.domain.knobs.lengths=5", *flag)
    assert c.domain.to_dict() == {"name": name, "knobs": {"lengths": 5, "grader": "day"}}
    default.check(c)
    with pytest.raises(AttributeError):
        c.domain.knobs.exponent = 3  # locked


def test_another_domain_of_the_package_by_its_name(monkeypatch):
    overrides = "--config.domain.name=arithmetic", "--config.domain.knobs.rare=(1, 2)"
    c = parsed(monkeypatch, "int.py:rehearsal", *overrides)
    assert c.domain.knobs.rare == (1, 2) and "grader" not in c.domain.knobs
    same = parsed(monkeypatch, "int.py:real", "--config.domain.name=math")
    assert same.domain.knobs.separator == "\n", "the config's own changes stay"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["domain.name=lab_c.days", "domain.knobs.exponent=3"], "domain lab_c.days has no such knob; it has lengths,"),
        (["domain.name=lab_c.days", "domain.knobs.lengths=many"], "domain.knobs.lengths=many"),
        (["domain.name=lab_c.nights"], "no domain 'lab_c.nights': there is no module 'lab_c.nights' in"),
        (["domain.name=lab_c.broken"], "'lab_c.broken' fails while it is imported: .*line 1: ZeroDivisionError"),
        (["domain.name=nights"], "no domain 'nights' in int_jax/domains: choose one of arithmetic"),
        (["rl.updtes=3"], "--config.rl.updtes=3: there is no such knob; docs/knobs.md"),
        (["domain.knobs.grader=strict"], "--config.domain.knobs.grader=strict: there is no such knob"),
    ],
)  # fmt: skip
def test_a_domain_or_a_knob_that_there_is_not_ends_in_one_line(monkeypatch, lab, overrides, words):
    with pytest.raises(StageError, match=words) as error:
        parsed(monkeypatch, "int.py:tiny", *(f"--config.{one}" for one in overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", domains.names())
def test_every_domain_has_a_config_with_all_of_its_knobs(name):
    configs = {"arithmetic": intervention.get_config("tiny"), "math": intervention.get_config("rehearsal")}
    configs |= {"code": code.get_config(), "therapy": therapy.get_config(), "dearman": dearman.get_config()}
    c = configs.get(name) or reasoning_gym.get_config()
    assert c.domain.name == name and {*c.domain.knobs} == {*domains.find(name).KNOBS}


@pytest.mark.parametrize("variant", ["", "smoke", "chain_sum+countdown", "count_bits+gsm_symbolic"])
def test_data_sets_with_worked_answers_alone_are_for_int(variant):
    """The package is asked for each of them, as it is when a run starts."""
    pytest.importorskip("reasoning_gym")
    c = reasoning_gym.get_config(variant)
    domain = domains.load(c.domain.name, None, **c.domain.knobs.to_dict())
    assert ("int_rl" in c.arms) == ("countdown" not in variant and variant != "smoke")
    assert all(("int_rl" not in c.arms) or task.reference for task in domain.tasks("hard_train", 0, 3))


def test_the_page_of_knobs_is_the_one_that_is_printed():
    """Else print it again: python -m experiments.knobs > docs/knobs.md"""
    assert (ROOT / "docs" / "knobs.md").read_text() == knobs.document()


@pytest.mark.parametrize(("every", "there"), [(0, False), (10, True)])
def test_validation_is_planned_where_it_takes_place(every, there):
    """It draws beside the state in training, which evaluation at the end does not."""
    c = intervention.get_config("qwen3_0_6b")
    c.validation.every = every
    stages = {stage.name: stage for stage in planned(c, "qwen3_0_6b")}
    assert ("validation" in stages) == there
    if there:
        assert "policy in training" in {item.name for item in stages["validation"].items}


@pytest.mark.parametrize(
    "knobs, said",
    [
        ({"url": "http://x"}, "sampler.url = 'http://x': sampler.kind = '' asks no server"),
        ({"weights": "w"}, "sampler.weights = 'w': sampler.kind = '' asks no server"),
        ({"kind": "vllm", "weights": "w"}, "sampler.url = '': say where the server is"),
        ({"kind": "vllm", "url": "http://x"}, "sampler.weights = '': .* do not reach the server"),
        ({"kind": "lab.none", "url": "http://x", "weights": "w"}, "no sampler 'lab.none'"),
    ],
    ids=str,
)
def test_a_server_that_cannot_draw_is_refused(knobs, said):
    c = intervention.get_config("smoke")
    c.sampler.update(knobs)
    with pytest.raises(ValueError, match=said):
        preflight.check(c)
