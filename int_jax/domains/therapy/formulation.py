"""Formulations: what an interviewer says to have found out, item by item, each with the own turn it was heard in.

  formulation belief failure @8; group helpless @8; emotion sad @3; behaviour left @4; coping avoid @5; rule control @7

Items stand in lines or between semicolons: a slot, an id of the closed sets, and "@" with the number of an own turn,
counted from 1. An item counts only if the client's reply to that turn told it. The score is a weighted mean of set F1:

  score = sum_slot weight_slot * 2 right_slot / (given_slot + reference_slot)

so that leaving out, guessing and ticking all cost, and order costs nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from int_jax.domains.therapy.acts import FORMULATION
from int_jax.domains.therapy.cases import Case, Ids, Situation

WEIGHTS = {"belief": 0.35, "group": 0.1, "emotion": 0.15, "behaviour": 0.1, "coping": 0.1, "rule": 0.2}
MOST = 3  # items of a slot that can count; those after them are given, and never right
ITEM = re.compile(
    r"^\W*(belief|group|emotion|behaviou?r|coping|rule)s?\b[\s:=]*([a-z][a-z_ ]*?)\s*@\s*(\d{1,4})\b"
)
Reference = Mapping[str, frozenset[str]]


class Item(NamedTuple):
    """One item: a slot of WEIGHTS, an id, and the own turn in which it was heard, from 1."""

    slot: str
    id: str
    turn: int


def parse(text: str) -> list[Item]:
    """The items of a formulation, in their order, whatever the text is; what is no item is passed over."""
    if not text.strip().casefold().startswith(FORMULATION):
        return []
    body = text.strip()[len(FORMULATION) :].casefold()
    found = (ITEM.match(piece) for piece in re.split(r"[;\n,]|(?<=\d) (?=[a-z])", body))
    return [
        Item(match[1].replace("behavior", "behaviour"), "_".join(match[2].split()), int(match[3]))
        for match in found
        if match
    ]


def render(items: Iterable[Item]) -> str:
    """The items as a turn."""
    return f"{FORMULATION} " + "; ".join(f"{one.slot} {one.id} @{one.turn}" for one in items)


def slots(ids: Ids) -> dict[str, tuple[str, ...]]:
    """The ids that may stand in each slot."""
    return {
        "belief": ids.known("beliefs"),
        "group": tuple(ids.beliefs),
        "emotion": ids.known("emotions"),
        "behaviour": ids.known("behaviours"),
        "coping": ids.known("coping"),
        "rule": ids.known("rules"),
    }


def reference(ids: Ids, case: Case, situation: Situation) -> dict[str, frozenset[str]]:
    """What a perfect formulation of a client names, by slot."""
    beliefs = [part.id for part in case.beliefs]
    return {
        "belief": frozenset(beliefs),
        "group": frozenset(map(ids.group, beliefs)),
        "emotion": frozenset(part.id for part in situation.emotions),
        "behaviour": frozenset([situation.behaviour.id]),
        "coping": frozenset([case.coping.id]),
        "rule": frozenset([case.rule.id]),
    }


def score(items: Sequence[Item], wanted: Reference, told: Mapping[int, frozenset[tuple[str, str]]]) -> float:
    """The score in [0, 1]; see the module's docstring.

    told: by own turn, from 1, the (slot, id) that the reply to it told.
    """
    total = 0.0
    for slot, weight in WEIGHTS.items():
        given = [one for one in items if one.slot == slot]
        right = {
            one.id
            for i, one in enumerate(given[:MOST])
            # An id that is named again, with another turn, was named once too often.
            if one.id not in {other.id for other in given[:i]}
            and one.id in wanted[slot]
            and (slot, one.id) in told.get(one.turn, frozenset())
        }
        total += weight * f1(len(right), len(given), len(wanted[slot]))
    return round(total, 9)


def f1(right: int, given: int, wanted: int) -> float:
    """2 right / (given + wanted)."""
    return 2 * right / (given + wanted)


# What the public part alone allows -----------------------------------------------------------------------------------


def guess(named: Mapping[str, Iterable[str]], wanted: Reference) -> float:
    """The score of ids that nobody has told, as if each citation were right: what a guess would be worth."""
    items = [Item(slot, one, 1) for slot, names in named.items() for one in names]
    return score(items, wanted, {1: frozenset((one.slot, one.id) for one in items)})


def majority(references: Sequence[Reference]) -> dict[str, list[str]]:
    """Of each slot the id that most references name; the first by name of those that are equally frequent."""
    return {slot: frequent(references, slot)[:1] for slot in WEIGHTS}


def frequent(references: Sequence[Reference], slot: str) -> list[str]:
    """The ids that references name in a slot, the most frequent first."""
    named = [name for one in references for name in one[slot]]
    return sorted({*named}, key=lambda name: (-named.count(name), name))


def best_unheard(references: Sequence[Reference]) -> dict[str, list[str]]:
    """The guess that is best on average over these references: the most that can be said with nothing heard, since a
    history names no part. In each slot it has as many of the most frequent ids as the mean F1 is highest with."""
    found = {}
    for slot in WEIGHTS:
        order = frequent(references, slot)[:MOST]
        sums = [
            sum(f1(len({*order[:k]} & one[slot]), k, len(one[slot])) for one in references)
            for k in range(1, len(order) + 1)
        ]
        found[slot] = order[: 1 + sums.index(max(sums))]
    return found
