"""Word problems of one to three steps on whole numbers, with solutions a line a step, and an oracle of first errors.

"Mia has 12 apples. She buys 5 more. How many apples does Mia have now?" is solved by "Mia buys 5 more: 12 + 5 = 17."
and "The answer is \\boxed{17}."
"""

import dataclasses
import re

import numpy as np

NAMES = {"Mia": "She", "Anna": "She", "Ruth": "She", "Tom": "He", "Omar": "He", "Paul": "He"}
THINGS = ("apples", "books", "coins", "cards", "shells", "stamps", "pens", "marbles")
# What happens, by sign: the sentence of the problem, and the beginning of its step in the solution.
EVENTS = {
    "+": (
        ("{he} buys {k} more.", "{name} buys {k} more"),
        ("Then {name} finds {k} more.", "{name} finds {k} more"),
    ),
    "-": (
        ("{he} gives {k} to a friend.", "{name} gives away {k}"),
        ("Then {name} loses {k}.", "{name} loses {k}"),
    ),
    "*": (("Then {name} gets {k} times as many as that.", "{name} has {k} times as many"),),
}
MOST = 150  # the largest value
SIGN = {"x": "*", "×": "*", "\\times": "*"}
# 12 + 5 = 17, 3 x 4 = 12, 3 \times 4 = $12
EQUATION = re.compile(r"(\d+)\s*([-+*x×]|\\times)\s*(\d+)\s*=\s*\$?(-?\d+)")
BOX = re.compile(r"\\boxed\{\s*(-?\d+)[^}]*\}")


@dataclasses.dataclass(frozen=True)
class WordProblem:
    """A problem, the value after each of its events, and the lines of its solution, the boxed answer last."""

    text: str
    values: tuple[int, ...]
    lines: tuple[str, ...]

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    def row(self, separator: str) -> dict[str, str]:
        """The columns of a file of problems."""
        solution = separator.join(self.lines)
        return {"problem": self.text, "answer": self.answer, "reference_solution": solution}


def draw(rng: np.random.Generator, steps: int) -> WordProblem:
    """A random problem of so many events."""
    name, thing = rng.choice(list(NAMES)), rng.choice(THINGS)
    start = value = int(rng.integers(3, 40))
    told, values, lines = [f"{name} has {start} {thing}."], [], []
    for _ in range(steps):
        sign = rng.choice([sign for sign in EVENTS if allowed(value, sign)])
        # What is left is at least 1 and at most MOST, as `allowed` has seen to.
        least, most = {"+": (2, 40), "-": (2, value - 1), "*": (2, min(5, MOST // value))}[sign]
        k = int(rng.integers(least, most + 1))
        sentence, step = EVENTS[sign][rng.integers(len(EVENTS[sign]))]
        after = apply(value, sign, k)
        told.append(sentence.format(he=NAMES[name], name=name, k=k))
        lines.append(f"{step.format(name=name, k=k)}: {value} {sign} {k} = {after}.")
        value = after
        values.append(value)
    told.append(f"How many {thing} does {name} have now?")
    lines.append(f"The answer is \\boxed{{{value}}}.")
    return WordProblem(" ".join(told), tuple(values), tuple(lines))


def allowed(value: int, sign: str) -> bool:
    return {"+": value + 40 <= MOST, "-": value >= 4, "*": 2 * value <= MOST}[sign]


def apply(value: int, sign: str, k: int) -> int:
    return value + k if sign == "+" else value - k if sign == "-" else value * k


def problems(seed: int, count: int) -> list[WordProblem]:
    """Distinct problems of one, two and three steps in turn. They follow the seed; more of them begin alike."""
    rng = np.random.default_rng(seed)
    found: dict[str, WordProblem] = {}
    while len(found) < count:
        one = draw(rng, 1 + len(found) % 3)
        found.setdefault(one.text, one)
    return list(found.values())


def first_error(problem: WordProblem, steps: list[str]) -> tuple[int, str] | None:
    """The first wrong step of an attempt, and the line of the solution that belongs in its place; None if none is.

    A step is right if each of its equations holds and arrives at the value that comes next, and if what it boxes is the
    answer, once all values are there. A step without equation or box is talk, and neither right nor wrong.
    """
    # Before each step: `done` values have been arrived at, and lines[done] is the line that comes next.
    done = 0
    for index, step in enumerate(steps):
        right = problem.lines[done]
        for a, sign, b, c in EQUATION.findall(step):
            holds = apply(int(a), SIGN.get(sign, sign), int(b)) == int(c)
            if not holds or done == len(problem.values) or int(c) != problem.values[done]:
                return index, right
            done += 1
        box = BOX.findall(step)
        if box and (box[-1] != problem.answer or done < len(problem.values)):
            return index, right
    return None
