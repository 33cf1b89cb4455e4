"""Intervention Training.

    python experiments/run.py --config experiments/configs/int.py:tiny --workdir runs/demo

Variants: `tiny` (the embedded model, on two CPU cores), `tiny_seeds` (the same with five seeds), `smoke` (a minute, for
tests).
"""

from ml_collections import ConfigDict

from experiments.configs import default


def tiny() -> ConfigDict:
    c = default.get_config()
    c.slots = 128
    for stage in (c.attempts, c.guided, c.eval):
        stage.sampling.max_new_tokens = 96
    c.problems.update(train=400, test=160)
    # Hard means no success in 16 tries under the sampling that RL itself uses: RL alone starts nearly without signal.
    c.attempts.update(tries=16, keep=2)
    c.attempts.sampling.update(temperature=1.0, top_k=0, top_p=1.0)
    c.proposals.update(
        compare=("likelihood_ratio", "oracle"), compare_attempts=256, max_prompt=256, samples=1
    )
    c.guided.tries = 16
    c.proposals.sampling.max_new_tokens = 128
    c.effect.update(problems=96, samples=16)
    c.sft.update(learning_rate=3e-4, clip_norm=1.0)
    c.rl.update(
        updates=40, problems=16, learning_rate=2e-4, max_new_tokens=96, checkpoint_every=10, clip_norm=1.0
    )
    c.eval.update(samples=16, train_problems=128)
    c.train.update(row_length=256, rows=8, remat=False, chunk=256)
    return c


def smoke() -> ConfigDict:
    c = tiny()
    c.slots = 32
    c.problems.update(train=24, test=8, shard=8)
    c.attempts.update(tries=4, keep=2)
    c.proposals.update(compare_attempts=16, shard=32)
    c.guided.update(tries=8, shard=16)
    c.effect.update(problems=8, samples=4)
    c.sft.update(epochs=2, batch=16)
    c.rl.update(updates=3, problems=4, group=4, checkpoint_every=2)
    c.eval.update(samples=8, train_problems=8, shard=8)
    return c


def tiny_seeds() -> ConfigDict:
    c = tiny()
    c.seeds = (0, 1, 2, 3, 4)
    return c


VARIANTS = {"tiny": tiny, "tiny_seeds": tiny_seeds, "smoke": smoke}


def get_config(variant: str = "") -> ConfigDict:
    """`default` where no variant is named: the paper's settings."""
    if variant and variant not in VARIANTS:
        raise ValueError(f"int.py has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    c = VARIANTS[variant]() if variant else default.get_config()
    c.name = f"int:{variant}" if variant else "int"
    return c
