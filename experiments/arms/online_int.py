"""Online InT: every EVERY updates of the policy gradient, in whole batches, interventions for what still fails.

Each round draws a group at each problem of the policy gradient, proposes where the whole group fails, continues the
guided attempts under the policy as it is, fine-tunes it on those that succeed, and goes on with the policy gradient.
The proposer stays the base model. Each part starts with new moments of the optimizer.
"""

from experiments.arms import STAGES, Arm, Policy
from int_jax.intervention_training import failures
from int_jax.lab import Lab
from int_jax.rows import Stage

NAME, EVERY = "online_int", 10


def train(lab: Lab):
    params, pool, updates = lab.base, lab.pool(), lab.knobs["rl"]["updates"]
    knobs = lab.knobs["rl"]["knobs"]
    every = -(-EVERY // knobs.updates) * knobs.updates  # in whole batches
    for round, done in enumerate(range(0, updates, every)):
        rows = lab.attempts(pool, Stage("attempts", NAME, round), params, samples=knobs.group, keep=1)
        wrong = failures(rows)
        proposals = lab.proposals(wrong, Stage("proposals", NAME, round))
        guided = lab.guided(lab.splice(wrong, proposals), Stage("guided", NAME, round), params)
        if traces := lab.kept(guided, wrong, Stage("gain", NAME, round)):
            params = lab.fine_tune(NAME, traces, params, 2 * round)
        count = min(every, updates - done)
        params = lab.reinforce(NAME, params, pool, updates=count, start=-done, round=2 * round + 1)
    return params


ARM = Arm({NAME: Policy("online InT", "blue", "2 3")}, STAGES, train)
