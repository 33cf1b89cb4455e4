"""RL alone from the base model, on the same hard problems: no references, no interventions.

python experiments/run.py --config experiments/configs/grpo.py:tiny --workdir runs/grpo

Its policy gradient is that of InT's RL (Table 5), so that the two can be compared. docs/losses.md has the knobs of GRPO
as published, and of its relatives.
"""

from ml_collections import ConfigDict

from experiments.configs import int as intervention


def alone(c: ConfigDict) -> ConfigDict:
    """A config without InT: one arm, on all hard problems, and its policy is what is exported."""
    c.update(arms=("rl",), export=("rl",), rl={"pool": "hard"})
    return c


def get_config(variant: str = "") -> ConfigDict:
    c = alone(intervention.get_config(variant))
    c.name = f"grpo:{variant}" if variant else "grpo"
    return c
