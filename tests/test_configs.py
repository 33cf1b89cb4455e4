"""Every config is a diff of the default one, and the full-size ones fit the devices that they name."""

import dataclasses
import pathlib
import subprocess
import sys
import textwrap

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict
from test_memory import shape

from experiments import command_line, knobs, plan, preflight, work
from experiments.configs import code, dearman, default, grpo, reasoning_gym, therapy
from experiments.configs import int as intervention
from int_jax import domains, lora, memory
from int_jax.models import Config
from int_jax.sharding import RULES_DECODE, make_mesh
from int_jax.stages import StageError

ROOT = pathlib.Path(__file__).resolve().parent.parent
# ml_collections reads config files so
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


MACHINES = {"8 x H200": ("h200", 8), "8 x H100": ("h100", 8), "v5p-8": ("v5p", 4), "v5p-64": ("v5p", 32)}
ONE = plan.named("h100", 1)
NODE = plan.named("h200", 8)
FURTHER = {  # whose weights are cut over more devices than memory asks for, to save a tenth of the hours
    ("qwen3_4b", "v5p-64"): 4,
    ("llama3_8b", "8 x H100"): 2,
    ("llama3_8b", "v5p-8"): 4,
    ("llama3_8b", "v5p-64"): 2,
}
UNKNOWN = dataclasses.replace(NODE, kind=None)  # so that memory alone says what fits


def model_of(c, name):
    return shape(name, dtype=c.dtype, param_dtype=c.param_dtype)


def fitted(c, name, machine=NODE):
    return plan.fitted(c, machine, model_of(c, name))


def planned(c, name, machine=NODE, proposer_model=None, platform=""):
    """The stages of a config of which nothing is left to be chosen, with rows put side by side by default."""
    return plan.stages(c, model_of(c, name), plan.mesh_of(c, machine), proposer_model, platform)


def full(name, **changes):
    """A full-size config with sizes of its own: 64 rows on a host whose devices share the weights."""
    c = intervention.get_config(name)
    c.update({"mesh": {"data": 1, "model": 8}, "slots": 64, "train": {"rows": 1}})
    c.update(changes)
    return c


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


def test_an_unknown_variant_names_those_that_exist():
    with pytest.raises(ValueError, match=r"no variant 'huge': choose one of tiny, .*llama3_8b"):
        intervention.get_config("huge")


# --- full size ---


@pytest.mark.parametrize("name", intervention.FULL)
@pytest.mark.parametrize("where", MACHINES)
def test_full_size_runs_start_on_every_machine(name, where):
    machine = plan.named(*MACHINES[where])
    c = fitted(intervention.get_config(name), name, machine)
    stages = planned(c, name, machine, platform=machine.platform)
    assert [stage.name for stage in stages] == [
        *("attempts", "proposals", "guided", "sft", "rl: rollouts", "rl: updates", "effect", "eval", "drift")
    ]
    memory.refuse(stages, machine.limit)
    data = machine.devices // c.mesh.model
    assert c.mesh.data == -1 and c.mesh.model == FURTHER.get((name, where), 1)
    # Each of these models fits on one device beside the others.
    by_memory = dataclasses.replace(machine, kind=None)
    assert fitted(intervention.get_config(name), name, by_memory).mesh.model == 1
    assert c.slots % data == 0 and c.slots // data >= 48
    assert c.train.rows == data  # a row of 20,000 tokens is enough for a device


@pytest.mark.parametrize("name", intervention.FULL)
def test_one_gpu_of_80_gb_trains_a_model_of_1_7_b_and_refuses_larger_ones(name):
    c = intervention.get_config(name)
    if name in ("qwen3_1_7b", "qwen3_0_6b"):
        c = fitted(c, name, ONE)
        memory.refuse(planned(c, name, ONE, platform="gpu"), ONE.limit)
        assert c.slots >= 64
    else:
        words = r"sft needs .* two moments, .* turn mesh.data, mesh.model\nOf a GPU jax .* XLA_CLIENT_MEM_FRACTION"
        with pytest.raises(ValueError, match=words):
            fitted(c, name, ONE)


def test_weights_are_cut_only_as_far_as_memory_asks():
    """The same model with ever less memory: over more devices, and with fewer rows on each."""
    c, name = intervention.get_config("llama3_8b"), "llama3_8b"
    found = []
    for gib in (120, 70, 48, 40):
        one = fitted(c, name, dataclasses.replace(UNKNOWN, limit=gib * memory.GIB))
        found.append((one.mesh.model, one.slots * one.mesh.model // 8))
        for less in range(1, one.mesh.model):
            if 8 % less == 0:
                again = c.copy_and_resolve_references()
                again.mesh.model = less
                with pytest.raises(ValueError, match=r"needs|have room"):
                    fitted(again, name, dataclasses.replace(UNKNOWN, limit=gib * memory.GIB))
    cuts = [cut for cut, _ in found]
    assert cuts == sorted(cuts) and cuts[0] == 1 < cuts[-1]
    assert found[0][1] > found[1][1]


def test_weights_are_cut_further_where_the_rows_that_then_fit_save_hours():
    """On two devices the weights of a 70B fit, and next to no pages beside them."""
    c = intervention.get_config("qwen3_4b")
    other = Config(
        "llama", 128_256, 8192, 80, 64, 8, 128, 28_672, 131_072, dtype="bfloat16", param_dtype="float32"
    )
    machine, took = plan.named("v5p", 64), {}
    for cut in (2, 4):
        one = c.copy_and_resolve_references()
        one.mesh.model = cut
        one = plan.fitted(one, machine, other)
        stages = plan.stages(one, other, plan.mesh_of(one, machine), None, machine.platform)
        took[cut] = sum(plan.hours(one, machine, stages, work.stages(one, work.Assumed()), other))
    assert took[4] < took[2] / 2
    assert plan.fitted(c, machine, other).mesh.model == 4
    assert plan.fitted(c, dataclasses.replace(machine, kind=None), other).mesh.model == 2


def test_what_is_given_stays_and_what_fits_is_chosen_around_it():
    c = intervention.get_config("qwen3_4b")
    c.slots = 40
    assert (one := fitted(c, "qwen3_4b", UNKNOWN)).slots == 40 and one.train.rows == 8
    c.mesh.data = 2
    one = fitted(c, "qwen3_4b", UNKNOWN)
    assert (one.mesh.data, one.mesh.model, one.slots, one.train.rows) == (2, 4, 40, 2)
    assert (c.mesh.model, c.train.rows) == (0, 0), "the config itself is left alone"
    given = full("qwen3_4b")
    assert fitted(given, "qwen3_4b") is given
    short = intervention.get_config("qwen3_4b")
    short.train.row_length = 2_048
    assert fitted(short, "qwen3_4b").train.rows == 64  # 16,384 tokens of each device
    c.mesh.data = 3
    with pytest.raises(ValueError, match="mesh data=3 x model=1 does not fit 8 gpu device"):
        fitted(c, "qwen3_4b", UNKNOWN)


def test_what_fits_is_not_known_of_devices_that_do_not_say_what_they_hold():
    c = intervention.get_config("qwen3_4b")
    unknown = dataclasses.replace(NODE, limit=None, platform="cpu")
    words = "mesh.model = 0 is what fits, and these cpu .* set config.device_gib, or config.mesh.model, config.slots, "
    with pytest.raises(ValueError, match=words):
        fitted(c, "qwen3_4b", unknown)
    assert fitted(full("qwen3_4b"), "qwen3_4b", unknown).slots == 64


def test_a_mesh_that_is_not_the_machines_is_refused_by_the_plan_as_by_the_run():
    c = full("qwen3_4b")
    for make in (
        lambda: plan.mesh_of(c, plan.named("v5p", 4)),
        lambda: make_mesh(1, 8, jax.devices()[:4]),
    ):
        with pytest.raises(ValueError, match=r"mesh data=1 x model=8 does not fit 4 .* whose product is 4"):
            make()


@pytest.mark.parametrize("name", intervention.FULL)
def test_full_size_runs_cost_what_the_papers_recipe_costs(name):
    """Counted by hand from the paper: about 7,200 tokens a rollout, 5,700 a turn of a check, 6,700 a continuation."""
    paper = (
        4_500 * 64 * 7_200  # attempts
        + 16_190 * (1 + 4) * 5_700  # proposals
        + 14_766 * 32 * 6_700  # continuations of guided attempts
        + 4 * 334 * 32 * 6_700  # Table 1
        + 400 * 32 * 8 * 7_200  # the policy gradient
        + 3 * 500 * 128 * 7_200  # base, InT, InT + RL
    )
    assert paper == pytest.approx(8.1e9, rel=0.01)
    parts = work.stages(intervention.get_config(name), work.Assumed())
    assert sum(part.tokens for part in parts if isinstance(part, work.Draw)) == pytest.approx(paper, rel=0.1)
    [sft] = [part for part in parts if part.stage == "sft"]
    assert sft.updates == pytest.approx(138, abs=4)
    [updates] = [part for part in parts if part.stage == "rl: updates"]
    assert (updates.updates, updates.sequences) == (400, 400 * 32 * 8 / 2)


def test_what_full_size_runs_leave_out_is_about_as_much_again():
    c = intervention.get_config("qwen3_4b")
    once = sum(part.tokens for part in work.stages(c, work.Assumed()))
    c.update(arms=("int_rl", "rl", "rl_matched"), problems={"test": 1_352}, eval={"train_problems": 256})
    assert 2.5 < sum(part.tokens for part in work.stages(c, work.Assumed())) / once < 3.5


@pytest.mark.parametrize("name", intervention.FULL)
def test_full_size_runs_have_the_papers_settings(name):
    c, paper = intervention.get_config(name), default.get_config()
    paper.domain = default.domain("math")
    paper = flat(paper)
    ours = {key for key, value in flat(c).items() if paper.get(key) != value}
    assert ours <= {
        *("name", "model", "dtype", "chat.enable_thinking", "mesh.model", "slots", "train.rows", "arms"),
        *("problems.hard", "problems.test", "eval.train_problems"),
    }


def test_the_proposers_model_is_planned_for():
    c = full("qwen3_0_6b", slots=8, proposals={"max_prompt": 8_000})
    other = shape("llama3_8b", dtype="bfloat16")
    without = {stage.name: stage.bytes for stage in planned(c, "qwen3_0_6b")}
    weights = memory.Sizes(other, plan.mesh_of(c, NODE)).params("bfloat16", RULES_DECODE)
    for stage in planned(c, "qwen3_0_6b", proposer_model=other):
        assert stage.bytes - without[stage.name] >= weights, stage.name
        if stage.name != "proposals":
            assert stage.bytes - without[stage.name] == weights


def test_with_a_kernel_no_row_is_copied_and_a_cache_of_its_own_size_is_planned_for():
    c = full("qwen3_4b")
    plain = {stage.name: stage.bytes for stage in planned(c, "qwen3_4b")}
    for attention in ("tpu", "gpu"):
        c.attention = attention
        for stage in planned(c, "qwen3_4b"):
            less = stage.name in ("attempts", "proposals", "guided", "effect", "rl: rollouts", "eval")
            assert stage.bytes < plain[stage.name] if less else stage.bytes == plain[stage.name]
    c.cache_gib = 100.0
    with pytest.raises(ValueError, match=r"attempts needs .* is pages, 100.0 GiB; turn .*cache_gib"):
        memory.refuse(planned(c, "qwen3_4b"), round(90 * memory.GIB))


def test_a_kernel_that_cannot_serve_the_model_is_refused():
    c = full("qwen3_4b")
    c.attention, c.dtype = "gpu", "float16"
    with pytest.raises(ValueError, match=r"config.attention = 'gpu': .* the model computes in float16"):
        planned(c, "qwen3_4b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": 256}, "proposals needs .* side by side, .* turn slots"),
        ({"train": {"rows": 40}}, "sft needs .* activations, .* turn train.rows"),
        ({"train": {"rows": 8, "remat": False}}, "sft needs .* activations, .* train.remat"),
    ],
)
def test_a_change_that_does_not_fit_names_the_knob(change, words):
    c = full("qwen3_4b", **change)
    with pytest.raises(ValueError, match=words):
        memory.refuse(planned(c, "qwen3_4b"), round(131 * memory.GIB))


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
    c = full("qwen3_0_6b", rl=change)
    assert ("rl: scoring" in {stage.name for stage in planned(c, "qwen3_0_6b")}) == scores


def test_adapters_leave_the_base_model_once_and_no_moments_of_it():
    c = full("qwen3_4b")
    whole = {stage.name: stage for stage in planned(c, "qwen3_4b")}
    c.lora.rank = 16
    adapters = lora.Lora(16, 16.0, tuple(lora.MATRICES))
    sizes = memory.Sizes(shape("qwen3_4b", dtype=c.dtype, param_dtype=c.param_dtype), plan.mesh_of(c, NODE))
    base, one = sizes.params("bfloat16", RULES_DECODE), sizes.trained("float32", adapters)
    # 252 matrices of 36 layers: rank x (inputs + outputs) each.
    q, kv, ffw = 2560 + 32 * 128, 2560 + 8 * 128, 2560 + 9728
    alone = memory.Sizes(sizes.config, plan.mesh_of(ConfigDict({"mesh": {"data": 1, "model": 1}}), ONE))
    assert alone.trained("float32", adapters) == 4 * 36 * 16 * (2 * q + 2 * kv + 3 * ffw)
    for stage in planned(c, "qwen3_4b"):
        assert stage.bytes < whole[stage.name].bytes, stage.name
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
    c = grpo.alone(full("qwen3_4b"))
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

    def printed(*more):
        return subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)

    done = printed("--machine=h200", "--devices=8")
    assert done.stdout.startswith("8 x h200: mesh 8 x 1, slots "), done.stderr
    assert "memory plan, GiB a device of 128.6" in done.stdout and "rl: updates" in done.stdout
    for more, words in (
        (["--machine=h200", "--config.cache_gib=200"], "attempts needs"),
        (
            ["--machine=h200", "--config.mesh.model=8", "--devices=4"],
            "mesh data=-1 x model=8 does not fit 4 gpu",
        ),
        (["--machine=h300"], "--machine=h300: choose one of v4, "),
        (["--machine=h200", "--assume=luck=1"], "--assume=luck: what is assumed is response=6000, "),
        ([], "config.mesh.model = 0 is what fits, and these cpu devices do not say what they hold"),
    ):
        done = printed(*more)
        assert done.returncode == 1 and done.stderr.startswith(f"\nint_jax: {words}"), done.stderr
    sizes = ["--config.mesh.model=1", "--config.slots=64", "--config.train.rows=8"]
    done = printed(*sizes, "--assume=response=12000")
    assert " x 1, slots 64, train.rows 8\nmemory plan" in done.stdout, done.stderr
    assert "response=12000" in done.stdout


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
    c = full("qwen3_0_6b", validation={"every": every})
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
