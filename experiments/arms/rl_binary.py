"""RL on a binary reward: as RL alone, but a response earns 1 if it passes, else nothing, in domains that grade."""

import dataclasses

from experiments.arms import Arm, Policy
from int_jax.lab import Lab


def train(lab: Lab):
    knobs = dataclasses.replace(lab.knobs["rl"]["knobs"], rewards={"passed": 1.0})
    return lab.reinforce("rl_binary", lab.base, lab.pool(), knobs=knobs)


ARM = Arm({"rl_binary": Policy("RL, binary", "orange", "1 4")}, ("rl",), train)
