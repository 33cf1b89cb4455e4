"""InT without loss on the prefix (Table 2): the intervention alone is trained."""

import functools

from experiments.arms import STAGES, Arm, Policy, interventions
from int_jax.batching import intervention_weights
from int_jax.lab import Lab


def train(lab: Lab):
    traces = lab.kept(*interventions(lab))
    return lab.fine_tune("int_no_prefix", traces, weigh=functools.partial(intervention_weights, prefix=0.0))


ARM = Arm({"int_no_prefix": Policy("InT, no prefix", "green", "2 3")}, STAGES[:-1], train)
