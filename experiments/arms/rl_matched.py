"""RL matched: RL alone goes on until it has also spent the tokens of InT's data stages and fine-tuning."""

from experiments.arms import Arm, Policy
from int_jax.lab import Lab, Stopped
from int_jax.rows import Stage


def train(lab: Lab):
    for name, why in {
        "int_rl": "there is no InT + RL whose tokens to match",
        "rl": "it goes on from RL, which was not made",
    }.items():
        if name not in lab.policies:
            raise Stopped("rl_matched", "skipped", f"RL matched was skipped: {why}")
    # "gain" where interventions were filtered by it.
    stages = (Stage(kind) for kind in ("attempts", "proposals", "guided", "gain"))
    spent = sum(lab.tokens.get(stage, 0) for stage in stages)
    more = spent + lab.trained["int"].tokens
    updates = len(lab.trained["int_rl"].lines)
    planned = round(more / max(1.0, lab.trained["int_rl"].tokens / updates))
    return lab.reinforce("rl_matched", lab.base, lab.pool(), more, after="rl", total=planned)


ARM = Arm(
    {"rl_matched": Policy("RL matched", "violet", "2 3")},
    ("rl",),
    train,
    needs=("int_rl", "rl"),
    baseline=True,
)
