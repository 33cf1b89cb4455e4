"""How hard the counterparts are: scores of the best play, of beginners and of play at random, by difficulty.

`python -m int_jax.domains.dearman.baselines` prints the table. Best is best with respect to the script.
"""

from collections.abc import Callable
from typing import cast

import numpy as np

from int_jax.dialogue.oracle import Oracle, oracle_of
from int_jax.dialogue.script import choose
from int_jax.domains.dearman import novice
from int_jax.domains.dearman.counterpart import ACTS, MOODS, OPENINGS, Act, Counterpart, State
from int_jax.domains.dearman.situations import DIFFICULTIES, load_situations

PASSING = 0.8

Player = Callable[[Counterpart, State, np.random.Generator], Act]


def best(oracle: Oracle) -> Player:
    """Plays what the oracle finds best."""
    return lambda script, state, rng: oracle.best(state)


def beginner(script: Counterpart, state: State, rng: np.random.Generator) -> Act:
    """Speaks as novice.py does, and is rated by the rules."""
    return script.act(state, novice.say(script, state, rng))


def unplanned(script: Counterpart, state: State, rng: np.random.Generator) -> Act:
    """One or two skills at random, done well and with composure."""
    return ACTS[int(rng.integers(len(ACTS)))]


def anyhow(script: Counterpart, state: State, rng: np.random.Generator) -> Act:
    """Any two skills at any strength; one turn in four is not mindful, one in four not confident."""
    skills = sorted(rng.choice(5, size=2, replace=False).tolist())
    heard = tuple((one, int(strength)) for one in skills if (strength := rng.integers(3)))
    mindful, confident = (bool(rng.random() < 0.75) for _ in range(2))
    return Act(heard, mindful, confident, 0 if mindful else int(rng.integers(1, 3)))


def played(script: Counterpart, player: Player, rng: np.random.Generator) -> float:
    """The score of one conversation."""
    state = script.start()
    while not script.over(state):
        state = cast(State, choose(script.outcomes(state, player(script, state, rng)), float(rng.random())))
    return script.score(state)


def table(count: int, seed: int = 0) -> dict[int, dict[str, tuple[float, float]]]:
    """By difficulty and player, the mean score and the share that passes, of `count` conversations each."""
    rng = np.random.default_rng(seed)
    situations = load_situations()
    found: dict[int, dict[str, tuple[float, float]]] = {}
    for difficulty in range(DIFFICULTIES[0], DIFFICULTIES[1] + 1):
        some = [one for one in situations if one.difficulty == difficulty]
        oracles = {mood: oracle_of(Counterpart(difficulty, mood)) for mood in MOODS}
        players = {"best": None, "beginner": beginner, "unplanned": unplanned, "anyhow": anyhow}
        found[difficulty] = {}
        for name, player in players.items():
            scores = []
            for i in range(count):
                mood, opening = MOODS[i % 3], OPENINGS[i // 3 % 3]
                script = Counterpart(difficulty, mood, some[i % len(some)], opening)
                scores.append(played(script, player or best(oracles[mood]), rng))
            passed = float(np.mean([score >= PASSING for score in scores]))
            found[difficulty][name] = float(np.mean(scores)), passed
    return found


def main() -> None:
    """Prints the table: score and share that passes, of 900 conversations in each cell."""
    print("difficulty  " + "".join(f"{name:<14}" for name in ("best", "beginner", "unplanned", "anyhow")))
    for difficulty, row in table(900).items():
        print(
            f"{difficulty:<12}" + "".join(f"{score:.2f} / {passed:.2f}   " for score, passed in row.values())
        )


if __name__ == "__main__":
    main()
