"""The floor: Qwen3 and Llama sampling as one hand-written JAX loop, without anything that a library needs.

One dense cache of the size asked, one jitted loop, one random key a step, all rows at one position: prompts are padded
on the left, each distinct prompt is prefilled once and copied to its samples, and the loop ends when all rows have.
What a sampler adds (a stream of its own for each row, filters, refilling, sharding, step ends) is measured against it.
floor_cdf.py is the same loop with a cheaper draw.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file


class Shape(NamedTuple):
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    eps: float


def load(path: Path, dtype: str) -> tuple[Shape, dict]:
    """The sizes, and weights in the layouts that the loop reads: q, k and v in one matrix, gate and up in another."""
    config = json.loads((path / "config.json").read_text())
    raw = {k: np.asarray(v, np.float32) for k, v in load_file(path / "model.safetensors").items()}
    layers, dim = config["num_hidden_layers"], config["hidden_size"]
    head_dim = config.get("head_dim", dim // config["num_attention_heads"])
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    shape = Shape(
        layers, config["num_attention_heads"], config["num_key_value_heads"], head_dim, theta, config["rms_norm_eps"]
    )  # fmt: skip

    def join(layer, *names):
        return np.concatenate([raw[f"model.layers.{layer}.{name}.weight"] for name in names]).T

    def one(layer, name):
        # Llama has no norm of queries and keys.
        return raw.get(f"model.layers.{layer}.{name}.weight")

    params = {
        "embed": raw["model.embed_tokens.weight"],
        "head": raw.get("lm_head.weight", raw["model.embed_tokens.weight"]).T.copy(),
        "norm": raw["model.norm.weight"],
        "blocks": [
            {
                "qkv": join(layer, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                "out": join(layer, "self_attn.o_proj"),
                "gate_up": join(layer, "mlp.gate_proj", "mlp.up_proj"),
                "down": join(layer, "mlp.down_proj"),
                "norm_1": one(layer, "input_layernorm"),
                "norm_2": one(layer, "post_attention_layernorm"),
                "q_norm": one(layer, "self_attn.q_norm"),
                "k_norm": one(layer, "self_attn.k_norm"),
            }
            for layer in range(layers)
        ],
    }
    return shape, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def norm(x, scale, eps):
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale


def turn(x, angle):
    """RoPE of [..., heads, K] by angles [..., 1, K/2]."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def qkv(shape: Shape, block, x, angle):
    """Queries [..., H, K], keys and values [..., N, K] of hidden states [..., D]."""
    cut = shape.heads * shape.head_dim, (shape.heads + shape.kv_heads) * shape.head_dim
    parts = jnp.split(norm(x, block["norm_1"], shape.eps) @ block["qkv"], cut, axis=-1)
    q, k, v = (part.reshape(*x.shape[:-1], -1, shape.head_dim) for part in parts)
    if block["q_norm"] is not None:
        q, k = norm(q, block["q_norm"], shape.eps), norm(k, block["k_norm"], shape.eps)
    return turn(q, angle), turn(k, angle), v


def feed_forward(shape: Shape, block, x):
    gate, up = jnp.split(norm(x, block["norm_2"], shape.eps) @ block["gate_up"], 2, axis=-1)
    return x + (jax.nn.silu(gate) * up) @ block["down"]


def by_noise(key, logits_BV):
    """argmax(logits + Gumbel noise)."""
    return jax.random.categorical(key, logits_BV)


def angles(shape: Shape, positions):
    frequency = shape.theta ** (-jnp.arange(0, shape.head_dim, 2, dtype=jnp.float32) / shape.head_dim)
    return positions[..., None, None].astype(jnp.float32) * frequency


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 8))
def generate(shape: Shape, params, tokens_UP, pads_U, which_B, new: int, stops: tuple[int, ...], key, draw):
    """Responses and log-probabilities [B, new], and how many tokens of each count, [B].

    Args:
      tokens_UP: distinct prompts, padded on the left by pads_U. which_B: the prompt of each row. stops: ids that end.
      draw: one token a row from (key, logits [B, V]).
    """
    prompts, width = tokens_UP.shape
    size, rows, groups = width + new, which_B.shape[0], shape.heads // shape.kv_heads
    scale = shape.head_dim**-0.5

    # All but the last token of each prompt, which the loop reads first.
    x = params["embed"][tokens_UP[:, :-1]]
    column = jnp.arange(width - 1)
    angle = angles(shape, jnp.maximum(column[None] - pads_U[:, None], 0))
    seen = (column[None, :, None] >= column[None, None, :]) & (column[None, None, :] >= pads_U[:, None, None])
    caches = []
    for block in params["blocks"]:
        q, k, v = qkv(shape, block, x, angle)
        q = q.reshape(prompts, width - 1, shape.kv_heads, groups, shape.head_dim) * scale
        score = jnp.einsum("utngk,usnk->ungts", q, k, preferred_element_type=jnp.float32)
        weight = jax.nn.softmax(jnp.where(seen[:, None, None], score, -1e30), axis=-1).astype(x.dtype)
        out = jnp.einsum("ungts,usnk->utngk", weight, v)
        x = x + out.reshape(prompts, width - 1, -1) @ block["out"]
        x = feed_forward(shape, block, x)
        # Keys end in the position and values in the head: both products of a step read memory in order.
        k, v = jnp.einsum("usnk->unks", k), jnp.einsum("usnk->unsk", v)
        k = jnp.pad(k, [(0, 0), (0, 0), (0, 0), (0, new + 1)])[which_B]
        caches.append((k, jnp.pad(v, [(0, 0), (0, 0), (0, new + 1), (0, 0)])[which_B]))

    pads_B = pads_U[which_B]

    def step(carry):
        index, last_B, running_B, tokens, logps, count_B, caches = carry
        at = width - 1 + index
        x = params["embed"][last_B]
        angle = angles(shape, at - pads_B)
        seen = (jnp.arange(size) <= at)[None] & (jnp.arange(size)[None] >= pads_B[:, None])
        after = []
        for block, (keys, values) in zip(params["blocks"], caches, strict=True):
            q, k, v = qkv(shape, block, x, angle)
            keys = jax.lax.dynamic_update_slice_in_dim(keys, k[..., None], at, axis=3)
            values = jax.lax.dynamic_update_slice_in_dim(values, v[:, :, None], at, axis=2)
            after.append((keys, values))
            q = q.reshape(rows, shape.kv_heads, groups, shape.head_dim) * scale
            score = jnp.einsum("bngk,bnks->bngs", q, keys, preferred_element_type=jnp.float32)
            weight = jax.nn.softmax(jnp.where(seen[:, None, None], score, -1e30), axis=-1).astype(x.dtype)
            out = jnp.einsum("bngs,bnsk->bngk", weight, values)
            x = feed_forward(shape, block, x + out.reshape(rows, -1) @ block["out"])
        logits = (norm(x, params["norm"], shape.eps) @ params["head"]).astype(jnp.float32)
        token_B = draw(jax.random.fold_in(key, index), logits).astype(jnp.int32)
        logp_B = jnp.take_along_axis(jax.nn.log_softmax(logits), token_B[:, None], axis=1)[:, 0]
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token_B[:, None], index, axis=1)
        logps = jax.lax.dynamic_update_slice_in_dim(logps, logp_B[:, None], index, axis=1)
        count_B = count_B + running_B
        for stop in stops:
            running_B = running_B & (token_B != stop)
        return index + 1, token_B, running_B, tokens, logps, count_B, after

    def going(carry):
        return (carry[0] < new) & jnp.any(carry[2])

    start = (
        jnp.int32(0), tokens_UP[which_B, -1], jnp.ones(rows, bool), jnp.zeros((rows, new), jnp.int32),
        jnp.zeros((rows, new), jnp.float32), jnp.zeros(rows, jnp.int32), caches,
    )  # fmt: skip
    _, _, _, tokens, logps, count_B, _ = jax.lax.while_loop(going, step, start)
    return tokens, logps, count_B


def prepare(task: dict, draw=by_noise):
    """See worker.py."""
    shape, params = load(Path(task["model"]), task["dtype"])
    prompts, stops = task["prompts"], tuple(task["stops"])
    # One token at least goes through the prefill.
    width = max(2, *map(len, prompts))
    pads_U = np.array([width - len(prompt) for prompt in prompts], np.int32)
    tokens_UP = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_UP[row, pads_U[row] :] = prompt
    which_B = np.repeat(np.arange(len(prompts)), task["samples"])

    def once(seed: int, whole: bool = False) -> list:
        """The tokens of each response; `whole`: (ids, log-probabilities) of each."""
        key = jax.random.key(seed)
        drawn = generate(shape, params, tokens_UP, pads_U, which_B, task["new"], stops, key, draw)
        tokens, logps, counts = map(np.asarray, drawn)
        rows = [(tokens[i, :n], logps[i, :n]) for i, n in enumerate(counts)]
        return rows if whole else [len(ids) for ids, _ in rows]

    return once
