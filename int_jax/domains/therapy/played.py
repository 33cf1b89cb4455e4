"""The other role: the policy plays the client, and a scripted interviewer asks.

A turn of the client is at fault if it is empty, longer than its style allows, tells a part that is not unlocked or was
not asked for, or contradicts the case. The score is the share of turns without fault. Whether a client could have told
more is not judged: to pass a question over is what clients do.

What was told is found by the authored sentences (or six words in a row of one), a contradiction by the short forms and
the words of ids that are not the case's: a paraphrase of either is not seen.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

from int_jax.dialogue.oracle import oracle_of
from int_jax.dialogue.script import Script
from int_jax.domains.therapy import novice, wording
from int_jax.domains.therapy.acts import PARTS, Act, plain
from int_jax.domains.therapy.client import Client, State, count_sentences
from int_jax.domains.therapy.formulation import render
from int_jax.types import Reply

QUOTED = 6  # words in a row of an authored sentence that no turn has by chance
WORDS = 25  # of a sentence at most, on average
INTERVIEWERS = ("expert", "novice")


class Told(NamedTuple):
    """What a turn of the client's does: "tell" with the place of `State.heard`, "pass" where it tells nothing, or a
    fault: "empty", "long", "early", "contradiction"."""

    kind: str
    place: int = -1


class Talk(NamedTuple):
    """Own turns so far, those at fault, the state that a scripted client would be in, and what was asked last."""

    turn: int
    faults: int
    inner: State
    asked: Act


@functools.lru_cache(1 << 14)
def words_of(text: str) -> str:
    """The words of a text, each between blanks."""
    return f" {' '.join(' '.join(plain(text)).replace('?', ' ').replace(',', ' ').split())} "


@functools.lru_cache(1 << 16)
def quotes(text: str, form: str) -> bool:
    """Whether words, as `words_of` gives them, hold an authored form, or QUOTED words in a row of it."""
    spelled = words_of(form).split()
    size = min(len(spelled), QUOTED)
    return any(f" {' '.join(spelled[i : i + size])} " in text for i in range(len(spelled) - size + 1))


@dataclasses.dataclass(frozen=True)
class Played:
    """The interviewer, as a script for a policy that plays `client`.

    Attributes:
      interviewer: one of INTERVIEWERS. foreign: forms and words that contradict the case.
    """

    client: Client
    interviewer: str
    foreign: tuple[str, ...] = dataclasses.field(compare=False, repr=False)

    def start(self) -> Talk:
        inner = self.client.start()
        first = Act("open", "situation") if self.interviewer == "novice" else self._best(inner)
        return Talk(0, 0, inner, first)

    def _best(self, inner: State) -> Act:
        found = cast(Act, oracle_of(cast(Script, self.client)).best(inner))
        # Whoever has heard all goes on listening.
        return Act("reflection") if found.kind == "formulation" else found

    def _asks(self, inner: State) -> Iterator[tuple[float, Act]]:
        """What the interviewer may say next, with its chances."""
        if self.interviewer == "expert":
            yield 1.0, self._best(inner)
            return
        yield novice.RIGHT, self._best(inner)
        # It does not know the client well enough to be kept from naming beliefs: here it names none.
        habits = {kind: share for kind, share in novice.HABITS.items() if kind != "interpretation"}
        for kind, share in habits.items():
            parts = PARTS if kind in ("open", "closed") else ("",)
            for part in parts:
                yield (1 - novice.RIGHT) * share / sum(habits.values()) / len(parts), Act(kind, part)

    def _allowed(self, state: Talk) -> set[int]:
        """The places that may be told in answer to what was asked."""
        after = [one for chance, one in self.client.outcomes(state.inner, state.asked) if chance > 0]
        return {place for one in after for place in self.client.told(state.inner, one)}

    def act(self, state: Talk, text: str) -> Told:
        if not text.strip():
            return Told("empty")
        most = wording.MOST_SENTENCES[self.client.style]
        if count_sentences(text) > most or len(text.split()) > WORDS * most:
            return Told("long")
        said, contradicts = self.understood(text)
        new = [place for place in said if not state.inner.heard[place]]
        allowed = self._allowed(state)
        if any(place not in allowed for place in new):
            return Told("early")
        if contradicts:
            return Told("contradiction")
        return Told("tell", new[0]) if new else Told("pass")

    @functools.cached_property
    def understood(self) -> Callable[[str], tuple[list[int], bool]]:
        """Of a text the places of what it tells, and whether the rest of it contradicts the case."""
        foreign = re.compile(rf"(?<!not) (?:{'|'.join(map(re.escape, self.foreign)) or '(?!)'}) ")

        @functools.lru_cache(1 << 10)
        def found(text: str) -> tuple[list[int], bool]:
            words, left = words_of(text), words_of(text)
            said = []
            for place, lists in enumerate(self.client.lines.said):
                forms = [form for forms in lists for form in forms if quotes(words, form)]
                said += [place] * bool(forms)
                for form in forms:
                    left = left.replace(words_of(form), " | ")
            return said, foreign.search(left) is not None

        return found

    def acts(self, state: Talk) -> Sequence[Told]:
        return [*(Told("tell", place) for place in sorted(self._allowed(state))), Told("pass")]

    def outcomes(self, state: Talk, act: Told) -> Sequence[tuple[float, Talk]]:
        turn, faults, inner, asked = state
        faults += act.kind not in ("tell", "pass")
        chances = [
            (p, after)
            for p, after in self.client.outcomes(inner, asked)
            if p > 0 and self.client.told(inner, after) == ((act.place,) if act.kind == "tell" else ())
        ]
        # A client that passes over what it would always have told stays as it is.
        chances = chances or [(1.0, inner._replace(turn=inner.turn + 1, last=""))]
        total = sum(p for p, _ in chances)
        return [
            (p / total * q, Talk(turn + 1, faults, after, asks))
            for p, after in chances
            for q, asks in (self._asks(after) if turn + 1 < self.client.turns else ((1.0, asked),))
        ]

    def essence(self, state: Talk) -> Talk:
        """Only turns and faults make the score, and no state keeps a client from passing a question over."""
        return self.start()._replace(turn=state.turn, faults=state.faults)

    def over(self, state: Talk) -> str:
        return "partner" if state.turn >= self.client.turns else ""

    def score(self, state: Talk) -> float:
        """The share of turns without fault."""
        return 1 - state.faults / max(state.turn, 1)

    def say(self, before: Talk, act: Told, after: Talk, luck: float) -> Reply:
        """The interviewer's next turn; at the end what it heard."""
        if self.over(after):
            return Reply(render(self.client.items(after.inner)), (), self.over(after))
        return Reply(self.client.words(after.inner, after.asked, luck), (), "")

    def words(self, state: Talk, act: Told, luck: float) -> str:
        want = (act.place,) if act.kind == "tell" else ()
        found = [
            one
            for p, one in self.client.outcomes(state.inner, state.asked)
            if self.client.told(state.inner, one) == want
        ]
        after = found[0] if found else state.inner
        return self.client.say(state.inner, state.asked, after._replace(worth=-1.0), luck).text
