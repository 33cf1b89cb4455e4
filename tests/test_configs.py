"""Every config is a diff of the default one, and the full-size ones fit the devices that they name."""

import pathlib
import subprocess
import sys

import pytest
from test_memory import shape

from experiments import plan
from experiments.configs import default, grpo
from experiments.configs import int as intervention
from int_jax import memory
from int_jax.sharding import RULES_DECODE

ROOT = pathlib.Path(__file__).resolve().parent.parent


def planned(c, name, devices=8, checker=None):
    model = shape(name, dtype=c.dtype, param_dtype=c.param_dtype)
    return plan.stages(c, model, plan.mesh_of(c, devices), checker)


def flat(c, prefix="") -> dict:
    out = {}
    for key, value in c.items():
        out |= flat(value, f"{prefix}{key}.") if hasattr(value, "items") else {prefix + key: value}
    return out


@pytest.mark.parametrize("module", [intervention, grpo])
@pytest.mark.parametrize("variant", ["", *intervention.VARIANTS])
def test_a_config_has_the_knobs_of_the_default_and_no_others(module, variant):
    known, c = flat(default.get_config()), module.get_config(variant)
    found = flat(c)
    # knobs of a model's template, and of a domain
    free = {"chat.enable_thinking", "domain.knobs.grader", "domain.knobs.prompts"}
    assert found.keys() - known.keys() <= free and known.keys() <= found.keys()
    for key in known:
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
    for stage in planned(c, "qwen3_0_6b", checker=other):
        assert stage.bytes - without[stage.name] >= weights, stage.name
        if stage.name != "proposals":
            assert stage.bytes - without[stage.name] == weights


@pytest.mark.parametrize("name", intervention.FULL)
def test_full_size_runs_have_the_paper_s_settings_and_fit(name):
    c, paper = intervention.get_config(name), flat(default.get_config())
    ours = {key for key, value in flat(c).items() if paper.get(key) != value}
    assert ours <= {
        *(
            "name",
            "model",
            "dtype",
            "domain.name",
            "problems.hard",
            "mesh.data",
            "mesh.model",
            "device_gib",
            "slots",
            "train.rows",
        ),
        *("chat.enable_thinking", "domain.knobs.grader", "domain.knobs.prompts"),
    }
    stages = planned(c, name)
    assert [stage.name for stage in stages] == [
        *("attempts", "proposals", "guided", "sft", "rl: rollouts", "rl: updates", "eval", "drift")
    ]
    memory.refuse(stages, round(c.device_gib * memory.GIB))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": 128}, "proposals needs .* cache, .* turn slots"),
        ({"train": {"rows": 32}}, "sft needs .* activations, .* turn train.rows"),
        ({"train": {"rows": 8, "remat": False}}, "sft needs .* activations, .* train.remat"),
    ],
)
def test_a_change_that_does_not_fit_names_the_knob(change, words):
    c = intervention.get_config("qwen3_4b")
    c.update(change)
    with pytest.raises(ValueError, match=words):
        memory.refuse(planned(c, "qwen3_4b"), round(c.device_gib * memory.GIB))


def test_rl_alone_plans_no_interventions():
    c = grpo.get_config("qwen3_4b")
    names = {stage.name for stage in planned(c, "qwen3_4b")}
    assert {"attempts", "rl: updates"} <= names and not names & {"proposals", "guided", "sft"}
    c.problems.hard = ()
    assert {stage.name for stage in planned(c, "qwen3_4b")} == names - {"attempts"}


def test_the_plan_is_printed_from_config_json_alone(tmp_path):
    (tmp_path / "config.json").write_text((ROOT / "tests" / "shapes" / "qwen3_0_6b.json").read_text())
    command = [
        *(sys.executable, "experiments/plan.py", "--config", "experiments/configs/int.py:qwen3_0_6b"),
        f"--config.model={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("memory plan, GiB a device of 131.0") and "rl: updates" in done.stdout
    done = subprocess.run([*command, "--config.slots=128"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("\nint_jax: proposals needs")
