"""The decoder: grouped-query attention, RoPE, SwiGLU, RMSNorm. Tokens and a cache in, hidden states and a cache out.

Linen owns names, shapes, initialisers and the forward pass; parameters are a plain tree of arrays whose names are
their shapes. The vocabulary head is not applied here: `losses.py` and `sample.py` do that, in chunks and in float32.
"""

import dataclasses
import functools
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
    """Keys and values of every layer, by position: tuples of L arrays [B, N, K, S] and [B, N, S, K].

    Keys end in the position and values in the head, so that both products of a decoding step read memory in order:
    on CPU 2.6x (S = 96) to 5.3x (S = 256) as fast as with [B, S, N, K] for both.
    """

    keys_BNKS: tuple
    values_BNSK: tuple


class Recent(NamedTuple):
    """The newest tokens' keys and values, not yet in the cache: tuples of L arrays [B, N, K, C] and [B, N, C, K].

    Rows stand at different positions, so writing each new token into the cache would be a scatter a layer and step.
    Here all rows write at one index; `file` moves what has gathered into the cache, once a chunk.

    Attributes:
      start_B: the position of each row's first recent token; everything before it is in the cache.
      count: how many recent tokens there are.
    """

    keys_BNKC: tuple
    values_BNCK: tuple
    start_B: Any
    count: Any


def empty_cache(config: Config, rows: int, size: int) -> Cache:
    keys, values = (
        (rows, config.kv_heads, config.head_dim, size),
        (rows, config.kv_heads, size, config.head_dim),
    )
    return Cache(*(tuple(jnp.zeros(s, config.dtype) for _ in range(config.layers)) for s in (keys, values)))


def empty_recent(config: Config, rows: int, size: int, start_B) -> Recent:
    return Recent(*empty_cache(config, rows, size), start_B, jnp.zeros((), jnp.int32))


@dims.check
def file(cache: Cache, recent: Recent) -> Cache:
    """The cache with each row's recent tokens from its start on. There must be room for all C of them in a row whose
    cache is still read: where there is none, the row's last C positions are overwritten."""

    def put(axis, old, new):
        def row(old, new, start):
            return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis)

        return jax.vmap(row)(old, new, recent.start_B)

    keys = map(functools.partial(put, 2), cache.keys_BNKS, recent.keys_BNKC)
    values = map(functools.partial(put, 1), cache.values_BNSK, recent.values_BNCK)
    return Cache(tuple(keys), tuple(values))


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


def attention(query_BTHK, parts):
    """softmax(q k^T / sqrt(K) where the mask is true) v, each key/value head shared by Q = H / N query heads.

    The keys may come in several parts, (key [B, N, K, S], value [B, N, S, K], mask [B or 1, T, S]), which share one
    softmax. The weights are normalised after the product with the values.
    """
    rows, length, heads, head_dim = query_BTHK.shape
    kv_heads = parts[0][0].shape[1]
    shape_BNQT = (rows, kv_heads, heads // kv_heads, length)
    query_BTNQK = query_BTHK.reshape(rows, length, *shape_BNQT[1:3], head_dim) * head_dim**-0.5
    # X folds Q and T: as one plain batched product decoding is 2.4x (S = 96) to 2.8x (S = 256) as fast on CPU.
    query_BNXK = jnp.einsum("BTNQK->BNQTK", query_BTNQK).reshape(rows, kv_heads, -1, head_dim)

    def masked(key_BNKS, mask_BTS):
        score_BNXS = jnp.einsum("BNXK,BNKS->BNXS", query_BNXK, key_BNKS, preferred_element_type=jnp.float32)
        score_BNQTS = jnp.where(mask_BTS[:, None, None], score_BNXS.reshape(*shape_BNQT, -1), -1e30)
        return score_BNQTS.reshape(score_BNXS.shape)

    scores = [masked(key_BNKS, mask_BTS) for key_BNKS, _, mask_BTS in parts]
    tops = [jnp.max(score_BNXS, axis=-1, keepdims=True) for score_BNXS in scores]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    weights = [jnp.exp(score_BNXS - top) for score_BNXS in scores]
    totals = [jnp.sum(weight_BNXS, axis=-1) for weight_BNXS in weights]
    outs = [
        jnp.einsum("BNXS,BNSK->BNXK", w.astype(value.dtype), value, preferred_element_type=jnp.float32)
        for w, (_, value, _) in zip(weights, parts, strict=True)
    ]
    total_BNX, out_BNXK = functools.reduce(jnp.add, totals), functools.reduce(jnp.add, outs)
    out_BNQTK = (out_BNXK / total_BNX[..., None]).reshape(*shape_BNQT, head_dim)
    return jnp.einsum("BNQTK->BTNQK", out_BNQTK).reshape(query_BTHK.shape).astype(query_BTHK.dtype)


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
    def __call__(self, hidden_BTD, rotation, masks, past=(), recent=None, count=None):
        eps = self.config.norm_eps
        normed_BTD = rms_norm(hidden_BTD, self.weight("attn_norm_D"), eps)
        query_BTHK = jnp.einsum("BTD,DHK->BTHK", normed_BTD, self.weight("q_DHK"))
        key_BTNK = jnp.einsum("BTD,DNK->BTNK", normed_BTD, self.weight("k_DNK"))
        value_BTNK = jnp.einsum("BTD,DNK->BTNK", normed_BTD, self.weight("v_DNK"))
        if self.config.qk_norm:
            query_BTHK = rms_norm(query_BTHK, self.weight("q_norm_K"), eps)
            key_BTNK = rms_norm(key_BTNK, self.weight("k_norm_K"), eps)
        query_BTHK, key_BTNK = rotate(query_BTHK, *rotation), rotate(key_BTNK, *rotation)
        new = jnp.einsum("BTNK->BNKT", key_BTNK), jnp.einsum("BTNK->BNTK", value_BTNK)
        if recent is not None:
            new = (
                jax.lax.dynamic_update_slice_in_dim(recent[0], new[0], count, axis=3),
                jax.lax.dynamic_update_slice_in_dim(recent[1], new[1], count, axis=2),
            )
        heads_BTHK = attention(
            query_BTHK, [(*kv, mask) for kv, mask in zip((*past, new), masks, strict=True)]
        )
        hidden_BTD = hidden_BTD + jnp.einsum("BTHK,HKD->BTD", heads_BTHK, self.weight("o_HKD"))
        hidden_BTD = constrain(hidden_BTD, "BTD")

        normed_BTD = rms_norm(hidden_BTD, self.weight("ffw_norm_D"), eps)
        gate_BTF = jnp.einsum("BTD,DF->BTF", normed_BTD, self.weight("gate_DF"))
        up_BTF = jnp.einsum("BTD,DF->BTF", normed_BTD, self.weight("up_DF"))
        down_BTD = jnp.einsum("BTF,FD->BTD", nn.silu(gate_BTF) * up_BTF, self.weight("down_FD"))
        return constrain(hidden_BTD + down_BTD, "BTD"), new


class Transformer(Weights):
    """Embedding, blocks, final norm. See `Model.apply` for the contract."""

    remat: bool = False

    @nn.compact
    def __call__(self, tokens_BT, positions_BT, segments_BT=None, cache=None, recent=None):
        embed_VD = self.weight("embed_VD")
        if not self.config.tied:
            self.weight("head_DV")
        hidden_BTD = constrain(embed_VD[tokens_BT], "BTD")
        rotation = rope(positions_BT, self.config.head_dim, self.config.rope_theta)
        block = nn.remat(Block) if self.remat else Block
        blocks = [block(self.config, name=f"layer_{layer}") for layer in range(self.config.layers)]
        made = []
        if cache is None:
            length = tokens_BT.shape[1]
            mask_BTS = jnp.tril(jnp.ones((length, length), bool))[None]
            if segments_BT is not None:
                mask_BTS = mask_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
            for layer in blocks:
                hidden_BTD, new = layer(hidden_BTD, rotation, (mask_BTS,))
                made.append(new)
        else:
            size, chunk = cache.values_BNSK[0].shape[2], recent.values_BNCK[0].shape[2]
            filed_BTS = jnp.arange(size)[None, None, :] < recent.start_B[:, None, None]
            masks = (filed_BTS, (jnp.arange(chunk) <= recent.count)[None, None, :])
            old = zip(*cache, strict=True), zip(recent.keys_BNKC, recent.values_BNCK, strict=True)
            for layer, past, newest in zip(blocks, *old, strict=True):
                hidden_BTD, new = layer(hidden_BTD, rotation, masks, (past,), newest, recent.count)
                made.append(new)
        keys, values = zip(*made, strict=True)
        hidden_BTD = rms_norm(hidden_BTD, self.weight("final_norm_D"), self.config.norm_eps)
        if cache is None:
            return hidden_BTD, Cache(keys, values)
        return hidden_BTD, Recent(keys, values, recent.start_B, recent.count + 1)


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder as functions of its parameters."""

    config: Config

    def init(self, key) -> Any:
        """Fresh parameters: a nested dict of arrays named by their shapes."""
        tokens_BT = jnp.zeros((1, 2), jnp.int32)
        return Transformer(self.config).init(key, tokens_BT, tokens_BT)["params"]

    @dims.check
    def apply(self, params, tokens_BT, positions_BT, segments_BT=None, cache=None, recent=None, remat=False):
        """Hidden states of each token, and the keys and values.

        Without a cache: causal attention within each row, and within each segment where segments are given. With a
        cache: T is 1, and the token attends to its row's cache below `recent.start_B`, to the recent tokens, to itself.

        Args:
          params: as `init` makes them. tokens_BT, positions_BT, segments_BT: int32.
          cache, recent: both or neither. remat: recompute each block in the backward pass instead of storing it.

        Returns:
          (hidden_BTD after the final norm, a Cache of this call's own keys and values, S = T); with a cache
          (hidden_BTD, the Recent with this token added).
        """
        return Transformer(self.config, remat=remat).apply(
            {"params": params}, tokens_BT, positions_BT, segments_BT, cache, recent
        )

    def head_DV(self, params):
        """The vocabulary head in the compute dtype: the transposed embedding where the two are tied."""
        head = params["embed_VD"].T if self.config.tied else params["head_DV"]
        return head.astype(self.config.dtype)
