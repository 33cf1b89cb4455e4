"""What is best in a scripted conversation, exactly: values and regrets by value iteration over the script's states.

V(s) is the expected score from s on under the best acts, Q(s, a) the same once `a` was done; the regret of a turn is
V(s) - Q(s, a) >= 0. The first error of a conversation is its first turn with a regret above a tolerance, its best
rewrite an act of no regret. This is exact with respect to the script, and says nothing of clinical or human quality.
"""

import functools
from collections.abc import Sequence

from int_jax.dialogue.script import Act, Moment, Script, State

TOLERANCE = 0.02  # of regret, in units of the score: what is lost by less is no error


class Oracle:
    """Values of one script; each state is worked out once."""

    def __init__(self, script: Script):
        self.script = script
        self._value = functools.cache(self._worked_out)
        # Conversations are replayed from their start, again and again.
        self.best = functools.lru_cache(1 << 14)(self._best)

    def value(self, state: State) -> float:
        """V: the expected score under the best acts."""
        return self._value(self.script.essence(state))

    def _worked_out(self, state: State) -> float:
        if self.script.over(state):
            return self.script.score(state)
        return max(self.worth(state, act) for act in self.script.acts(state))

    def worth(self, state: State, act: Act) -> float:
        """Q: the expected score after an act, under the best ones from then on."""
        return sum(p * self.value(after) for p, after in self.script.outcomes(state, act))

    def _best(self, state: State) -> Act:
        """The best act; the first of those that are equally good."""
        acts = self.script.acts(state)
        values = [self.worth(state, act) for act in acts]
        top = max(values)
        return next(act for act, value in zip(acts, values, strict=True) if value > top - 1e-9)

    def regrets(self, moments: Sequence[Moment]) -> list[float]:
        """What each turn lost, in expectation."""
        return [max(0.0, self.value(one.before) - self.worth(one.before, one.act)) for one in moments]


# Of equal scripts the same one, whoever asks: tasks share partners, and a process may have several domains of a name.
oracle_of = functools.lru_cache(256)(Oracle)
