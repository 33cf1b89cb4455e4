"""Small problems about lists, words and numbers, each with a worked solution and tests that it computes.

A problem takes the items of something (a list, the digits of a number, the letters of a text), does one to three things
to them in turn, and gives something of the result: 1,785 templates of one thing alone. Words and code stand side by
side in the tables, so what a problem says is what its solution does.
"""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

from int_jax.domains.code.fences import fenced
from int_jax.types import Task

NAME = "code"
ENTRY = "solve"
TESTS = 8
# Problems are dealt to splits by a hash of their text, so that no problem is in two of them.
SPLITS: tuple[str, ...] = ("train", "hard_train", "hard_validation", "hard_test")


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing done: in words, and as an expression of `items`. K stands for a number, from `low` to `high`."""

    words: str
    code: str
    low: int = 0
    high: int = 0

    def drawn(self, rng: np.random.Generator) -> "Part":
        k = str(rng.integers(self.low, self.high + 1))
        return Part(self.words.replace("K", k), self.code.replace("K", k))


# What is given: the parameter, its words, and its items.
NUMBERS = (
    Part("numbers|a list of whole numbers|the numbers", "list(numbers)"),
    Part(
        "number|a whole number, 0 or more|its decimal digits, from left to right",
        "[int(d) for d in str(number)]",
    ),
    Part(
        "limit|a whole number, 0 or more|the whole numbers from 1 up to it, itself included",
        "list(range(1, limit + 1))",
    ),
    Part(
        "number|a whole number, 1 or more|its positive divisors, in increasing order",
        "[d for d in range(1, number + 1) if number % d == 0]",
    ),
    Part("words|a list of words|the lengths of the words", "[len(word) for word in words]"),
)
TEXTS = (
    Part("text|a text|its characters", "list(text)"),
    Part("words|a list of words|the words", "list(words)"),
    Part("sentence|a text of words with one blank between two of them|its words", "sentence.split()"),
)
# One thing of many that is done to the items; what is left is a list again.
CHANGES_OF_NUMBERS = (
    Part("keep those that are even", "[x for x in items if x % 2 == 0]"),
    Part("keep those that are odd", "[x for x in items if x % 2 == 1]"),
    Part("keep those that are greater than K", "[x for x in items if x > K]", 1, 6),
    Part("keep those that are less than K", "[x for x in items if x < K]", 3, 9),
    Part("keep those that are divisible by K", "[x for x in items if x % K == 0]", 3, 5),
    Part("leave out those that are divisible by K", "[x for x in items if x % K != 0]", 2, 5),
    Part("square each of them", "[x * x for x in items]"),
    Part("add K to each of them", "[x + K for x in items]", 1, 9),
    Part("multiply each of them by K", "[K * x for x in items]", 2, 9),
    Part("take K from each of them", "[x - K for x in items]", 1, 9),
    Part("replace each of them by its remainder on division by K", "[x % K for x in items]", 2, 7),
    Part("replace each of them by its absolute difference from K", "[abs(x - K) for x in items]", 2, 9),
    Part("add to each of them its place in the list, counted from 0", "[i + x for i, x in enumerate(items)]"),
    Part(
        "replace each of them by the sum of those up to it, itself included",
        "[sum(items[: i + 1]) for i in range(len(items))]",
    ),
    Part(
        "replace them by the differences of neighbours, the later one minus the earlier one",
        "[b - a for a, b in zip(items, items[1:])]",
    ),
)
CHANGES_OF_TEXTS = (
    Part("keep those that begin with a vowel (a, e, i, o or u)", "[x for x in items if x[0] in 'aeiou']"),
    Part(
        "leave out those that begin with a vowel (a, e, i, o or u)",
        "[x for x in items if x[0] not in 'aeiou']",
    ),
    Part("put each of them into capital letters", "[x.upper() for x in items]"),
    Part("write each of them K times in a row", "[K * x for x in items]", 2, 4),
    Part(
        "put the number of its place, counted from K, before each of them",
        "[str(i) + x for i, x in enumerate(items, K)]",
        high=3,
    ),
    Part(
        "keep the first, and those that are less than the one before them in the alphabet",
        "[x for i, x in enumerate(items) if i == 0 or x < items[i - 1]]",
    ),
    Part("write each of them backwards, followed by an exclamation mark", "[x[::-1] + '!' for x in items]"),
)
CHANGES_OF_BOTH = (
    Part("reverse their order", "items[::-1]"),
    Part("sort them in increasing order", "sorted(items)"),
    Part("keep every second one, beginning with the first", "items[::2]"),
    Part("leave out the first K of them", "items[K:]", 1, 2),
    Part("keep the first K of them", "items[:K]", 2, 5),
    Part("keep each of them only where it occurs first", "list(dict.fromkeys(items))"),
    Part("keep those that occur once", "[x for x in items if items.count(x) == 1]"),
    Part("move the first K of them to the end", "items[K:] + items[:K]", 1, 3),
)
# What the function gives.
ENDS_OF_NUMBERS = (
    Part("their sum, 0 if there are none", "sum(items)"),
    Part("the largest of them, -1 if there are none", "max(items, default=-1)"),
    Part("the smallest of them, -1 if there are none", "min(items, default=-1)"),
    Part(
        "the largest minus the smallest of them, 0 if there are none",
        "max(items) - min(items) if items else 0",
    ),
    Part("whether their sum is even", "sum(items) % 2 == 0"),
    Part("the remainder of their sum on division by K", "sum(items) % K", 3, 9),
    Part("the text of them, joined by commas", "','.join(map(str, items))"),
)
ENDS_OF_TEXTS = (
    Part("the text that they make, joined by hyphens", "'-'.join(items)"),
    Part("the text that they make, joined by nothing", "''.join(items)"),
    Part("the last of them in the alphabet, an empty text if there are none", "max(items, default='')"),
    Part("how many characters they have in all", "sum(len(x) for x in items)"),
)
ENDS_OF_BOTH = (
    Part("the list of them", "items"),
    Part("how many there are", "len(items)"),
    Part("how many different ones there are", "len(set(items))"),
    Part(
        "the pair of the first and the last of them, an empty tuple if there are none",
        "(items[0], items[-1]) if items else ()",
    ),
    Part("how often each of them occurs, as a dictionary", "{x: items.count(x) for x in items}"),
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A source of items, what is done to them, and what is given."""

    source: Part
    changes: tuple[Part, ...]
    end: Part

    @property
    def parameter(self) -> str:
        return self.source.words.split("|")[0]

    @property
    def statement(self) -> str:
        parameter, kind, items = self.source.words.split("|")
        # "Take the numbers. First square each of them, then reverse their order. The function returns their sum, ..."
        changes = ", then ".join(one.words for one in self.changes)
        return (
            f"Write a function `{ENTRY}({parameter})` of {kind}. Take {items}. First {changes}. The function returns "
            f"{self.end.words}.\n\n" + fenced(f"def {ENTRY}({parameter}):\n    ...")
        )

    @property
    def code(self) -> str:
        lines = [f"items = {one.code}" for one in (self.source, *self.changes)]
        return "\n    ".join([f"def {ENTRY}({self.parameter}):", *lines, f"return {self.end.code}"])

    @property
    def reference(self) -> str:
        """A worked solution: a step a paragraph, then the program."""
        steps = [f"Take {self.source.words.split('|')[2]}: `items = {self.source.code}`."]
        steps += [f"Then {one.words}: `items = {one.code}`." for one in self.changes]
        steps.append(f"Return {self.end.words}: `return {self.end.code}`.")
        return "\n\n".join([*steps, fenced(self.code)])

    @functools.cached_property
    def cases(self) -> list[tuple[Any, Any]]:
        """(argument, result); the arguments follow from the problem's text, the first one is its edge."""
        # Seeded by the text: a problem has the same cases wherever and whenever it is drawn.
        rng = np.random.default_rng(list(digest(self.statement).encode()))
        namespace: dict[str, Any] = {}
        exec(self.code, namespace)  # of the tables above
        given = [self.edge(), *(self.argument(rng) for _ in range(TESTS - 1))]
        return [(one, namespace[ENTRY](one)) for one in given]

    @property
    def varied(self) -> bool:
        """Whether no constant passes most of the tests: no result stands in more than half of them."""
        results = [repr(result) for _, result in self.cases]
        return max(map(results.count, results)) <= TESTS // 2

    @property
    def tests(self) -> str:
        """An assert a line."""
        return "".join(f"assert {ENTRY}({one!r}) == {result!r}\n" for one, result in self.cases)

    def edge(self) -> Any:
        return {"numbers": [], "words": [], "text": "", "sentence": "", "limit": 0, "number": 1}[
            self.parameter
        ]

    def argument(self, rng: np.random.Generator) -> Any:
        if self.parameter == "numbers":
            return rng.integers(-9, 13, rng.integers(3, 9)).tolist()
        if self.parameter in ("number", "limit"):
            divisors = "divisors" in self.source.words
            return int(rng.integers(2, 400 if divisors else 30 if self.parameter == "limit" else 10**7))
        words = [
            "".join(rng.choice(list("aabeinorst"), rng.integers(1, 6))) for _ in range(rng.integers(3, 8))
        ]
        if self.parameter == "words":
            return words
        return " ".join(words) if self.parameter == "sentence" else "".join(words)[:12]


def draw(rng: np.random.Generator, count: int) -> Problem:
    """A random problem with `count` changes."""

    def chosen(*tables: tuple[Part, ...]) -> Part:
        parts = [one for table in tables for one in table]
        return parts[rng.integers(len(parts))].drawn(rng)

    numbers = bool(rng.random() < 0.6)
    changes = CHANGES_OF_NUMBERS if numbers else CHANGES_OF_TEXTS
    return Problem(
        chosen(NUMBERS if numbers else TEXTS),
        tuple(chosen(changes, CHANGES_OF_BOTH) for _ in range(count)),
        chosen(ENDS_OF_NUMBERS if numbers else ENDS_OF_TEXTS, ENDS_OF_BOTH),
    )


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_of(statement: str) -> str:
    """The split that owns a problem: half train, a sixth each of the hard ones."""
    return SPLITS[max(0, int(digest(statement), 16) % 6 - 2)]


def task(one: Problem, name: str) -> Task:
    return Task(name, NAME, one.statement, one.reference, one.tests, {"changes": len(one.changes)})
