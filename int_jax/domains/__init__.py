"""Domains: where problems come from, who sees what, where a step ends, and what counts as solved.

A domain is a module with `build`, a class that keeps the protocol `Domain`: `build(tokenizer, **knobs)` is the domain
over a tokenizer. A config names it by one text (modules.py): "math", "mylab.chess" or "lab/chess.py". Most derive from
`TextDomain`, which knows the rest once there are problems and a view; `python -m int_jax.check domain lab/chess.py`
says what is missing or wrong.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jinja2

from int_jax import modules
from int_jax.knobs import Knob, check, defaults
from int_jax.tokenizer import Tokenizer
from int_jax.types import Reply, Task, Trace, Verdict, normalised
from int_jax.verify import Disagreement, gives_answer, last_boxed

MAX_MISSES = 10_000  # draws in a row without a new problem before `tasks` gives up
PROMPTS = Path(__file__).parents[1] / "assets" / "prompts"  # a folder a domain, a template a role


class Domain(Protocol):
    """What the package asks of a domain.

    Attributes:
      name: of tasks and errors. KNOBS: what may be set of it, a table of `knobs.Knob`, as config.domain.knobs.
      separator: the text that ends a step; "" where steps are turns of a conversation, which a partner replies to.
        turn_tokens: the most tokens of one turn, None for what the conversation may still have. own, other: what the
        two sides are called where a conversation is written down.
      splits: those of which it has problems of its own; () where all come from files. A run asks for hard_train and
        hard_test (hard_validation while knobs are chosen).
      proposal_roles: the roles that a self-verifying proposer plays in turn, the last of which sees the attempt:
        ("checker",) or ("teacher", "checker"). roles: those of privileged.ROLES that its `view` knows, too.
      graded: whether a score may lie between 0 and 1.
      REWARDS: names of parts of the reward that it has beside those of every domain.
      oracle: whether it knows an attempt's first error and its correction. graders: where it has two, their names, the
        one that decides first: a run then reports where they differ.
    """

    name: str
    KNOBS: ClassVar[dict[str, Knob]]
    REWARDS: ClassVar[tuple[str, ...]]
    separator: str
    turn_tokens: int | None
    own: str
    other: str
    splits: tuple[str, ...]
    proposal_roles: tuple[str, ...]
    roles: tuple[str, ...]
    oracle: bool
    graded: bool
    graders: tuple[str, ...]

    def __init__(self, tokenizer: Tokenizer, **knobs: Any) -> None: ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The policy's, which it was made with."""

    @property
    def slow_partner(self) -> bool:
        """Whether its partner's replies take so long that others are drawn meanwhile."""

    def tasks(self, split: str, seed: int, count: int) -> list[Task]:
        """`count` problems of a split, the same each time; no problem is in two splits. Raises ValueError where there
        are not so many."""

    def faults(self, tasks: list[Task]) -> list[str]:
        """Why each of some problems from files cannot be used, "" where it can: tests that its own reference fails."""

    def view(self, task: Task, steps: list[str], role: str) -> list[dict[str, str]]:
        """The chat messages that a role sees, the last one its own question: the one place that decides it.

        "solver" sees the problem alone. Of the attempt, the texts of its `steps` are shown numbered from 1, one number
        each; a proposer's location is such a number. An attempt may have hundreds, and headings of its own ("Step 3"),
        so a number must not look like one. Nothing is left out to make a view fit: what is too long for a prompt is
        counted and skipped by the proposer. Raises ValueError for another role.
        """

    def steps(self, tokens: Any, start: int = 0) -> tuple[int, ...]:
        """Token offsets (exclusive) where the steps of tokens[start:] end."""

    def step_texts(self, trace: Trace) -> list[str]:
        """The text of each step, without separator and special tokens."""

    def reference_response(self, task: Task) -> str:
        """The reference as a response, in its own words, with the answer where a response gives it."""

    def hint(self, task: Task, share: float) -> str:
        """The beginning of the reference, at most a `share` of it; "" where so little says nothing."""

    def solution(self, task: Task) -> str:
        """A response that solves the task as the policy would write it."""

    def next_turn(self, trace: Trace) -> str:
        """What is best said next in an open trace: the `solution`, or one turn of a conversation. Raises ValueError
        where that is not known."""

    def answer(self, trace: Trace) -> str | None:
        """The answer that a response gives, None if it gives none: what a majority vote counts."""

    def verify(self, trace: Trace) -> Verdict:
        """What a response is worth, whatever stands in it."""

    def verify_many(self, traces: list[Trace]) -> list[Verdict]:
        """`verify` of each, perhaps side by side."""

    def disagreements(self, traces: list[Trace]) -> tuple[float, list[Disagreement]]:
        """Where the graders differ: (share of the traces, the cases)."""

    def reward(self, trace: Trace, part: str) -> float:
        """One of its REWARDS. Raises ValueError for another part."""

    def measures(self, trace: Trace) -> dict[str, float | None]:
        """What is counted of a response beside its score, by name, None where there is nothing to count; {} for none.
        A run reports the means."""

    def leaks(self, task: Task, text: str) -> bool:
        """Whether a step gives the final answer away."""

    def replies(self, traces: list[Trace]) -> list[Reply]:
        """What the partner says to the last turn of each trace; a function of the task and the turns before alone, so
        that a conversation that is cut and said again goes on as it did."""

    def first_error(self, trace: Trace) -> int | None:
        """The index of the first wrong step; None where none is wrong, or where it is not known (`oracle`)."""

    def regrets(self, trace: Trace) -> list[float] | None:
        """What each step lost of the score, in expectation, >= 0; None where that is not known."""

    def correction(self, trace: Trace, step: int) -> str:
        """The right step in place of a wrong one. Raises ValueError without an `oracle`."""


KIND = modules.Kind(
    "domain",
    __name__,
    ("build", *(f"build.{name}" for name in modules.members(Domain) if name != "tokenizer")),
    apart=("authored", "dialogue"),
)
names = KIND.names


def find(name: str) -> type[Domain]:
    """The `build` of a domain's module: the domain before it has a tokenizer. Raises: see `modules.Kind.load`."""
    return KIND.load(name).build


def load(name: str, tokenizer: Tokenizer, **knobs: Any) -> Domain:
    """The domain that a text names, over a tokenizer; knobs that are not given have their defaults."""
    return find(name)(tokenizer, **knobs)


class TextDomain:
    """A domain of free text, but for its `name`, its `view`, and `tasks` if it has problems of its own.

    Steps end in line breaks, the answer stands in the response's last box and counts if it is the task's to the letter.
    A partner is silent; where an attempt goes wrong it does not know.

    Raises: ValueError for a knob that is not in KNOBS, or has a value that it may not have.
    """

    name: str
    KNOBS: ClassVar[dict[str, Knob]] = {}
    REWARDS: ClassVar[tuple[str, ...]] = ()
    separator = "\n\n"
    turn_tokens: int | None = None
    slow_partner = False
    own, other = "you", "partner"
    splits: tuple[str, ...] = ()
    proposal_roles: tuple[str, ...] = ("teacher", "checker")
    roles: tuple[str, ...] = ()
    oracle = False
    graded = False
    graders: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer, **knobs: Any):
        self.tokenizer = tokenizer
        self.knobs = defaults(self.KNOBS) | knobs
        check(self.KNOBS, self.knobs, self.name)

    def tasks(self, split: str, seed: int, count: int) -> list[Task]:
        """There are none: problems come from files. Raises ValueError, naming the knobs to set."""
        raise ValueError(
            f"{self.name} has no problems of its own (split {split!r}): set config.problems.train_file and "
            "config.problems.test_file to files with the columns problem, answer, reference_solution"
        )

    def faults(self, tasks: list[Task]) -> list[str]:
        return [""] * len(tasks)

    def _distinct(
        self, count: int, draw: Callable[[str], Task | None], split: str, asked: str, way_out: str
    ) -> list[Task]:
        """`count` tasks of distinct problems, as `draw` makes them one after the other of a number for their ids; None
        where what it drew is of another split. Raises: ValueError, with `asked` and `way_out`, where there are not so
        many."""
        found: dict[str, Task] = {}
        misses = 0  # draws since the last new problem
        while len(found) < count:
            if misses == MAX_MISSES:
                raise ValueError(
                    f"{self.name} has no {count} problems in split {split!r} with {asked}: {len(found)} were found, "
                    f"then none in {misses:,} draws; {way_out}"
                )
            misses += 1
            task = draw(str(len(found)))
            if task and task.problem not in found:
                found[task.problem] = task
                misses = 0
        return list(found.values())

    def _check_role(self, task: Task, role: str, known: Iterable[str]) -> None:
        """Raises: ValueError where a role beside the solver is not known, or the task has no reference for it."""
        if role not in known:
            raise ValueError(f"{self.name} has no role {role!r}: choose solver, {', '.join(known)}")
        if not task.reference.strip():
            raise ValueError(
                f"task {task.id} has no reference solution, which the {role} works from: fill the column "
                "reference_solution, or leave the row out"
            )

    def steps(self, tokens: Any, start: int = 0) -> tuple[int, ...]:
        return self.tokenizer.step_ends(tokens, start, self.separator)

    def step_texts(self, trace: Trace) -> list[str]:
        spans = zip(trace.step_starts(), trace.step_ends, strict=True)
        return [self.tokenizer.text(trace.tokens[a:b]).strip("\n") for a, b in spans]

    def reference_response(self, task: Task) -> str:
        """The reference, then the boxed answer."""
        return f"{task.reference}{self.separator}\\boxed{{{task.answer}}}".strip()

    def hint(self, task: Task, share: float) -> str:
        """Its first lines, as many as fit into that share of its characters; where the first one does not, its first
        words."""
        # By lines first, then by words: what is dropped from the end is dropped whole.
        most = int(share * len(task.reference))
        for apart in ("\n", " "):
            parts = task.reference.split(apart)
            while len(apart.join(parts)) > most:
                parts.pop()
            if beginning := apart.join(parts).strip():
                return beginning
        return ""

    def solution(self, task: Task) -> str:
        """The reference's own words."""
        return self.reference_response(task)

    def next_turn(self, trace: Trace) -> str:
        return self.solution(trace.task)

    def answer(self, trace: Trace) -> str | None:
        """The content of the response's last box."""
        return last_boxed(self.tokenizer.text(trace.response))

    def verify(self, trace: Trace) -> Verdict:
        """Exact: the response's answer against the task's; one that was cut off is "truncated" unless it passes."""
        answer = self.answer(trace)
        if answer is not None and answer.strip() == trace.task.answer:
            return Verdict(True, 1.0, "correct")
        if trace.stop == "length":
            return Verdict(False, 0.0, "truncated")
        return Verdict(False, 0.0, "no_answer" if answer is None else "wrong")

    def verify_many(self, traces: list[Trace]) -> list[Verdict]:
        return [self.verify(trace) for trace in traces]

    def disagreements(self, traces: list[Trace]) -> tuple[float, list[Disagreement]]:
        return 0.0, []

    def leaks(self, task: Task, text: str) -> bool:
        """A step gives the answer away if it boxes something, ends in the answer's number, or holds an answer that is
        no number as words of its own."""
        if gives_answer(text):
            return True
        answer = " ".join(task.answer.split()).casefold()
        if not answer:
            return False
        if re.fullmatch(r"-?\d+(\.\d+)?", answer):
            # "so 1,200 + 34 = 1,234." ends in 1234.
            numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
            return bool(numbers) and float(numbers[-1]) == float(answer)
        # "no" leaks in "the answer is no", not in "note".
        words = " ".join(text.split()).casefold()
        return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", words) is not None

    def measures(self, trace: Trace) -> dict[str, float | None]:
        return {}

    def replies(self, traces: list[Trace]) -> list[Reply]:
        return [Reply()] * len(traces)

    def reward(self, trace: Trace, part: str) -> float:
        raise ValueError(f"the domain {self.name} has no part {part!r} of a reward: it has {self.REWARDS}")

    def first_error(self, trace: Trace) -> int | None:
        return None

    def regrets(self, trace: Trace) -> list[float] | None:
        return None

    def correction(self, trace: Trace, step: int) -> str:
        raise ValueError(f"the domain {self.name} does not know how step {step} of an attempt should read")


def template(path: Path) -> jinja2.Template:
    """A prompt template; one that names what it is not given raises jinja2.UndefinedError when it is rendered."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such template; config.domain.knobs.prompts names the folder it is in"
        )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.from_string(path.read_text(encoding="utf-8"))


def said(role: str, content: str) -> dict[str, str]:
    """A chat message."""
    return {"role": role, "content": content}


def worked_examples(
    path: Path, columns: tuple[str, ...] = ("problem", "solution"), extra: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    """The worked examples in a JSONL file, or in a JSON file that is a list; each also has its "place", file and row.

    Args:
      columns: texts that each row has. extra: more columns, of which a row has all or none.

    Raises: FileNotFoundError; ValueError, naming the row, for one that has not these columns, or another's problem.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of worked examples")
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix == ".json":
            rows = list(enumerate(json.loads(text), 1))
        else:
            rows = [(i, json.loads(line)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (ValueError, TypeError, RecursionError) as error:
        kind = "a JSON list" if path.suffix == ".json" else "a JSON object on each line"
        raise ValueError(f"{path}: worked examples are {kind} ({error})") from None
    if not rows:
        raise ValueError(f"{path}: there is no worked example in it")
    found: dict[str, dict[str, str]] = {}
    for number, row in rows:
        place = f"{path}, row {number}"
        if not isinstance(row, dict) or row.keys() not in (set(columns), {*columns, *extra}):
            has = f"has the columns {', '.join(row)}" if isinstance(row, dict) else f"is {row!r:.60}"
            more = f", and may have {' and '.join(extra)}" if extra else ""
            raise ValueError(f"{place} {has}: a worked example has {', '.join(columns)}{more}")
        for name, value in row.items():
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{place}: {name} is {value!r:.60}, and must be a text that is not empty")
        first = found.setdefault(normalised(row["problem"]), {**row, "place": place})
        if first["place"] != place:
            raise ValueError(f"{place}: the same problem as in {first['place']}")
    return list(found.values())
