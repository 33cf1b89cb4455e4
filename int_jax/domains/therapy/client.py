"""The simulated client: a small Markov decision process that decides what is told, and says it in a case's own words.

The client tells its parts one question at a time: the situation first, then thought, emotion and behaviour, then coping
(after behaviour) and rule (after thought), then its beliefs one by one (after the rule). A part needs openness, too
(`NEEDS`), 0 to 4. A question that is answered well opens the client and hints that there is more, so that the next
part down from thought to belief needs one less; one that is answered flatly does neither. Being taken up (reflection,
validation, summary) opens it right after it has told something. Advice, closed questions, repeats, interpretations of
what was not heard and needless redirection close it.

A style is a row of numbers (`STYLES`): the chance of an answer, of a good one, and the one act that makes the client
ready to answer at all. So each style asks for another way to interview, not only for other ears.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from int_jax.domains.therapy import wording
from int_jax.domains.therapy.acts import PARTS, Act, read
from int_jax.domains.therapy.cases import Case, Ids, Lexicon, Situation
from int_jax.domains.therapy.formulation import WEIGHTS, Item, f1, parse, render, score
from int_jax.types import Reply

OPEN_MOST = 4
NEEDS = {
    "situation": 0,
    "thought": 1,
    "emotion": 1,
    "behaviour": 1,
    "coping": 2,
    "rule": 2,
    "belief": 3,
}
AFTER = {
    "thought": "situation",
    "emotion": "situation",
    "behaviour": "situation",
    "coping": "behaviour",
    "rule": "thought",
    "belief": "rule",
}
ARROW = ("thought", "rule", "belief")  # a hint is at the next of these
BELIEF = PARTS.index("belief")
PLACE = {part: place for place, part in enumerate(PARTS)}
SHUTS = 0.5  # the chance that a repeat, or a closed question that is not answered, lowers openness


class Style(NamedTuple):
    """A way to be interviewed. Chances are in [0, 1].

    Attributes:
      openness: at the start. key: the act that makes the client ready; any of `KEYS` where readiness changes nothing.
      open, closed: the chance that such a question is answered once its part is unlocked: (ready, not ready).
      good: the chance that an answer to an open, a closed question is a good one.
      lift: the chance that reflection, or the key act, raises openness right after something was told; the other acts
        that take up what was said have half of it.
      warms: whether small talk in the first turn raises openness.
    """

    openness: int
    key: str
    open: tuple[float, float]
    closed: tuple[float, float]
    good: tuple[float, float]
    lift: float
    warms: bool = False


KEYS = ("validation", "redirect", "summary")
OPENS = 0.95  # the chance that the key act makes ready
STYLES = {
    "plain": Style(1, "", (0.85, 0.85), (0.4, 0.4), (0.6, 0.2), 0.4),
    "upset": Style(1, "validation", (0.97, 0.1), (0.4, 0.05), (0.75, 0.2), 0.4),
    "verbose": Style(2, "", (0.3, 0.3), (0.8, 0.8), (0.5, 0.5), 0.3),
    "reserved": Style(0, "", (0.95, 0.95), (0.6, 0.6), (0.1, 0.05), 0.95, warms=True),
    "tangent": Style(2, "redirect", (0.97, 0.2), (0.5, 0.1), (0.7, 0.3), 0.4),
    "pleasing": Style(2, "summary", (0.97, 0.15), (0.3, 0.05), (0.7, 0.1), 0.3),
}


class State(NamedTuple):
    """Where an interview stands.

    Attributes:
      turn: own turns so far. openness: 0 to OPEN_MOST. heard: of each part, and of each belief in its order, the own
        turn, from 1, in which it was told; 0 where it was not. ready: see `Style`; a flat answer, and whatever
        shuts the client, ends it.
      last: what the last turn left: "told" (something, flatly), "hint" (something, well), the part that a question
        asked for in vain, or "".
      worth: the score of the formulation that ended it, -1 before.
    """

    turn: int
    openness: int
    heard: tuple[int, ...]
    ready: bool
    last: str = ""
    worth: float = -1.0


class Lines(NamedTuple):
    """What one client says: of each place of `State.heard` the forms of what it tells, one list an item, and its tags;
    the manner of its style; and what its formulation is held to."""

    said: tuple[tuple[tuple[str, ...], ...], ...]
    tags: tuple[tuple[str, ...], ...]
    reference: Mapping[str, frozenset[str]]
    words: Mapping[str, tuple[str, ...]]
    group: Mapping[str, str]
    wording: str


@dataclasses.dataclass(frozen=True)
class Client:
    """A client, as a script. Two are equal if the same acts are worth the same, whatever they say.

    Attributes:
      style: one of STYLES. turns: own turns at most. groups: of each belief in its order the number of its group,
        counted by first appearance: (0, 0, 1).
    """

    style: str
    turns: int
    groups: tuple[int, ...]
    lines: Lines = dataclasses.field(compare=False, repr=False)

    @functools.cached_property
    def numbers(self) -> Style:
        return STYLES[self.style]

    def start(self) -> State:
        return State(0, self.numbers.openness, (0,) * (BELIEF + len(self.groups)), False)

    # --- acts ---

    def act(self, state: State, text: str) -> Act:
        """By `acts.read`; a formulation with its worth."""
        found = read(text, self._unheard(self._known(state)))
        return Act("formulation", "", self._worth(state, text)) if found.kind == "formulation" else found

    def _known(self, state: State) -> frozenset[str]:
        told = zip(state.heard[BELIEF:], self.lines.tags[BELIEF:], strict=True)
        return frozenset(tag.partition(":")[2] for turn, tags in told if turn for tag in tags)

    def _unheard(self, known: frozenset[str]) -> tuple[str, ...]:
        """Words for the beliefs that were not told."""
        heard = {word for name in known for word in self.lines.words[name]}
        return tuple(sorted({word for name in self.lines.group for word in self.lines.words[name]} - heard))

    def _worth(self, state: State, text: str) -> float:
        told: dict[int, frozenset[tuple[str, str]]] = {}
        for turn, tags in zip(state.heard, self.lines.tags, strict=True):
            if turn:
                told[turn] = told.get(turn, frozenset()) | {self._slot(tag) for tag in tags}
                told[turn] |= {
                    ("group", self.lines.group[name]) for slot, name in told[turn] if slot == "belief"
                }
        return score(parse(text), self.lines.reference, told)

    def _slot(self, tag: str) -> tuple[str, str]:
        slot, _, name = tag.partition(":")
        return slot, name

    def acts(self, state: State) -> Sequence[Act]:
        """All but what others are never worse than: a formulation waits until all was told or the last turn is there,
        a question for what it needs; of closed questions only the verbose client's may be better than open ones."""
        if state.turn >= self.turns - 1 or all(state.heard):
            return (Act("formulation", "", self.honest(state.heard)),)
        found = [
            Act(kind, part)
            for part in PARTS
            if self.next_place(state.heard, part) >= 0 and self._unlocked(state, part)
            for kind in (("open", "closed") if self.style == "verbose" else ("open",))
        ]
        found.append(Act("reflection"))
        if self.numbers.key and not state.ready:
            found.append(Act(self.numbers.key))
        if self.numbers.warms and state.turn == 0:
            found.append(Act("small_talk"))
        return found

    def honest(self, heard: tuple[int, ...]) -> float:
        """The worth of a formulation of all that was heard, each item with its turn."""
        count = sum(1 for turn in heard[BELIEF:] if turn)
        pairs = {
            "belief": (count, len(self.groups)),
            "group": (len({*self.groups[:count]}), len({*self.groups})),
        }
        total = 0.0
        for slot, weight in WEIGHTS.items():
            if slot in pairs:
                right, wanted = pairs[slot]
            else:
                # All emotions of a situation are told together.
                right = wanted = 1
                right *= heard[PLACE[slot]] > 0
            total += weight * f1(right, right, wanted)
        return round(total, 9)

    def next_place(self, heard: tuple[int, ...], part: str) -> int:
        """The place of what a question about a part would be told next; -1 where all of it was told."""
        place = PLACE[part]
        if part == "belief":
            return next((i for i in range(BELIEF, len(heard)) if not heard[i]), -1)
        return place if not heard[place] else -1

    def _unlocked(self, state: State, part: str) -> bool:
        before = AFTER.get(part)
        if before and not state.heard[PLACE[before]]:
            return False
        # What lies next on the way down from thought to belief is near after a hint.
        hinted = state.last == "hint" and part == self.hinted(state.heard)
        return state.openness + hinted >= NEEDS[part]

    def hinted(self, heard: tuple[int, ...]) -> str:
        """The part that a hint is at; "" where all was told on that way."""
        return next((part for part in ARROW if self.next_place(heard, part) >= 0), "")

    # --- chances ---

    def outcomes(self, state: State, act: Act) -> Sequence[tuple[float, State]]:
        turn, openness, heard, ready, last, _ = state
        turn += 1
        if act.kind == "formulation":
            return ((1.0, State(turn, openness, heard, ready, "", act.worth)),)
        if act.kind in ("open", "closed"):
            return self._asked(state, act)
        one = self.numbers
        shut = State(turn, max(openness - 1, 0), heard, False)
        same = State(turn, openness, heard, ready)
        risen = min(openness + 1, OPEN_MOST)
        if act.kind in ("advice", "interpretation"):
            return ((1.0, shut),)
        if act.kind == "redirect" and one.key != "redirect":
            return ((SHUTS, shut), (1 - SHUTS, same._replace(ready=ready or not one.key)))
        if act.kind == "small_talk" and one.warms and state.turn == 0:
            return ((1.0, State(turn, risen, heard, ready)),)
        if act.kind in ("small_talk", "risk"):
            return ((1.0, same),)
        lift = 0.0
        if last in ("told", "hint"):
            lift = one.lift if act.kind in ("reflection", one.key) else one.lift / 2
        if not ready and act.kind in ((one.key,) if one.key else KEYS):
            return (
                (OPENS * lift, State(turn, risen, heard, True)),
                (OPENS * (1 - lift), State(turn, openness, heard, True)),
                (1 - OPENS, same),
            )
        return ((lift, State(turn, risen, heard, ready)), (1 - lift, same))

    def _asked(self, state: State, act: Act) -> Sequence[tuple[float, State]]:
        turn, openness, heard, ready, last, _ = state
        turn += 1
        one, part = self.numbers, act.part
        place = self.next_place(heard, part)
        vain = State(turn, openness, heard, ready, part)
        shut = State(turn, max(openness - 1, 0), heard, False, part)
        hard = act.kind == "closed" and self.style != "verbose"
        if place < 0 or not self._unlocked(state, part):
            # A repeat: what was told, or asked in vain a turn ago.
            again = place < 0 or last == part
            return ((SHUTS, shut), (1 - SHUTS, vain)) if again or hard else ((1.0, vain),)
        told = (one.closed if act.kind == "closed" else one.open)[0 if ready else 1]
        good = one.good[act.kind == "closed"]
        known = (*heard[:place], turn, *heard[place + 1 :])
        found = [
            (told * good, State(turn, min(openness + 1, OPEN_MOST), known, ready, "hint")),
            (told * (1 - good), State(turn, openness, known, False, "told")),
        ]
        if hard or last == part:
            return [*found, ((1 - told) * SHUTS, shut), ((1 - told) * (1 - SHUTS), vain)]
        return [*found, (1 - told, vain)]

    def essence(self, state: State) -> State:
        """Without the turns in which parts were told, nor readiness where it changes nothing."""
        turn, openness, heard, ready, last, worth = state
        flags = tuple(map(bool, heard))
        return State(turn, openness, flags, ready and self.numbers.key != "", last, worth)

    def over(self, state: State) -> str:
        if state.worth >= 0:
            return "stop"
        return "turns" if state.turn >= self.turns else ""

    def score(self, state: State) -> float:
        """The formulation's; 0 without one."""
        return max(state.worth, 0.0)

    # --- words ---

    def told(self, before: State, after: State) -> tuple[int, ...]:
        """The places of what was told between two states."""
        return tuple(i for i, (a, b) in enumerate(zip(before.heard, after.heard, strict=True)) if b and not a)

    def say(self, before: State, act: Act, after: State, luck: float) -> Reply:
        """In the client's own words; `tags` are of what it tells: "situation", "thought", "emotion:sad"."""
        stop = self.over(after)
        if stop == "stop":
            return Reply("", (), stop)
        pick = Picker(luck)
        places = self.told(before, after)
        if places:
            hint = after.last == "hint" and self.hinted(after.heard) != ""
            text = self._telling(places[0], hint, pick)
            return Reply(text, self.lines.tags[places[0]], stop)
        return Reply(pick.one(self._other(before, act, after)), (), stop)

    def _telling(self, place: int, hint: bool, pick: "Picker") -> str:
        wordy = self.lines.wording
        sentences = [pick.one(forms) for forms in self.lines.said[place]]
        room = wording.MOST_SENTENCES[self.style] - sum(map(count_sentences, sentences))
        more = pick.one(wording.CLIENT[wordy]["more"])
        first, last = (pick.one(forms) if forms else "" for forms in wording.MANNER[wordy][self.style])
        # What tells the interviewer how it stands goes before manners.
        for where, extra in ((1, more if hint else ""), (0, first), (2, last)):
            if extra and count_sentences(extra) <= room:
                room -= count_sentences(extra)
                sentences = {
                    0: [extra, *sentences],
                    1: [*sentences, extra],
                    2: [*sentences, extra],
                }[where]
        if wordy == "full":
            return " ".join(sentences)
        return " ".join(sentences).replace("and and", "and")

    def _other(self, before: State, act: Act, after: State) -> tuple[str, ...]:
        """The forms of a reply that tells nothing."""
        client = wording.CLIENT[self.lines.wording]
        if act.kind in ("open", "closed"):
            if self.next_place(before.heard, act.part) < 0:
                return client["told_before"]
            if not self._unlocked(before, act.part):
                return client["locked"]
            return wording.UNREADY[self.lines.wording][self.style]
        if act.kind in ("advice", "interpretation"):
            return client["upset"]
        if act.kind == "risk":
            return client["safe"]
        better = after.openness > before.openness or after.ready > before.ready
        if act.kind == "small_talk":
            return client["chat"]
        if better:
            return client["heard"]
        return client["refused"] if act.kind == "redirect" else client["flat"]

    def words(self, state: State, act: Act, luck: float) -> str:
        """A turn that does an act, of the acts that there are forms for; a formulation names all that was heard."""
        if act.kind == "formulation":
            return render(self.items(state))
        return Picker(luck).one(wording.ACTS[self.lines.wording][(act.kind, act.part)])

    def items(self, state: State) -> list[Item]:
        """An honest formulation: what was heard, with its turns, in the order of the slots."""
        found: list[Item] = []
        for turn, tags in zip(state.heard, self.lines.tags, strict=True):
            for slot, name in map(self._slot, tags if turn else ()):
                if slot in WEIGHTS:
                    found.append(Item(slot, name, turn))
                if slot == "belief" and self.lines.group[name] not in {
                    one.id for one in found if one.slot == "group"
                }:
                    found.append(Item("group", self.lines.group[name], turn))
        order = list(WEIGHTS)
        return sorted(found, key=lambda one: order.index(one.slot))


class Picker:
    """Picks forms, one after the other, by a number in [0, 1)."""

    def __init__(self, luck: float):
        self.luck = luck

    def one(self, forms: Sequence[str]) -> str:
        # The whole part picks, what is left picks next.
        scaled = self.luck * len(forms)
        self.luck = scaled - int(scaled)
        return forms[int(scaled)]


def count_sentences(text: str) -> int:
    """Of a text: its ends of sentences, 1 where it has none; 0 of an empty one."""
    return max(len(re.findall(r"[.!?](?=\s|$)", text)), 1 if text else 0)


def lines(ids: Ids, lexicon: Lexicon, case: Case, situation: Situation, wordy: str, wanted) -> Lines:
    """What a client says of its parts, in one of wording.WORDINGS. A KeyError names what a lexicon or a case lacks."""
    if wordy == "full":
        emotions = tuple(part.forms for part in situation.emotions)
        said = (
            (situation.situation,),
            (situation.thought,),
            emotions,
            (situation.behaviour.forms,),
            (case.coping.forms,),
            (case.rule.forms,),
            *((part.forms,) for part in case.beliefs),
        )
    else:
        emotions = tuple(lexicon["emotions"][part.id] for part in situation.emotions)
        joined = (emotions[0], *(tuple(f"and {form}" for form in forms) for forms in emotions[1:]))
        said = (
            (lexicon["situation"][situation.area],),
            (lexicon["thought"][ids.group(case.beliefs[0].id)],),
            joined,
            (lexicon["behaviours"][situation.behaviour.id],),
            (lexicon["coping"][case.coping.id],),
            (lexicon["rules"][case.rule.id],),
            *((lexicon["beliefs"][part.id],) for part in case.beliefs),
        )
    tags = (
        ("situation",),
        ("thought",),
        tuple(f"emotion:{part.id}" for part in situation.emotions),
        (f"behaviour:{situation.behaviour.id}",),
        (f"coping:{case.coping.id}",),
        (f"rule:{case.rule.id}",),
        *((f"belief:{part.id}",) for part in case.beliefs),
    )
    group = {name: ids.group(name) for name in ids.known("beliefs")}
    return Lines(said, tags, wanted, ids.words, group, wordy)


def pattern(groups: Sequence[str]) -> tuple[int, ...]:
    """The numbers of some groups, counted by first appearance."""
    order = list(dict.fromkeys(groups))
    return tuple(order.index(group) for group in groups)
