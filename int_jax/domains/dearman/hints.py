"""Which skill to use next: the facts first, then by the stage and the last reply, blended with pairs that were alike.

A hint is a distribution, so that advice stays varied: its entropy is reported.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from int_jax.domains.dearman.bank import Pair
from int_jax.domains.dearman.counterpart import State
from int_jax.domains.dearman.situations import STRATEGIES

STAGES = ("facts", "request", "persuasion")
BLEND = 0.3  # of the pairs, where they are as near as can be
# Parts of ten for describe, express, assert, reinforce, negotiate. Unlisted replies: the row of "".
TABLE: dict[tuple[str, str], tuple[int, ...]] = {
    ("request", ""): (0, 3, 7, 0, 0),
    ("request", "deflect"): (2, 1, 7, 0, 0),
    ("request", "attack"): (0, 4, 6, 0, 0),
    ("persuasion", ""): (0, 2, 2, 3, 3),
    ("persuasion", "object"): (0, 3, 1, 5, 1),
    ("persuasion", "deflect"): (3, 0, 5, 1, 1),
    ("persuasion", "attack"): (0, 4, 5, 1, 0),
    ("persuasion", "bargain"): (0, 0, 1, 3, 6),
}
WHY = {
    "describe": "Say what happened, with a time or a count.",
    "express": "Say what you feel, in one word.",
    "assert": "Ask for it, or refuse it, in one clear sentence.",
    "reinforce": "Say what they gain.",
    "negotiate": "Offer another way, or a trade.",
}


class Hint(NamedTuple):
    """Advice for the next turn.

    Attributes: skill, the likeliest one; reason; shares, of each of STRATEGIES, which sum to 1; entropy, of the shares
      in bits, at most log2(5).
    """

    skill: str
    reason: str
    shares: tuple[float, ...]
    entropy: float


def stage(state: State) -> str:
    """Where a conversation stands: before the facts, before the request, after both."""
    return "facts" if not state.described else "request" if not state.asserted else "persuasion"


def entropy(shares: Sequence[float]) -> float:
    """Of a distribution, in bits."""
    return -sum(p * math.log2(p) for p in shares if p > 0)


def hint(state: State, near: Sequence[tuple[float, Pair]] = ()) -> Hint:
    """The next skill.

    Before the facts were said it is Describe alone. Later the table's row of the stage and the last reply is blended
    with the skills of the `near` pairs (`Bank.nearest`), each weighted by its cosine: share = (1 - b) table + b pairs,
    b = BLEND times the greatest cosine.
    """
    now = stage(state)
    if now == "facts":
        shares = [1.0, 0.0, 0.0, 0.0, 0.0]
    else:
        row = TABLE.get((now, state.last), TABLE[now, ""])
        shares = [part / sum(row) for part in row]
        # Nobody gains from a trade before there is a request.
        useful = [
            (cosine, pair.skill)
            for cosine, pair in near
            if cosine > 0
            and pair.skill in STRATEGIES
            and (now == "persuasion" or pair.skill in STRATEGIES[:3])
        ]
        if useful:
            blend = BLEND * min(1.0, max(cosine for cosine, _ in useful))
            total = sum(cosine for cosine, _ in useful)
            votes = [sum(c for c, skill in useful if skill == name) / total for name in STRATEGIES]
            shares = [(1 - blend) * a + blend * b for a, b in zip(shares, votes, strict=True)]
    best = STRATEGIES[max(range(5), key=lambda i: (shares[i], -i))]
    return Hint(best, WHY[best], tuple(shares), entropy(shares))


def mean_entropy(hints: Sequence[Hint]) -> float:
    """The entropy in bits of the skills that were advised, over many hints: 0 where the advice is always the same."""
    if not hints:
        return 0.0
    return entropy([sum(one.skill == name for one in hints) / len(hints) for name in STRATEGIES])
