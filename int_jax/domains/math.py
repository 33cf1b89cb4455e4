r"""Mathematics in free text: a problem, a solution of blank-line chunks, an answer in the last \boxed{}.

The solver sees the bare problem, as in the paper: no system prompt, no word about boxes. Chat models that need more are
given it by knobs: a system turn, an instruction around the problem, worked examples as earlier turns, and another
separator of steps, such as a single line break. Proposers play two roles in one conversation. The teacher solves the
problem with the reference solution in view; the checker then sees the numbered attempt, looks for the first critical
error and writes the step that takes its place. Their instructions are templates (assets/prompts/math); `prompts` names
another folder.

The gold answer stands in the checker's self-check, as in the paper: the reference in the same conversation ends in it
anyhow, and the question "does the draft give it away?" is sharper with it. What keeps it from the policy is `leaks`.
"""

import re
from pathlib import Path
from typing import ClassVar

from int_jax import privileged
from int_jax.domains import PROMPTS, TextDomain, said, template, worked_examples
from int_jax.knobs import Knob
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task, Trace, Verdict, normalised
from int_jax.verify import (
    ANSWERS,
    GRADERS,
    Disagreement,
    disagreements,
    find_answer,
    gives_answer,
    verify_batch,
)

NAME = "math"
PROPOSAL_ROLES: tuple[str, ...] = ("teacher", "checker")
EXAMPLES = "examples.jsonl"  # of proposers, beside their templates
TAUGHT = ("problem", "answer", "reference_solution", "solution")
REVIEWED = ("attempt", "review")
# How an answer is given that the verifier then finds, by the names of verify.ANSWERS.
GIVEN = {"boxed": "\\boxed{{{}}}", "hashes": "#### {}", "phrase": "The answer is {}."}

# What a step states ---------------------------------------------------------------------------------------------------

SMALL = 100  # an integer answer below it stands in many texts by chance
# $$...$$ before $...$, which would find an empty formula between the two dollars.
SPAN = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# =, but not that of <=, >=, != or :=
EQUALS = re.compile(
    r"(?<![<>!:\\])=|\\approx|≈|\\equiv|≡|\\(?:implies|iff|Rightarrow|Leftrightarrow|to)(?![A-Za-z])"
)
RELATION = re.compile(rf"{EQUALS.pattern}|[<>]|\\(?:leq?|geq?|lt|gt|neq?|in)(?![A-Za-z])")
# "Let x = 2": an assumption, not a result. The equation's left side is a name alone.
ASSUMED = re.compile(
    r"(?i:\b(?:let|if|for|when|where|suppose|assume|consider|case|set|setting|take|taking|try|trying|put|putting|say)\b)"
    r"(?:\s+that)?[\s$]*(?:\\\(|\\\[)?\s*\\?[A-Za-z]\w*\s*\Z"
)
# \frac{1}{2}, \frac12
FRACTION = r"\\[dtc]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)"
# -3, 1,000.5, 2/3, .5, \frac{1}{2}, 50\%
NUMBER = rf"-?(?:{FRACTION}|\d+(?:,\d{{3}})*(?:\.\d+)?(?:\s*/\s*\d+)?|\.\d+)(?:\s*\\?%)?"
# Not the 2 of x^2, a_2, 2x, 2!, 2^n, 2 \cdot 3 or 1.2, nor that of "2-3".
ALONE = rf"(?<![\w.^{{}}_\\/]){NUMBER}(?![\w^{{}}/-]|\.\d|!|\s*(?:[*^]|\\cdot|\\times))"
# "which is 2", "equals \frac{1}{2}", "the answer: 5"; not "is 2 more than", "is 5 mod 7"
STATED = re.compile(
    r"(?i:\b(?:is|are|be|equals?|equal\s+to|gives?|get|gets|obtain|yields?|answer|value|total|result|namely|exactly)\b)"
    rf"[:\s]*(?:(?:is|are|of|to|as)\s+)?[\s$(\\]*(?P<value>{ALONE})"
    r"(?![\s$)\\]*(?:p?mod|more|less|times|modulo|or|of)\b)"
)
# "so x + 1 = 3." -> 3. The possessive ++ and *+ give nothing back: a long line costs no more than its length.
SIDE = re.compile(r"(?:=|≈|≡)\s*(?P<value>[^\s,;:=]++(?:\s*+[-+*/^]\s*+[^\s,;:=]++)*+)(?!\s*=)")


def statements(text: str, anywhere: bool) -> list[str]:
    """The quantities that a step arrives at, as LaTeX.

    The ends of equations, unless a name is only assumed to have the value ("let x = 2"); numbers said to be something
    ("which is 2"); with `anywhere` also whole formulas, both sides of any relation, and each number that stands alone.
    An exponent, an index, a coefficient and a part of a longer number are none of these; the number of a label ("step
    2") is one with `anywhere` alone.
    """
    found = []
    for match in SPAN.finditer(text):
        span = next(filter(None, match.groups()))
        sides = EQUALS.split(span)
        # "$x + 1 = 3$" -> 3; "let $x = 2$" -> nothing; "$5 = x$", which ends in a name -> x and 5.
        if len(sides) > 1 and not (
            len(sides) == 2 and ASSUMED.search(text[: match.start()] + "$" + sides[0])
        ):
            found += (
                [sides[-1], sides[0]] if re.fullmatch(r"\s*\\?[A-Za-z]\w*\s*", sides[-1]) else [sides[-1]]
            )
        if anywhere:
            found += [span, *RELATION.split(span)]
    # Formulas are out of the way, and ";" keeps what stands on either side of one apart.
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


class Math(TextDomain):
    """The domain, over a tokenizer. See `domains.Domain`.

    The templates of `prompts` may use problem, reference, answer and apart ("a blank line", what stands between steps),
    the checker's also steps, the texts of the attempt's steps. An examples.jsonl beside them holds worked examples for
    proposers, with the columns problem, answer, reference_solution and solution (what the teacher writes), and for the
    checker attempt and review (what it answers). Like `examples` they must hold no problem that the run works on.

    Raises: ValueError for an unknown knob or a value that it may not have, and for examples that cannot be used;
      FileNotFoundError for a template or examples that are not there.
    """

    name = NAME
    proposal_roles = PROPOSAL_ROLES
    roles: tuple[str, ...] = privileged.ROLES
    KNOBS: ClassVar = {
        "grader": Knob(
            "strict", "what decides that a problem is solved (verify.py)", "InT", choices=tuple(GRADERS)
        ),
        "answer": Knob(
            "boxed",
            'where a response gives its answer: its last box, after "####", or after "the answer is"',
            choices=tuple(ANSWERS),
        ),
        "prompts": Knob("", "a folder with teacher.jinja and checker.jinja; empty: the package's own"),
        "system": Knob("", "text of the system turn, for solver and proposer; empty: none", "InT"),
        "instruction": Knob("{problem}", "what the solver is told, with {problem} in it once", "InT"),
        "examples": Knob(
            "",
            "a JSONL or JSON file of problem and solution, earlier turns of the solver; empty: none",
            "InT",
        ),
        "separator": Knob("\n\n", "what ends a step: one or more line breaks", "InT"),
    }

    def __init__(self, tokenizer: Tokenizer, **knobs):
        super().__init__(tokenizer, **knobs)
        self.separator = self.knobs["separator"]
        if not self.separator or self.separator.strip("\n"):
            raise ValueError(
                f"math.separator = {self.separator!r}: must be one or more line breaks, '\\n\\n' or '\\n'; "
                "on a command line of bash write --config.domain.knobs.separator=$'\\n'"
            )
        if self.knobs["instruction"].count("{problem}") != 1:
            raise ValueError(
                f"math.instruction = {self.knobs['instruction']!r}: must contain {{problem}} once, "
                "where the problem goes"
            )
        self.graders = tuple(sorted(GRADERS, key=lambda name: name != self.knobs["grader"]))
        folder = Path(self.knobs["prompts"] or PROMPTS / NAME)
        self.prompts = {role: template(folder / f"{role}.jinja") for role in PROPOSAL_ROLES}
        for role in self.roles:  # a folder of one's own need not have them
            own = folder / f"{role}.jinja"
            self.prompts[role] = template(own if own.exists() else PROMPTS / NAME / f"{role}.jinja")
        self.examples = worked_examples(Path(self.knobs["examples"])) if self.knobs["examples"] else []
        told = folder / EXAMPLES
        self.reviews = worked_examples(told, TAUGHT, REVIEWED) if told.exists() else []
        self._shown = {normalised(one["problem"]): one["place"] for one in (*self.examples, *self.reviews)}

    def view(self, task: Task, steps: list[str], role: str) -> list[dict[str, str]]:
        """The turns that a role sees, the last one its own question: "solver" the problem alone; "teacher" also the
        reference; "checker", who speaks after the teacher in one conversation, the numbered attempt and the answer;
        "hinted" the problem and a beginning of the reference; "reflector" problem, reference and numbered attempt.

        Before the questions of all but the checker stand the system turn and the worked examples, where there are any:
        the teacher's own, the solver's for the others.

        Raises: ValueError for a task without a reference, and for one that is itself a worked example.
        """
        if place := self._shown.get(normalised(task.problem)):
            raise ValueError(
                f"task {task.id} is a worked example, {place}: take it out of the examples, or out of the problems"
            )
        solved = [turn for one in self.examples for turn in self._solved(one)]
        if role == "solver":
            return self._opened(solved, self._instructed(task.problem))
        self._check_role(task, role, self.prompts)
        if role in self.roles:
            problem = self._instructed(task.problem)
            return self._opened(solved, self._told(role, problem, task.reference, task.answer, steps))
        if role == "checker":
            return [said("user", self._told("checker", task.problem, task.reference, task.answer, steps))]
        earlier = [turn for one in self.reviews for turn in self._reviewed(one)]
        return self._opened(earlier, self._told("teacher", task.problem, task.reference, task.answer))

    def _opened(self, earlier: list[dict[str, str]], question: str) -> list[dict[str, str]]:
        system = [said("system", self.knobs["system"])] if self.knobs["system"] else []
        return [*system, *earlier, said("user", question)]

    def _instructed(self, problem: str) -> str:
        return self.knobs["instruction"].replace("{problem}", problem)

    def _told(
        self, role: str, problem: str, reference: str, answer: str, steps: list[str] | None = None
    ) -> str:
        seen = {"problem": problem, "reference": reference, "answer": answer}
        lines = len(self.separator)
        seen["apart"] = {1: "a line break", 2: "a blank line"}.get(lines, f"{lines - 1} blank lines")
        return self.prompts[role].render(seen | ({} if steps is None else {"steps": steps}))

    def _solved(self, one: dict[str, str]) -> list[dict[str, str]]:
        """A worked example of the solver's, as turns."""
        return [said("user", self._instructed(one["problem"])), said("assistant", one["solution"])]

    def _reviewed(self, one: dict[str, str]) -> list[dict[str, str]]:
        """A worked example of the proposer's, as turns: the teacher's, then the checker's where there is a review."""
        given = one["problem"], one["reference_solution"], one["answer"]
        turns = [said("user", self._told("teacher", *given)), said("assistant", one["solution"])]
        if "review" in one:
            steps = [step.strip("\n") for step in one["attempt"].split(self.separator) if step.strip()]
            turns += [said("user", self._told("checker", *given, steps)), said("assistant", one["review"])]
        return turns

    def reference_response(self, task: Task) -> str:
        """The reference, then the answer where the knob `answer` looks for it."""
        return f"{task.reference}{self.separator}{GIVEN[self.knobs['answer']].format(task.answer)}".strip()

    def answer(self, trace: Trace) -> str | None:
        return find_answer(self.tokenizer.text(trace.response), self.knobs["answer"])

    def verify(self, trace: Trace) -> Verdict:
        return self.verify_many([trace])[0]

    def verify_many(self, traces: list[Trace]) -> list[Verdict]:
        """By the knobs `grader` and `answer`; a response cut off is "truncated" unless it passes. All go to the workers
        together."""
        verdicts = verify_batch(self._pairs(traces), self.knobs["grader"], self.knobs["answer"])
        return [
            Verdict(False, 0.0, "truncated") if trace.stop == "length" and not verdict.passed else verdict
            for trace, verdict in zip(traces, verdicts, strict=True)
        ]

    def disagreements(self, traces: list[Trace]) -> tuple[float, list[Disagreement]]:
        """Where the strict and the tolerant grader differ: (share of the traces, the pairs by row); see verify.py."""
        return disagreements(self._pairs(traces), self.knobs["answer"])

    def _pairs(self, traces: list[Trace]) -> list[tuple[str, str]]:
        for trace in traces:
            if not trace.task.answer.strip():
                raise ValueError(
                    f"task {trace.task.id} has no answer to grade against: {trace.task.answer!r}"
                )
        return [(self.tokenizer.text(trace.response), trace.task.answer) for trace in traces]

    def leaks(self, task: Task, text: str) -> bool:
        r"""Whether a step gives the final answer away, by mathematical equality (tolerant grader).

        Anything boxed leaks, and anything that stands where the knob `answer` looks for one. So does a quantity equal
        to the answer that the step arrives at ("= 0.5" for \frac12).
        An answer that is no commonplace number leaks wherever it stands as a quantity of its own; for a commonplace
        one (an integer below 100, or one that the problem names) "n \le 2", "step 2", "x^2", "let n = 2" do not leak.
        An intermediate "= 2" does: it cannot be told from the answer, and another candidate costs less than a leak.
        An answer in words leaks where its words stand together, one of up to three letters ("No", "B") where it is
        given as the answer.
        """
        if gives_answer(text, self.knobs["answer"]):
            return True
        # \text{no} -> no
        words = re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}|[$().]", r"\1", task.answer).strip()
        if re.fullmatch(r"[A-Za-z][A-Za-z '-]*", words) and (len(words) != 1 or words in "ABCDEFGHIJ"):
            # "No" or "B" is in many texts: it has to follow "answer is" or "option".
            before = r"\b(?:answer|option|choice)\b[\s:]*(?:is\s+)?[\W_]*" if len(words) <= 3 else r"\b"
            return bool(re.search(rf"{before}{re.escape(words)}\b", text, re.IGNORECASE))
        told = statements(text, anywhere=not commonplace(task))
        return any(
            verdict.passed
            for verdict in verify_batch([(f"\\boxed{{{side}}}", task.answer) for side in told], "tolerant")
        )


build = Math
