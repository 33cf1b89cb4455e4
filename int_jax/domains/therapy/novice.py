"""Scripted interviewers of novice quality, for training data and as a baseline.

A novice has habits: too many closed questions, advice early, small talk, a belief named before it was told, parts
asked in no order, and a formulation that comes too early or with guessed items. Each turn is drawn anew, so that a
novice does everything now and then, the right thing too.
"""

from typing import TYPE_CHECKING

import numpy as np

from int_jax.domains.therapy import wording
from int_jax.domains.therapy.acts import PARTS
from int_jax.domains.therapy.client import Client, State
from int_jax.domains.therapy.formulation import Item, render
from int_jax.types import Trace

if TYPE_CHECKING:
    from int_jax.domains.therapy import Therapy

# The share of each kind of act among those that it does by habit.
HABITS = {
    "open": 0.3,
    "closed": 0.27,
    "advice": 0.11,
    "small_talk": 0.07,
    "interpretation": 0.05,
    "reflection": 0.05,
    "validation": 0.05,
    "summary": 0.05,
    "redirect": 0.05,
}
RIGHT = 0.35  # the chance that a turn is a best one
STOPS_EARLY = (
    0.06  # the chance, at each turn after the second, that it formulates; at the last turn it mostly does
)
FORGETS = 0.15  # the chance that it does not name an item that was told, or cites another turn
GUESSES = 0.1  # the chance, for each slot, that it adds an item that was not told


def turn(domain: "Therapy", trace: Trace, rng: np.random.Generator, right: float = RIGHT) -> str:
    """The next own turn of a novice in an open trace; the better, the higher `right` is."""
    client = domain.client(trace.task)
    moments = domain.moments(trace)
    state = State(*moments[-1].after) if moments else client.start()
    last = state.turn == client.turns - 1
    if (last and rng.random() < 0.9) or (state.turn > 1 and rng.random() < STOPS_EARLY):
        return formulation(domain, client, state, rng)
    if rng.random() < right:
        return domain.next_turn(trace)
    habit = str(rng.choice(list(HABITS), p=list(HABITS.values())))
    part = ""
    if habit in ("open", "closed"):
        # Mostly what it would ask next on its list, which knows nothing of the client.
        place = min(state.turn, len(PARTS) - 1) if rng.random() < 0.6 else int(rng.integers(len(PARTS)))
        part = PARTS[place]
    form = str(rng.choice(wording.ACTS[domain.knobs["wording"]][(habit, part)]))
    return form.format(str(rng.choice(domain.ids.known("beliefs"))).replace("_", " "))


def formulation(domain: "Therapy", client: Client, state: State, rng: np.random.Generator) -> str:
    """What was told, with gaps and wrong turns, and guesses."""
    items = []
    for one in client.items(state):
        if rng.random() < FORGETS:
            if rng.random() < 0.5:
                continue
            one = one._replace(turn=int(rng.integers(1, max(state.turn, 1) + 1)))
        items.append(one)
    for slot, names in domain.slots.items():
        if rng.random() < GUESSES:
            items.append(Item(slot, str(rng.choice(names)), int(rng.integers(1, max(state.turn, 1) + 1))))
    return render(items)
