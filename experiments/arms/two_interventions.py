"""Two interventions: where every continuation of a guided attempt fails, find the first error of one and step in again.

Fine-tuned on InT's guided attempts and on those with two interventions; the first one is then part of the prefix.
"""

from experiments.arms import STAGES, Arm, Policy, interventions
from int_jax.lab import Lab
from int_jax.rows import Stage


def train(lab: Lab):
    once, wrong = interventions(lab)
    failed = [row.wrong[0] for row in once if not row.successes and row.wrong]
    proposals = lab.proposals(failed, Stage("proposals", "two_int", 1))
    twice = lab.guided(lab.splice(failed, proposals), Stage("guided", "two_int", 1))
    second = lab.kept(twice, failed, Stage("gain", "two_int", 1))
    start = lab.fine_tune("two_int", [*lab.kept(once, wrong), *second])
    return lab.reinforce("two_int_rl", start, lab.pool())


ARM = Arm(
    {"two_int": Policy("InT twice", "green", "6 4"), "two_int_rl": Policy("InT twice + RL", "blue", "6 4")},
    STAGES,
    train,
    at_least={"guided.keep": True},
)
