"""InT with an end token: the end of the turn is trained behind the intervention, as if the answer ended there."""

from experiments.arms import STAGES, Arm, Policy, interventions
from int_jax.lab import Lab


def train(lab: Lab):
    traces = lab.kept(*interventions(lab))
    return lab.fine_tune("int_end_token", traces, end_of_turn=lab.domain.tokenizer.end_of_turn)


ARM = Arm({"int_end_token": Policy("InT, end token", "green", "10 5")}, STAGES[:-1], train)
