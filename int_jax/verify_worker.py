"""The worker behind `verify.py` (see `workers.serve`): of an answer, a gold answer and a grader it says the reason.

It is run by its name (`python -P -m int_jax.verify_worker DEADLINE_S MAX_ITEMS`), so it imports no jax and not the
caller's `__main__`.

"strict" is math-verify on the two boxes, as in the paper, less what it passes for reasons that can be told ("skipped"
and its like, below). "tolerant" is strict, or strict after both have been rewritten in plainer words.
"""

import collections
import functools
import re
import sys

import sympy
from antlr4.atn.PredictionMode import PredictionMode
from antlr4.error.Errors import ParseCancellationException
from antlr4.error.ErrorStrategy import BailErrorStrategy, DefaultErrorStrategy
from latex2sympy2_extended import latex2sympy2
from math_verify import LatexExtractionConfig, parse, verify

from int_jax.verify_text import (
    CONNECTIVE,
    DOTS,
    PLUS_MINUS,
    RELATION,
    TRIGONOMETRIC,
    WORD,
    differ,
    elements,
    folded_text,
    inside,
    plain,
    quantity,
    rows,
    shape,
    unwrapped,
    value_side,
    worded,
)
from int_jax.workers import serve

RETIRE_BYTES = 1 << 30  # of memory, after which a worker is replaced


def grade(answer: str, gold: str, grader: str) -> str:
    """ "correct", "wrong" or "unparsable", by "strict" or "tolerant"."""
    if same(answer, gold) or (grader == "tolerant" and equivalent(answer, gold)):
        return "correct"
    # A string in the list is only the fallback to comparing text.
    return "unparsable" if all(isinstance(parsed, str) for parsed in read(answer)) else "wrong"


# Strict: math-verify, and what it should not have passed ----------------------------------------------------------


class TwoStageParser(latex2sympy2.PSParser):
    """math-verify's parser of LaTeX, first without looking at the rules it came through (SLL), which is fast.

    Where that finds no error, the parse is the one that it comes to with them (LL); where it finds one, it is done
    again with them, as before. (Parr, Harwell and Fisher 2014, "Adaptive LL(*) Parsing", section 3.2)
    """

    def math(self):
        self._interp.predictionMode, self._errHandler = PredictionMode.SLL, BailErrorStrategy()
        try:
            return super().math()
        except ParseCancellationException:
            self.reset()
            self._interp.predictionMode, self._errHandler = PredictionMode.LL, DefaultErrorStrategy()
            return super().math()


latex2sympy2.PSParser = TwoStageParser  # math-verify has no setting for it


@functools.lru_cache(maxsize=4096)  # a gold answer is compared with many answers
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
        misread(answer, gold) or apart(answers[0], golds[0]) or miscounted(plain(answer), plain(gold))
    )


def misread(answer: str, gold: str) -> bool:
    """Whether the texts say something else than what math-verify makes of them."""
    return (
        skipped(answer)
        or skipped(gold)
        or bool(EXPONENT.search(answer) or EXPONENT.search(gold))  # 1e3 is 3e to it
        or dotted(answer) != dotted(gold)  # it leaves dots out: 1,2,...,n is 1,2,n
        or bool(JUXTAPOSED.search(answer))  # a mixed number to math-verify: "2 3" is 5
        or base(answer) not in (base(gold), "10")  # it ignores the base: 101 in base two is 101
        or congruent(answer, gold) is False  # it multiplies m, o and d: 2 (mod 6) is 3 (mod 4)
        or differ(plain(answer), plain(gold))
    )


# "2 3", "2\,3"; not "2 3/4", which is a mixed number
JUXTAPOSED = re.compile(r"(?<![\w^.])\d++(?:\s|~|\\[,;: ])+\d++(?!\s*/)")
# The ^2 of cm^2 and of \text{m}^{2}: with the unit math-verify drops its power.
UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\^(?:\d|\{\d\})")
HALF = re.compile(r"\A\s*0?\.5(?!\d)")  # which math-verify rewrites as 1/2
COMMAND = re.compile(r"\\[A-Za-z]+")
# Of "\pi \approx 3.14" what follows \pi.
APPROXIMATION = re.compile(r"(?<=.)\\approx.*", re.DOTALL)
# 101_2, 101_{12}
BASE = re.compile(r"\d_(?:\{(\d+)\}|(\d))$")
# 1e3, 2.5E-4; not the e of 2e or of x1e3
EXPONENT = re.compile(r"(?<![\w.])(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+(?![\w.])")
DIGITS = 200  # to which exact numbers are compared
ROUNDED_DIGITS = 6  # a decimal of so many significant digits may stand for what it is a rounding of


def dotted(text: str) -> bool:
    return bool(DOTS.search(text))


def skipped(text: str) -> bool:
    """Whether math-verify's own text of a box lacks digits or variables of it, or breaks off within a group.

    It drops what it takes for units, and all between two groups of words: "5 (or maybe 6)", "5 if n is odd" and 5t
    must not pass for 5; and it cuts \\frac{1}{\\mathrm{e}}.
    """
    kept = (read(text) or [None])[-1]
    if not isinstance(kept, str):
        return False
    # Digits of the box as it stands, and letters outside of commands and words. Of "5 (or maybe 6)" math-verify
    # keeps a 5, so that a 6 is lost.
    told = HALF.sub("1/2", APPROXIMATION.sub("", UNIT_POWER.sub("", text)))
    outside = COMMAND.sub(" ", WORD.sub(" ", worded(text)))
    there = re.findall(r"\d", told) + re.findall(r"[A-Za-z]", outside)
    lost = collections.Counter(there) - collections.Counter(kept)
    # Braces that are not in pairs: it broke off within \frac{1}{ or its like.
    return bool(lost) or kept.count("{") - kept.count("\\{") != kept.count("}") - kept.count("\\}")


def base(text: str) -> str:
    """The base of a number written 101_2, "10" where there is none."""
    match = BASE.search(text.strip())
    return (match[1] or match[2]) if match else "10"


def apart(a, b) -> bool:
    """Whether two values differ by more than their writing allows. math-verify compares absolutely: 2^-98 is 2^-99 to
    it. Collections are compared by what is in them; False for what is no number, expression or collection of these."""
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        # A symbol may stand for a word, which math-verify compares by its letters: \\text{Yes} is Yes.
        return not (a.is_Symbol or b.is_Symbol) and far(a, b)
    a, b = parts(a), parts(b)
    if a is None or b is None or len(a) != len(b):
        return False
    # Sets: each member of one needs a partner in the other, either way round.
    if isinstance(a, frozenset) and isinstance(b, frozenset):
        return any(all(apart(x, y) for y in b) for x in a) or any(all(apart(x, y) for x in a) for y in b)
    return not isinstance(a, frozenset) and not isinstance(b, frozenset) and any(map(apart, a, b))


def parts(value) -> tuple | frozenset | None:
    """The members of a set, tuple, interval, matrix, or solved relation."""
    if isinstance(value, sympy.FiniteSet):
        return frozenset(value.args)
    if isinstance(value, sympy.Interval):
        return value.start, value.end
    if isinstance(value, sympy.MatrixBase):
        return tuple(value)
    if isinstance(value, sympy.core.relational.Relational) and solved(value):
        # The variable first, so that 2 < x is like x > 2.
        return value.args if value.args[0].is_Symbol else value.args[::-1]
    return value.args if isinstance(value, sympy.Tuple | sympy.Union) else None


def far(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether two expressions differ. A percent sign may have been left out: 50% is 50 to the paper's grader."""
    # 50% is 50 times an unevaluated 1/100. Against a number without the sign it is tried as 50 and as 0.5.
    percent = [value.atoms(sympy.UnevaluatedExpr) for value in (a, b)]
    if bool(percent[0]) != bool(percent[1]):
        bare = [
            value.replace(lambda part: isinstance(part, sympy.UnevaluatedExpr), lambda _: sympy.S.One)
            for value in (a, b)
        ]
        return far(*bare) and far(
            *(
                value.replace(lambda part: isinstance(part, sympy.UnevaluatedExpr), lambda part: part.args[0])
                for value in (a, b)
            )
        )
    decimals = [value for value in (a, b) if value.has(sympy.Float)]
    a, b = exactly(a), exactly(b)
    if a.is_Rational and b.is_Rational and not decimals:
        return a != b
    if decimals and a.is_number and b.is_number:
        return not rounds(a, b)
    # Of 200 digits 180 are compared: the last 20 are what evaluating an expression may lose.
    gap, size = difference(a, b)
    return bool(
        gap.is_Float and size.is_Float and gap > (1e-12 if decimals else 10.0 ** (20 - DIGITS)) * size
    )


def exactly(value: sympy.Expr) -> sympy.Expr:
    """With its decimals as the fractions that were written."""
    value = value.xreplace({number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)})
    return value.doit() if value.is_number else value


def difference(a: sympy.Expr, b: sympy.Expr) -> tuple:
    """|a - b| and max(|a|, |b|), at a point where there are variables."""
    names = sorted((a.free_symbols | b.free_symbols), key=str)
    # 7/5, 9/5, 11/5 ...: a point that no formula is made for, unlike 0 and 1.
    point = {name: sympy.Rational(7 + 2 * k, 5) for k, name in enumerate(names)}
    a, b = (value.subs(point).evalf(DIGITS) for value in (a, b))
    return abs(a - b).evalf(DIGITS), max(abs(a), abs(b), key=lambda v: v if v.is_Float else 0)


def rounds(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether a number equals another, or is a decimal of some digits that rounds it: 0.333333 for 1/3, not 0.1 for
    0.1000001."""
    if a == b:
        return True
    # coarse is the decimal: its digits as an integer, 0.333333 x 10^400, whose zeros at the end do not count. Only what
    # ends within 400 places (10^400 divisible by the denominator) is a decimal at all.
    return any(
        coarse.is_Rational
        and len(str(abs(coarse.p) * (10**400 // coarse.q)).rstrip("0")) >= ROUNDED_DIGITS
        and 10**400 % coarse.q == 0
        and bool(abs(coarse - fine).evalf(60) <= last_place(coarse) / 2)
        for coarse, fine in ((a, b), (b, a))
        if not fine.is_Integer
    )


def last_place(decimal: sympy.Rational) -> sympy.Rational:
    """1/1000 for 0.125: the worth of a decimal's last digit that is not 0."""
    # 0.125 x 10^400 ends in 397 zeros: 10^(397 - 400).
    digits = str(decimal.p * (10**400 // decimal.q))
    return sympy.Rational(10) ** (len(digits) - len(digits.rstrip("0")) - 400)


def miscounted(answer: str, gold: str) -> bool:
    """Whether two lists hold other elements, or the same ones another number of times: math-verify makes sets of them.
    Where one is a list and the other a tuple, the order counts too."""
    kinds = shape(answer).kind, shape(gold).kind
    if "list" not in kinds:
        return False
    members = [elements(inside(one)) for one in (answer, gold)]
    if "()" in kinds:
        return len(members[0]) != len(members[1]) or not all(map(same, *members))
    sets = [read(one)[0] for one in (answer, gold)]
    if all(isinstance(s, sympy.FiniteSet) and len(s) >= len(m) for s, m in zip(sets, members, strict=True)):
        return False
    if kinds != ("list", "list"):  # a set has each element once
        return any(
            kind == "list" and isinstance(s, sympy.FiniteSet) and len(s) < len(m)
            for kind, s, m in zip(kinds, sets, members, strict=True)
        )
    # Each element takes one of the other list's away: of 1, 1, 2 against 1, 2, 2 the second 1 finds none.
    left = list(members[1])
    for one in members[0]:
        match = next((other for other in left if one == other or same(one, other)), None)
        if match is None:
            return True
        left.remove(match)
    return bool(left)


# Tolerant: the same answer in another form ------------------------------------------------------------------------

SYNONYMS = {"allrealnumbers": r"\mathbb{R}", "allreals": r"\mathbb{R}", "realnumbers": r"\mathbb{R}"}
SYNONYMS |= {"dne": r"\text{does not exist}", "nosolutions": r"\text{no solution}"}
# 5^{th}, 5^{\text{th}} -> 5\text{th}
ORDINAL = re.compile(r"\^\s*\{?\s*(?:\\text\s*\{\s*)?(st|nd|rd|th)\s*\}?\s*\}?")
# \{x \mid x > 1\}, \{x \in \mathbb{R} : x > 1\} -> x > 1
BUILDER = re.compile(r"\A\\\{\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\||:)(.*)\\\}\Z")
# 5 = x -> x=5
FLIPPED = re.compile(r"\A([^=A-Za-z<>\\]+)=\s*([A-Za-z])\Z")
ARC = re.compile(r"(\d+(?:\.\d+)?)°")
DEGREES = re.compile(r"(.+)°")
LETTER = re.compile(r"\(?([A-J])\)?")
# (B) 5, B. 5, B: 5, option B; not Bob
OPTION = re.compile(r"(?:(?i:option|choice)\s+)?(?:\(([A-J])\)|([A-J])(?:[).:]|\Z))")
# n \equiv 1, 4 \pmod 5; x = 2 (\bmod 7); 1 \pmod{5}
CONGRUENCE = re.compile(
    r"(?:(?P<left>[^=]*?)\s*(?:\\equiv|=)\s*)?(?P<residues>[^=]*?)\s*"
    r"(?:\\(?:pmod|bmod|mod)|\(\s*(?:\\bmod|\\mod|mod))\s*\{?\s*(?P<modulus>[1-9]\d{0,17})\s*\}?\s*\)?"
)
# \pm 3, -3, 3
RESIDUE = re.compile(r"(\\pm|[+-]?)\s*(\d{1,18})")


def equivalent(answer: str, gold: str) -> bool:
    """Equality after rewritings that lose nothing: typography, units, separators, degrees, congruences, intervals."""
    answer, gold = dressed(answer), dressed(gold)
    if not answer:
        return False
    if alike(answer, gold) or labelled(answer, gold) or congruent(answer, gold):
        return True
    scaled = in_one_unit(answer, gold)
    if scaled is None:
        return False
    answer, gold = scaled
    if ("°" in answer) != ("°" in gold) and "\\pi" in answer + gold:  # degrees against radians
        turn = r"(\1)\\cdot\\frac{\\pi}{180}"
        return same(*(DEGREES.sub(turn, text) for text in (answer, gold)))
    answer, gold = (text.replace("°", "") for text in (answer, gold))
    if dotted(answer) != dotted(gold):
        return False
    # An inequality may stand for a set once it is solved: not for what the problem asked to solve.
    if same(answer, gold, allow_set_relation_comp=solved(read(answer)[0] if read(answer) else None)):
        return True
    return not differ(answer, gold) and (agree(answer, gold) or solution(answer, gold))


def dressed(text: str) -> str:
    """`plain`, and the rewritings that only a reader who knows what is meant may make."""
    text = ORDINAL.sub(r"\\text{\1}", plain(text))
    # \text{1 and 2} is a list, not a word.
    if (one := WORD.fullmatch(text)) and len(elements(one[1])) > 1:
        text = one[1]
    text = SYNONYMS.get(unwrapped(text).casefold(), text)
    text = BUILDER.sub(lambda found: found[1].strip(), text)
    text = FLIPPED.sub(r"\2=\1", text)
    if TRIGONOMETRIC.search(text):
        text = ARC.sub(r"\\frac{\1\\pi}{180}", text)
    if PLUS_MINUS.search(text) and "\\mp" not in text and "\\equiv" not in text:
        # 3\pm\sqrt{2}, 7 -> 3+\sqrt{2},3-\sqrt{2},7: what has no sign stands there once.
        parts = [[PLUS_MINUS.sub(sign, one) for sign in "+-"] for one in elements(value_side(text))]
        text = ",".join(sign for pair in parts for sign in dict.fromkeys(pair))
    return text.strip()


def alike(answer: str, gold: str) -> bool:
    """Equal as text: words without case, the rest as written."""
    spoken = rows(answer), rows(gold)
    if None not in spoken[0] + spoken[1] and len(spoken[0]) == len(spoken[1]) == 1:
        return spoken[0] == spoken[1]
    return unwrapped(worded(answer)) == unwrapped(worded(gold)) or (
        bool(WORD.search(worded(answer)) and WORD.search(worded(gold)))
        and folded_text(answer) == folded_text(gold)
        and not differ(answer, gold)
    )


def in_one_unit(answer: str, gold: str) -> tuple[str, str] | None:
    """Both in the unit of one, or without it; None where they measure different things."""
    sides = [quantity(text) for text in (answer, gold)]
    # Words that are no unit are compared as text, and without a unit on either side there is nothing to convert.
    if any(side.words for side in sides) or all(
        side.value == text for side, text in zip(sides, (answer, gold), strict=True)
    ):
        return answer, gold
    one, other = sides
    if {one.measures, other.measures} == {(("degree", 1),), (("angle", 1),)}:
        # 90° against \pi/2 radians: degrees in radians, the other as it stands.
        left, right = (re.sub(r"(.*)°", r"(\1)\\cdot\\frac{\\pi}{180}", side.value) for side in sides)
        return left, right
    if one.measures and other.measures and one.measures != other.measures:
        return None
    # 5 km against 5000 m: both in metres. A unit on one side alone is taken as meant on the other: 5 km for 5.
    both = bool(one.measures and other.measures) and one.amount != other.amount
    factors = [side.multiple * (side.amount if both else 1) for side in sides]
    left, right = (
        side.value
        if factor == 1
        else f"({side.value})\\cdot\\frac{{{factor.numerator}}}{{{factor.denominator}}}"
        for side, factor in zip(sides, factors, strict=True)
    )
    return left, right


def agree(answer: str, gold: str) -> bool:
    """Whether two numbers are equal to 180 digits, or a decimal rounds the other: sums of roots, powers of i."""
    # In brackets what is no unit any more, so that 2ab keeps its letters.
    answer, gold = (re.sub(r"(?<=[\d)}])([A-Za-z]+)\Z", r"(\1)", text) for text in (answer, gold))
    values = [read(text)[0] if read(text) else None for text in (answer, gold)]
    if not all(isinstance(value, sympy.Expr) for value in values) or misread(answer, gold):
        return False
    a, b = map(meant, values)
    # With variables, or a percent sign, the difference must simplify to 0: 2(a + b) and 2a + 2b.
    if a.free_symbols or b.free_symbols or a.has(sympy.UnevaluatedExpr) or b.has(sympy.UnevaluatedExpr):
        return a.free_symbols == b.free_symbols and sympy.simplify(a - b) == 0
    if a.has(sympy.Float) or b.has(sympy.Float):
        return not far(a, b)
    gap, size = difference(a.doit(), b.doit())
    return bool(a.is_finite and (gap == 0 or (gap.is_Float and gap <= 10.0 ** (20 - DIGITS) * size)))


def meant(value: sympy.Expr) -> sympy.Expr:
    """With i for the imaginary unit, and the real root where there is one: \\sqrt[3]{-8} is -2."""
    value = value.subs({name: sympy.I for name in value.free_symbols if name.name == "i"})
    return value.replace(
        lambda part: (
            part.is_Pow
            and part.exp.is_Rational
            and part.exp.q % 2
            and part.exp.q > 1
            and part.base.is_negative
        ),
        # (-8)^(1/3) -> (-1)^1 x 8^(1/3); sympy's own root of it is complex.
        lambda part: (-1) ** part.exp.p * (-part.base) ** part.exp,
    )


def solution(answer: str, gold: str) -> bool:
    """Whether two say the same set of real numbers, one of them by inequalities: x < 1 or x > 2."""
    if not RELATION.search(answer + gold):
        return False
    (a, of), (b, others) = (real_set(text) for text in (answer, gold))
    return a is not None and a == b and (of == others or not of or not others)


def real_set(text: str):
    """(set, variable) of an interval, a union or solved inequalities; (None, None) of what stands for no set."""
    values = [read(one)[0] for one in (elements(text) if RELATION.search(text) else [text]) if read(one)]
    names = {name for one in values if isinstance(one, sympy.Basic) for name in one.free_symbols}
    if len(values) == 1 and isinstance(values[0], sympy.Set):
        return values[0], None
    if len(names) != 1 or not all(map(solved, values)):
        return None, None
    sets = [sympy.And(*one.args).as_set() if isinstance(one, sympy.And) else one.as_set() for one in values]
    return (sympy.Union if CONNECTIVE.search(text) else sympy.Intersection)(*sets), names.pop()


def labelled(answer: str, gold: str) -> bool:
    """Whether the gold answer is the letter of an option and the answer starts with its label: (B) 5 for B."""
    # The gold answer must be the letter and nothing else; of the answer only its beginning is read.
    letter, label = (
        LETTER.fullmatch(unwrapped(gold)),
        OPTION.match(WORD.sub(r"\1", answer).strip("{ ").replace("}", "")),
    )
    return bool(letter and label and letter[1] in (label[1], label[2]))


def congruent(answer: str, gold: str) -> bool | None:
    """Whether two congruences say the same; None where one of them is no congruence with integer residues."""
    said, meant = congruence(answer), congruence(gold)
    if said is None or meant is None:
        return None
    (left, *answer_class), (other, *gold_class) = said, meant
    return answer_class == gold_class and (not left or not other or left == other)


def congruence(text: str) -> tuple[str, frozenset[int], int] | None:
    """n \\equiv 1, 4 \\pmod 5 as ("n", {1, 4}, 5)."""
    match = CONGRUENCE.fullmatch(plain(text))
    if not match:
        return None
    parts = re.split(r"\s*(?:,|\bor\b|\band\b)\s*", WORD.sub(r" \1 ", match["residues"]).strip())
    parts = [part for part in parts if part]
    residues = [one for part in parts if (one := RESIDUE.fullmatch(part))]
    if not residues or len(residues) < len(parts):
        return None
    modulus = int(match["modulus"])
    signs = {"\\pm": (1, -1), "-": (-1,)}
    # \pm 1 modulo 5 is {1, 4}.
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


if __name__ == "__main__":
    serve(grade, float(sys.argv[1]), int(sys.argv[2]), RETIRE_BYTES)
