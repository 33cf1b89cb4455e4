"""RL alone from the base model, on the same hard problems: no references, no interventions.

python experiments/run.py --config experiments/configs/grpo.py:tiny --workdir runs/grpo
"""

from ml_collections import ConfigDict

from experiments.configs import int as intervention


def get_config(variant: str = "") -> ConfigDict:
    c = intervention.get_config(variant)
    c.arms = ("rl",)
    c.rl.update(pool="hard", matched=False)
    c.name = f"grpo:{variant}" if variant else "grpo"
    return c
