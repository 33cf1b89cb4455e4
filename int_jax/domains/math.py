r"""Mathematics in free text: a problem, a solution of blank-line chunks, an answer in the last \boxed{}.

The solver sees the bare problem, as in the paper: no system prompt, no word about boxes. Proposers play two roles in
one conversation. The teacher solves the problem with the reference solution in view; the checker then sees the numbered
attempt, looks for the first critical error and writes the step that takes its place. Their instructions are templates
(assets/prompts/math); `prompts` names another folder.

The gold answer stands in the checker's self-check, as in the paper: the reference in the same conversation ends in it
anyhow, and the question "does the draft give it away?" is sharper with it. What keeps it from the policy is `leaks`.
"""

import re
from pathlib import Path
from typing import ClassVar

from int_jax.domains import PROMPTS, SilentPartner, template
from int_jax.knobs import Knob
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task, Trace, Verdict
from int_jax.verify import GRADERS, Disagreement, disagreements, verify_batch

NAME = "math"
PROPOSAL_ROLES = ("teacher", "checker")

# What a step states ---------------------------------------------------------------------------------------------------

SMALL = 100  # an integer answer below it stands in many texts by chance
SPAN = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
EQUALS = re.compile(
    r"(?<![<>!:\\])=|\\approx|≈|\\equiv|≡|\\(?:implies|iff|Rightarrow|Leftrightarrow|to)(?![A-Za-z])"
)
RELATION = re.compile(rf"{EQUALS.pattern}|[<>]|\\(?:leq?|geq?|lt|gt|neq?|in)(?![A-Za-z])")
# "Let x = 2": an assumption, not a result. The equation's left side is a name alone.
ASSUMED = re.compile(
    r"(?i:\b(?:let|if|for|when|where|suppose|assume|consider|case|set|setting|take|taking|try|trying|put|putting|say)\b)"
    r"(?:\s+that)?[\s$]*(?:\\\(|\\\[)?\s*\\?[A-Za-z]\w*\s*\Z"
)
FRACTION = r"\\[dtc]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)"
NUMBER = rf"-?(?:{FRACTION}|\d+(?:,\d{{3}})*(?:\.\d+)?(?:\s*/\s*\d+)?|\.\d+)(?:\s*\\?%)?"
ALONE = rf"(?<![\w.^{{}}_\\/]){NUMBER}(?![\w^{{}}/-]|\.\d|!|\s*(?:[*^]|\\cdot|\\times))"
STATED = re.compile(
    r"(?i:\b(?:is|are|be|equals?|equal\s+to|gives?|get|gets|obtain|yields?|answer|value|total|result|namely|exactly)\b)"
    rf"[:\s]*(?:(?:is|are|of|to|as)\s+)?[\s$(\\]*(?P<value>{ALONE})"
    r"(?![\s$)\\]*(?:p?mod|more|less|times|modulo|or|of)\b)"
)
SIDE = re.compile(r"(?:=|≈|≡)\s*(?P<value>[^\s,;:=]++(?:\s*+[-+*/^]\s*+[^\s,;:=]++)*+)(?!\s*=)")


def statements(text: str, anywhere: bool) -> list[str]:
    """The quantities that a step arrives at, as LaTeX.

    The ends of equations, unless a name is only assumed to have the value ("let x = 2"); numbers said to be something
    ("which is 2"); with `anywhere` also whole formulas, both sides of any relation, and each number that stands alone.
    An exponent, an index, a coefficient, a label ("step 2") and a part of a longer number are none of these.
    """
    found = []
    for match in SPAN.finditer(text):
        span = next(filter(None, match.groups()))
        sides = EQUALS.split(span)
        if len(sides) > 1 and not (
            len(sides) == 2 and ASSUMED.search(text[: match.start()] + "$" + sides[0])
        ):
            found += (
                [sides[-1], sides[0]] if re.fullmatch(r"\s*\\?[A-Za-z]\w*\s*", sides[-1]) else [sides[-1]]
            )
        if anywhere:
            found += [span, *RELATION.split(span)]
    prose = SPAN.sub(" ; ", text)
    for match in SIDE.finditer(prose):
        if not ASSUMED.search(prose[: match.start()]):
            found.append(match["value"].rstrip(".!?"))
    found += [match["value"] for match in STATED.finditer(text)]
    if anywhere:
        found += re.findall(ALONE, text)
    return list(dict.fromkeys(side.strip().rstrip(".,;") for side in found if side.strip()))


def commonplace(task: Task) -> bool:
    """Whether the answer is a number that a text may name by chance: a small integer, or one that the problem names."""
    answer = task.answer.strip().strip("$").replace(",", "")
    if not re.fullmatch(r"-?\d+", answer):
        return False
    return abs(int(answer)) < SMALL or answer in re.findall(r"-?\d+", task.problem.replace(",", ""))


# The domain -----------------------------------------------------------------------------------------------------------


class Math(SilentPartner):
    """The domain, over a tokenizer. See the protocol in `domains/__init__.py`.

    The templates of `prompts` may use problem, reference and answer, the checker's also steps, the texts of the
    attempt's steps.

    Raises: ValueError for an unknown knob or grader; FileNotFoundError for a template that is not there.
    """

    name = NAME
    proposal_roles = PROPOSAL_ROLES
    KNOBS: ClassVar = {
        "grader": Knob(
            "strict", "what decides that a problem is solved (verify.py)", "InT", choices=tuple(GRADERS)
        ),
        "prompts": Knob("", "a folder with teacher.jinja and checker.jinja; empty: the package's own"),
    }

    def __init__(self, tokenizer: Tokenizer, **knobs):
        super().__init__(tokenizer, **knobs)
        folder = Path(self.knobs["prompts"] or PROMPTS / NAME)
        self.prompts = {role: template(folder / f"{role}.jinja") for role in PROPOSAL_ROLES}

    def tasks(self, split: str, seed: int, count: int) -> list[Task]:
        """There are none: problems come from files. Raises ValueError, naming the knobs to set."""
        raise ValueError(
            f"math has no problems of its own (split {split!r}): set config.problems.train_file and "
            "config.problems.test_file to files with the columns problem, answer, reference_solution"
        )

    def view(self, task: Task, steps: list[str], role: str) -> list[dict[str, str]]:
        """The user turn that a role sees: "solver" the problem alone; "teacher" also the reference; "checker", who
        speaks after the teacher, the numbered attempt and the answer."""
        if role == "solver":
            content = task.problem
        elif role in PROPOSAL_ROLES:
            if not task.reference.strip():
                raise ValueError(
                    f"task {task.id} has no reference solution, which the {role} works from: fill the column "
                    "reference_solution, or leave the row out"
                )
            seen = {"problem": task.problem, "reference": task.reference, "answer": task.answer}
            content = self.prompts[role].render(seen | ({"steps": steps} if role == "checker" else {}))
        else:
            raise ValueError(f"math has no role {role!r}: choose solver, teacher or checker")
        return [{"role": "user", "content": content}]

    def verify(self, trace: Trace) -> Verdict:
        return self.verify_many([trace])[0]

    def verify_many(self, traces: list[Trace]) -> list[Verdict]:
        """By the last box; a response cut off is "truncated" unless it passes. All go to the worker pool together."""
        verdicts = verify_batch(self._pairs(traces), self.knobs["grader"])
        return [
            Verdict(False, 0.0, "truncated") if trace.stop == "length" and not verdict.passed else verdict
            for trace, verdict in zip(traces, verdicts, strict=True)
        ]

    def disagreements(self, traces: list[Trace]) -> tuple[float, list[Disagreement]]:
        """Where the strict and the tolerant grader differ: (share of the traces, the pairs by row); see verify.py."""
        return disagreements(self._pairs(traces))

    def _pairs(self, traces: list[Trace]) -> list[tuple[str, str]]:
        for trace in traces:
            if not trace.task.answer.strip():
                raise ValueError(
                    f"task {trace.task.id} has no answer to grade against: {trace.task.answer!r}"
                )
        return [(self.tokenizer.text(trace.response), trace.task.answer) for trace in traces]

    def leaks(self, task: Task, text: str) -> bool:
        r"""Whether a step gives the final answer away, by mathematical equality (tolerant grader).

        Anything boxed leaks. So does a quantity equal to the answer that the step arrives at ("= 0.5" for \frac12).
        An answer that is no commonplace number leaks wherever it stands as a quantity of its own; for a commonplace
        one (an integer below 100, or one that the problem names) "n \le 2", "step 2", "x^2", "let n = 2" do not leak.
        An intermediate "= 2" does: it cannot be told from the answer, and another candidate costs less than a leak.
        An answer in words leaks where its words stand together, one of up to three letters ("No", "B") where it is
        given as the answer.
        """
        if re.search(r"\\f?boxed", text):
            return True
        words = re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}|[$().]", r"\1", task.answer).strip()
        if re.fullmatch(r"[A-Za-z][A-Za-z '-]*", words) and (len(words) != 1 or words in "ABCDEFGHIJ"):
            before = r"\b(?:answer|option|choice)\b[\s:]*(?:is\s+)?[\W_]*" if len(words) <= 3 else r"\b"
            return bool(re.search(rf"{before}{re.escape(words)}\b", text, re.IGNORECASE))
        told = statements(text, anywhere=not commonplace(task))
        return any(
            verdict.passed
            for verdict in verify_batch([(f"\\boxed{{{side}}}", task.answer) for side in told], "tolerant")
        )


build = Math
