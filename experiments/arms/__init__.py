"""Arms: the methods that a run compares, one module each.

An arm has an `ARM`: what it makes, which stages it needs, and a function over the lab that makes it. The knob `arms`
names the modules, which may also lie outside; config, preflight, memory plan, loop, report and legend read the rest
here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from int_jax.intervention_training import failures
from int_jax.lab import Lab
from int_jax.modules import Kind
from int_jax.rows import GuidedRow
from int_jax.types import Trace

STAGES = ("attempts", "proposals", "guided", "sft", "rl")


@dataclasses.dataclass(frozen=True)
class Policy:
    """How a policy is shown: its label, the colour and dashes of its lines (see report/page.py), and whether its pass@1
    is one of the report's headlines."""

    label: str
    color: str = "grey"
    dash: str = ""
    headline: bool = False


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method to be compared with others.

    Attributes:
      policies: what it makes, by name, each from the one before it. stages: those of STAGES that it goes through.
      train: makes them; what cannot be made raises int_jax.lab.Stopped.
      after: policies that are made before it where the run has them. needs: those that the run must have.
      at_least: what knobs must be for it, such as {"guided.keep": True}. roles: those of privileged.ROLES that it asks
        of the domain. oracle: whether the domain must know where an attempt's first error is.
      baseline: whether InT + RL's gain over its policies is reported.
    """

    policies: dict[str, Policy]
    stages: tuple[str, ...]
    train: Callable[[Lab], object]
    after: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    at_least: Mapping[str, int] = dataclasses.field(default_factory=dict)
    roles: tuple[str, ...] = ()
    oracle: bool = False
    baseline: bool = False

    def __post_init__(self):
        for name in self.policies:
            if not name.isidentifier() or name == "base":
                raise ValueError(
                    f"policy {name!r}: it names folders and style classes: take letters, digits and _, and not 'base'"
                )


def interventions(lab: Lab) -> tuple[list[GuidedRow], list[Trace]]:
    """InT's guided attempts and how they fared, and the wrong ones that they were made of, for its variants."""
    wrong = failures(lab.attempts(lab.tasks), lab.unsolved)
    return lab.guided(lab.splice(wrong, lab.proposals(wrong))), wrong


BASE = Policy("base", headline=True)
KIND = Kind("arm", __name__, ("ARM",))


def names() -> list[str]:
    """The arms there are."""
    return KIND.names()


def load(name: str) -> Arm:
    """The `ARM` of experiments/arms/<name>.py, of a module by its dotted name, or of a file of one's own.

    Raises: ValueError, as modules.Kind.load.
    """
    return KIND.load(name).ARM


def ordered(chosen: Sequence[str]) -> list[Arm]:
    """The arms of a run, each behind those that it must follow, otherwise as they are given."""
    waiting, done = [load(name) for name in chosen], []
    while waiting:
        # The first arm that no other waiting one must precede; where they wait for one another, as they are given.
        made = [name for arm in waiting for name in arm.policies]
        first = next(
            (arm for arm in waiting if not {*arm.after, *arm.needs} & ({*made} - {*arm.policies})), waiting[0]
        )
        waiting.remove(first)
        done.append(first)
    return done


def policies(chosen: Sequence[str]) -> dict[str, Policy]:
    """Everything that is evaluated, by name: the base model, then what the arms make."""
    return {"base": BASE} | {name: one for arm in ordered(chosen) for name, one in arm.policies.items()}


def stages(chosen: Sequence[str]) -> set[str]:
    """The stages that a run goes through for its arms."""
    return {stage for name in chosen for stage in load(name).stages}


def shown(chosen: Sequence[str]) -> list[dict[str, str | bool]]:
    """`policies` as the report takes them: the base model and the baselines first."""
    every = policies(chosen)
    order = dict.fromkeys(["base", *baselines(chosen), *every])
    return [{"name": name, **dataclasses.asdict(every[name])} for name in order]


def baselines(chosen: Sequence[str]) -> list[str]:
    """The policies that InT + RL is compared with."""
    return [name for arm in ordered(chosen) if arm.baseline for name in arm.policies]
