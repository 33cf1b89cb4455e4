"""The memory plan of a config: what each stage holds on a device, before anything is allocated.

    python experiments/plan.py --config experiments/configs/int.py:qwen3_4b --config.model=DIRECTORY --devices 8

Of the model only config.json is read. Ends with an error that names the knob to turn where a stage does not fit into
`device_gib`.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from absl import app, flags
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from experiments import arms
from experiments.command_line import define_config
from experiments.configs import default
from int_jax import hf_format, memory
from int_jax.lm import directory
from int_jax.models import Config, kernels
from int_jax.sharding import RULES_DECODE

PROBLEM = 1_024  # tokens of a prompt that shows a problem alone: assumed


def stages(
    c: ConfigDict, model: Config, mesh, proposer_model: Config | None = None, platform: str = ""
) -> list[memory.Stage]:
    """The stages of a run. A policy is kept as parameters alone once it is trained, the proposer's model all the time.
    With adapters a policy is these alone, and the base model is kept once, as it is sampled from.

    Args:
      model: with the run's dtype and param_dtype. mesh: see memory.Sizes. proposer_model: the proposer's model with
        the run's dtype, None for the policy itself. platform: the devices', which says what attends over pages where
        the config does not; "": unknown, and planned as "xla", which needs the most.

    Raises: ValueError where config.attention cannot serve a model.
    """
    sizes = memory.Sizes(model, mesh)
    knob, adapters = "mesh.data, mesh.model", default.adapters(c)
    one = sizes.trained(model.param_dtype, adapters)
    low = memory.Item("base model to sample from", sizes.params(model.dtype, RULES_DECODE), knob)
    base: tuple[memory.Item, ...] = () if adapters else (memory.Item("base model", one, knob),)
    asked, beside = sizes, base
    if proposer_model is not None:
        asked, beside = memory.Sizes(proposer_model, mesh), (*base, low)
        weights = asked.params(proposer_model.dtype, RULES_DECODE)
        base = (*base, memory.Item("the proposer's model", weights, f"proposals.model, {knob}"))
    both = (*base, low)
    made_count = len(arms.policies(c.arms)) - 1  # but the base model
    made = memory.Item("policies trained", made_count * one, f"arms, {knob}")
    trained = memory.Item("policies trained before", (made_count - 1) * one, f"arms, {knob}")
    # Parameters and Adam's two moments.
    state = memory.Item("policy in training", 3 * one, knob)
    answer = c.attempts.sampling.max_new_tokens

    def sampling(name, prompt, new_tokens, kept=base, sizes=sizes):
        kind = attention(c, sizes.config, mesh, platform)
        return memory.sampling(
            name, sizes, c.slots, c.decode_steps, prompt, new_tokens, kept, kind, c.cache_gib
        )

    def training(name, kept):
        t = c.train
        return memory.training(name, sizes, t.rows, t.row_length, t.logit_chunk, t.remat, kept, adapters)

    every = [
        sampling("attempts", PROBLEM, answer),
        sampling("proposals", c.proposals.max_prompt, c.proposals.sampling.max_new_tokens, beside, asked),
        sampling("guided", PROBLEM + answer, c.guided.sampling.max_new_tokens),
        training("sft", both),
        sampling("rl: rollouts", PROBLEM, c.rl.max_new_tokens, (*both, trained, state)),
        memory.scoring("rl: scoring", sizes, PROBLEM + c.rl.max_new_tokens, (*both, trained, state)),
        training("rl: updates", (*both, trained)),
        sampling("validation", PROBLEM, c.eval.sampling.max_new_tokens, (*both, trained, state)),
        sampling("eval", PROBLEM, c.eval.sampling.max_new_tokens, (*both, made)),
        memory.scoring("drift", sizes, PROBLEM + answer, (*both, made)),
    ]
    used = arms.stages(c.arms) | ({"attempts"} if c.problems.hard else set()) | {"eval", "drift"}
    used |= {"validation"} if c.validation.every else set()
    scored = c.rl.kl or (c.rl.old == "current" and c.rl.passes * c.rl.minibatches > 1)
    return [
        stage
        for stage in every
        if stage.name.partition(":")[0] in used and (scored or stage.name != "rl: scoring")
    ]


def attention(c: ConfigDict, model: Config, mesh, platform: str) -> str:
    """What attends over a model's pages. Raises: ValueError where what the config names cannot."""
    try:
        return kernels.chosen(c.attention, platform, model, mesh.shape["model"])
    except ValueError as error:
        raise ValueError(f"config.{error}") from None


def planned(c: ConfigDict, mesh, platform: str = "") -> list[memory.Stage]:
    """`stages` of a config, whose models' config.json are read and nothing else of them."""
    model = hf_format.read_config(directory(c.model), c.dtype, c.family)
    proposer_model = (
        hf_format.read_config(directory(c.proposals.model), c.dtype) if c.proposals.model else None
    )
    return stages(c, dataclasses.replace(model, param_dtype=c.param_dtype), mesh, proposer_model, platform)


def mesh_of(c: ConfigDict, devices: int) -> AbstractMesh:
    """The mesh that `sharding.make_mesh` would make of so many devices, without them."""
    sizes = [c.mesh.data, c.mesh.model]
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, devices // max(1, -sizes[0] * sizes[1]))
    return AbstractMesh(tuple(sizes), ("data", "model"))


def main(argv):
    del argv
    jax.config.update("jax_platforms", "cpu")  # shapes alone: the accelerators may be at work
    c = CONFIG.value
    limit = round(c.device_gib * memory.GIB) or None
    try:
        default.check(c)
        plan = planned(c, mesh_of(c, DEVICES.value))
        memory.refuse(plan, limit)
    except ValueError as error:
        sys.exit(f"\nint_jax: {error}")
    print(memory.table(plan, limit))


if __name__ == "__main__":
    CONFIG = define_config()
    DEVICES = flags.DEFINE_integer("devices", 8, "devices of the mesh")
    app.run(main)
