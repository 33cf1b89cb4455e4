"""InT at a random step: the oracle's correction of a step drawn at random, in place of the first error's, then RL."""

from experiments.arms import STAGES, Arm, Policy
from int_jax.intervention_training import failures
from int_jax.lab import Lab
from int_jax.proposers import random_step
from int_jax.rows import Stage

NAME = "int_random"


def train(lab: Lab):
    wrong = failures(lab.attempts(lab.tasks), lab.unsolved)
    proposals = lab.proposals(wrong, Stage("proposals", NAME), random_step.propose)
    guided = lab.guided(lab.splice(wrong, proposals), Stage("guided", NAME))
    start = lab.fine_tune(NAME, lab.kept(guided, wrong, Stage("gain", NAME)))
    return lab.reinforce(f"{NAME}_rl", start, lab.pool())


ARM = Arm(
    {
        NAME: Policy("InT, random step", "green", "3 3"),
        f"{NAME}_rl": Policy("random step + RL", "blue", "3 3"),
    },
    STAGES,
    train,
    oracle=True,
)
