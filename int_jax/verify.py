"""Answer equality: is the final answer of a response the gold answer?

Where a response gives its answer is a choice by name (ANSWERS): its last box, or after "####" or "the answer is".
Equal text and equal numbers are settled here. Everything else is math-verify's to say, in processes that can be killed
(workers.py): an item that outlives its deadline, or takes its worker down, costs one verdict and one worker.

There are two graders (verify_worker.py): "strict", the paper's, and "tolerant", which also takes the same answer in
another dress. `disagreements` reports where they differ. docs/graders.md says where they depart from math-verify.
"""

import json
import re
import sys
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from int_jax import workers
from int_jax.types import Verdict

GRADERS = ("strict", "tolerant")
MAX_CHARS = 1_000  # of an answer, and of a gold answer
MAX_DIGITS = 100  # characters of a number compared here
DEADLINE_S = 10.0  # per item; a simple check takes about 1 ms
# Per worker process: one that starts takes 1 s to import, and its parser learns from the first thousand answers. What
# memory they take has a limit of its own (verify_worker.RETIRE_BYTES).
MAX_ITEMS = 20_000

INTEGER = re.compile(r"[+-]?[0-9]+")
# 5e-05 is how programs write 0.00005. Larger exponents are nobody's answer, and numbers of that many digits.
DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
FRACTION = re.compile(r"[+-]?[0-9]+/[0-9]*[1-9][0-9]*")
# "1,234" may be a list of two numbers and is left to math-verify; "1,034" may not: nobody writes 34 as 034.
THOUSANDS = re.compile(r"(?=.*,0)[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")


def _verdict(reason: str) -> Verdict:
    passed = reason == "correct"
    return Verdict(passed, float(passed), reason)


# Where an answer stands -----------------------------------------------------------------------------------------------

# \boxed{42}, \fbox {42}, \framebox[2cm]{42}; as TeX has it, \boxed 7; and a box cut off before its content.
BOX = re.compile(
    r"\\(?:boxed|fbox|framebox(?:\[[^\]]{0,40}\])*)(?![A-Za-z])\s*"
    r"(?:(?P<open>\{)|(?P<bare>[-+]?(?:\d[\d.,/]*|\\[A-Za-z]+(?:\s*\{[^{}]*\})*|[A-Za-z](?![A-Za-z])))|\Z)"
)
# \{ is one token, which does not count; a run of braces is one, too, so that thousands of them cost little.
BRACES = re.compile(r"\\.|\{+|\}+", re.DOTALL)
# "#### 72" at the start of a line; not "##### Notes"
HASHES = re.compile(r"^[ \t]*####(?!#)(.*\S)", re.MULTILINE)
# "The answer is: 5", "**Answer:** 5"
PHRASE = re.compile(r"\banswer(?:\s+is|\s*[:=])\**(?:\s*:)?\s*", re.IGNORECASE)
# The point of "5. So", not that of 0.5.
SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")


def last_boxed(text: str) -> str | None:
    r"""The content of the last box (the innermost, if boxes are nested), however it is spelled, in linear time.

    Braces are matched as TeX does: `\{` and `\}` do not count. None if there is no box, or if the last one is
    not closed: a response that was cut in its final answer has none, whatever it boxed before.
    """
    box = None
    for box in BOX.finditer(text):  # noqa: B007
        pass
    if not box:
        return None
    if not box["open"]:
        return box["bare"] and box["bare"].rstrip(".,/")
    # \boxed{\frac{1}{2}}: the last run, "}}", meets depth 2, so its second brace closes the box.
    start, depth = box.end(), 1
    for token in BRACES.finditer(text, start):
        run = token.group()
        if run[0] == "{":
            depth += len(run)
        elif run[0] == "}":
            if len(run) >= depth:
                return text[start : token.start() + depth - 1]
            depth -= len(run)
    return None


def last_hashes(text: str) -> str | None:
    """What follows the last "####" that starts a line, as GSM8K's solutions end: "#### 72"."""
    found = HASHES.findall(text)
    return found[-1].strip("*$ \t").rstrip(".") if found else None


def last_phrase(text: str) -> str | None:
    """What follows the last "the answer is" or "answer:", to the end of the sentence, without a box around it."""
    phrases = list(PHRASE.finditer(text))
    if not phrases:
        return None
    line = text[phrases[-1].end() :].partition("\n")[0]
    return last_boxed(line) if BOX.search(line) else SENTENCE_END.split(line)[0].strip("*$ \t") or None


ANSWERS = {"boxed": last_boxed, "hashes": last_hashes, "phrase": last_phrase}


def find_answer(text: str, answer: str = "boxed") -> str | None:
    """The final answer of a response, None if it gives none. `answer` names one of ANSWERS."""
    if answer not in ANSWERS:
        raise ValueError(f"no answer {answer!r}: choose one of {', '.join(ANSWERS)}")
    return ANSWERS[answer](text)


def gives_answer(text: str, answer: str = "boxed") -> bool:
    """Whether a text has a box, be it cut off, or an answer where `answer` looks for it."""
    return bool(BOX.search(text)) or find_answer(text, answer) is not None


def gold_answer(text: str) -> str:
    r"""The gold answer in a column that may hold more: 72 for a solution that ends in "#### 72", and for \boxed{72}.

    A text without either is its own answer. Readers of columns and the graders both ask here.
    """
    if "####" in text:
        return last_hashes(text) or text.strip()
    boxes = list(BOX.finditer(text))
    # "\boxed{72}", "$\boxed{72}$." and nothing else: a solution that holds a box has more around it.
    whole = len(boxes) == 1 and re.fullmatch(r"[\s$]*", text[: boxes[0].start()])
    if whole and text.rstrip("$. \n").endswith("}" if boxes[0]["open"] else boxes[0]["bare"] or "\0"):
        return last_boxed(text) or text.strip()
    return text.strip()


# How a program writes a number that is none.
NO_NUMBER = re.compile(r"[+-]?(?:inf|nan)", re.IGNORECASE)


def gradable(gold: str) -> str | None:
    """Why no answer can meet the gold answer, None if one can: then its own text in a box passes both graders."""
    gold = gold_answer(gold)
    if not gold:
        return "it is empty"
    if len(gold) > MAX_CHARS:
        return f"it has {len(gold):,} characters, and an answer may have {MAX_CHARS:,}"
    if NO_NUMBER.fullmatch(gold):
        return f"{gold!r} is no number"
    if BOX.search(gold):
        return "it has a box within it"
    if last_boxed(f"\\boxed{{{gold}}}") != gold:
        return "its braces are not in pairs"
    return None


def _number(text: str) -> Fraction | None:
    """The value of an integer, a decimal or a fraction a/b of at most MAX_DIGITS characters, else None."""
    if len(text) > MAX_DIGITS:
        return None
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    return Fraction(text) if DECIMAL.fullmatch(text) or FRACTION.fullmatch(text) else None


# Equality -------------------------------------------------------------------------------------------------------------


def _settle(answer: str | None, gold: str) -> Verdict | None:
    """The verdict if it can be told without math-verify, else None."""
    if not answer or not answer.strip():
        return _verdict("no_answer")
    if max(len(answer), len(gold)) > MAX_CHARS:
        return _verdict("unparsable")
    answer, gold = " ".join(answer.split()), " ".join(gold.split())
    # 0.5 and 1/2, 1,034 and 1034.
    numbers = _number(answer), _number(gold)
    if answer == gold or (None not in numbers and numbers[0] == numbers[1]):
        return _verdict("correct")
    # Other unequal numbers may be roundings of each other.
    integers = None not in numbers and INTEGER.fullmatch(answer) and INTEGER.fullmatch(gold)
    return _verdict("wrong") if integers else None


class Pool(workers.Pool):
    """Workers that know math-verify (about 60 MB each); see `workers.Pool`.

    Attributes:
      max_items: a worker is replaced after so many.
    """

    def __init__(
        self, workers: int | None = None, deadline_s: float = DEADLINE_S, max_items: int = MAX_ITEMS
    ):
        super().__init__(workers, deadline_s)
        self.max_items = max_items

    def command(self) -> list[str]:
        told = str(self.deadline_s), str(self.max_items)
        return [sys.executable, "-P", "-m", "int_jax.verify_worker", *told]

    def verify_batch(
        self, pairs: Iterable[tuple[str, str]], grader: str = "strict", answer: str = "boxed"
    ) -> list[Verdict]:
        """The verdicts of (response text, gold answer) pairs, in order. Threads take turns, batch by batch.

        Args:
          grader: one of GRADERS.
          answer: where a response gives its answer, one of ANSWERS.

        Raises:
          ValueError: a gold answer is empty, or there is no such grader or answer.
          RuntimeError: workers do not start.
        """
        if grader not in GRADERS:
            raise ValueError(f"no grader {grader!r}: choose one of {', '.join(GRADERS)}")
        pairs = list(pairs)
        for index, (_, gold) in enumerate(pairs):
            if not gold.strip():
                raise ValueError(f"pair {index} has an empty gold answer {gold!r}: nothing to compare with")
        found = [(find_answer(response, answer), gold_answer(gold)) for response, gold in pairs]
        settled = [_settle(*pair) for pair in found]
        # The same answer to the same gold answer is graded once: {pair: the first place where it stands}.
        hard: dict[tuple, int] = {}
        for index, verdict in enumerate(settled):
            if verdict is None:
                hard.setdefault(found[index], index)
        told = self.ask({i: json.dumps([*pair, grader]).encode("ascii") + b"\n" for pair, i in hard.items()})
        reasons = {i: "timeout" if reply is None else json.loads(reply) for i, reply in told.items()}
        return [verdict or _verdict(reasons[hard[found[i]]]) for i, verdict in enumerate(settled)]


_default = Pool()


def verify_batch(
    pairs: Iterable[tuple[str, str]], grader: str = "strict", answer: str = "boxed"
) -> list[Verdict]:
    """`Pool.verify_batch` in the process's own pool, which ends with it."""
    return _default.verify_batch(pairs, grader, answer)


class Disagreement(NamedTuple):
    """A pair on which the graders differ: its `row` in the list given, the response's answer, the gold answer, and what
    each grader says."""

    row: int
    answer: str
    gold: str
    strict: Verdict
    tolerant: Verdict


def disagreements(
    pairs: Iterable[tuple[str, str]], answer: str = "boxed"
) -> tuple[float, list[Disagreement]]:
    """Where the graders differ on (response text, gold answer) pairs, and how often: (share of the pairs, the pairs).

    Tolerant is at least strict, so each of them is a response that strict fails and tolerant passes, but for items
    that ran out of time in one of them.
    """
    pairs = list(pairs)
    told = zip(pairs, *(verify_batch(pairs, grader, answer) for grader in GRADERS), strict=True)
    found = [
        Disagreement(row, find_answer(response, answer) or "", gold, strict, tolerant)
        for row, ((response, gold), strict, tolerant) in enumerate(told)
        if strict.passed != tolerant.passed
    ]
    return len(found) / max(1, len(pairs)), found


def verify(response_text: str, gold_answer: str, grader: str = "strict") -> Verdict:
    r"""Grades the last box of a response against the gold answer.

    Args:
      grader: "strict", as in the paper, or "tolerant", which also takes the same answer in another form.

    Returns:
      A verdict with score 1 for "correct" and 0 for the rest: "wrong"; "no_answer", no box, an empty one, or
      a last box that is not closed; "unparsable", over 1,000 characters or nothing that math-verify parses;
      "timeout", over 10 s, or more than the worker survived (memory, stack). Whether a trace was truncated is
      for the caller to say, who knows why it stopped.

    Raises:
      ValueError: the gold answer is empty, or there is no such grader.
      RuntimeError: workers do not start.
    """
    return verify_batch([(response_text, gold_answer)], grader)[0]
