r"""What the text of an answer says beyond its value: spellings, units, words, marks, brackets.

math-verify rewrites or drops these before it compares: "3\text{ AM}" is 3 to it, f'(x) is f(x), and (1,3) equals
\{1,3\}. `differ` finds where two answers say different things in what it does not read. `plain` gives one spelling to
what has several. Text alone, no algebra: that is verify_worker.py's.
"""

import collections
import itertools
import re
from fractions import Fraction
from typing import Any, NamedTuple

# One spelling ---------------------------------------------------------------------------------------------------------

SIGNS = {"≤": r"\le ", "≥": r"\ge ", "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi "}
SIGNS |= {"∞": r"\infty ", "∪": r"\cup ", "∈": r"\in ", "≡": r"\equiv ", "≠": r"\ne ", "…": r"\dots "}
SIGNS |= {"′": "'", "″": "''", "’": "'", "±": r"\pm ", "ℝ": r"\mathbb{R}", "⟨": "(", "⟩": ")", "⊤": r"\top "}
SIGNS |= {"\u2009": r"\,", "\u202f": r"\,", "\u00a0": "~"}  # thin and no-break spaces
SIGNS |= {sign: f"^{power}" for power, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
SIGNS |= {sign: f"_{index}" for index, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")}
for sign, over, under in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "112131234151357", "233445555668888", strict=True):
    SIGNS[sign] = f"\\frac{{{over}}}{{{under}}}"
NUMERALS = {"two": 2, "three": 3, "eight": 8, "ten": 10, "sixteen": 16}  # as a base is spelled

TEXT = r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|math(?:rm|bf|it|sf)|mbox|operatorname)"
# In this order: later patterns read what earlier ones write. (?![A-Za-z]) is where TeX ends a command: \left( is
# rewritten, \leftarrow is not. Raw LaTeX stands left of the arrows.
REWRITES: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"\*\*(?=\s*-?[\w({\\])(?<=[\w)}]\*\*)", "^"),  # x**2, not **bold**
        # **5** -> 5
        (r"\*\*", ""),
        # \$5 -> \usd 5, and so a $ before a last number, x=$5. Other $ only enclose mathematics, and go below:
        # $5$, \(5\), \[5\] -> 5
        (r"\\\$(?=\s*[\d.])|(?<![\\$])\$(?=\s*[\d.][\d.,]*\s*\Z)", r"\\usd "),
        (r"(?<!\\)\$|\\[()\[\]]", ""),
        # \left(1, 2\right] -> (1, 2], \bigl( -> (, and \displaystyle goes
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])|\\(?:displaystyle|limits|nolimits)(?![A-Za-z])", ""),
        # \phantom{0}5, \color{red}5 -> 5; \textcolor{red}{5} -> {5}
        (r"\\(?:phantom|label)\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}", ""),
        (r"\\textcolor\s*\{[^{}]*\}", ""),
        # \boldsymbol{x} -> {x}
        (r"\\(?:num|boldsymbol|bm|mathbf|mathsf|ensuremath)(?![A-Za-z])\s*(?=\{)", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\[dt]binom", r"\\binom"),
        # \frac12 -> \frac{1}{2}, \frac\pi2 -> \frac{\pi}{2}: without braces an argument is one token
        (r"\\frac\s*(\\pi|(?<=\s)[A-Za-z]|\d)\s*(\\pi|[A-Za-z0-9])", r"\\frac{\1}{\2}"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\(?:rightarrow|implies|Rightarrow)(?![A-Za-z])", r"\\to"),
        # f\colon A -> f:A
        (r"\\colon(?![A-Za-z])\s*", ":"),
        # \langle 1, 2\rangle -> ( 1, 2): the index is whether the command begins with \r
        (r"\\[lr]angle(?![A-Za-z])", lambda found: "()"["r" in found[0][:2]]),
        (r"\\lg(?![A-Za-z])", r"\\log_{10}"),
        # \log_{e} x -> \ln x, \sin^{-1} x -> \arcsin x, \exp(x) -> e^{x}
        (r"\\log_\{?e\}?(?![A-Za-z])", r"\\ln"),
        (r"\\(sin|cos|tan)\^\s*\{?\s*-1\s*\}?", r"\\arc\1"),
        (r"\\exp\s*\(([^()]*)\)", r"e^{\1}"),
        (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
        # \overline{x} -> \bar{x}, a mean or a conjugate; \overline{AB} is a segment, and stays
        (r"\\(?:bar|overline)\s*\{?([A-Za-z])\}?(?![A-Za-z}])", r"\\bar{\1}"),
        # f^{\prime\prime} -> f''
        (r"\^\s*(?:\{\s*(?:\\prime\s*)+\}|\\prime)", lambda found: "'" * found[0].count("prime")),
        # A^\top, A^{\text{T}} -> A^{T}: a transpose stands behind a capital or a bracket, so that 2^T is a power
        (
            r"(?<=[A-Z)}])\^\s*(?:\{\s*)?(?:T|\\top|\\intercal|\\(?:mathsf|mathrm|text)\s*\{\s*T\s*\})(?:\s*\})?(?![A-Za-z])",
            r"^{T}",
        ),
        # \mathrm{e} -> e, \text{ 12 } -> 12, \text{} -> nothing
        (rf"{TEXT}\s*\{{\s*(e|i|\\pi|\\infty)\s*\}}", r"\1"),
        (rf"{TEXT}\s*\{{\s*([-+]?\d[\d.,]*|)\s*\}}", r"\1"),
        # ∅, \{\} -> \emptyset
        (r"\\varnothing|∅|\\\{\s*\\\}|\{\s*\}(?=\Z)", r"\\emptyset"),
        # 2\pir -> 2\pi r, 2pi -> 2\pi: not the pi of a word
        (r"\\pi(?=[A-Za-z])|(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        # inf, \text{infinity} -> \infty
        (
            rf"(?<![\\A-Za-z])(?:{TEXT}\s*\{{\s*)?(?:[iI]nf|[iI]nfinity|infty)(?![A-Za-z])(?:\s*\}})?",
            r"\\infty ",
        ),
        # sqrt(2), \sqrt(2), sqrt{2}, √2, √(2) -> \sqrt{2}; sqrt[3]{2} -> \sqrt[3]{2}
        (r"(?:\\|(?<![\\A-Za-z]))sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])sqrt\s*(?=[\[{])", r"\\sqrt"),
        (r"√\s*\(([^()]*)\)|√\s*(\d+)|√\s*\{([^{}]*)\}", r"\\sqrt{\1\2\3}"),
        # 30^{\circ}, 30 degrees, 30\text{ degrees} -> 30°
        (
            r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|(?:\\text\s*\{)?\s*(?<![A-Za-z])degrees?(?![A-Za-z])\s*\}?)",
            "°",
        ),
        # 5 percent, 5 % -> 5\%
        (rf"\s*(?:{TEXT}\s*\{{\s*)?(?<![A-Za-z])percent(?:age)?(?![A-Za-z])(?:\s*\}})?", r"\\%"),
        (r"\s*(?<!\\)%", r"\\%"),
        # 1{,}000, 1\,000, 1 000 -> 1000; not 2 100/3, which is a mixed number
        (r"(?<=\d)(?:\{,\}|,?\\[,!;:]\s*|\\ |~|\s)(?=\d{3}(?!\d|\s*/))", ""),
        (r"(?<=\d)\s+(\d+)\s*/\s*(\d+)", r"\\frac{\1}{\2}"),  # 2 1/2
        # 2e-05 -> 2\cdot10^{-5}
        (r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([-+]?\d+)(?![\w.])", lambda f: f"{f[1]}\\cdot10^{{{int(f[2])}}}"),
        # 3 p.m. -> 3 pm
        (r"(?i)(?<![A-Za-z])([ap])\.\s?m(?:\.|(?![A-Za-z]))", r"\1m"),
        # 101_{two}, 101_{\text{two}} -> 101_{2}
        (
            r"_\{?\s*(?:\\text\s*\{)?\s*(two|three|eight|ten|sixteen)\s*\}?\s*\}?",
            lambda f: f"_{{{NUMERALS[f[1]]}}}",
        ),
        # 12_{10} -> 12; the base of \log_{10} stays
        (r"_10(?!\d)|_\{10\}(?=\Z)(?<!log_\{10\})", ""),
        # 3:00 PM -> 3 PM
        (r"(?<=\d):\s*00(?=\s*(?:\\text\s*\{\s*)?[aApP][mM])", ""),
        # ]1, 2[ -> (1, 2), the open interval as it is written in French
        (r"\A\s*\](.*,.*)\[\s*\Z", r"(\1)"),
        (r"\\[,;:!]|\\ |~|\\q?quad(?![A-Za-z])", " "),
        # 5. -> 5 and 5, -> 5; the dots of 1, 2, ... stay
        (r"(?<!\.)[,;\s]*\.?[,;\s]*\Z", ""),
        (r"\s+", " "),
    ]
]
# Five ways of writing a repeating decimal: 0.1\overline{6} (line), 0.\dot3 (digit), 0.(3) (round), and by dots
# 0.1666..., 0.1212... (again). Dots after 3 to 12 digits need these digits twice.
REPEATING = re.compile(
    r"(?P<whole>\d+)\.(?P<fixed>\d*)(?:"
    r"\\(?:overline|bar|dot)\s*(?:\{\s*(?P<line>\d+)\s*\}|(?P<digit>\d))|\((?P<round>\d+)\)"
    r"|(?P<dotted>(?<=\.)\d+?|)(?P<again>\d\d?|\d{3,12})(?P=again)+(?:\.\.\.|\\l?dots(?![A-Za-z])))"
)
# \pm, but not the \pm of \pmod
PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
DOTS = re.compile(r"\\[lc]?dots|\.\.\.|…")


def plain(text: str) -> str:
    """The text with one spelling for each thing that has several. What it says is the same."""
    for sign, command in SIGNS.items():
        if sign in text:
            text = text.replace(sign, command)
    for pattern, new in REWRITES:
        text = pattern.sub(new, text)
    text = text.strip()
    # {{5}} -> 5, but not {1}+{2}, whose first brace closes early.
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return REPEATING.sub(_repeating, text)


def _repeating(found: re.Match) -> str:
    r"""0.1\overline{6} as \frac{1}{6}. Dots repeat what stands before them three times, or twice if it is longer."""
    if again := found["again"]:
        # The pattern's own groups are greedy: of 0.1666... it makes fixed = 16, again = 6. The repeats are counted
        # anew, from the end: 1 and 666.
        whole, _, digits = found[0].rstrip(".").partition(".")
        digits = re.split(r"\D", digits, maxsplit=1)[0]
        fixed = re.sub(rf"(?:{again})+\Z", "", digits)
        if len(again) == 1 and len(digits) - len(fixed) < 3:
            return found[0]
    else:
        whole, fixed, again = (
            found["whole"],
            found["fixed"],
            found["line"] or found["digit"] or found["round"],
        )
    # 0.1(6): (16 - 1) / 90 = 1/6. As many nines as digits repeat, then as many zeros as stand before them.
    value = Fraction(
        int(whole + fixed + again) - int(whole + fixed), (10 ** len(again) - 1) * 10 ** len(fixed)
    )
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


# Brackets -------------------------------------------------------------------------------------------------------------

# A command is one token, so that the \{ of a set is not taken for the { of a group.
TOKEN = re.compile(r"\\begin\{|\\end\{|\\[{}]|\\[A-Za-z]+|\\.|.", re.DOTALL)
OPENERS, CLOSERS = {"(", "[", "{", r"\{", r"\begin{"}, {")", "]", "}", r"\}", r"\end{"}
# "1, 2", "1; 2", "1 and 2", "1\text{ or }2", "1, and 2"
SEPARATOR = re.compile(
    rf"\s*(?:[,;]\s*)?(?:{TEXT}\s*\{{\s*(and|or)\s*\}}|(?<![A-Za-z\\])(and|or)(?![A-Za-z]))\s*|\s*[,;]\s*"
)
# 7,425,000, and the 1,234 of (1,234); not 1,23 and not 1,2345
THOUSANDS = re.compile(r"(?<![\d,.])(\d{1,3})((?:,\d{3})+)(?![\d,])")


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes; -1 where it does not. Kinds do not count: [0, 1)."""
    depth = 0
    for token in TOKEN.finditer(text, start):
        depth += (token[0] in OPENERS) - (token[0] in CLOSERS)
        if depth == 0:
            return token.start()
    return -1


def elements(text: str) -> list[str]:
    """What stands between commas, semicolons, "and" and "or" outside all brackets. 7,425,000 is one number."""
    text = THOUSANDS.sub(lambda found: found[1] + found[2].replace(",", ""), text)
    cuts = list(SEPARATOR.finditer(text))
    if not cuts:
        return [text]
    # depths: how many brackets are open before each token. Of (1, 2), 3 the comma at depth 1 does not cut, the other
    # does. A separator that begins within a token is none.
    depth, at, found = 0, 0, []
    depths = {}
    for token in TOKEN.finditer(text):
        depths[token.start()] = depth
        depth += (token[0] in OPENERS) - (token[0] in CLOSERS)
    for cut in cuts:
        if depths.get(cut.start(), 1) == 0:
            found.append(text[at : cut.start()])
            at = cut.end()
    return [part for part in map(str.strip, [*found, text[at:]]) if part]


def inside(text: str) -> str:
    """What stands within the brackets around a value; the value itself where there are none."""
    text = value_side(text)
    opener = next((o for o in (r"\{", "(", "[") if text.startswith(o)), "")
    end = closing(text, 0) if opener else -1
    # Nothing may follow: (1, 2) -> 1, 2, but (1)(2) stays.
    return text[len(opener) : end] if opener and text[end:].strip() in (r"\}", ")", "]") else text


class Shape(NamedTuple):
    """kind: "" for what is no collection, "list" without brackets, else its brackets; and the elements."""

    kind: str
    parts: tuple["Shape", ...] = ()


def shape(text: str) -> Shape:
    """The collection that a plain text spells."""
    text = value_side(text)
    parts = elements(text)
    if len(parts) > 1:
        return Shape("list", _shapes(parts))
    opener = next((o for o in (r"\{", "(", "[") if text.startswith(o)), "")
    end = closing(text, 0) if opener else -1
    closer = text[end:].strip() if end > 0 else ""
    if closer not in (r"\}", ")", "]"):
        return Shape("")
    inner = text[len(opener) : end]
    parts = elements(inner)
    if opener + closer == r"\{\}":
        # \{x \mid x > 1\}, \{x : x > 1\}, \{1, \dots, 9\} describe their members and cannot be counted.
        builder = re.search(r"\\mid|(?<!\\)\||:|\\in|\\dots|\\ldots", inner)
        return Shape("" if builder else "{}", () if builder else _shapes(parts))
    return (
        # (5) is 5 and ((1, 2)) is (1, 2), while [5] may be a floor and is no collection.
        Shape(opener + closer, _shapes(parts))
        if len(parts) > 1
        else shape(inner)
        if opener == "("
        else Shape("")
    )


def _shapes(parts: list[str]) -> tuple[Shape, ...]:
    r"""Of each element; one with \pm stands for two."""
    return tuple(
        itertools.chain.from_iterable([shape(part)] * (1 + bool(PLUS_MINUS.search(part))) for part in parts)
    )


def value_side(text: str) -> str:
    r"""What stands behind the last = or \in outside brackets: the value of x = (1, 2)."""
    depth, at = 0, 0
    for token in TOKEN.finditer(text):
        depth += (token[0] in OPENERS) - (token[0] in CLOSERS)
        # Not the = of <=, >= and !=, nor one within brackets, f(x=1).
        if depth == 0 and token[0] in ("=", r"\in") and text[max(0, token.start() - 1)] not in "<>!,":
            at = token.end()
    return (
        # x = 1, y = 2 is a list and stays whole; f(1, 2) = ... and (x, y) = (1, 2) have their comma in a bracket.
        text[at:].strip()
        if not re.search(r"[,;]", text[:at]) or text[:at].lstrip().startswith("(")
        else text.strip()
    )


def other_kind(answer: Shape, gold: Shape, within: bool = False) -> bool:
    """Whether two collections differ in kind or in number: {1, 3} and (1, 3), {{1}} and {1}.

    A list without brackets has no kind of its own: it may be a set, or in its order a tuple. What is no collection may
    be one in other words (1 < x < 2), but not within another.
    """
    # Whether it is a collection at all: 5 against {5}, say, which counts only within another, [{5}, 6] against [5, 6].
    kinds = {answer.kind, gold.kind}
    if "" in kinds:
        return within and len(kinds) > 1
    if len(kinds) == 1 and len(answer.parts) != len(gold.parts) and answer.kind != "{}":
        return True
    # "1, 3" may be meant as \{1, 3\} or as (1, 3); \{1, 3\} against (1, 3) differ.
    if len(kinds) > 1 and (within or kinds not in ({"list", "{}"}, {"list", "()"})):
        return True
    # In a set the order does not count: the kinds of the members are compared sorted.
    if "{}" in kinds or "list" in kinds:
        names = [sorted({part.kind for part in one.parts}) for one in (answer, gold)]
        return names[0] != names[1] and not within
    return any(other_kind(*pair, within=True) for pair in zip(answer.parts, gold.parts, strict=True))


# Words and units ------------------------------------------------------------------------------------------------------

# name: (what it measures, how much of it)
UNITS: dict[str, tuple[str, Fraction]] = {}
# "mm=millimeter=millimetre 1/1000": names of one unit, and its size. What has another measure never converts:
# pounds (weight) and grams, months and days. "inche", "centurie", "pennie" are what `singular` leaves of plurals.
for _measure, _names in {
    "length": "m=meter=metre 1; mm=millimeter=millimetre 1/1000; cm=centimeter=centimetre 1/100; "
    "km=kilometer=kilometre 1000; in=inch=inche 0.0254; ft=foot=feet 0.3048; yd=yard 0.9144; mi=mile 1609.344",
    "mass": "g=gram 1; mg=milligram 1/1000; kg=kilogram 1000",
    "weight": "lb=pound 1; oz=ounce 1/16",
    "time": "s=sec=second 1; ms=millisecond 1/1000; min=minute 60; h=hr=hour 3600; day 86400; week 604800",
    "months": "month 1; year=yr 12; decade 120; century=centurie 1200",
    "volume": "L=l=liter=litre 1; mL=ml=milliliter=millilitre 1/1000",
    "gallon": "gal=gallon 1; quart=qt 1/4; pint=pt 1/8",
    "money": "usd=dollar=buck 1; cent=penny=pennie 1/100",
    "euro": "eur=euro 1",
    "energy": "J=joule 1; kJ=kilojoule 1000",
    "power": "W=watt 1; kW=kilowatt 1000; MW=megawatt 1000000; mW=milliwatt 1/1000",
    "force": "N=newton 1",
    "angle": "rad=radian 1",
}.items():
    for _entry in _names.split("; "):
        *_spellings, _amount = _entry.replace(" ", "=").split("=")
        UNITS |= {_name: (_measure, Fraction(_amount)) for _name in _spellings}
CURRENCIES = {"\\usd": "usd", "€": "euro", "£": "pound"}
MONEY = re.compile(r"(?P<minus>-?)\s*(?P<sign>\\usd |€|£)\s*(?P<rest>.*)", re.DOTALL)
SPEEDS = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h"}
COUNTS = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 1_000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "k": 1_000,
}
IDLE = {"a", "an", "the", "of", "unit", "units", "total"}
# Words that do not count or measure, but change what is said.
CHANGES = """
about above ad after ago all almost always am and any approximately are around as at base bc bce be before
below between binary both but by ce clockwise counterclockwise cubed cubic debt decrease decreased deficit
different digit distinct divided double down each east eighth eighths either even every exactly except false
few fewer fifth fifths first from gain half halves has hex hundredth hundredths if imaginary increase
increased infinite infinitely is larger last least left less loss lost many maybe millionth millionths minus
mod modulo more most multiple multiples negative neither never no non none noon nor north not nothing octal
odd off ones only or over pair pairs per plus pm positive possibly prime profit quarter quarters real
remainder remaining right root roots roughly score short sixth sixths smaller some south square squared tens
tenth tenths than then third thirds thousandth thousandths times to together triple true twice undefined under
unless until up was west when where whole with without wrong yes zero
"""
CHANGING = set(CHANGES.split())
WORD = re.compile(rf"{TEXT}\s*\{{([^{{}}]*)\}}")
# Letters outside commands and their names, and what is a word among them.
# In "2x + \sin y \text{ cm}" the runs are x and y: what is matched without a run is passed over.
BARE = re.compile(
    rf"{TEXT}\s*\{{[^{{}}]*\}}|"
    r"\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\[A-Za-z]+\s*(?:\{[A-Za-z*]+\})?|(?P<run>[A-Za-z]+)"
)
FUNCTION_NAMES = (
    "sin cos tan cot sec csc log ln exp max min gcd lcm det arcsin arccos arctan sqrt frac mod deg dim ker"
)
FUNCTIONS = set(FUNCTION_NAMES.split())
# A unit without \text stands right behind a number, one letter only behind a space: 5c may be a product.
AFTER_NUMBER = re.compile(r"[\d})!](\s*)\Z")
# What a text ends in, from words alone: of "5 \text{ m}/\text{s}^2" all behind the 5.
PHRASE = re.compile(
    rf"(?:(?:{TEXT}\s*\{{[^{{}}]*\}}|(?<![\\A-Za-z])[A-Za-z]+)(?:\s*\^\s*\{{?\s*-?\d\s*\}}?)?|\\cdot|[/*\s])+\Z"
)


def worded(text: str) -> str:
    r"""The plain text with bare words put in \text{}: 5 apples, 3 PM, 7 or more."""

    def put(found: re.Match) -> str:
        run = found["run"]
        if not run:
            return found[0]
        behind = AFTER_NUMBER.search(text[: found.start()])
        lower = run.lower()
        # "5 cm" and "5cm"; a single m, g, s or h behind a space ("5 m": 5m may be a product), L in any case.
        a_unit = behind and (unit_of(run) if len(run) > 1 else (behind[1] and run in "mgsh") or run == "L")
        # min may be the function. Words of two letters are few, and some of them ("am") count only behind a number, as
        # in 3 am; from four letters on a run is taken for a word and not for a product.
        is_word = (
            (
                (a_unit and run not in ("min",))
                or (len(run) > 2 and lower in CHANGING and lower not in FUNCTIONS)
            )
            or (len(run) == 2 and lower in {"or", "if", "no", "to", "is", "of", "at"})
            or (behind and (lower in {"am", "pm", "ad", "bc"} or (lower in COUNTS and len(run) > 1)))
            or (len(run) >= 4 and lower not in FUNCTIONS)
        )
        return f"\\text{{ {run} }}" if is_word else run

    return BARE.sub(put, text)


def singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def unit_of(word: str) -> tuple[str, Fraction] | None:
    return UNITS.get(word) or UNITS.get(word.lower()) or UNITS.get(singular(word.lower()))


class Quantity(NamedTuple):
    """5 million km: value "5", multiple 10^6, measures (("length", 1),), amount 1000; words that are no unit."""

    value: str
    multiple: int = 1
    measures: tuple[tuple[str, int], ...] = ()
    amount: Fraction = Fraction(1)
    words: tuple[str, ...] = ()


def quantity(text: str) -> Quantity:
    """A plain text in value and unit. An unknown noun is a unit of its own: 5 apples."""
    if money := MONEY.match(text):
        text = f"{money['minus']}{money['rest']} \\text{{ {CURRENCIES[money['sign'].strip()]} }}"
    text = worded(text)
    found = PHRASE.search(text) if WORD.search(text) else None
    if found and WORD.search(found[0]):
        value = re.sub(r"(?:\s|\\cdot|/)+\Z", "", text[: found.start()])
        if re.search(r"\d|\\pi|\\sqrt|\\frac|\}\Z|\)\Z", value) and not WORD.search(value):
            # 20°\text{C}: the degree sign stays with the value, 20°, and the unit is °C.
            read = measured(found[0], temperature=value.endswith("°"))
            if read:
                return Quantity(value, *read)
    if text.endswith("°"):
        return Quantity(text, measures=(("degree", 1),))
    return Quantity(text, words=tuple(words(text)))


def measured(phrase: str, temperature: bool) -> tuple[int, tuple[tuple[str, int], ...], Fraction] | None:
    """(count, measures, amount) of the words behind a number; None if one of them is no unit and no noun."""
    spoken = WORD.sub(r" \1 ", phrase).replace("\\cdot", " ")
    # mph -> mi/h, which the loop reads as (("length", 1), ("time", -1)).
    for short, long in SPEEDS.items():
        spoken = re.sub(rf"(?<![A-Za-z]){short}(?![A-Za-z])", long, spoken)
    spoken = re.sub(r"(?i)(?<![A-Za-z])per(?![A-Za-z])", "/", spoken)
    if not re.fullmatch(r"(?:[A-Za-z]+|\^\s*\{?\s*-?\d\s*\}?|[/*\s.-])*", spoken):
        return None
    tokens = re.findall(r"[A-Za-z]+|\^\s*\{?\s*-?\d\s*\}?|/", spoken)
    # Before each token: what was read comes to `amount` of `measures`; `last` is the unit just read, with its power, to
    # which "^2" or "squared" belongs; `power` is that of the unit to come ("square feet"); `sign` is -1 from the first
    # "/" on.
    count, amount, measures = 1, Fraction(1), collections.Counter[str]()
    power, last, sign = 1, None, 1
    for token in tokens:
        lower = token.lower()
        if token == "/":
            sign = -1
        elif token[0] == "^" or (lower in ("squared", "cubed") and last):
            if not last:
                return None
            times = {"squared": 2, "cubed": 3}.get(lower) or int(re.findall(r"-?\d", token)[0])
            # The unit was counted once when it was read: m^2 adds it once more.
            measures[last[0]] += last[2] * (times - 1)
            amount *= last[1] ** (last[2] * (times - 1))
            last = None
        elif lower in ("square", "sq", "cubic", "cu"):
            power = 3 if lower.startswith("cu") else 2
        elif lower in COUNTS or singular(lower) in COUNTS:
            count *= COUNTS.get(lower) or COUNTS[singular(lower)]
        elif lower in IDLE:
            last, power = None, 1
        # Not a noun: "5 more", "5 decreased".
        elif (lower in CHANGING and token not in UNITS) or (len(lower) > 4 and lower.endswith("ed")):
            return None
        else:
            if temperature and token in ("C", "F", "K"):
                unit = (f"°{token}", Fraction(1))
            else:
                unit = unit_of(token) or (singular(lower) if len(token) > 1 else token, Fraction(1))
            last = (*unit, sign * power)
            measures[unit[0]] += sign * power
            amount *= unit[1] ** (sign * power)
            power = 1
    return count, tuple(sorted((m, p) for m, p in measures.items() if p)), amount


def words(text: str) -> list[str]:
    """All words of a text, without articles and case; units by their measure."""
    spoken = re.findall(r"[A-Za-z]+|\d+", " ".join(WORD.findall(text)))
    return [singular(word.lower()) for word in spoken if word.lower() not in IDLE]


def unwrapped(text: str) -> str:
    """Words without the command around them, and without spaces: \\text{no solution} is nosolution."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", WORD.sub(r"\1", text))


def spelled(text: str) -> str | None:
    """The letters of an answer that is a word, a name or a row of letters, else None. A product is none."""
    # P.S. -> P S, then PS.
    text = re.sub(r"(?<=[A-Za-z])\s*\.\s*", " ", text)
    letters = re.sub(r"[\s'()\"-]+", "", WORD.sub(r"\1", text))
    if not re.fullmatch(r"[A-Za-z]+", letters) or re.search(r"[A-Za-z]\s*[\'(]", WORD.sub("", text)):
        return None
    # ab and xyz are products; abc and aab are rows of letters.
    product = letters.islower() and not WORD.search(text) and len(set(letters)) == len(letters)
    return None if product and (len(letters) < 3 or set(letters) <= set("uvwxyz")) else letters


def folded(letters: str) -> str:
    """Case does not count in words (Yes, yes, YES) and labels (b, B), but in names: Aa is not AA, r is not R."""
    # Two different letters or fewer may be two points or two variables: AA, Aa.
    word = letters.isupper() or letters.islower() or letters.istitle()
    if (word and len(set(letters.lower())) > 2) or letters.lower() in ("no", "a", "b", "c", "d", "e"):
        return letters.casefold()
    return letters.casefold() if len(letters) > 3 else letters


# What math-verify does not read ---------------------------------------------------------------------------------------

# 2024-05-31, 5/31/2024, 5:07: read as mathematics, a difference, quotients and a ratio.
CALENDAR = re.compile(r"(?<!\d)(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{2,4}|\d{1,2}:0\d)(?!\d)")
TRIGONOMETRIC = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne)(?![A-Za-z])")
CONNECTIVE = re.compile(r"(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])")
MARK = re.compile(
    r"'|\^\s*\{T\}|\\(?:bar|overline|hat|widehat|tilde|widetilde|vec|overrightarrow|dot|ddot|underline|check|star|ast|"
    r"dagger|angle|triangle|parallel|perp|sim|cong|nmid|neg|lnot|forall|exists|nabla|partial|oplus|otimes|mathcal|"
    r"square|diamond|wedge|vee|land|lor|mp)(?![A-Za-z])"
)
ALIASES = {r"\overline": r"\bar", r"\widehat": r"\hat", r"\widetilde": r"\tilde", r"\overrightarrow": r"\vec"}
ALIASES |= {r"\lnot": r"\neg", r"\land": r"\wedge", r"\lor": r"\vee"}
# Those with a capital of their own: \Gamma is not \gamma, while a capital alpha is A.
GREEK = re.compile(
    r"\\([Gg]amma|[Dd]elta|[Tt]heta|[Ll]ambda|[Xx]i|[Pp]i|[Ss]igma|[Pp]hi|[Pp]si|[Oo]mega)(?![A-Za-z])"
)
LABEL = re.compile(r"\(?([A-Ea-e])\)?")  # of an option
# \angle ABC, \overline{AB}: their letters are compared as they stand.
MARKED_NAME = re.compile(r"\\(?:angle|triangle|overline|bar)\s*\{?\s*([A-Z]{2,})")


def differ(answer: str, gold: str) -> bool:
    """Whether two answers in `plain` spelling say different things in what math-verify does not read."""
    if answer == gold:
        return False
    # x = 5 against 5: the name is not compared. With = on both sides both stay whole.
    if "=" in answer and "=" not in gold:
        answer = value_side(answer)
    elif "=" in gold and "=" not in answer:
        gold = value_side(gold)
    label, other = (LABEL.fullmatch(unwrapped(one)) for one in (answer, gold))
    if label and other:
        return label[1].casefold() != other[1].casefold()
    if any(map(CALENDAR.search, (answer, gold))) and folded_text(answer) != folded_text(gold):
        return True
    return (
        other_marks(answer, gold)
        or other_letters(answer, gold)
        or other_words(answer, gold)
        or other_kind(shape(answer), shape(gold))
    )


def folded_text(text: str) -> str:
    return unwrapped(worded(text)).casefold()


def marks(text: str) -> collections.Counter:
    return collections.Counter(ALIASES.get(mark, mark) for mark in MARK.findall(text))


def other_marks(answer: str, gold: str) -> bool:
    """Primes, transposes, bars and their like; the order of letters after an angle; a degree sign under a sine; "or"
    between inequalities."""
    sides = (answer, gold)
    if marks(answer) != marks(gold) or MARKED_NAME.findall(answer) != MARKED_NAME.findall(gold):
        return True
    if any(map(TRIGONOMETRIC.search, sides)) and answer.count("°") != gold.count("°"):
        return True
    # x < 1 or x > 2 against x < 1, x > 2: the comma is an "and".
    if all(map(RELATION.search, sides)):
        return bool(CONNECTIVE.search(answer)) != bool(CONNECTIVE.search(gold))
    return False


def rows(text: str) -> list[str | None]:
    """Each element's letters where it is `spelled`, without case where that does not count; in order where the brackets
    keep one."""
    found = [letters and folded(letters) for letters in map(spelled, elements(inside(text)))]
    return found if shape(text).kind in ("()", "[]") else sorted(found, key=str)


def names(text: str) -> set[str]:
    """The letters of the variables in a text, Latin and Greek."""
    runs = "".join(found["run"] or "" for found in BARE.finditer(WORD.sub(" ", worded(text))))
    return set(runs) | set(GREEK.findall(text))


def other_letters(answer: str, gold: str) -> bool:
    """Rows of letters, compared in order, lists of them in any; and variables that differ in case alone."""
    said, meant = rows(answer), rows(gold)
    if None not in said + meant:
        return said != meant
    if len(said) == len(meant) == 1 and any(row and len(row) > 2 for row in said + meant):
        return True
    here, there = names(answer), names(gold)
    # v against V, \gamma against \Gamma: the other case on the other side, and not the name itself.
    return any(name[0].swapcase() + name[1:] in there and name not in there for name in here)


def other_words(answer: str, gold: str) -> bool:
    """Words that change the value, counts (million), and units where both sides name one."""
    told = [[quantity(part) for part in elements(value_side(one))] for one in (answer, gold)]
    spoken = [sorted(q.words for q in side if q.words) for side in told]
    # Where both are letters and nothing else, other_letters has compared them.
    if spoken[0] != spoken[1]:
        return None in rows(answer) + rows(gold)
    counts = [sorted(q.multiple for q in side if q.multiple != 1) for side in told]
    if counts[0] != counts[1]:
        return True
    units = [{(q.measures, q.amount) for q in side if q.measures} for side in told]
    # Units of several kinds, as in "5 ft, 3 kg", are not converted: the texts must agree.
    if max(map(len, units)) > 1:
        return folded_text(answer) != folded_text(gold)
    return bool(units[0] and units[1] and units[0] != units[1])
