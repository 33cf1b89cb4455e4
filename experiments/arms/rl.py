"""RL alone: the policy gradient from the base model, with the tokens that InT + RL's policy gradient took."""

from experiments.arms import Arm, Policy
from int_jax.lab import Lab


def train(lab: Lab):
    tokens = lab.trained["int_rl"].tokens if "int_rl" in lab.policies else None  # None: the knobs' updates
    return lab.reinforce("rl", lab.base, lab.pool(), tokens)


ARM = Arm(
    {"rl": Policy("RL", "orange", "6 4", headline=True)}, ("rl",), train, after=("int_rl",), baseline=True
)
