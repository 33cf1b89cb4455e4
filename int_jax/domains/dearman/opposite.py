"""The other way round: the policy plays the counterpart, and a scripted speaker, of mixed skill, talks to it.

The script says which types of reply fit: those that the counterpart could give in its state. A reply is worth what its
type is; how well it is worded, or how human it sounds, is not measured.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from int_jax.domains.dearman import novice
from int_jax.domains.dearman.counterpart import Act, Counterpart, State, after_act, lines
from int_jax.domains.dearman.rater import ASSERT, DESCRIBE, EXPRESS, NEGOTIATE, REINFORCE, STRONG, WEAK, rate
from int_jax.types import Reply

FIRST = Act(((DESCRIBE, STRONG),))
# What the speaker does, with its probability; before the facts were said, FIRST.
SPEAKS = (
    (0.25, Act(((EXPRESS, STRONG), (ASSERT, STRONG)))),
    (0.2, Act(((ASSERT, STRONG), (REINFORCE, STRONG)))),
    (0.15, Act(((REINFORCE, STRONG),))),
    (0.15, Act(((NEGOTIATE, STRONG),))),
    (0.15, Act((), False, True, 1)),
    (0.1, Act(((ASSERT, WEAK),), True, False)),
)
THANKS = {"brief": "good . it is fair", "full": "Thank you. I'm glad that we talked."}
# What a reply in other words than the package's lines is, by the first pattern that is found in it.
KINDS = (
    (
        "bargain",
        r"\bif you\b|\bhalf\b|\bmaybe\b|\bwhat (?:do|would) i\b"
        r"|\bthis once\b|\bone time\b|\bwe could\b|\bi might\b",
    ),
    (
        "agree",
        r"\bagreed\b|\ball right\b|\bokay\b|\bi'll do it\b|\bi will do it\b"
        r"|\bdeal\b|^yes\b|\byou're right\b|\bfair enough\b",
    ),
    (
        "deflect",
        r"\blater\b|\banother time\b|\bnot now\b|\bask (?:me|the|them)\b"
        r"|\bby the way\b|\bhave to (?:go|leave)\b|\bweather\b",
    ),
)


class Heard(NamedTuple):
    """A conversation that waits for a reply.

    Attributes:
      turn: replies so far. inner: the counterpart's state after the speaker's last turn. fits: the replies that fitted.
      said: the speaker's last turn. ended: "" while it goes on, "fair" after an agreement that was due, "early" after
        another one.
    """

    turn: int
    inner: State
    fits: int
    said: Act
    ended: str


@dataclasses.dataclass(frozen=True)
class Opposite:
    """The speaker, as the partner of a policy that plays `counterpart`; a `Script`, whose acts are types of reply."""

    counterpart: Counterpart

    def bare(self) -> "Opposite":
        """Without the situation, on which no value depends."""
        return Opposite(self.counterpart.bare())

    def start(self) -> Heard:
        return Heard(0, after_act(self.counterpart.start(), FIRST), 0, FIRST, "")

    def act(self, state: Any, text: str) -> str:
        """The type of reply: of one of the package's lines its own, of other words by KINDS, an attack where the rules
        find one, else an objection."""
        spelled = " ".join(text.casefold().split())
        for kind in lines():
            if spelled in self._lines(kind):
                return kind
        if not rate(text).mindful:
            return "attack"
        refused = re.search(r"\b(?:no|not|never|won't|can't|don't)\b", spelled)
        for kind, pattern in KINDS:
            if re.search(pattern, spelled) and not (kind == "agree" and refused):
                return kind
        return "object"

    def _lines(self, kind: str) -> list[str]:
        brief = self.counterpart.wording == "brief"
        found = lines()[kind].brief if brief else lines()[kind].full
        goal = self.counterpart.situation.goal.rstrip(".") if self.counterpart.situation else ""
        return [" ".join(one.replace("{goal}", goal).casefold().split()) for one in found]

    def acts(self, state: Any) -> Sequence[str]:
        """The types of reply that fit: those that the counterpart gives with some probability."""
        return [kind for kind, _ in self.counterpart.chances(state.inner)]

    def outcomes(self, state: Any, act: Any) -> Sequence[tuple[float, Heard]]:
        fits = act in self.acts(state)
        after = state._replace(turn=state.turn + 1, fits=state.fits + fits)
        if act == "agree":
            return [(1.0, after._replace(ended="fair" if fits else "early"))]
        inner = self.counterpart.replied(state.inner, act)
        return [(p, after._replace(inner=after_act(inner, said), said=said)) for p, said in SPEAKS]

    def essence(self, state: Any) -> Heard:
        """Something fits in every state, so that only the count of what fitted matters."""
        return self.start()._replace(turn=state.turn, fits=state.fits, ended=state.ended)

    def over(self, state: Any) -> str:
        return "partner" if state.ended else "turns" if state.turn >= self.counterpart.turns else ""

    def score(self, state: Any) -> float:
        """The share of the replies that fitted; 0 for who agreed before it was due."""
        return 0.0 if state.ended == "early" or not state.turn else state.fits / state.turn

    def say(self, before: Any, act: Any, after: Any, luck: float) -> Reply:
        text = THANKS[self.counterpart.wording] if after.ended else self.speech(after, luck)
        return Reply(text, (), self.over(after))

    def speech(self, state: Heard, luck: float) -> str:
        """What the speaker says in a state."""
        if all(strength == STRONG for _, strength in state.said.heard) and state.said.mindful:
            return self.counterpart.words(state.inner, state.said, luck)
        habits = novice.BRIEF if self.counterpart.wording == "brief" else novice.FULL
        # The last of the judgements have a request in them.
        found = habits["hedge"][:2] if state.said.mindful else habits["judgement"][:3]
        one = self.counterpart.situation
        assert one is not None
        return found[int(luck * len(found))].format(**novice.words.parts(one, self.counterpart.wording))

    def words(self, state: Any, act: Any, luck: float) -> str:
        return self.counterpart.line(act, luck)
