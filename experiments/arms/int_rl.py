"""InT + RL, the paper's method: fine-tune on interventions, then the policy gradient from there."""

from experiments.arms import STAGES, Arm, Policy
from int_jax.intervention_training import intervention_training

ARM = Arm(
    policies={"int": Policy("InT", "green"), "int_rl": Policy("InT + RL", "blue", headline=True)},
    stages=STAGES,
    train=intervention_training,
)
