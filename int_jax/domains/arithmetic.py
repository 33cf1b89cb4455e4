"""Chains of +, - and x on small numbers: a domain small enough for a laptop, with an exact oracle.

A problem states a chain in words ("Start with 7, add 5, times 3."). The model's own solution is one computation a
step, steps separated by a blank line, ending in a boxed answer; the reference is in another style, the running values
alone ("12, 36"). Every value lies in 0..99. The operations have a Zipf-like frequency, so a model trained on them
has natural gaps: problems made of the rare ones are hard for it.
"""

import dataclasses
import re
from typing import ClassVar

import numpy as np

from int_jax import privileged
from int_jax.domains import TextDomain
from int_jax.knobs import Knob
from int_jax.types import Task, Trace

NAME = "arithmetic"
MAX_STEPS = 8
MAX_VALUE = 99
WORDS = {"+": "add", "-": "take", "x": "times"}
# Commonest first: the operand decides, then the operator. Rank r has frequency (1 + r / 8)^-exponent (Zipf-Mandelbrot).
# +1, -1, +2, -2, x2, +3, ...; x1, which changes nothing, is left out.
OPERATIONS = [(op, k) for k in range(1, 10) for op in "+-x" if (op, k) != ("x", 1)]
NATURAL = 6.0  # the exponent of the embedded model's solving data: x9 is 2,900 times as rare as +1
COMMON = 17  # operations beyond this rank (operand 7 and above) are the rare ones: 0.4% of the natural ones
# The check alone: its log states the reference's values, so no guided solve before it.
PROPOSAL_ROLES: tuple[str, ...] = ("checker",)

# Problems are dealt to splits by a hash of their text, so that no problem is in two of them.
SPLITS: tuple[str, ...] = ("train", "hard_train", "hard_validation", "hard_test")


@dataclasses.dataclass(frozen=True)
class Chain:
    """start, then operations ((op, operand), ...); `values` are the running values."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def values(self) -> list[int]:
        values = [self.start]
        for op, k in self.operations:
            values.append(apply(values[-1], op, k))
        return values[1:]

    @property
    def problem(self) -> str:
        return f"Start with {self.start}, " + ", ".join(f"{WORDS[op]} {k}" for op, k in self.operations) + "."

    @property
    def steps(self) -> list[str]:
        """The model's own style: one computation a step, then the boxed answer."""
        before = [self.start, *self.values]
        lines = [
            f"{v} {op} {k} = {w}" for v, (op, k), w in zip(before, self.operations, self.values, strict=False)
        ]
        return [*lines, boxed(self.values[-1])]

    @property
    def reference(self) -> str:
        return ", ".join(map(str, self.values))


def apply(value: int, op: str, k: int) -> int:
    return value + k if op == "+" else value - k if op == "-" else value * k


def boxed(value: int) -> str:
    return f"\\boxed{{{value}}}"


def chain(rng: np.random.Generator, length: int, exponent: float = NATURAL, rare: int = 0) -> Chain:
    """A random chain of `length` operations, `rare` of them drawn evenly from the rare ones, the rest by frequency."""
    ranks = np.arange(1, len(OPERATIONS) + 1)
    frequency = (1 + ranks / 8) ** -exponent
    value = start = int(rng.integers(1, 10))
    at = set(rng.choice(length, size=min(rare, length), replace=False).tolist())
    operations = []
    for i in range(length):
        # Some operation of each kind always fits, so that the weights have a sum: +7 up to 92, -7 from 7 on.
        fits = np.array([0 <= apply(value, op, k) <= MAX_VALUE for op, k in OPERATIONS])
        weight = np.where(ranks > COMMON, 1.0, 0.0) if i in at else frequency
        weight = weight * fits
        op, k = OPERATIONS[rng.choice(len(OPERATIONS), p=weight / weight.sum())]
        operations.append((op, k))
        value = apply(value, op, k)
    return Chain(start, tuple(operations))


def parse_problem(problem: str) -> Chain:
    """The chain that a problem states; raises ValueError where it states none."""
    match = re.fullmatch(
        r"Start with (\d+), ((?:add|take|times) \d+(?:, (?:add|take|times) \d+)*)\.", problem
    )
    if not match:
        raise ValueError(f"not an arithmetic problem: {problem!r} (expected 'Start with 7, add 5, times 3.')")
    signs = {word: op for op, word in WORDS.items()}
    operations = [part.split() for part in match[2].split(", ")]
    return Chain(int(match[1]), tuple((signs[word], int(k)) for word, k in operations))


def task(one: Chain, name: str) -> Task:
    return Task(name, NAME, one.problem, one.reference, str(one.values[-1]), {"steps": len(one.operations)})


def split_of(problem: str) -> str:
    """The split that owns a problem, by a hash of its text: half train, a sixth each of the hard ones."""
    # FNV-1a of 32 bits: Python's own hash() of a text differs from process to process.
    digest = 2166136261
    for byte in problem.encode():
        digest = (digest ^ byte) * 16777619 % 2**32
    # Of six numbers 0, 1, 2 are train, 3, 4, 5 a hard split each.
    return SPLITS[max(0, (digest >> 7) % 6 - 2)]


def step_value(step: str) -> int | None:
    """The number a step arrives at: the last one in it."""
    # A model may write digits without end, and int() refuses more than 4,300 of them.
    numbers = re.findall(r"\d+", step)
    return int(numbers[-1]) if numbers and len(numbers[-1]) <= 6 else None


def first_wrong(reference: str, steps: list[str]) -> int | None:
    """Index of the first step whose value differs from the reference's; None where every step agrees."""
    values = [int(v) for v in reference.split(", ")]
    # A step for each value, then the box, which holds the last one again.
    expected = [*values, values[-1]]
    for i, step in enumerate(steps):
        if i >= len(expected) or step_value(step) != expected[i]:
            return i
    return None


def numbered(lines) -> str:
    return "\n".join(f"S{i} {line}" for i, line in enumerate(lines, 1))


def verification(reference: str, steps: list[str]) -> tuple[list[str], int | None]:
    """The log a checker writes, one line a step up to the first wrong one, and that step's index."""
    wrong = first_wrong(reference, steps)
    values = reference.split(", ")
    values = [*values, values[-1]]
    # "12 13 wrong": the reference's value, the step's, and the verdict.
    lines = []
    # Up to the first wrong step; one that comes after the box has no value of the reference beside it, and no line.
    for i, step in enumerate(steps[: len(values) if wrong is None else min(wrong + 1, len(values))]):
        value = step_value(step)
        lines.append(f"{values[i]} {'?' if value is None else value} {'wrong' if i == wrong else 'ok'}")
    return lines, wrong


def block(location: int, content: str) -> str:
    """The proposer's final block; `location` counts from 1, 0 and an empty content say that nothing is wrong."""
    return f'<intervention>{{"location": {location}, "content": "{content}"}}</intervention>'


def checker_response(one: Chain, steps: list[str]) -> str:
    """What a perfect checker answers: the log, then the intervention that replaces the first wrong step."""
    lines, wrong = verification(one.reference, steps)
    log = numbered(lines)
    if wrong is None:
        return f"{log}\n{block(0, '')}"
    right = one.steps
    # A step too many is replaced by the last right one, the box.
    return f"{log}\n{block(wrong + 1, right[min(wrong, len(right) - 1)])}"


def corrupted(rng: np.random.Generator, one: Chain) -> list[str]:
    """A wrong attempt at a chain: one mistaken step, sometimes more after it, each later step worked from what came
    before. Most mistakes are in the result, one in ten in the operation; one attempt in twenty has none."""
    length = len(one.operations)
    # first == length: no step is mistaken.
    first = int(rng.integers(0, length)) if rng.random() > 0.05 else length
    value, steps = one.start, []
    for i, (op, k) in enumerate(one.operations):
        if i == first and rng.random() < 0.1:
            if rng.random() < 0.4:
                continue  # a step left out
            op, k = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        result = apply(value, op, k)
        # A result outside 0..99 is no number of the domain: it is replaced as a slip is.
        slip = i == first or (i > first and rng.random() < 0.15)
        if slip or not 0 <= result <= MAX_VALUE:
            near = result + int(rng.choice([-10, -9, -3, -2, -1, 1, 2, 3, 9, 10]))
            result = (
                near if 0 <= near <= MAX_VALUE and rng.random() < 0.7 else int(rng.integers(0, MAX_VALUE + 1))
            )
        steps.append(f"{value} {op} {k} = {result}")
        value = result
    if first == length and rng.random() < 0.3:
        value = int(rng.integers(0, MAX_VALUE + 1))
    return [*steps, boxed(value)]


class Arithmetic(TextDomain):
    """The domain, over a tokenizer. See `domains.Domain`."""

    name = NAME
    splits = SPLITS
    proposal_roles = PROPOSAL_ROLES
    roles: tuple[str, ...] = privileged.ROLES
    oracle = True
    REWARDS: ClassVar[tuple[str, ...]] = ("right_steps",)
    KNOBS: ClassVar = {
        "exponent": Knob(
            NATURAL, "how steeply the frequency of operations falls with their rank", at_least=0
        ),
        "lengths": Knob((5, 8), "operations of a hard problem", at_least=1, order="range"),
        "rare": Knob((3, 5), "of them the rare ones", at_least=0, order="range"),
    }

    def tasks(self, split: str, seed: int, count: int) -> list[Task]:
        """`count` distinct problems of a split; the hard ones are long and hold rare operations.

        Raises: ValueError where there are not so many.
        """
        if split not in SPLITS:
            raise ValueError(f"arithmetic has no split {split!r}: choose one of {', '.join(SPLITS)}")
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        # The knobs shape the hard problems alone.
        low, high = self.knobs["lengths"] if split != "train" else (2, MAX_STEPS)
        rare_low, rare_high = self.knobs["rare"] if split != "train" else (0, 0)

        def draw(number: str) -> Task | None:
            length = int(rng.integers(low, high + 1))
            # By rejection: of all chains those are kept whose text belongs to the split.
            one = chain(rng, length, self.knobs["exponent"], int(rng.integers(rare_low, rare_high + 1)))
            return task(one, f"{split}-{seed}-{number}") if split_of(one.problem) == split else None

        way_out = "ask for fewer or allow longer chains"
        return self._distinct(count, draw, split, f"lengths {low} to {high}", way_out)

    def view(self, task: Task, steps: list[str], role: str) -> list[dict[str, str]]:
        """The user turn that a role sees: "solver" the problem alone, "teacher" also the reference, "checker" both
        and the numbered attempt. "hinted" and "reflector" are asked as the teacher is: the embedded model knows an
        attempt in its prompt only as something to be checked."""
        content = task.problem
        if role in ("teacher", "checker", *self.roles):
            content += f"\nReference:\n{numbered(task.reference.split(', '))}"
        if role == "checker":
            content += f"\nAttempt:\n{numbered(steps)}"
        elif role not in ("solver", "teacher", *self.roles):
            raise ValueError(
                f"arithmetic has no role {role!r}: choose solver, teacher, checker, {', '.join(self.roles)}"
            )
        return [{"role": "user", "content": content}]

    def hint(self, task: Task, share: float) -> str:
        """The first of the running values, at most that share of them."""
        values = task.reference.split(", ")
        return ", ".join(values[: int(share * len(values))])

    def solution(self, task: Task) -> str:
        """The model's own style, which is not the reference's."""
        return self.separator.join(parse_problem(task.problem).steps)

    def leaks(self, task: Task, text: str) -> bool:
        """A step gives the answer away if it boxes something or arrives at the answer's value."""
        return "\\boxed" in text or str(step_value(text)) == task.answer

    def first_error(self, trace: Trace) -> int | None:
        return first_wrong(trace.task.reference, self.step_texts(trace))

    def reward(self, trace: Trace, part: str) -> float:
        """right_steps: the share of the steps before the first wrong one."""
        if part not in self.REWARDS:
            return super().reward(trace, part)
        steps, wrong = len(trace.step_ends), self.first_error(trace)
        return (steps if wrong is None else wrong) / max(steps, 1)

    def correction(self, trace: Trace, step: int) -> str:
        right = parse_problem(trace.task.problem).steps
        return right[min(step, len(right) - 1)]


build = Arithmetic
