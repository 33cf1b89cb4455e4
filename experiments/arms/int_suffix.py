"""InT with a suffix (Table 2): each kept guided attempt with its first right continuation, trained to its end."""

import functools

from experiments.arms import STAGES, Arm, Policy, interventions
from int_jax.batching import intervention_weights
from int_jax.lab import Lab


def train(lab: Lab):
    traces = [row.right[0] for row in interventions(lab)[0] if row.right]
    weigh = functools.partial(intervention_weights, suffix=1.0)
    return lab.fine_tune("int_suffix", traces, weigh=weigh, end_of_turn=None)


ARM = Arm(
    {"int_suffix": Policy("InT, suffix", "green", "1 4")}, STAGES[:-1], train, at_least={"guided.keep": True}
)
