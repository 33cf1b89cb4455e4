"""The decoder: grouped-query attention, RoPE, SwiGLU, RMSNorm. Tokens and a cache in, hidden states and a cache out.

Linen owns names, shapes, initialisers and the forward pass; parameters are a plain tree of arrays whose names are
their shapes. The vocabulary head is not applied here: `losses.py` and `sample.py` do that, in chunks and in float32.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from int_jax import dims
from int_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class Config:
    """One decoder's sizes and switches. `dtype` is that of the compute; `param_dtype` that of the stored weights."""

    family: str
    vocab: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffw: int
    max_len: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = False
    tied: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def shape(self, letters: str) -> tuple[int, ...]:
        sizes = {"D": self.dim, "H": self.heads, "N": self.kv_heads, "K": self.head_dim}
        sizes |= {"F": self.ffw, "V": self.vocab}
        return tuple(sizes[letter] for letter in letters)


class Cache(NamedTuple):
    """Keys and values of every layer, a tuple of L arrays each: [B, S, N, K]."""

    keys_BSNK: tuple
    values_BSNK: tuple


def empty_cache(config: Config, rows: int, size: int) -> Cache:
    zeros = tuple(
        jnp.zeros((rows, size, config.kv_heads, config.head_dim), config.dtype) for _ in range(config.layers)
    )
    return Cache(zeros, jax.tree.map(jnp.copy, zeros))


def rms_norm(hidden, scale, eps: float):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32."""
    wide = hidden.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return scale.reshape((1,) * (hidden.ndim - 1) + (-1,)) * normed.astype(hidden.dtype)


def rotate(heads_BTHK, cos_BTK, sin_BTK):
    """Rotary position embedding in the half-split layout: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    wide = heads_BTHK.astype(jnp.float32)
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    out = wide * cos_BTK[:, :, None, :] + turned * sin_BTK[:, :, None, :]
    return out.astype(heads_BTHK.dtype)


def rope(positions_BT, head_dim: int, theta: float):
    """cos and sin of position x theta^(-2i/K), each [B, T, K] float32."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BT.astype(jnp.float32)[:, :, None] * frequency[None, None, :]
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def attention(query_BTHK, key_BSNK, value_BSNK, mask_BTS):
    """softmax(q k^T / sqrt(K) where the mask is true) v, each key/value head shared by Q = H / N query heads.

    The weights are normalised after the product with the values. On CPU this is 1.3x as fast as
    `jax.nn.dot_product_attention` at these sizes (benchmarks/attention.py). mask_BTS broadcasts over rows.
    """
    rows, length, heads, head_dim = query_BTHK.shape
    kv_heads = key_BSNK.shape[2]
    query_BTNQK = query_BTHK.reshape(rows, length, kv_heads, heads // kv_heads, head_dim) * head_dim**-0.5
    score_BNQTS = jnp.einsum("BTNQK,BSNK->BNQTS", query_BTNQK, key_BSNK, preferred_element_type=jnp.float32)
    score_BNQTS = jnp.where(mask_BTS[:, None, None], score_BNQTS, -1e30)
    top_BNQT1 = jax.lax.stop_gradient(jnp.max(score_BNQTS, axis=-1, keepdims=True))
    weight_BNQTS = jnp.exp(score_BNQTS - top_BNQT1)
    total_BTNQ = jnp.einsum("BNQTS->BTNQ", weight_BNQTS)
    out_BTNQK = jnp.einsum(
        "BNQTS,BSNK->BTNQK", weight_BNQTS.astype(value_BSNK.dtype), value_BSNK, preferred_element_type=jnp.float32
    )
    out_BTNQK = out_BTNQK / total_BTNQ[..., None]
    return out_BTNQK.reshape(rows, length, heads, head_dim).astype(query_BTHK.dtype)


class Weights(nn.Module):
    """A module whose parameters are declared by name alone: `self.weight("q_DHK")` has the shape its suffix says."""

    config: Config

    def weight(self, name: str):
        letters = dims.suffix(name)
        shape = self.config.shape(letters)
        if len(letters) == 1:
            init = nn.initializers.ones
        elif name == "embed_VD":
            init = nn.initializers.normal(0.02)
        else:
            inputs = 2 if letters == "HKD" else 1
            fan_in = 1
            for size in shape[:inputs]:
                fan_in *= size
            init = nn.initializers.normal(fan_in**-0.5)
        return self.param(name, init, shape, self.config.param_dtype).astype(self.config.dtype)


class Block(Weights):
    """One layer: attention, then the gated feed-forward, each normed before and added to the residual stream."""

    @nn.compact
    def __call__(self, hidden_BTD, rotation, mask_BTS, cache=None, slots_B=None):
        eps = self.config.norm_eps
        normed_BTD = rms_norm(hidden_BTD, self.weight("attn_norm_D"), eps)
        query_BTHK = jnp.einsum("BTD,DHK->BTHK", normed_BTD, self.weight("q_DHK"))
        key_BTNK = jnp.einsum("BTD,DNK->BTNK", normed_BTD, self.weight("k_DNK"))
        value_BTNK = jnp.einsum("BTD,DNK->BTNK", normed_BTD, self.weight("v_DNK"))
        if self.config.qk_norm:
            query_BTHK = rms_norm(query_BTHK, self.weight("q_norm_K"), eps)
            key_BTNK = rms_norm(key_BTNK, self.weight("k_norm_K"), eps)
        query_BTHK, key_BTNK = rotate(query_BTHK, *rotation), rotate(key_BTNK, *rotation)
        if cache is not None:
            rows = jnp.arange(hidden_BTD.shape[0])
            key_BTNK = cache[0].at[rows, slots_B].set(key_BTNK[:, 0])
            value_BTNK = cache[1].at[rows, slots_B].set(value_BTNK[:, 0])
        heads_BTHK = attention(query_BTHK, key_BTNK, value_BTNK, mask_BTS)
        hidden_BTD = hidden_BTD + jnp.einsum("BTHK,HKD->BTD", heads_BTHK, self.weight("o_HKD"))
        hidden_BTD = constrain(hidden_BTD, "BTD")

        normed_BTD = rms_norm(hidden_BTD, self.weight("ffw_norm_D"), eps)
        gate_BTF = jnp.einsum("BTD,DF->BTF", normed_BTD, self.weight("gate_DF"))
        up_BTF = jnp.einsum("BTD,DF->BTF", normed_BTD, self.weight("up_DF"))
        down_BTD = jnp.einsum("BTF,FD->BTD", nn.silu(gate_BTF) * up_BTF, self.weight("down_FD"))
        return constrain(hidden_BTD + down_BTD, "BTD"), (key_BTNK, value_BTNK)


class Transformer(Weights):
    """Embedding, blocks, final norm. See `Model.apply` for the contract."""

    remat: bool = False

    @nn.compact
    def __call__(self, tokens_BT, positions_BT, segments_BT=None, cache=None):
        embed_VD = self.weight("embed_VD")
        if not self.config.tied:
            self.weight("head_DV")
        hidden_BTD = constrain(embed_VD[tokens_BT], "BTD")
        rotation = rope(positions_BT, self.config.head_dim, self.config.rope_theta)
        length = tokens_BT.shape[1]
        if cache is None:
            mask_BTS = jnp.tril(jnp.ones((length, length), bool))[None]
            if segments_BT is not None:
                mask_BTS = mask_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
        else:
            mask_BTS = jnp.arange(cache.keys_BSNK[0].shape[1])[None, None, :] <= positions_BT[:, :, None]
        block = nn.remat(Block) if self.remat else Block
        keys, values = [], []
        for layer in range(self.config.layers):
            past = None if cache is None else (cache.keys_BSNK[layer], cache.values_BSNK[layer])
            layer_block = block(self.config, name=f"layer_{layer}")
            hidden_BTD, (key, value) = layer_block(hidden_BTD, rotation, mask_BTS, past, positions_BT[:, 0])
            keys.append(key)
            values.append(value)
        hidden_BTD = rms_norm(hidden_BTD, self.weight("final_norm_D"), self.config.norm_eps)
        return hidden_BTD, Cache(tuple(keys), tuple(values))


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder as functions of its parameters."""

    config: Config

    def init(self, key) -> Any:
        """Fresh parameters: a nested dict of arrays named by their shapes."""
        tokens_BT = jnp.zeros((1, 2), jnp.int32)
        return Transformer(self.config).init(key, tokens_BT, tokens_BT)["params"]

    @dims.check
    def apply(self, params, tokens_BT, positions_BT, segments_BT=None, cache=None, remat=False):
        """Hidden states of each token, and the keys and values.

        Without a cache: causal attention within each row, and within each segment where segments are given; the
        returned cache holds this call's own keys and values [B, T, N, K]. With a cache: T is 1, the token at
        `positions_BT` is written into its row of the cache and attends to positions 0..itself.

        Args:
          params: as `init` makes them. tokens_BT, positions_BT, segments_BT: int32.
          cache: Cache of [B, S, N, K] arrays, or None.
          remat: recompute each block in the backward pass instead of storing it.

        Returns:
          (hidden_BTD after the final norm, Cache).
        """
        return Transformer(self.config, remat=remat).apply(
            {"params": params}, tokens_BT, positions_BT, segments_BT, cache
        )

    def head_DV(self, params):
        """The vocabulary head in the compute dtype: the transposed embedding where the two are tied."""
        head = params["embed_VD"].T if self.config.tied else params["head_DV"]
        return head.astype(self.config.dtype)
