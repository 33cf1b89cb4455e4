"""A scripted partner: a small Markov decision process that says what an own turn brings about, and in which words.

States and acts are hashable values. A state holds all that the partner knows of the conversation, the number of own
turns too; an act is what an own turn does, as `act` reads it from the turn's words. Everything is a function of its
arguments: a conversation that is cut at a turn and said again goes through the same states. `luck` is a number in
[0, 1) that stands for chance, a function of the task and of the turn's number (`luck_of`), so that all attempts at a
task, and both branches of a conversation that forks, meet the same partner.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from int_jax.types import Reply

State = Any  # hashable
Act = Any  # hashable


class Script(Protocol):
    """The conversation of one task, as a Markov decision process; hashable, since values are worked out once for equal
    ones."""

    def __hash__(self) -> int: ...

    def start(self) -> State:
        """The state before the first own turn."""

    def act(self, state: State, text: str) -> Act:
        """What an own turn of these words does; any words are some act, and the same words are the same one."""

    def acts(self, state: State) -> Sequence[Act]:
        """What the own side may choose from: of any other act that `act` can give, the best of these is worth as much
        or more."""

    def outcomes(self, state: State, act: Act) -> Sequence[tuple[float, State]]:
        """The states that an act may lead to, with their probabilities, which sum to 1."""

    def essence(self, state: State) -> State:
        """A state of the same value, acts and chances, without what these do not depend on (such as when something was
        heard): states of one essence are worked out once."""

    def over(self, state: State) -> str:
        """Why the conversation has ended in a state, one of types.STOPS; "" where it goes on."""

    def score(self, state: State) -> float:
        """What a conversation that ends in a state is worth, in [0, 1]."""

    def say(self, before: State, act: Act, after: State, luck: float) -> Reply:
        """What the partner says to an act that led from one state to another; its `stop` is `over(after)`."""

    def words(self, state: State, act: Act, luck: float) -> str:
        """A turn that does one of `acts(state)`: `act(state, words(state, act, luck)) == act`."""


class Moment(NamedTuple):
    """An own turn in its conversation: the state before it, what it did, and the state after it."""

    before: State
    act: Act
    after: State


def luck_of(task: str, turn: int, what: str = "") -> float:
    """The number in [0, 1) that stands for chance at an own turn, counted from 0; another one for each `what`."""
    # hash() differs from process to process.
    digest = hashlib.blake2b(f"{task}/{turn}/{what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:6], "little") / 2**48


def choose(outcomes: Sequence[tuple[float, State]], luck: float) -> State:
    """The outcome that a number in [0, 1) picks."""
    total = 0.0
    for probability, state in outcomes:
        total += probability
        if luck < total:
            return state
    return outcomes[-1][1]  # the probabilities sum to 1 but for rounding


def replay(script: Script, task: str, turns: Sequence[str]) -> list[Moment]:
    """What each of the own turns did, from the start; those after the conversation's end are left out."""
    state, moments = script.start(), []
    for number, text in enumerate(turns):
        if script.over(state):
            break
        act = script.act(state, text)
        after = choose(script.outcomes(state, act), luck_of(task, number))
        moments.append(Moment(state, act, after))
        state = after
    return moments
