"""Competition-style problems of our own making, with reference solutions: data for the dress rehearsal.

Each kind of problem is a short chain of computations, told twice: at length, as a model writes, and tersely, as a
textbook does. A slip at one step makes a wrong attempt, whose later steps follow from it.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction

import numpy as np


@dataclasses.dataclass(frozen=True)
class Step:
    """One computation: `name` gets compute(values); told in both styles with every value so far in reach."""

    name: str
    compute: Callable[[dict], int | Fraction]
    own: str
    reference: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """A statement, its given values, and the chain whose last value is the answer."""

    statement: str
    given: dict
    steps: tuple[Step, ...]

    def told(self, slip: int | None = None, shift: int = 0) -> tuple[list[str], list[str]]:
        """(own steps, reference steps); with a slip, that step's result is off by `shift` and the rest follows."""
        # A slip shifts one value; every later one is computed from what stands in `values`.
        values = dict(self.given)
        own, reference = [], []
        for index, step in enumerate(self.steps):
            values[step.name] = step.compute(values) + (shift if index == slip else 0)
            shown = {name: latex(value) for name, value in values.items()}
            own.append(step.own.format(**shown))
            reference.append(step.reference.format(**shown))
        own.append(f"The answer is \\boxed{{{latex(values[self.steps[-1].name])}}}.")
        return own, reference

    @property
    def answer(self) -> str:
        values = dict(self.given)
        for step in self.steps:
            values[step.name] = step.compute(values)
        return latex(values[self.steps[-1].name])


def latex(value: int | Fraction) -> str:
    """2, -3, \\frac{1}{2}."""
    if isinstance(value, Fraction) and value.denominator != 1:
        sign = "-" if value < 0 else ""
        return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    return str(int(value))


def progression(rng: np.random.Generator) -> Problem:
    a, d, n = int(rng.integers(1, 10)), int(rng.integers(2, 8)), int(rng.integers(4, 11))
    return Problem(
        f"An arithmetic progression starts with ${a}$ and has common difference ${d}$. "
        f"Find the sum of its first ${n}$ terms.",
        {"a": a, "d": d, "n": n, "m": n - 1},
        (
            Step(
                "rise",
                lambda v: v["m"] * v["d"],
                "From the first to the last term we add ${m} \\cdot {d} = {rise}$.",
                "${m} \\cdot {d} = {rise}$.",
            ),
            Step(
                "last",
                lambda v: v["a"] + v["rise"],
                "So the last term is ${a} + {rise} = {last}$.",
                "Last term ${last}$.",
            ),
            Step(
                "ends",
                lambda v: v["a"] + v["last"],
                "The first and the last term add up to ${a} + {last} = {ends}$.",
                "Ends ${ends}$.",
            ),
            Step(
                "sum",
                lambda v: Fraction(v["n"] * v["ends"], 2),
                "The sum is $\\frac{{{n} \\cdot {ends}}}{{2}} = {sum}$.",
                "Sum ${sum}$.",
            ),
        ),
    )


def vieta(rng: np.random.Generator) -> Problem:
    s, p = int(rng.integers(3, 13)), int(rng.integers(1, 10))
    return Problem(
        f"Real numbers $x$ and $y$ satisfy $x + y = {s}$ and $xy = {p}$. Find $x^2 + y^2 + {s}$.",
        {"s": s, "p": p},
        (
            Step(
                "square",
                lambda v: v["s"] ** 2,
                "Squaring the first equation gives $x^2 + 2xy + y^2 = {square}$.",
                "$(x + y)^2 = {square}$.",
            ),
            Step("twice", lambda v: 2 * v["p"], "Here $2xy = 2 \\cdot {p} = {twice}$.", "$2xy = {twice}$."),
            Step(
                "squares",
                lambda v: v["square"] - v["twice"],
                "Therefore $x^2 + y^2 = {square} - {twice} = {squares}$.",
                "$x^2 + y^2 = {squares}$.",
            ),
            Step(
                "total",
                lambda v: v["squares"] + v["s"],
                "Adding ${s}$ we get ${squares} + {s} = {total}$.",
                "In all ${total}$.",
            ),
        ),
    )


def remainder(rng: np.random.Generator) -> Problem:
    base, modulus = int(rng.integers(2, 10)), int(rng.integers(5, 14))
    return Problem(
        f"Find the remainder when ${base}^4 + {base}^2$ is divided by ${modulus}$.",
        {"b": base, "m": modulus},
        (
            Step(
                "second",
                lambda v: v["b"] ** 2 % v["m"],
                "First, ${b}^2 \\equiv {second} \\pmod{{{m}}}$.",
                "${b}^2 \\equiv {second}$.",
            ),
            Step(
                "fourth",
                lambda v: v["second"] ** 2 % v["m"],
                "Squaring again, ${b}^4 \\equiv {second}^2 \\equiv {fourth} \\pmod{{{m}}}$.",
                "${b}^4 \\equiv {fourth}$.",
            ),
            Step(
                "both",
                lambda v: v["fourth"] + v["second"],
                "Together they are ${fourth} + {second} = {both}$.",
                "Together ${both}$.",
            ),
            Step(
                "rest",
                lambda v: v["both"] % v["m"],
                "Modulo ${m}$ this leaves ${rest}$.",
                "Remainder ${rest}$.",
            ),
        ),
    )


def balls(rng: np.random.Generator) -> Problem:
    red, blue = int(rng.integers(2, 9)), int(rng.integers(2, 9))
    return Problem(
        f"A bag holds ${red}$ red and ${blue}$ blue balls. Two balls are drawn without replacement. "
        "Find the probability that both are red.",
        {"r": red, "b": blue, "q": red - 1},
        (
            Step("all", lambda v: v["r"] + v["b"], "There are ${r} + {b} = {all}$ balls.", "${all}$ balls."),
            Step(
                "pairs",
                lambda v: v["all"] * (v["all"] - 1) // 2,
                "Two of them can be chosen in ${pairs}$ ways.",
                "${pairs}$ pairs.",
            ),
            Step(
                "good",
                lambda v: v["r"] * (v["r"] - 1) // 2,
                "Two red ones can be chosen in ${good}$ ways.",
                "${good}$ red pairs.",
            ),
            Step(
                "chance",
                # A slip may leave no pairs.
                lambda v: Fraction(v["good"], v["pairs"] or 1),
                "So the probability is ${chance}$.",
                "Probability ${chance}$.",
            ),
        ),
    )


def quadratic(rng: np.random.Generator) -> Problem:
    a, b, c, k = (int(rng.integers(low, high)) for low, high in ((2, 6), (1, 10), (1, 10), (2, 6)))
    return Problem(
        f"Let $f(x) = {a}x^2 + {b}x + {c}$. Find $f({k})$.",
        {"a": a, "b": b, "c": c, "k": k, "kk": k * k},
        (
            Step(
                "first",
                lambda v: v["a"] * v["kk"],
                "The first term is ${a} \\cdot {kk} = {first}$.",
                "${a} \\cdot {kk} = {first}$.",
            ),
            Step(
                "second",
                lambda v: v["b"] * v["k"],
                "The second term is ${b} \\cdot {k} = {second}$.",
                "${b} \\cdot {k} = {second}$.",
            ),
            Step(
                "half",
                lambda v: v["first"] + v["second"],
                "Together they give ${first} + {second} = {half}$.",
                "Sum ${half}$.",
            ),
            Step(
                "value",
                lambda v: v["half"] + v["c"],
                "Adding the constant, $f({k}) = {half} + {c} = {value}$.",
                "$f({k}) = {value}$.",
            ),
        ),
    )


def divisors(rng: np.random.Generator) -> Problem:
    a, b, c = int(rng.integers(1, 6)), int(rng.integers(1, 5)), int(rng.integers(1, 4))
    return Problem(
        f"How many positive divisors does $2^{{{a}}} \\cdot 3^{{{b}}} \\cdot 5^{{{c}}}$ have?",
        {"a": a, "b": b, "c": c},
        (
            Step(
                "i",
                lambda v: v["a"] + 1,
                "The exponent of $2$ can be chosen in ${i}$ ways.",
                "${i}$ for $2$.",
            ),
            Step(
                "j",
                lambda v: v["b"] + 1,
                "The exponent of $3$ can be chosen in ${j}$ ways.",
                "${j}$ for $3$.",
            ),
            Step(
                "pairs",
                lambda v: v["i"] * v["j"],
                "That makes ${i} \\cdot {j} = {pairs}$ so far.",
                "${i} \\cdot {j} = {pairs}$.",
            ),
            Step(
                "count",
                lambda v: v["pairs"] * (v["c"] + 1),
                "With the exponent of $5$ there are ${count}$ divisors.",
                "${count}$ divisors.",
            ),
        ),
    )


KINDS = (progression, vieta, remainder, balls, quadratic, divisors)


def lexicon(seed: int, count: int) -> list[str]:
    """Distinct pronounceable names: what fills a vocabulary, as names of places do in real text."""
    rng = np.random.default_rng([seed, 9])
    onsets = "b br c d dr f g gr h k l m n p pr r s st t tr v z".split()  # noqa: SIM905
    vowels, codas = list("aeiou"), ["", "n", "r", "s", "l"]
    words: dict[str, None] = {}
    # A dict as an ordered set: a name that comes up again changes nothing.
    while len(words) < count:
        parts = [rng.choice(onsets) + rng.choice(vowels) for _ in range(int(rng.integers(2, 4)))]
        words["".join(parts).capitalize() + rng.choice(codas)] = None
    return list(words)


def problem(rng: np.random.Generator, names: list[str]) -> Problem:
    """A problem of a random kind, with the competition that it is said to come from."""
    one = KINDS[int(rng.integers(len(KINDS)))](rng)
    place = names[int(rng.integers(len(names)))]
    return dataclasses.replace(one, statement=f"({place} Olympiad) {one.statement}")


def row(one: Problem) -> dict[str, str]:
    """The columns of a data file."""
    return {
        "problem": one.statement,
        "answer": one.answer,
        "reference_solution": "\n\n".join(one.told()[1]),
        "source": "rehearsal",
    }
