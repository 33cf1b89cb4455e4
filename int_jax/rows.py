"""What the stages of a run make of one item each: typed rows, stored one a line as JSON (`types.to_json`).

A row knows what it belongs to (`id`), so that rows of a file of the user's own are matched by it, never by their place.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from int_jax import privileged
from int_jax.estimates import Vote
from int_jax.types import Intervention, Task, Trace


class Stage(NamedTuple):
    """What is computed under one name, and kept there.

    Attributes:
      kind: one of ROWS; tokens and seconds are counted by it. of: what it is made of: a policy, a proposer.
      round: how many times the same was done before, with other random numbers.
    """

    kind: str
    of: str = ""
    round: int = 0

    @property
    def name(self) -> str:
        """The name of its folder: "eval_int_rl"; from the second round on "attempts_round1"."""
        return "_".join(
            [self.kind, *([self.of] if self.of else []), *([f"round{self.round}"] * bool(self.round))]
        )


ATTEMPTS, PROPOSALS, GUIDED, GAIN = map(Stage, ("attempts", "proposals", "guided", "gain"))  # those of InT


def id_of(item: Task | Trace) -> tuple:
    """What names a problem (what it says, too: ids alone may be lines of a file), or an attempt: its problem's id and
    its random stream (seed, sample)."""
    return (item.id, item.problem, item.answer) if isinstance(item, Task) else (item.task.id, *item.key)


def check_counts(row, *names: str) -> None:
    for name in names:
        count = getattr(row, name)
        # Not isinstance: True is an int, too.
        if type(count) is not int or count < 0:
            raise ValueError(f"{name} = {count!r} is no count")


def parted(group: list[Trace]) -> tuple[tuple[Trace, ...], tuple[Trace, ...]]:
    """The wrong and the right ones of some judged traces."""
    wrong = tuple(trace for trace in group if not trace.judged.passed)
    return wrong, tuple(trace for trace in group if trace.judged.passed)


class Row:
    """A row of one item; `id` is the item's where the rows may come from a file."""

    def check(self, item) -> None:
        """Raises: ValueError where the row cannot belong to the item, though it has its id."""


@dataclasses.dataclass(frozen=True)
class AttemptRow(Row):
    """A problem and how its attempts fared. samples, correct: drawn, and right. wrong, right: the first few of each."""

    task: Task
    samples: int
    correct: int
    wrong: tuple[Trace, ...] = ()
    right: tuple[Trace, ...] = ()

    def __post_init__(self):
        check_counts(self, "samples", "correct")
        names = [id_of(trace) for trace in (*self.wrong, *self.right)]
        # id_of a trace: (task, seed, sample).
        if {name[0] for name in names} - {self.task.id} or len({*names}) < len(names):
            raise ValueError(f"its attempts are of another problem, or two of the same key: {names}")

    @classmethod
    def of(cls, task: Task, group: list[Trace], keep: int, keep_right: int = 0) -> "AttemptRow":
        """The row of a problem's judged attempts, with the first `keep` wrong and `keep_right` right ones."""
        privileged.refuse(group, "attempts")
        wrong, right = parted(group)
        return cls(task, len(group), len(right), wrong[:keep], right[:keep_right])

    @property
    def id(self) -> tuple:
        return id_of(self.task)


@dataclasses.dataclass(frozen=True)
class ProposalRow(Row):
    """What a proposer made of one wrong attempt.

    Attributes:
      task, attempt: the id of its problem, and its key. intervention: the one to use, or None.
      drop: why there is none, one of proposers.DROPS, or "". candidates: all that were drawn (`proposers.Drops.tried`).
    """

    task: str
    attempt: tuple[int, int]
    intervention: Intervention | None
    drop: str
    candidates: tuple[dict[str, Any], ...] = ()

    def __post_init__(self):
        if (self.intervention is None) != bool(self.drop):
            raise ValueError("either an intervention or, as drop, why there is none")

    @property
    def id(self) -> tuple:
        return self.task, *self.attempt

    def check(self, item: Trace) -> None:
        step, steps = self.intervention.step if self.intervention else 0, len(item.step_ends)
        if self.intervention and not 0 <= step < steps:
            raise ValueError(f"step {step} (0-based) of an attempt of {steps} steps")


@dataclasses.dataclass(frozen=True)
class GuidedRow(Row):
    """A guided attempt and how its continuations fared.

    tries, successes: continuations drawn, and right. shown: (text, passed) of the first few. wrong, right: the first
    of each, whole, with the key of the guided attempt, where it was kept.
    """

    trace: Trace
    tries: int
    successes: int
    shown: tuple[tuple[str, bool], ...] = ()
    wrong: tuple[Trace, ...] = ()
    right: tuple[Trace, ...] = ()

    def __post_init__(self):
        check_counts(self, "tries", "successes")

    @property
    def id(self) -> tuple:
        return id_of(self.trace)


@dataclasses.dataclass(frozen=True)
class GainRow(Row):
    """Scores of paired continuations of an attempt: the k-th with an intervention (`mended`) and the k-th with its own
    step in that place (`left`) draw from the same random stream and meet the same partner.

    task, attempt: the id of its problem, and its key. shown: the text of the first of each.
    """

    task: str
    attempt: tuple[int, int]
    mended: tuple[float, ...]
    left: tuple[float, ...]
    shown: tuple[str, str] = ("", "")

    @property
    def id(self) -> tuple:
        return self.task, *self.attempt

    @property
    def gain(self) -> float:
        """The mean difference; 0 where nothing was drawn."""
        return float(np.mean(self.mended) - np.mean(self.left)) if self.mended else 0.0


@dataclasses.dataclass(frozen=True)
class EffectRow(Row):
    """Continuations from one of the four conditions of Table 1, at one problem."""

    condition: str
    samples: int
    correct: int


@dataclasses.dataclass(frozen=True)
class EvalRow(Row):
    """How a policy fared at one problem of a set.

    votes: (answer, count, right) of its answers. differ: the answers on which the domain's graders differ.
    scores: of each sample, where the domain grades. measures: means over the samples (`Domain.measures`).
    """

    set: str
    task: str
    samples: int
    correct: int
    votes: tuple[Vote, ...] = ()
    differ: tuple[dict[str, str], ...] = ()
    scores: tuple[float, ...] = ()
    measures: dict[str, float | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DriftRow(Row):
    """Means over tokens under one policy, nats, by name; "" is the base model. None where there are no tokens."""

    policy: str
    means: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class RolloutRow(Row):
    """A judged rollout of a batch of the policy gradient.

    group: the number of its group, from 0. reward: the weighted sum of its parts. advantage: [] or [length], one number
    or one for each token; None where its group is no part of the batch (rl.refill).
    """

    trace: Trace
    group: int
    reward: float
    advantage: NDArray[np.float64] | None


ROWS: dict[str, type[Row]] = {
    "attempts": AttemptRow,
    "attempts_held_out": AttemptRow,
    "proposals": ProposalRow,
    "compare": ProposalRow,
    "guided": GuidedRow,
    "rewrites": GuidedRow,
    "gain": GainRow,
    "effect": EffectRow,
    "eval": EvalRow,
    "drift": DriftRow,
}
