"""DEAR MAN's situations, the counterpart's lines and the labelled utterances: read, checked, made of a person's words.

All are files that a person can edit. `python -m int_jax.domains.dearman.situations FILE` prints what a file holds, or
every fault in it with its place and its fix; loading a file with a fault raises ValueError with the same lines.
"""

import hashlib
import re
import string
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from int_jax.domains.authored import Place, load, read, rows

ASSETS = Path(__file__).parents[2] / "assets" / "dearman"
SITUATIONS = ASSETS / "situations.json"
REPLIES = ASSETS / "replies.json"
GOLD = ASSETS / "gold.jsonl"

AREAS = ("family", "social", "work")
TYPES = ("object", "deflect", "attack", "bargain", "agree")
STRATEGIES = ("describe", "express", "assert", "reinforce", "negotiate")
STATES = ("mindful", "confident")
STRENGTHS = ("strong", "weak", "none")
DIFFICULTIES = (1, 5)
HALVES = ("a", "b")

# The least and the most words of each brief text: what a model of a few hundred words can say of a situation.
BRIEF = {
    "facts": (4, 14),
    "goal": (2, 7),
    "anchor": (2, 4),
    "feel": (1, 1),
    "benefit": (2, 5),
    "offer": (2, 5),
}
BRIEF_REPLY = (2, 8)
UTTERANCE = (5, 45)

# What places a fact: a point of time, how often, how many, how long.
NUMBER = r"(?:\d+(?:[.,:]\d+)*(?:st|nd|rd|th)?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen)"
UNIT = r"(?:minute|hour|day|night|week|weekend|month|year|time|evening|morning|euro|dollar|pound|percent)s?"
DAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
MONTH = r"(?:january|february|march|april|may|june|july|august|september|october|november|december)"
ANCHOR = re.compile(
    rf"\b(?:once|twice|{NUMBER} {UNIT}|(?:last|this|every) (?:{DAY}|{UNIT})|yesterday|today|tonight|{DAY}"
    rf"|(?:in|on|since|of|until) (?:\d+ )?{MONTH}|{NUMBER})(?!\w)",
    re.IGNORECASE,
)
# Words of a goal that do not say what is asked for.
COMMON = frozenset(
    re.findall(
        r"\w+",
        """i me my mine we us our you your yours he him his she her hers they them their it its a an the this that these
        those to of and or but if when then than so in on at by for from with without up out off over down as into is
        are be been was were am do does did have has had will would can could should may might must not no never please
        want wants need like ask refuse more less also just only any some all each every own same who what which where
        how there""",
    )
)


@dataclass(frozen=True)
class Brief:
    """A situation in few simple words, said to the other: "you" is the counterpart, and `goal` follows "please".

    Attributes: facts, and anchor, a part of them; goal; feel, one word; benefit, what the other gains; offer, a trade.
    """

    facts: str
    goal: str
    anchor: str
    feel: str
    benefit: str
    offer: str


@dataclass(frozen=True)
class Situation:
    """What a hard conversation is about, told by the person who will have it.

    Attributes:
      area: one of AREAS, "own" for a person's own. relation: what the other is to the person.
      facts: what happened. goal: what the other shall do, or what is refused, as it is said to the other.
      difficulty: 1 to 5.
      anchors: parts of `facts` that place one of them: an event, a time, a count.
      ask: key words of the goal, as beginnings of its words. benefit: of what the other gains. offer: of a trade.
      brief: None where only a model of the full language speaks.
    """

    id: str
    area: str
    relation: str
    facts: str
    goal: str
    difficulty: int
    anchors: tuple[str, ...]
    ask: tuple[str, ...]
    benefit: tuple[str, ...]
    offer: tuple[str, ...]
    brief: Brief | None


@dataclass(frozen=True)
class Lines:
    """What the counterpart may say as one type of reply; "{goal}" in a full line stands for the situation's goal."""

    full: tuple[str, ...]
    brief: tuple[str, ...]


@dataclass(frozen=True)
class Utterance:
    """One utterance of the person with its labels.

    Attributes:
      situation: its id. context: the counterpart's last line, "" at the beginning.
      labels: one of STRENGTHS for each of STRATEGIES, "yes" or "no" for each of STATES.
      half: "a", on which rules may be tuned, or "b", on which they never are.
    """

    id: str
    situation: str
    context: str
    text: str
    labels: dict[str, str]
    half: str


def half_of(situation: str) -> str:
    """The half of a situation's utterances, by a hash of its id: all of them are in one half."""
    return HALVES[hashlib.sha256(situation.encode()).digest()[0] % 2]


def own_situation(relation: str, facts: str, goal: str, difficulty: int) -> Situation:
    """A situation in a person's own words.

    The anchors are the first five days, months, counts and spans of time in the facts (ANCHOR), the key words of the
    ask the first four words of the goal that say something (not in COMMON), without -ing, -ed or -s. What the other
    gains, and what could be offered, is not in the facts: both are empty, and stand for anything. Raises ValueError
    where a text is empty, the facts place nothing, the goal asks nothing, or the difficulty is not 1 to 5.
    """
    given = {"relation": relation, "facts": facts, "goal": goal, "difficulty": difficulty}
    return load(_own, given)


def load_situations(file: str | Path = SITUATIONS) -> list[Situation]:
    """The situations of a JSON file. Raises ValueError, a line a fault."""
    return load(_situations, Path(file))


def load_replies(file: str | Path = REPLIES) -> dict[str, Lines]:
    """The counterpart's lines by type of reply. Raises ValueError, a line a fault."""
    return load(_replies, Path(file))


def load_gold(file: str | Path = GOLD, situations: Sequence[Situation] | None = None) -> list[Utterance]:
    """The labelled utterances of a file of JSON lines, on `situations` (by default the package's own).

    Raises ValueError, a line a fault.
    """
    known = load_situations() if situations is None else situations
    return load(_gold, Path(file), {one.id for one in known})


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def _stem(word: str) -> str:
    """A word without -ing, -ed or -s, where three letters or more are left."""
    return re.sub(r"(?<=\w{3})(?:ing|ed|s)$", "", word)


def _own(given: dict[str, Any], faults: list[str]) -> Situation:
    fields = Place(given, "own situation", "", faults).fields(given)
    relation, facts, goal = (fields[field].text() for field in ("relation", "facts", "goal"))
    anchors = tuple(dict.fromkeys(found.group().lower() for found in ANCHOR.finditer(facts)))[:5]
    said = [word for word in _words(goal) if word not in COMMON and len(word) > 1]
    ask = tuple(dict.fromkeys(map(_stem, said)))[:4]
    if facts and not anchors:
        fields["facts"].fault("they name no day, time or count", "when it was, or how often")
    if goal and not ask:
        fields["goal"].wrong("asks for nothing", "what you want done, or refuse")
    name = hashlib.sha256("\n".join((relation, facts, goal)).encode()).hexdigest()[:8]
    difficulty = fields["difficulty"].whole(*DIFFICULTIES)
    return Situation(f"own_{name}", "own", relation, facts, goal, difficulty, anchors, ask, (), (), None)


def _situations(path: Path, faults: list[str]) -> list[Situation]:
    return [_situation(row) for row in rows(path, faults)]


def _situation(row: Place) -> Situation:
    wanted = [field for field in Situation.__dataclass_fields__ if field != "brief"]
    fields = row.fields(wanted, ("brief",))
    facts, goal = fields["facts"].text(), fields["goal"].text()
    anchors, ask = fields["anchors"].texts(2, 5), fields["ask"].texts(2, 4)
    for anchor in anchors:
        if facts and anchor.lower() not in facts.lower():
            fields["anchors"].fault(f"the facts have no {anchor!r}", "words of the facts")
    for stem in (one for text in ask for one in _words(text)):
        if goal and not any(word.startswith(stem) for word in _words(goal)):
            fields["ask"].fault(f"{stem!r} begins no word of the goal", "beginnings of its words")
    return Situation(
        fields["id"].id(),
        fields["area"].one_of(AREAS),
        fields["relation"].text(),
        facts,
        goal,
        fields["difficulty"].whole(*DIFFICULTIES),
        anchors,
        ask,
        fields["benefit"].texts(2, 4),
        fields["offer"].texts(2, 4),
        _brief(fields["brief"]) if "brief" in fields and fields["brief"].value is not None else None,
    )


def _brief(place: Place) -> Brief:
    fields = place.fields(BRIEF)
    texts = {field: fields[field].simple(*limits) for field, limits in BRIEF.items()}
    if texts["facts"] and f" {texts['anchor']} " not in f" {texts['facts']} ":
        fields["anchor"].fault(f"the facts have no {texts['anchor']!r}", "a part of them")
    return Brief(**texts)


def _replies(path: Path, faults: list[str]) -> dict[str, Lines]:
    return {kind: _lines(place) for kind, place in read(path, faults).fields(TYPES).items()}


def _lines(place: Place) -> Lines:
    fields = place.fields(("full", "brief"))
    return Lines(
        fields["full"].texts(1, read=_full_line),
        fields["brief"].texts(1, read=lambda line: line.simple(*BRIEF_REPLY)),
    )


def _full_line(place: Place) -> str:
    line = place.text()
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(line) if slot is not None}
    except ValueError:
        slots = {line}
    if slots - {"goal"}:
        place.wrong("has other braces", "no braces but those of the slot {goal}")
    return line


def _gold(path: Path, situations: set[str], faults: list[str]) -> list[Utterance]:
    found: list[Utterance] = []
    texts: set[str] = set()
    for row in rows(path, faults):
        fields = row.fields(Utterance.__dataclass_fields__)
        situation, half = fields["situation"].text(), fields["half"].one_of(HALVES)
        if situation and situation not in situations:
            fields["situation"].wrong("is no situation", "the id of one")
        if situation in situations and half in HALVES and half != half_of(situation):
            fields["half"].wrong(f"has no utterance of {situation}", f"{half_of(situation)!r}, where all are")
        text = fields["text"].words(*UTTERANCE)
        if text and text in texts:
            fields["text"].fault(
                f"{text!r:.60} stands there twice", "another text, or leave one of the two out"
            )
        texts.add(text)
        labels = fields["labels"].fields(STRATEGIES + STATES)
        found.append(
            Utterance(
                fields["id"].id(),
                situation,
                fields["context"].text(empty=True),
                text,
                {
                    skill: place.one_of(STRENGTHS if skill in STRATEGIES else ("yes", "no"))
                    for skill, place in labels.items()
                },
                half,
            )
        )
    return found


def _counts(path: Path) -> list[str]:
    """What a file holds, a line a count: utterances where it ends in .jsonl, replies where it begins with {."""
    if path.suffix == ".jsonl":
        gold = load_gold(path)
        rows = [f"{len(gold)} utterances: " + _table(Counter(one.half for one in gold))]
        return rows + [
            f"{skill}: " + _table(Counter(one.labels[skill] for one in gold)) for skill in STRATEGIES + STATES
        ]
    if path.read_text(encoding="utf-8", errors="replace").lstrip().startswith("{"):
        replies = load_replies(path)
        return [
            f"{kind}: {len(lines.full)} full, {len(lines.brief)} brief" for kind, lines in replies.items()
        ]
    situations = load_situations(path)
    words = {
        word
        for one in situations
        if one.brief
        for field in BRIEF
        for word in getattr(one.brief, field).split()
    }
    return [
        f"{len(situations)} situations: " + _table(Counter(one.area for one in situations)),
        "difficulty: " + _table(Counter(one.difficulty for one in situations)),
        f"{len(words)} distinct brief words",
    ]


def _table(counts: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def main(arguments: Sequence[str]) -> int:
    """Print the counts or the faults of one file; 0 if there is no fault."""
    if len(arguments) != 1:
        print("usage: python -m int_jax.domains.dearman.situations FILE", file=sys.stderr)
        return 2
    try:
        print(*_counts(Path(arguments[0])), sep="\n")
    except (ValueError, OSError) as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
