"""Rejection-sampling fine-tuning (RFT, STaR without rationales), then RL: the policy's own right attempts, whole.

Hard problems have none, as no attempt solves them: what is trained on are the others.
"""

from experiments.arms import Arm, Policy
from int_jax.batching import response_weights
from int_jax.lab import Lab


def train(lab: Lab):
    right = [trace for row in lab.attempts(lab.tasks) for trace in row.right]
    start = lab.fine_tune("rft", right, weigh=response_weights, end_of_turn=None)
    return lab.reinforce("rft_rl", start, lab.pool())


ARM = Arm(
    {"rft": Policy("RFT", "orange", "1 4"), "rft_rl": Policy("RFT + RL", "orange", "8 3 2 3")},
    ("attempts", "sft", "rl"),
    train,
    at_least={"attempts.keep_right": 1},
)
