"""Programs with unit tests: a response is prose and blocks of Python, its program is the blocks one after the other.

As in a notebook a later block may use or replace what an earlier one defines, and the blocks of Python that the problem
states (a signature, helpers) come before all. The tests are a task's `answer`: Python with asserts, whole, of whatever
length; the names that they use and do not define are the program's to give. They run in a process apart from the
program's (sandbox.py), within limits of time and memory.

A step is a paragraph or a whole block: the blank lines within a block end none. An intervention takes the place of a
step, and the policy goes on behind it: inside a block its prose would be read as code, and the rest of the block would
be lost with the fence that closes it. So corrections go into the plan, or into one block of a program that is written
in several. A step that alone makes a program that passes is the solution, and leaks.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from int_jax import privileged
from int_jax.domains import PROMPTS, TextDomain, said, template
from int_jax.domains.code import problems
from int_jax.domains.code.fences import fenced, mark_after, python_blocks
from int_jax.domains.code.problems import NAME, SPLITS
from int_jax.domains.code.sandbox import DEADLINE_S, MEMORY_MIB, Item, shared
from int_jax.knobs import Knob
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task, Trace, Verdict

PROPOSAL_ROLES: tuple[str, ...] = ("teacher", "checker")
MAX_CHARS = 100_000  # of a program
SPAN = re.compile(r"`([^`\n]+)`")


class Code(TextDomain):
    """The domain, over a tokenizer. See `domains.Domain`.

    Where an attempt first goes wrong it does not know: a program that is cut short fails its tests in any case.
    """

    name = NAME
    splits = SPLITS
    proposal_roles = PROPOSAL_ROLES
    roles: tuple[str, ...] = privileged.ROLES
    KNOBS: ClassVar = {
        "changes": Knob((2, 3), "things done to the items in a hard problem", at_least=1, order="range"),
        "instruction": Knob(
            "Say step by step what to do, with a blank line between steps, and write the program in blocks that begin "
            "with ```python. All blocks together, in their order, are the program.",
            "what is said to the solver after the problem",
        ),
        "program": Knob(
            "joined",
            "which blocks of a response are its program: all, or the last",
            choices=("joined", "last"),
        ),
        "score": Knob(
            "passed",
            "of a verdict: 1 if all tests pass, else 0; share: of the asserts that hold",
            choices=("passed", "share"),
        ),
        "deadline_s": Knob(DEADLINE_S, "seconds for one program and its tests", above=0),
        "memory_mib": Knob(MEMORY_MIB, "address space of a program, and of its tests", at_least=64),
        "unguarded": Knob(
            False,
            "run programs also where the kernel cannot hold them: an audit hook stops accidents, not attacks",
        ),
    }

    def __init__(self, tokenizer: Tokenizer, **knobs: Any):
        super().__init__(tokenizer, **knobs)
        roles = (*PROPOSAL_ROLES, *self.roles)
        self.prompts = {role: template(PROMPTS / NAME / f"{role}.jinja") for role in roles}
        self.sandbox = shared(*(self.knobs[name] for name in ("deadline_s", "memory_mib", "unguarded")))

    def tasks(self, split: str, seed: int, count: int) -> list[Task]:
        """`count` distinct problems of a split; those of "train" have one or two changes.

        Raises: ValueError where there are not so many.
        """
        if split not in SPLITS:
            raise ValueError(f"code has no split {split!r}: choose one of {', '.join(SPLITS)}")
        low, high = self.knobs["changes"] if split != "train" else (1, 2)
        rng = np.random.default_rng([seed, SPLITS.index(split)])

        def draw(number: str) -> Task | None:
            one = problems.draw(rng, int(rng.integers(low, high + 1)))
            own = problems.split_of(one.statement) == split and one.varied
            return problems.task(one, f"{split}-{seed}-{number}") if own else None

        way_out = "ask for fewer or allow more changes"
        return self._distinct(count, draw, split, f"{low} to {high} changes", way_out)

    def view(self, task: Task, steps: list[str], role: str) -> list[dict[str, str]]:
        """The user turn that a role sees: "solver" the problem alone; "teacher" also the reference; "checker", in the
        same conversation after the teacher's own solution, the numbered attempt; "hinted" the problem and a beginning
        of the reference; "reflector" problem, reference and numbered attempt. Nobody sees the tests."""
        if role == "solver":
            return [said("user", f"{task.problem}\n\n{self.knobs['instruction']}".strip())]
        self._check_role(task, role, self.prompts)
        seen = {"problem": task.problem, "reference": task.reference, "steps": steps}
        told = self.prompts[role].render(seen | {"instruction": self.knobs["instruction"]})
        return [said("user", told)]

    def steps(self, tokens: Any, start: int = 0) -> tuple[int, ...]:
        """Where paragraphs and blocks end: a blank line within a block ends no step."""
        ends = super().steps(tokens, start)
        within = self._within_block(tokens, start, ends)
        # The last step ends where the response ends, in an open block, too.
        return tuple(end for end, inside in zip(ends, within, strict=True) if not inside or end == ends[-1])

    def _within_block(self, tokens: Any, start: int, ends: tuple[int, ...]) -> Iterator[bool]:
        """Whether each of the places lies within a block."""
        # mark: the fence that is open. line: what the last line has so far, since a step may end within it.
        mark, line = "", ""
        for end in ends:
            *lines, line = (line + self.tokenizer.text(tokens[start:end])).split("\n")
            for one in lines:
                mark = mark_after(mark, one)
            start = end
            yield bool(mark)

    def reference_response(self, task: Task) -> str:
        """The reference, as a block if it holds none."""
        return task.reference if python_blocks(task.reference) else fenced(task.reference)

    def answer(self, trace: Trace) -> str | None:
        """The program of a response."""
        found = python_blocks(self.tokenizer.text(trace.response))
        return "\n\n".join(found if self.knobs["program"] == "joined" else found[-1:]) or None

    def verify(self, trace: Trace) -> Verdict:
        return self.verify_many([trace])[0]

    def verify_many(self, traces: list[Trace]) -> list[Verdict]:
        """By the tests, side by side; a response that was cut off is "truncated" unless it passes.

        "no_answer": no block of Python. "unparsable": Python refuses it, or it is too long. "wrong": an assert fails,
        or the program ends, raises or exits by itself. "timeout": too long, or more memory or stack than it may have.

        Raises: ValueError for a task whose tests cannot be used; RuntimeError, see `sandbox.Sandbox.judge`.
        """
        programs = [self.answer(trace) for trace in traces]
        runs = [i for i, program in enumerate(programs) if program and len(program) <= MAX_CHARS]
        outcomes = dict(
            zip(
                runs,
                self.sandbox.judge([self._item(traces[i].task, programs[i] or "") for i in runs]),
                strict=True,
            )
        )
        verdicts = []
        for i, trace in enumerate(traces):
            reason, share = "unparsable" if programs[i] else "no_answer", 0.0
            if i in outcomes:
                reason, share, detail = outcomes[i]
                if not reason:
                    raise ValueError(f"task {trace.task.id}: {detail}")
            passed = reason == "correct"
            if trace.stop == "length" and not passed:
                reason = "truncated"
            verdicts.append(
                Verdict(passed, share if self.knobs["score"] == "share" else float(passed), reason)
            )
        return verdicts

    def _item(self, task: Task, program: str) -> Item:
        return Item(tuple(python_blocks(task.problem)), program, task.answer)

    def faults(self, tasks: list[Task]) -> list[str]:
        """Why a task cannot be used: its tests, or a reference that fails them. Without a reference it serves RL."""
        given = [i for i, task in enumerate(tasks) if task.reference.strip()]
        programs = ["\n\n".join(python_blocks(self.reference_response(tasks[i]))) for i in given]
        items = [self._item(tasks[i], program) for i, program in zip(given, programs, strict=True)]
        found = [""] * len(tasks)
        for i, outcome in zip(given, self.sandbox.judge(items), strict=True):
            if not outcome.reason:
                found[i] = outcome.detail
            elif outcome.reason != "correct":
                found[i] = f"its own reference fails its tests ({outcome.reason}): {outcome.detail}"
        return found

    def leaks(self, task: Task, text: str) -> bool:
        """Whether a step makes a program that passes: by its blocks, or what it sets in code (`like this`), alone or as
        the body of the function that the problem states."""
        code = "\n".join(python_blocks(text) or SPAN.findall(text))
        if not code or len(code) > MAX_CHARS:
            return False
        given = python_blocks(task.problem)[-1:]
        # "return 2 * x" is no program; under "def double(x):" it is.
        indented = "\n".join(f"    {line}" for line in code.split("\n"))
        programs = [code, *(f"{one.rstrip()}\n{indented}" for one in given)]
        return any(
            one.reason == "correct" for one in self.sandbox.judge([self._item(task, p) for p in programs])
        )


build = Code
