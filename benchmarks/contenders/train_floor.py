"""The floor: forward, loss, gradient and AdamW of Qwen3 in one hand-written jitted function, nothing else.

Rows are padded on the right to the longest, attention is dense and all logits of a batch exist at once. Packing,
micro-batches, chunks of logits, sharding, entropy, ratios and metrics are measured against it.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from contenders.batches import advantages, padded
from contenders.floor import Shape, angles, by_noise, feed_forward, generate, load, norm, qkv


def logp(shape: Shape, params, tokens_BT):
    """Log-probability of each token but the first of a row, [B, T - 1]."""
    rows, length = tokens_BT.shape
    x = params["embed"][tokens_BT]
    angle = angles(shape, jnp.arange(length)[None])
    seen = jnp.tril(jnp.ones((length, length), bool))
    for block in params["blocks"]:
        q, k, v = qkv(shape, block, x, angle)
        q = q.reshape(rows, length, shape.kv_heads, -1, shape.head_dim) * shape.head_dim**-0.5
        score = jnp.einsum("btngk,bsnk->bngts", q, k)
        out = jnp.einsum("bngts,bsnk->btngk", jax.nn.softmax(jnp.where(seen, score, -1e30)), v)
        x = feed_forward(shape, block, x + out.reshape(rows, length, -1) @ block["out"])
    logits = norm(x, params["norm"], shape.eps)[:, :-1] @ params["embed"].T
    picked = jnp.take_along_axis(logits, tokens_BT[:, 1:, None], axis=2)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=2)


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=(1, 2))
def update(shape: Shape, params, opt, tokens_BT, weight_BT, tx):
    """One step on -sum(weight * log p). The embedding is the head, too."""

    def loss(params):
        return -jnp.sum(weight_BT[:, 1:] * logp(shape, params, tokens_BT))

    value, grads = jax.value_and_grad(loss)(params)
    steps, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, steps), opt, value


def prepare(task: dict):
    """See training.py."""
    shape, params = load(Path(task["model"]), task["dtype"])
    del params["head"]  # tied
    tx = optax.adamw(task["rate"], weight_decay=0.0)
    opt = tx.init(params)

    def step(tokens_BT, weight_BT) -> float:
        nonlocal params, opt
        weight_BT = (weight_BT / np.count_nonzero(weight_BT)).astype(np.float32)
        params, opt, loss = jax.block_until_ready(update(shape, params, opt, tokens_BT, weight_BT, tx))
        return float(loss)

    def supervised_once(seed: int, whole: bool = False):
        tokens_BT, real_BT = padded(task["sequences"])
        loss = step(tokens_BT, real_BT & (np.arange(tokens_BT.shape[1]) > 0))
        return loss if whole else real_BT.sum(1).tolist()

    def grpo_once(seed: int) -> list[int]:
        prompts_UP = np.array(task["prompts"], np.int32)
        which_B = np.repeat(np.arange(len(prompts_UP)), task["samples"])
        pads_U, key = np.zeros(len(prompts_UP), np.int32), jax.random.key(seed)
        whole = params | {"head": params["embed"].T}
        drawn, _, counts = generate(shape, whole, prompts_UP, pads_U, which_B, task["new"], (), key, by_noise)
        tokens_BT = np.concatenate([prompts_UP[which_B], np.asarray(drawn)], axis=1)
        response = np.arange(tokens_BT.shape[1]) >= prompts_UP.shape[1]
        step(tokens_BT, response * advantages(np.asarray(drawn), task["samples"])[:, None])
        return np.asarray(counts).tolist()

    return supervised_once if "sequences" in task else grpo_once
