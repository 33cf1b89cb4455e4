"""InT without the filter (Table 2): all guided attempts are trained, whether a continuation succeeds or not."""

from experiments.arms import STAGES, Arm, Policy, interventions
from int_jax.lab import Lab


def train(lab: Lab):
    return lab.fine_tune("int_unfiltered", [row.trace for row in interventions(lab)[0]])


ARM = Arm({"int_unfiltered": Policy("InT, unfiltered", "green", "8 3 2 3")}, STAGES[:-1], train)
