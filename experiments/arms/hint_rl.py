"""Hint-guided RL: each problem once as it stands and once with the beginning of its reference in the prompt.

The recipe is POPE's, of InT's authors: at most a quarter of the reference, guided and unguided groups half and half.
"""

from experiments.arms import Arm, Policy
from int_jax import privileged
from int_jax.lab import Lab
from int_jax.rollout import open_trace

SHARE = 0.25


def train(lab: Lab):
    pool = lab.pool()
    hints = (privileged.hint(lab.domain, task, SHARE) for task in pool)
    hinted = [hint for hint in hints if hint and lab.fits_rollout(open_trace(lab.domain, hint, "hinted"))]
    if few := len(pool) - len(hinted):
        lab.note(f"hint_rl: {few} of {len(pool)} problems have no hint that fits; they stay as they are")
    guided = {hint.id for hint in hinted}

    def opened(domain, task):
        return open_trace(domain, task, "hinted" if task.id in guided else "solver")

    return lab.reinforce("hint_rl", lab.base, [*pool, *hinted], opened=opened)


ARM = Arm({"hint_rl": Policy("hint-guided RL", "violet")}, ("rl",), train, roles=("hinted",), baseline=True)
