"""RL with a first-error penalty: a negative advantage holds only from the first wrong step of an attempt on."""

import dataclasses

from experiments.arms import Arm, Policy
from int_jax.lab import Lab
from int_jax.policy_gradient import from_first_error


def train(lab: Lab):
    knobs = lab.knobs["rl"]["knobs"]
    located = from_first_error(knobs.advantages, lab.domain.first_error)
    knobs = dataclasses.replace(knobs, advantages=located)
    return lab.reinforce("rl_first_error", lab.base, lab.pool(), knobs=knobs)


ARM = Arm({"rl_first_error": Policy("RL, first error", "orange", "2 3")}, ("rl",), train, oracle=True)
