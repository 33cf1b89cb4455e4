"""Intervention Training.

    python experiments/run.py --config experiments/configs/int.py:tiny --workdir runs/demo

Variants: `tiny` (the embedded model, on two CPU cores), `tiny_seeds` (the same with five seeds), `methods` (all arms,
three seeds), `smoke` (a minute, for tests), `rehearsal` (mathematics on a laptop, `make rehearsal`), `real` (a chat
model of 135 M parameters on 40 word problems, `make real`).

`qwen3_4b`, `qwen3_1_7b` (the one for a single GPU), `qwen3_0_6b`, `llama3_8b` are the paper's recipe at full size: InT
+ RL alone, evaluated on 500 held-out problems. Mesh, rows and pages follow from the devices, of one host or of many.
They were NOT run: experiments/plan.py prints memory, tokens and hours. Give the problems by
--config.problems.train_file and --config.problems.test_file. What they leave out costs twice as much again, and is
asked for so:

    --config.arms="('int_rl','rl','rl_matched')" --config.problems.test=1352 --config.eval.train_problems=256
"""

from ml_collections import ConfigDict

from experiments import arms
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
    c.train.update(row_length=256, rows=8, remat=False, logit_chunk=256)
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


def rehearsal() -> ConfigDict:
    """Every stage of the mathematics domain with a model of 1 M parameters; `make rehearsal` makes it and its data."""
    c = tiny()
    c.arms = ("int_rl", "rl")
    c.domain = default.domain("math")
    c.slots = 64
    for stage in (c.attempts, c.guided, c.eval):
        stage.sampling.max_new_tokens = 128
    c.problems.update(train=72, test=32, shard=24)
    c.attempts.update(tries=4, keep=1)
    c.proposals.update(compare=(), max_prompt=1_600, samples=2, shard=24)
    c.proposals.sampling.max_new_tokens = 320
    c.guided.update(tries=16, shard=24)
    c.effect.update(problems=16, samples=8)
    c.sft.update(epochs=2, batch=8)
    c.rl.update(updates=4, problems=8, group=4, max_new_tokens=128, checkpoint_every=2)
    c.eval.update(samples=8, train_problems=16)
    c.train.update(row_length=512)
    return c


def real() -> ConfigDict:
    """A real chat model on two CPU cores: `make real` fetches it and makes problems, worked examples and prompts."""
    c = default.get_config()
    c.arms = ("int_rl", "rl")
    told = "Solve the problem step by step, one step a line. The last line gives the answer in \\boxed{}."
    c.domain = default.domain("math", system=told, separator="\n")
    c.slots = 16
    for stage in (c.attempts, c.guided, c.proposals, c.eval):
        stage.sampling.max_new_tokens = 80
    c.problems.update(shard=24, hard=("train",))
    c.attempts.update(tries=4, keep=1)
    c.proposals.update(proposer="likelihood_ratio", max_prompt=1_024, samples=1, shard=24)
    c.guided.update(tries=4, at_once=4, shard=24)
    c.effect.update(problems=4, samples=4)
    c.drift.update(guided=4, attempts=4)
    c.sft.update(epochs=2, batch=8, learning_rate=1e-5)
    c.rl.update(updates=2, problems=4, group=4, max_new_tokens=80, checkpoint_every=2)
    c.eval.update(samples=2, ks=(1, 2), train_problems=2, shard=24)
    c.train.update(row_length=512, rows=2, remat=False, logit_chunk=256)
    return c


def methods() -> ConfigDict:
    """All arms side by side, on three seeds of `tiny`."""
    c = tiny()
    c.arms = tuple(arms.names())
    c.seeds = (0, 1, 2)
    c.attempts.keep_right = 2
    c.guided.keep = True
    return c


def tiny_seeds() -> ConfigDict:
    c = tiny()
    c.seeds = (0, 1, 2, 3, 4)
    return c


def full() -> ConfigDict:
    """The paper's settings and its work: without RL alone and RL matched, and with about as many problems to evaluate
    on. Of guided attempts fewer continuations are drawn: after a right one no more are needed."""
    c = default.get_config()
    c.domain = default.domain("math")
    c.problems.update(hard=("train",), test=500)  # benchmarks are evaluated whole
    c.arms = ("int_rl",)
    c.eval.train_problems = 32
    c.dtype = "bfloat16"  # the weights in training stay float32
    c.update(mesh={"data": -1, "model": 0}, slots=0, train={"rows": 0})  # what fits
    return c


def qwen3_4b() -> ConfigDict:
    c = full()
    c.model = "Qwen/Qwen3-4B-Instruct-2507"
    return c


def qwen3_1_7b() -> ConfigDict:
    c = full()
    c.model = "Qwen/Qwen3-1.7B"
    c.chat.enable_thinking = False
    return c


def qwen3_0_6b() -> ConfigDict:
    c = full()
    c.model = "Qwen/Qwen3-0.6B"
    c.chat.enable_thinking = False
    return c


def llama3_8b() -> ConfigDict:
    c = full()
    c.model = "meta-llama/Llama-3.1-8B-Instruct"
    return c


FULL = {"qwen3_4b": qwen3_4b, "qwen3_1_7b": qwen3_1_7b, "qwen3_0_6b": qwen3_0_6b, "llama3_8b": llama3_8b}
VARIANTS = {
    "tiny": tiny,
    "tiny_seeds": tiny_seeds,
    "methods": methods,
    "smoke": smoke,
    "rehearsal": rehearsal,
    "real": real,
    **FULL,
}


def get_config(variant: str = "") -> ConfigDict:
    """`default`, the paper's settings, where no variant is named."""
    if variant and variant not in VARIANTS:
        raise ValueError(f"int.py has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    c = VARIANTS[variant]() if variant else default.get_config()
    c.name = f"int:{variant}" if variant else "int"
    return c
