"""The worker behind `verify.py`: reads (answer, gold, grader) on stdin and replies in two bytes, item by item.

It is run by its path (`python -P verify_worker.py DEADLINE_S MAX_ITEMS`), so it imports neither the package
nor the caller's `__main__`. A request is a line of ASCII JSON. A reply is REPLIES[reason] (READY once, at the
start) and then STAYS or LEAVES: a worker that leaves wants to be killed and replaced.

"strict" is math-verify on the two boxes, as in the paper, less what it passes for reasons that can be told ("skipped"
and its like, below). "tolerant" is strict, or strict after both have been rewritten in plainer words.
"""

import collections
import json
import logging
import os
import pathlib
import re
import resource
import signal
import sys

import sympy
from math_verify import LatexExtractionConfig, parse, verify

MEMORY_BYTES = 4 << 30  # address space
RETIRE_BYTES = 1 << 30  # a peak above it may have left caches that starve the items after it
GRACE_S = 1.0  # the caller kills at the deadline; if it is gone, the worker ends itself this much later

REPLIES = {"correct": b"c", "wrong": b"w", "unparsable": b"u"}
READY, STAYS, LEAVES = b"r", b"+", b"-"


def grade(answer: str, gold: str, grader: str) -> str:
    """A key of REPLIES, by "strict" or "tolerant"."""
    if same(answer, gold) or (grader == "tolerant" and equivalent(answer, gold)):
        return "correct"
    # A string in the list is only the fallback to comparing text.
    return "unparsable" if all(isinstance(parsed, str) for parsed in read(answer)) else "wrong"


# Strict: math-verify, and what it should not have passed ----------------------------------------------------------


def read(text: str) -> list:
    """What math-verify makes of a box: [value, its text], or [its text] where it cannot parse it.

    The box is read as LaTeX, whole or not at all: by default math-verify goes on to the last number, fraction or
    $...$ within a text that it cannot parse, and "maybe \\foo{4} or $5$" would pass for 5.
    """
    latex = [LatexExtractionConfig()]
    return parse(f"\\boxed{{{text}}}", latex, extraction_mode="first_match", parsing_timeout=None)


def same(answer: str, gold: str, **options) -> bool:
    answers, golds = read(answer), read(gold)
    if not verify(golds, answers, timeout_seconds=None, **options):
        return False
    return not (
        skipped(answer, answers)
        or skipped(gold, golds)
        or dotted(answer) != dotted(gold)  # it leaves dots out: 1,2,...,n is 1,2,n
        or JUXTAPOSED.search(answer)  # a mixed number to math-verify: "2 3" is 5
        or base(answer) not in (base(gold), "10")  # it ignores the base: 101 in base two is 101
        or congruent(answer, gold) is False  # it multiplies m, o and d: 2 (mod 6) is 3 (mod 4)
        or apart(answers[0], golds[0])
    )


DOTS = re.compile(r"\\[lc]?dots|\.\.\.|…")
JUXTAPOSED = re.compile(r"(?<![\w^.])\d++(?:\s|~|\\[,;: ])+\d++(?!\s*/)")
UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\^(?:\d|\{\d\})")
HALF = re.compile(r"\A\s*0?\.5(?!\d)")  # which math-verify rewrites as 1/2
COMMAND = re.compile(r"\\[A-Za-z]+")
APPROXIMATION = re.compile(r"(?<=.)\\approx.*", re.DOTALL)
BASE = re.compile(r"\d_(?:\{(\d+)\}|(\d))$")


def dotted(text: str) -> bool:
    return bool(DOTS.search(text))


def skipped(text: str, parsed: list) -> bool:
    """Whether math-verify's own text of a box lacks digits or variables of it, or breaks off within a group.

    It drops words after a number, as units, and all between two groups of words: "5 (or maybe 6)" and "5 if n is odd"
    must not pass for 5; and it cuts \\frac{1}{\\mathrm{e}}.
    """
    kept = parsed[-1]
    if not isinstance(kept, str):
        return False
    told = HALF.sub("1/2", APPROXIMATION.sub("", UNIT_POWER.sub("", text)))
    outside = COMMAND.sub(" ", WORDS.sub(" ", text)) if len(WORDS.findall(text)) > 1 else ""
    there = re.findall(r"\d", told) + re.findall(r"[A-Za-z]", outside)
    lost = collections.Counter(there) - collections.Counter(kept)
    return bool(lost) or kept.count("{") - kept.count("\\{") != kept.count("}") - kept.count("\\}")


def base(text: str) -> str:
    """The base of a number written 101_2, "10" where there is none."""
    match = BASE.search(text.strip())
    return (match[1] or match[2]) if match else "10"


def apart(a, b) -> bool:
    """Whether two exact expressions differ at a point: math-verify compares absolutely, and 2^-98 is 2^-99 to it."""
    # A symbol may stand for a word, which math-verify compares by its letters: \\text{Yes} is Yes.
    if not all(isinstance(v, sympy.Expr) and not v.has(sympy.Float) and not v.is_Symbol for v in (a, b)):
        return False
    names = sorted((a.free_symbols | b.free_symbols), key=str)
    point = {name: sympy.Rational(7 + 2 * k, 5) for k, name in enumerate(names)}
    a, b = (value.subs(point).evalf(30) for value in (a, b))
    gap, size = abs(a - b).evalf(30), max(abs(a), abs(b), key=lambda v: v if v.is_Float else 0)
    return bool(gap.is_Float and size.is_Float and gap > 1e-12 * size)


# Tolerant: the same answer in another dress -----------------------------------------------------------------------


def equivalent(answer: str, gold: str) -> bool:
    """Equality after rewritings that lose nothing: typography, units, separators, degrees, congruences, intervals."""
    answer, gold = plain(answer), plain(gold)
    if answer and unwrapped(answer).casefold() == unwrapped(gold).casefold():
        return True
    if labelled(answer, gold) or congruent(answer, gold):
        return True
    if ("°" in answer) != ("°" in gold) and "\\pi" in answer + gold:  # degrees against radians
        turn = r"(\1)\\cdot\\frac{\\pi}{180}"
        return same(*(DEGREES.sub(turn, text) for text in (answer, gold)))
    answer, gold = (text.replace("°", "") for text in (answer, gold))
    # An inequality may stand for a set once it is solved: not for what the problem asked to solve.
    return same(answer, gold, allow_set_relation_comp=solved(read(answer)[0]))


SIGNS = {"≤": r"\le ", "≥": r"\ge ", "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi "}
SIGNS |= {"∞": r"\infty ", "∪": r"\cup ", "∈": r"\in ", "≡": r"\equiv ", "≠": r"\ne ", "…": r"\dots "}
REWRITES = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"\*\*|\$|\\[()\[\]]", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])|\\(?:displaystyle|limits)", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"\\(?:mathrm|mathit|text|operatorname)\s*\{\s*(e|i|\\pi|\\infty)\s*\}", r"\1"),
        (r"\\varnothing|∅", r"\\emptyset"),
        (r"(?<![\\A-Za-z])(pi|infty)(?![A-Za-z])", r"\\\1"),
        (r"(?<![\\A-Za-z])(?:inf|infinity)(?![A-Za-z])", r"\\infty"),
        (r"(?:\\|(?<![\\A-Za-z]))sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)|√\s*(\d+)", r"\\sqrt{\1\2}"),
        (r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|(?:\\text\s*\{)?\s*degrees?\s*\}?)", "°"),
        (r"(?<=\d)(?:\{,\}|,?\\[,!;:]\s*|\\ |~|\s)(?=\d{3}(?!\d))", ""),
        (r"\\[,;:!]|\\ |~|\\q?quad", " "),
        (r"[.,;\s]+\Z", ""),
        (r"\s+", " "),
    ]
]
DEGREES = re.compile(r"(.+)°")
WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
LETTER = re.compile(r"\(?([A-J])\)?")
LABEL = re.compile(r"(?:(?i:option|choice)\s+)?(?:\(([A-J])\)|([A-J])(?:[).:]|\Z))")
CONGRUENCE = re.compile(
    r"(?:(?P<left>[^=]*?)\s*(?:\\equiv|=)\s*)?(?P<residues>[^=]*?)\s*"
    r"(?:\\(?:pmod|bmod|mod)|\(\s*(?:\\bmod|\\mod|mod))\s*\{?\s*(?P<modulus>[1-9]\d{0,17})\s*\}?\s*\)?"
)
RESIDUE = re.compile(r"(\\pm|[+-]?)\s*(\d{1,18})")


def plain(text: str) -> str:
    """The text with one spelling for each thing that has several."""
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    for pattern, new in REWRITES:
        text = pattern.sub(new, text)
    return text.strip()


def unwrapped(text: str) -> str:
    """Words without the command around them, and without spaces: \\text{no solution} is No solution."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", WORDS.sub(r"\1", text))


def labelled(answer: str, gold: str) -> bool:
    """Whether the gold answer is the letter of an option and the answer starts with its label: (B) 5 for B."""
    letter, label = LETTER.fullmatch(unwrapped(gold)), LABEL.match(WORDS.sub(r"\1", answer).strip())
    return bool(letter and label) and letter[1] in (label[1], label[2])


def congruent(answer: str, gold: str) -> bool | None:
    """Whether two congruences say the same; None where one of them is no congruence with integer residues."""
    told = [congruence(text) for text in (answer, gold)]
    if None in told:
        return None
    (left, *answer_class), (other, *gold_class) = told
    return answer_class == gold_class and (not left or not other or left == other)


def congruence(text: str) -> tuple[str, frozenset[int], int] | None:
    """n \\equiv 1, 4 \\pmod 5 as ("n", {1, 4}, 5)."""
    match = CONGRUENCE.fullmatch(plain(text))
    if not match:
        return None
    parts = re.split(r"\s*(?:,|\bor\b|\band\b)\s*", WORDS.sub(r" \1 ", match["residues"]).strip())
    residues = [RESIDUE.fullmatch(part) for part in parts if part]
    if not residues or None in residues:
        return None
    modulus = int(match["modulus"])
    signs = {"\\pm": (1, -1), "-": (-1,)}
    found = {sign * int(r[2]) % modulus for r in residues for sign in signs.get(r[1], (1,))}
    return re.sub(r"\s+", "", match["left"] or ""), frozenset(found), modulus


def solved(value) -> bool:
    """Whether a relation, or each of a chain, holds a variable alone on one side and a number on the other."""
    relations = value.args if isinstance(value, sympy.And) else (value,)
    return all(
        isinstance(one, sympy.core.relational.Relational)
        and any(x.is_Symbol and y.is_number for x, y in (one.args, one.args[::-1]))
        for one in relations
    )


def peak_bytes() -> int:
    """The worker's own peak. On Linux ru_maxrss starts from the caller's peak, and a caller may hold models."""
    if sys.platform == "linux":
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    else:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def detach_output() -> int:
    """A private descriptor for replies; whatever else prints goes nowhere."""
    replies, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return replies


def main(deadline_s: float, max_items: int) -> None:
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS refuses address-space limits
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # The kernel's own action, so that it ends even a computation that never returns to the interpreter.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    replies = detach_output()
    os.write(replies, READY + STAYS)
    for count, line in enumerate(sys.stdin.buffer, start=1):
        signal.setitimer(signal.ITIMER_REAL, deadline_s + GRACE_S)
        reason = grade(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        leaves = count == max_items or peak_bytes() > RETIRE_BYTES
        os.write(replies, REPLIES[reason] + (LEAVES if leaves else STAYS))
    os.killpg(0, signal.SIGKILL)  # the caller is gone: take any children along


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
