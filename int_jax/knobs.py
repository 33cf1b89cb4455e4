"""Knobs: a value that a user may set, declared once with its unit, its range and where it comes from.

A table of knobs is a dict of names to `Knob`s, or to further tables: defaults, checks and documentation come from it.
"""

import dataclasses
import math
import operator
from typing import Any

from int_jax import modules

WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", dict: "a dictionary"}


@dataclasses.dataclass(frozen=True)
class Knob:
    """One knob.

    Attributes:
      value: the default. Its type is the knob's; a whole number will do for a float, a list for a tuple.
      unit: what the value is, or counts. source: where it comes from; "" if it is our own choice.
      at_least, above, at_most: the range of a number. A tuple's range and choices are those of each of its items.
      also: values outside the range, with a meaning of their own, such as -1 for "what is left".
      choices: all that it may be. own: or a module of the user's own, by its dotted name or its file.
      why: the reason of its range, where that does not explain itself.
      empty: whether a text or a tuple may be empty. items: the type of a tuple's items, if the default has none.
      order: of a tuple: "distinct", "increasing", or "range": the lowest and the highest of something.
      machine: whether no result depends on it but for rounding, so that a run may go on with another value. All others
        are the science of a run.
    """

    value: Any
    unit: str
    source: str = ""
    _: dataclasses.KW_ONLY
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    also: tuple = ()
    choices: tuple = ()
    own: bool = False
    why: str = ""
    empty: bool = True
    items: type | None = None
    order: str = "distinct"
    machine: bool = False

    @property
    def type(self) -> type:
        """That of the value, or of each item of a tuple."""
        if not isinstance(self.value, tuple):
            return type(self.value)
        return self.items or type(self.value[0])

    @property
    def rule(self) -> str:
        """What a value must be, in words."""
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most}
        limits = "".join(f", {words} {limit:,}" for words, limit in bounds.items() if limit is not None)
        one = WORDS[self.type] + limits
        if self.choices:
            one = ("one of " if len(self.choices) > 1 else "") + ", ".join(map(str, self.choices))
        one += f", or {modules.HOW}" if self.own else ""
        one += "".join(f", or {value}" for value in self.also)
        if not isinstance(self.value, tuple):
            return one if self.empty or self.type is not str else f"{one}, not empty"
        if self.order == "range":
            return f"the lowest and the highest, each {one}"
        number = "any number of" if self.empty else "one or more"
        return f"a tuple of {number} items, {self.order}, each {one}"

    def allows(self, value) -> bool:
        if not isinstance(self.value, tuple):
            return self._allows_one(value) and (self.empty or value != "")
        if not isinstance(value, tuple | list) or not all(map(self._allows_one, value)):
            return False
        if self.order == "range":
            return len(value) == 2 and value[0] <= value[1]
        if len(set(value)) < len(value) or not (value or self.empty):
            return False
        return self.order == "distinct" or list(value) == sorted(value)

    def _allows_one(self, value) -> bool:
        if self.type in (bool, str, dict):
            known = not self.choices or value in self.choices or (self.own and modules.is_own(value))
            return isinstance(value, self.type) and known
        # To Python True is the number 1, and float("1") reads a text.
        if isinstance(value, bool | str):
            return False
        try:  # NumPy's numbers are numbers, too
            # index() takes 3 and numpy's 3, and refuses 3.0; float() takes all numbers.
            number = operator.index(value) if self.type is int else float(value)
        except TypeError:
            return False
        # NaN compares false with every bound, which is why it is asked for by name.
        return number in self.also or (
            math.isfinite(number)
            and (not self.choices or number in self.choices)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
        )


def defaults(table: dict) -> dict:
    """The values of a table, and of the tables in it."""
    return {name: one.value if isinstance(one, Knob) else defaults(one) for name, one in table.items()}


def machine(table: dict, prefix: str = "") -> set[str]:
    """The full names of the knobs that may change between two starts of a run."""
    names: set[str] = set()
    for name, one in table.items():
        if not isinstance(one, Knob):
            names |= machine(one, f"{prefix}{name}.")
        elif one.machine:
            names.add(prefix + name)
    return names


def faults(table: dict, values: dict, where: str) -> list[str]:
    """What is wrong with values of a table's knobs, a line for each: the knob, its value, and what it must be."""
    found = [
        f"{where} has no knob {name!r}: it has {', '.join(table)}" for name in values if name not in table
    ]
    for name, one in table.items():
        path = f"{where}.{name}"
        if name not in values:
            found.append(f"{path} is missing")
        elif not isinstance(one, Knob):
            inner = values[name]
            told = isinstance(inner, dict)
            found += faults(one, inner, path) if told else [f"{path} = {inner!r}: must be a group of knobs"]
        elif not one.allows(values[name]):
            reason = f", because {one.why}" if one.why else ""
            found.append(f"{path} = {values[name]!r}: must be {one.rule}{reason}")
    return found


def check(table: dict, values: dict, where: str) -> None:
    """Refuse values that a table does not allow, all of them in one error. Raises: ValueError."""
    found = faults(table, values, where)
    if found:
        raise ValueError("\n".join(found))


# How responses are drawn: fields of `engine.Sampling`. On a device they are numbers of 32 bits.
SAMPLING = {
    "max_new_tokens": Knob(256, "tokens of a response at most", at_least=1, at_most=2**31 - 1),
    "temperature": Knob(1.0, "of the logits; 0 is greedy", at_least=0),
    "top_k": Knob(0, "likeliest tokens kept; 0: all", at_least=0, at_most=2**31 - 1),
    "top_p": Knob(1.0, "probability of the tokens kept; 1: all", above=0, at_most=1),
    "min_p": Knob(0.0, "least share of the likeliest token's probability; 0: all", at_least=0, at_most=1),
    "seed": Knob(0, "of the random streams", at_least=0, at_most=2**32 - 1),
}
