"""The counterpart of a hard conversation: a script that gives in to skill, heats up at attacks, and baits.

Resistance falls with the strategies that a turn does well, faster with those that the last reply calls for. Nothing
counts before the facts are described, and no benefit or trade before something was asked for; the counterpart never
agrees before both happened. Feelings that are named build trust, attacks and threats build heat, and heat brings
attacks, which are baits. A turn is heard by its first two strategies, so that saying everything at once wins nothing.
What is best in it is best with respect to this script, and says nothing of how people are.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from int_jax.domains.dearman import wording as words
from int_jax.domains.dearman.rater import (
    ASSERT,
    DESCRIBE,
    EXPRESS,
    NEGOTIATE,
    NONE,
    REINFORCE,
    STRONG,
    rate,
)
from int_jax.domains.dearman.situations import Lines, Situation, load_replies
from int_jax.types import Reply

MOODS = ("calm", "busy", "angry")
OPENINGS = ("object", "deflect", "attack")  # the types of what it may say first
TURNS = 8
MASTERY = 0.75  # of the strength that a turn may have: the mean over the own turns that a full score needs
RESISTANCE = {1: 4, 2: 5, 3: 6, 4: 7, 5: 8}  # by difficulty, before the first turn
MOST = 9
OFFERS = 2  # benefits and trades beyond these are no news
DIGS_IN = 3  # the difficulty from which on an objection raises the resistance
# The strategies that a reply calls for; "" stands for no reply yet.
CALLS: dict[str, tuple[int, ...]] = {
    "": (DESCRIBE,),
    "object": (EXPRESS, REINFORCE),
    "deflect": (DESCRIBE, ASSERT),
    "attack": (EXPRESS, ASSERT),
    "bargain": (NEGOTIATE, REINFORCE),
}
READY = (0.65, 0.3)  # the chance of an agreement at a resistance of 0, 1
YIELDS = 0.13  # what each step of difficulty takes of it
# What a conversation is worth where the goal is reached: with composure and mastery, without the mastery, with one of
# Mindful and Confident lost, with both lost. Where it is not, at most LEFT.
WON, UNSKILLED, SLIPPED, AGITATED = 1.0, 0.6, 0.25, 0.1
LEFT, LEFT_SLIPPED = 0.3, 0.1


class State(NamedTuple):
    """What the counterpart knows of the conversation.

    Attributes:
      turn: own turns so far. resistance, 0 to MOST; trust, 0 to 2; heat, 0 to 3. offers: benefits and
        trades that were news, 0 to OFFERS.
      described, asserted: how well at best so far, NONE to STRONG. mindful, confident: on every own turn so far.
      mastery: the sum over the own turns of the strength of the best strategy in each. last: the type of the last
        reply.
    """

    turn: int
    resistance: int
    trust: int
    heat: int
    offers: int
    described: int
    asserted: int
    mindful: bool
    confident: bool
    mastery: int
    last: str


class Act(NamedTuple):
    """What an own turn does.

    Attributes: heard, the strategies that are taken in, (index in STRATEGIES, strength), at most two; mindful,
      confident; harsh, 0 to 2.
    """

    heard: tuple[tuple[int, int], ...]
    mindful: bool = True
    confident: bool = True
    harsh: int = 0


ACTS = tuple(
    Act(tuple((one, STRONG) for one in chosen))
    for count in (1, 2)
    for chosen in itertools.combinations(range(5), count)
)
DESCRIBING = tuple(act for act in ACTS if act.heard[0][0] == DESCRIBE)


@functools.cache
def lines() -> dict[str, Lines]:
    """What the package's counterparts say."""
    return load_replies()


@functools.lru_cache(1 << 17)
def after_act(state: State, act: Act) -> State:
    """The state that an act brings about, but for the reply."""
    said = dict(act.heard)
    described = max(state.described, said.get(DESCRIBE, NONE))
    asserted = max(state.asserted, said.get(ASSERT, NONE) if described else NONE)
    lowered, trust, offers = 0, state.trust, state.offers
    for strategy, strength in act.heard:
        called = strategy in CALLS[state.last]
        new = {
            DESCRIBE: not state.described,
            EXPRESS: bool(described) and trust < 2,
            ASSERT: bool(described) and not state.asserted,
            REINFORCE: bool(asserted) and offers < OFFERS,
            NEGOTIATE: bool(asserted) and offers < OFFERS,
        }[strategy]
        if new:
            lowered = max(lowered, called + (strength == STRONG))
            trust += strategy == EXPRESS
            offers += strategy in (REINFORCE, NEGOTIATE)
        elif called and described and strategy in (DESCRIBE, ASSERT):
            # Said again, it is heard where it is called for.
            lowered = max(lowered, int(strength == STRONG))
    if not act.mindful:
        lowered, trust = 0, state.trust
    if not act.confident:
        lowered = max(0, lowered - 1)
    heat = state.heat + max(act.harsh, 0 if act.mindful else 1)
    if act.mindful and act.heard and not act.harsh:
        heat = max(0, heat - 1)
    return State(
        state.turn + 1,
        min(MOST, max(0, state.resistance - lowered + act.harsh)),
        trust,
        min(3, heat),
        min(OFFERS, offers),
        described,
        asserted,
        state.mindful and act.mindful,
        state.confident and act.confident,
        state.mastery + max((strength for _, strength in act.heard), default=NONE),
        state.last,
    )


@functools.cache
def _chances(
    difficulty: int, mood: str, ready: bool, asserted: bool, resistance: int, heat: int, trust: int
) -> tuple[tuple[str, float], ...]:
    agree = 0.0
    if ready and resistance < len(READY):
        agree = READY[resistance] * (1 - 0.25 * heat) * (1 - YIELDS * (difficulty - 1))
    weights = {
        "object": 4,
        "deflect": 5 if mood == "busy" else 2,
        "attack": max(0, difficulty - 1 + 3 * heat - trust) + (2 if mood == "angry" else 0),
        "bargain": 6 if asserted and resistance <= 5 else 1 if asserted else 0,
    }
    total = sum(weights.values())
    found = [(kind, (1 - agree) * weight / total) for kind, weight in weights.items()]
    return tuple((kind, p) for kind, p in [*found, ("agree", agree)] if p > 0)


@dataclasses.dataclass(frozen=True)
class Counterpart:
    """The counterpart of a situation; a `Script`.

    Attributes:
      difficulty: 1 to 5. mood: one of MOODS. situation: None for the script without its words.
      opening: the type of what it said first. wording: one of wording.WORDINGS. turns: the own turns at most.
    """

    difficulty: int
    mood: str = "calm"
    situation: Situation | None = None
    opening: str = "object"
    wording: str = "full"
    turns: int = TURNS

    def bare(self) -> "Counterpart":
        """The script alone: all situations of one difficulty and mood have the same values."""
        return Counterpart(self.difficulty, self.mood, turns=self.turns)

    def start(self) -> State:
        heat = 1 if self.mood == "angry" else 0
        return State(0, RESISTANCE[self.difficulty], 0, heat, 0, NONE, NONE, True, True, 0, self.opening)

    def act(self, state: Any, text: str) -> Act:
        rating = rate(text, self.situation)
        return Act(rating.heard, rating.mindful, rating.confident, rating.harsh)

    def acts(self, state: Any) -> Sequence[Act]:
        """One or two strategies, done well and with composure; of those that change as much, the shortest."""
        choice = ACTS if state.described else DESCRIBING
        return list({after_act(state, act): act for act in reversed(choice)}.values())[::-1]

    def chances(self, state: State) -> tuple[tuple[str, float], ...]:
        """The probability of each type of reply that is possible in a state that lacks it."""
        ready = bool(state.described and state.asserted)
        return _chances(
            self.difficulty, self.mood, ready, bool(state.asserted), state.resistance, state.heat, state.trust
        )

    def outcomes(self, state: Any, act: Any) -> Sequence[tuple[float, State]]:
        after = after_act(state, act)
        return [(p, self.replied(after, kind)) for kind, p in self.chances(after)]

    def replied(self, state: State, kind: str) -> State:
        """The state after a reply: who objects or attacks digs in, who bargains has begun to move."""
        moved = {"object": self.difficulty >= DIGS_IN, "attack": 1, "bargain": -1}.get(kind, 0)
        resistance = min(MOST, max(0, state.resistance + moved))
        return State(state.turn, resistance, *state[2:-1], kind)

    def essence(self, state: Any) -> State:
        """Without how far mastery is above or below what still matters, and where composure is lost, without it."""
        # Made at once: `_replace` takes half of the time in which a script is worked out.
        turn, resistance, trust, heat, offers, described, asserted, mindful, confident, mastery, last = state
        described, asserted = 2 * bool(described), 2 * bool(asserted)
        if mindful and confident:
            mastery = 2 * turn - min(2 * turn - mastery, int(2 * self.turns * (1 - MASTERY)) + 1)
        else:
            mastery = 0
        return State(
            turn, resistance, trust, heat, offers, described, asserted, mindful, confident, mastery, last
        )

    def over(self, state: Any) -> str:
        if state.last == "agree":
            return "partner"
        return "turns" if state.turn >= self.turns else ""

    def score(self, state: Any) -> float:
        """1 for the goal, reached mindfully and confidently on every own turn with a mean mastery of MASTERY.

        0.6 without the mastery, which is below what passes. Who reaches it after a slip gets 0.25, after slips of both
        kinds 0.1: winning while agitated does not count. Without the goal at most 0.3, by the share of the resistance
        that was overcome; with a slip at most 0.1.
        """
        composed = state.mindful and state.confident
        if state.last == "agree":
            if composed:
                return WON if state.mastery >= 2 * MASTERY * state.turn else UNSKILLED
            return SLIPPED if state.mindful or state.confident else AGITATED
        first = RESISTANCE[self.difficulty]
        overcome = max(0, first - state.resistance) / first
        return (LEFT if composed else LEFT_SLIPPED) * overcome

    def say(self, before: Any, act: Any, after: Any, luck: float) -> Reply:
        return Reply(self.line(after.last, luck), (after.last,), self.over(after))

    def line(self, kind: str, luck: float) -> str:
        """One of its lines of a type of reply."""
        found = lines()[kind].brief if self.wording == "brief" else lines()[kind].full
        goal = self.situation.goal.rstrip(".") if self.situation else ""
        return found[int(luck * len(found))].replace("{goal}", goal)

    def words(self, state: Any, act: Any, luck: float) -> str:
        if self.situation is None:
            raise ValueError("a script without a situation has no words: ask the counterpart of a task")
        choices = [words.variants(self.situation, strategy, self.wording) for strategy, _ in act.heard]
        said = [list(chosen) for chosen in itertools.product(*choices)]
        first = int(luck * len(said))
        # What a rule hears in a sentence may depend on the one beside it.
        for chosen in said[first:] + said[:first]:
            text = words.joined(chosen, self.wording)
            if self.act(state, text) == act:
                return text
        raise ValueError(
            f"situation {self.situation.id}: no wording does {act.heard}; the first one is heard as "
            f"{self.act(state, words.joined(said[0], self.wording)).heard}: put its texts more plainly"
        )
