"""The plan of a config: what fits on a machine, what each stage holds on a device, and the tokens and hours it takes.

    python experiments/plan.py --config experiments/configs/int.py:qwen3_4b --config.model=DIRECTORY
    python experiments/plan.py --config ... --machine h200 --devices 8

Nothing is allocated, and of the model only config.json is read. Without --machine the plan is for the devices at hand,
with it none is touched. Ends with an error that names the knob to turn where a stage does not fit. What is assumed of
lengths and successes is printed, and is changed by --assume=response=8000.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from absl import app, flags, logging
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from experiments import arms, work
from experiments.command_line import define_config
from experiments.configs import default
from int_jax import hf_format, memory, roofline
from int_jax.engine import SHARE
from int_jax.lm import directory
from int_jax.models import Config, flash, kernels
from int_jax.sharding import RULES_DECODE, mesh_sizes

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
    # With adapters the base model itself is what is sampled from, and is beside all else.
    base: tuple[memory.Item, ...] = () if adapters else (memory.Item("base model", one, knob),)
    frozen = (low,) if adapters else ()
    asked, beside = sizes, base
    if proposer_model is not None:
        asked, beside = memory.Sizes(proposer_model, mesh), (*base, *frozen)
        weights = asked.params(proposer_model.dtype, RULES_DECODE)
        base = (*base, memory.Item("the proposer's model", weights, f"proposals.model, {knob}"))
    other = (*base, *frozen)
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
        kernel = flash.chosen(c.attention, platform, model)
        return memory.training(
            name, sizes, t.rows, t.row_length, t.logit_chunk, t.remat, kept, adapters, kernel
        )

    every = [
        sampling("attempts", PROBLEM, answer),
        sampling("proposals", c.proposals.max_prompt, c.proposals.sampling.max_new_tokens, beside, asked),
        sampling("guided", PROBLEM + answer, c.guided.sampling.max_new_tokens),
        training("sft", other),
        sampling("rl: rollouts", PROBLEM, c.rl.max_new_tokens, (*other, trained, state)),
        memory.scoring("rl: scoring", sizes, PROBLEM + c.rl.max_new_tokens, (*other, trained, state)),
        training("rl: updates", (*other, trained)),
        sampling("validation", PROBLEM, c.eval.sampling.max_new_tokens, (*other, trained, state)),
        sampling("effect", PROBLEM + answer, c.eval.sampling.max_new_tokens, (*base, made)),
        sampling(
            "compare",
            c.proposals.max_prompt,
            c.proposals.sampling.max_new_tokens,
            (*beside, made),
            asked,
        ),
        sampling("gain", PROBLEM + answer, c.guided.sampling.max_new_tokens, (*base, made)),
        sampling("eval", PROBLEM, c.eval.sampling.max_new_tokens, (*other, made)),
        memory.scoring("drift", sizes, PROBLEM + answer, (*other, made)),
    ]
    used = arms.stages(c.arms) | ({"attempts"} if c.problems.hard else set()) | {"eval", "drift"}
    used |= {"validation"} if c.validation.every else set()
    if {"proposals", "guided"} <= used:
        used |= {"effect"} | ({"compare"} if c.proposals.compare else set())
        used |= {"gain"} if c.gain.attempts or c.sft.filter == "gain" else set()
    return [
        stage
        for stage in every
        if stage.name.partition(":")[0] in used and (work.scores(c) or stage.name != "rl: scoring")
    ]


def attention(c: ConfigDict, model: Config, mesh, platform: str) -> str:
    """What attends over a model's pages. Raises: ValueError where what the config names cannot."""
    try:
        return kernels.chosen(c.attention, platform, model, mesh.shape["model"])
    except ValueError as error:
        raise ValueError(f"config.{error}") from None


def models(c: ConfigDict) -> tuple[Config, Config | None]:
    """The model and the proposer's, whose config.json are read and nothing else of them."""
    model = hf_format.read_config(directory(c.model), c.dtype, c.family)
    other = hf_format.read_config(directory(c.proposals.model), c.dtype) if c.proposals.model else None
    return dataclasses.replace(model, param_dtype=c.param_dtype), other


# What fits ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of one kind.

    Attributes:
      devices: all of them. a_host: of one process. platform: "cpu", "gpu" or "tpu". limit: bytes of a device that may
        be used, None where that is not known. kind: its entry in roofline.py, None where there is none.
    """

    devices: int
    a_host: int
    platform: str
    limit: int | None
    kind: roofline.Device | None = None


def named(name: str, devices: int) -> Machine:
    """A machine of roofline.py with so many devices; 0: those of a host. Raises: ValueError."""
    if name not in roofline.NAMES:
        raise ValueError(f"--machine={name}: choose one of {', '.join(roofline.NAMES)}")
    kind = roofline.NAMES[name]
    share = memory.GPU_SHARE if kind.platform == "gpu" else 1.0
    devices = devices or kind.a_host
    limit = round(share * kind.memory * memory.GIB)
    return Machine(devices, min(devices, kind.a_host), kind.platform, limit, kind)


def at_hand(c: ConfigDict) -> Machine:
    """The devices that jax has."""
    first = jax.local_devices()[0]
    limit = memory.device_bytes(first) or round(c.device_gib * memory.GIB) or None
    kind = roofline.DEVICES.get(first.device_kind)
    return Machine(jax.device_count(), jax.local_device_count(), first.platform, limit, kind)


ROWS = (*range(256, 0, -16), 8)  # of a replica, that are tried in this order
WORTH = 0.9  # of the hours, at most, for which weights are cut over more devices than memory asks for
MICRO_BATCH = 16_384  # tokens of a micro-batch on each device are enough for its matrices


def fitted(
    c: ConfigDict, machine: Machine, model: Config, proposer_model: Config | None = None
) -> ConfigDict:
    """The config with numbers in place of 0, what fits: of mesh.model, slots and train.rows.

    The weights are cut over as few devices as memory asks for, and over twice as many where the run is then expected to
    take less than `WORTH` of the hours, since more rows fit; always within a host. What is trained is cut over both
    axes of the mesh anyhow. Rows are as many as the pages hold beside everything else; those of a micro-batch as many
    as its devices need to be busy.

    Raises: ValueError for a mesh that is not the machine's, where the memory is not known, or where nothing fits.
    """
    if c.mesh.model and c.slots and c.train.rows:
        return c
    if machine.limit is None:
        names = [name for name in ("mesh.model", "slots", "train.rows") if not at(c, name)]
        raise ValueError(
            f"config.{names[0]} = 0 is what fits, and these {machine.platform} devices do not say what they hold; set "
            f"config.device_gib, or {', '.join(f'config.{name}' for name in names)}"
        )
    plan: list[memory.Stage] = []
    chosen, took = None, math.inf
    for cut in cuts(c, machine):
        for one in candidates(c, machine, cut):
            mesh = mesh_of(one, machine)
            plan = stages(one, model, mesh, proposer_model, machine.platform)
            rows = one.slots // mesh.shape["data"]
            if all(stage.bytes <= machine.limit for stage in plan) and (
                c.slots or roomy(c, plan, machine, rows)
            ):
                parts = work.stages(one, work.Assumed())
                known = hours(one, machine, plan, parts, model, proposer_model)
                expected = sum(part or 0.0 for part in known)
                if not chosen or expected < WORTH * took:
                    chosen, took = one, expected
                break
    if chosen:
        return chosen
    if not plan:  # no size of "model" goes with this mesh.data
        mesh_sizes(c.mesh.data, 1, machine.devices, machine.platform)
    memory.refuse(plan, machine.limit, machine.platform)
    raise ValueError(
        f"no {min(ROWS)} rows of a replica have room for the responses of this config on {machine.devices} "
        f"{machine.platform} devices: set config.slots lower, or take a smaller config.model"
    )


def cuts(c: ConfigDict, machine: Machine) -> list[int]:
    """The sizes of mesh.model that go with the machine's hosts and with mesh.data."""
    if c.mesh.model:
        return [c.mesh.model]
    within = [n for n in range(1, machine.a_host + 1) if machine.a_host % n == 0]
    return [n for n in within if c.mesh.data <= 0 or c.mesh.data * n == machine.devices]


def candidates(c: ConfigDict, machine: Machine, cut: int) -> Iterator[ConfigDict]:
    """Configs with sizes that the machine may have room for, those before that are to be preferred."""
    data, _ = mesh_sizes(c.mesh.data, cut, machine.devices, machine.platform)
    each = max(1, MICRO_BATCH // c.train.row_length)
    micro = [data * (each >> n) for n in range(each.bit_length())]
    for slots in [c.slots] if c.slots else [data * rows for rows in ROWS]:
        for rows in [c.train.rows] if c.train.rows else micro:
            sized = c.copy_and_resolve_references()
            sized.mesh.model, sized.slots, sized.train.rows = cut, slots, rows
            yield sized


def roomy(c: ConfigDict, plan: list[memory.Stage], machine: Machine, rows: int) -> bool:
    """Whether the pages of some stage hold what so many rows do: on average a third of their longest."""
    # Of responses with 7,200 tokens of 16,384 on average a row holds 5,300 (benchmarks/replay.py).
    return any(
        pool_tokens(c, stage, machine) >= rows * stage.pages.longest / 3 for stage in plan if stage.pages
    )


def pool_tokens(c: ConfigDict, stage: memory.Stage, machine: Machine) -> float:
    """Tokens that the pages of a replica hold at a stage that draws, beside everything else (`Engine._most_pages`)."""
    assert stage.pages and machine.limit
    beside = stage.bytes - stage.pages.bytes
    free = c.cache_gib * memory.GIB or SHARE * machine.limit - beside
    return free / stage.pages.token


def at(c: ConfigDict, path: str):
    for name in path.split("."):
        c = c[name]
    return c


def mesh_of(c: ConfigDict, machine: Machine) -> AbstractMesh:
    """The mesh that `make_mesh` makes of the machine's devices, without them. Raises: ValueError, as that does."""
    sizes = mesh_sizes(c.mesh.data, c.mesh.model, machine.devices, machine.platform)
    return AbstractMesh(sizes, ("data", "model"))


# Tokens and hours -----------------------------------------------------------------------------------------------------


def hours(
    c: ConfigDict,
    machine: Machine,
    plan: list[memory.Stage],
    parts: list[work.Draw | work.Read],
    model: Config,
    proposer_model: Config | None = None,
) -> list[float | None]:
    """Hours of each part of the work on the machine; None for devices that roofline.py does not know."""
    kind = machine.kind
    if kind is None or machine.limit is None:
        return [None] * len(parts)
    of_stage = {stage.name: stage for stage in plan}
    data, cut = mesh_sizes(c.mesh.data, c.mesh.model, machine.devices)
    found: list[float | None] = []
    for part in parts:
        asked = part.stage in ("proposals", "compare")
        shape = roofline.Shape.of(proposer_model if proposer_model and asked else model)
        if isinstance(part, work.Read):
            found.append(work.read_hours(part, kind, shape, machine.devices))
            continue
        stage = of_stage["attempts" if part.stage == "attempts held out" else part.stage]
        pool = pool_tokens(c, stage, machine)
        found.append(work.draw_hours(part, kind, shape, data, cut, c.slots // data, pool))
    return found


def table(parts: list[work.Draw | work.Read], took: list[float | None]) -> str:
    """Tokens and hours a stage; a stage of several parts has one line."""
    lines = ["work of one seed", f"  {'':<20}{'M tokens':>10}{'hours':>9}"]

    def line(name: str, chosen: list[int]) -> str:
        tokens = sum(parts[i].tokens for i in chosen) / 1e6
        known = [hours for i in chosen if (hours := took[i]) is not None]
        return f"  {name:<20}{tokens:>10,.2f}{f'{sum(known):,.1f}' if len(known) == len(chosen) else '?':>9}"

    for name in dict.fromkeys(part.stage for part in parts):
        lines.append(line(name, [i for i, part in enumerate(parts) if part.stage == name]))
    drawn = sum(part.tokens for part in parts if isinstance(part, work.Draw)) / 1e6
    return "\n".join(
        [*lines, line("all", [*range(len(parts))]), f"  {drawn:,.1f} M of these tokens are drawn"]
    )


def sizes_of(c: ConfigDict, mesh, name: str) -> str:
    """What was chosen, or given, of the sizes that a machine has room for. name: the devices'."""
    data, cut = mesh.shape["data"], mesh.shape["model"]
    return f"{data * cut} x {name}: mesh {data} x {cut}, slots {c.slots}, train.rows {c.train.rows}"


def report(c: ConfigDict, machine: Machine, assumed: work.Assumed) -> str:
    """The whole plan as text. Raises: ValueError, naming the knob to turn, where a stage does not fit."""
    model, other = models(c)
    c = fitted(c, machine, model, other)
    mesh = mesh_of(c, machine)
    plan = stages(c, model, mesh, other, machine.platform)
    memory.refuse(plan, machine.limit, machine.platform)
    parts = work.stages(c, assumed)
    took = hours(c, machine, plan, parts, model, other)
    name = machine.kind.name if machine.kind else machine.platform
    lines = [sizes_of(c, mesh, name), memory.table(plan, machine.limit), table(parts, took)]
    speeds = roofline.told(machine.kind) if machine.kind else "these devices are not in roofline.py"
    assumptions = [f"assumed (--assume=NAME=NUMBER): {assumed}", f"hours, not measured: {speeds}"]
    return "\n".join([*lines, *assumptions])


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    c = CONFIG.value
    try:
        default.check(c)
        assumed = work.Assumed().changed(ASSUME.value)
        if MACHINE.value:
            jax.config.update("jax_platforms", "cpu")  # shapes alone: the accelerators may be at work
            machine = named(MACHINE.value, DEVICES.value)
        else:
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # memory is counted, not taken
            if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # as run.py
                os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(memory.GPU_SHARE))
            machine = at_hand(c)
        print(report(c, machine, assumed))
    except ValueError as error:
        sys.exit(f"\nint_jax: {error}")


if __name__ == "__main__":
    CONFIG = define_config()
    MACHINE = flags.DEFINE_string(
        "machine", "", "a device of int_jax/roofline.py: " + ", ".join(roofline.NAMES)
    )
    DEVICES = flags.DEFINE_integer("devices", 0, "how many of these; 0: those of a host")
    ASSUME = flags.DEFINE_multi_string("assume", [], "NAME=NUMBER, in place of what is assumed")
    app.run(main)
