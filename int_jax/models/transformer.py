"""The decoder: grouped-query attention, RoPE, gated feed-forward, RMSNorm.

Tokens and a cache in, hidden states and a cache out.

Linen owns names, shapes, initialisers and the forward pass; parameters are a plain tree of arrays whose names are
their shapes. The vocabulary head is not applied here: `losses.py` and `sample.py` do that, in chunks and in float32.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from int_jax import dims, lora
from int_jax.models import flash, kernels
from int_jax.models.pages import Paged, View, places
from int_jax.sharding import RULES_DECODE, RULES_KEPT, constrain


class RopeScaling(NamedTuple):
    """How RoPE's frequencies are lowered for contexts longer than those of pretraining.

    Attributes:
      kind: "linear" divides all of them by `factor`; "llama3" those whose wavelength is above trained / low tokens,
        leaves those below trained / high as they are, and blends in between.
      factor: >= 1. low, high: turns within the trained length. trained: tokens (original_max_position_embeddings).
    """

    kind: str
    factor: float
    low: float = 0.0
    high: float = 0.0
    trained: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """One decoder's sizes and switches; a switch that is off adds no operation.

    Attributes:
      rope_theta, rope_scaling: the base of RoPE, and how it is stretched. local_rope_theta: the base, unscaled, of the
        layers that have a window; by default they rotate as the others.
      windows: how many tokens each layer attends to, its own included, 0 for all; () where every layer attends to all.
      qkv_bias, o_bias: biases of the attention's input and output projections.
      qk_norm: RMSNorm of each query and key head. post_norm: of what attention and feed-forward add to the stream.
      zero_centred: RMSNorm scales by 1 + weight, in float32.
      scaled_embedding: the embedding is multiplied by sqrt(dim). tied: it also is the head.
      activation: of the feed-forward's gate, "silu" or "gelu_tanh".
      query_scalar: scores are divided by its square root; by default head_dim.
      attention_softcap, logit_softcap: x -> cap tanh(x / cap), of the scores and of the logits.
      dtype: that of the compute. param_dtype: that of the stored weights.
    """

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
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    windows: tuple[int, ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    post_norm: bool = False
    zero_centred: bool = False
    scaled_embedding: bool = False
    activation: str = "silu"
    query_scalar: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def scale(self) -> float:
        """What attention scores are multiplied with."""
        return (self.query_scalar or self.head_dim) ** -0.5

    def shape(self, letters: str) -> tuple[int, ...]:
        sizes = {"D": self.dim, "H": self.heads, "N": self.kv_heads, "K": self.head_dim}
        sizes |= {"F": self.ffw, "V": self.vocab}
        return tuple(sizes[letter] for letter in letters)


def rms_norm(hidden, scale, eps: float, zero_centred: bool = False):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, the mean in float32.

    Zero-centred, the factor is 1 + scale, and the product is taken in float32 too (as in Gemma).
    """
    # bfloat16 has 8 significant bits: a sum over thousands of squares would lose the small ones.
    wide = hidden.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    # [D] as [1, 1, D]: arrays of different rank are never broadcast here (tests/conftest.py refuses it).
    scale = scale.reshape((1,) * (hidden.ndim - 1) + (-1,))
    if zero_centred:
        return (normed * (1.0 + scale.astype(jnp.float32))).astype(hidden.dtype)
    # Rounded before it is scaled, as transformers does in Llama, Qwen and Mistral.
    return scale * normed.astype(hidden.dtype)


def softcap(values, cap: float | None):
    """cap tanh(x / cap), which never leaves (-cap, cap); without a cap the identity."""
    return values if cap is None else cap * jnp.tanh(values / cap)


def rotate(heads_BTHK, cos_BTK, sin_BTK):
    """Rotary position embedding in the half-split layout: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    wide = heads_BTHK.astype(jnp.float32)
    # Half-split: the pair that turns together is (x[i], x[i + K/2]), so [1, 2, 3, 4] becomes [-3, -4, 1, 2].
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    out = wide * cos_BTK[:, :, None, :] + turned * sin_BTK[:, :, None, :]
    return out.astype(heads_BTHK.dtype)


def scaled(frequency, scaling: RopeScaling | None):
    """RoPE's frequencies, radians a token, as `scaling` lowers them (llama3: the Llama 3.1 model code)."""
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    # How often a pair turns within the trained length. With low = 1 and high = 4: 4 turns and more are kept as they
    # are, 1 and less are divided by the factor, 2.5 are half kept.
    turns = scaling.trained * frequency / (2 * jnp.pi)
    kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return kept * frequency + (1.0 - kept) * frequency / scaling.factor


def rope(positions_BT, head_dim: int, theta: float, scaling: RopeScaling | None = None):
    """cos and sin of position x theta^(-2i/K), each [B, T, K] float32."""
    # K = 4 and theta = 10,000: frequencies [1, 0.01], both halves of the head alike: [1, 0.01, 1, 0.01].
    frequency = scaled(theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim), scaling)
    # In float32: bfloat16 cannot tell position 257 from 256.
    angle = positions_BT.astype(jnp.float32)[:, :, None] * frequency[None, None, :]
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def attention(query_BTHK, key_BNKS, value_BNSK, mask_BTS, scale: float, cap: float | None = None):
    """softmax(scale q k^T where the mask, [B or 1, T, S], is true) v, each key/value head shared by Q = H / N query
    heads. The weights are normalised after the product with the values. cap: a soft cap of the scores."""
    rows, length, heads, head_dim = query_BTHK.shape
    kv_heads = key_BNKS.shape[1]
    # H = 4 and N = 2: query heads 0 and 1 read key/value head 0, heads 2 and 3 read head 1.
    shape_BNQT = (rows, kv_heads, heads // kv_heads, length)
    query_BTNQK = query_BTHK.reshape(rows, length, *shape_BNQT[1:3], head_dim) * scale
    # X folds Q and T: as one plain batched product decoding is 2.4x (S = 96) to 2.8x (S = 256) as fast on CPU.
    query_BNXK = jnp.einsum("BTNQK->BNQTK", query_BTNQK).reshape(rows, kv_heads, -1, head_dim)
    score_BNXS = jnp.einsum("BNXK,BNKS->BNXS", query_BNXK, key_BNKS, preferred_element_type=jnp.float32)
    # The cap comes before the mask: it would bring the masked scores back to -cap.
    score_BNXS = softcap(score_BNXS, cap)
    # Finite: a query that sees nothing (padding of the last span) gets a mean of the values. With -inf it would
    # be NaN, and so would the gradient of the whole row.
    score_BNQTS = jnp.where(mask_BTS[:, None, None], score_BNXS.reshape(*shape_BNQT, -1), -1e30)
    score_BNXS = score_BNQTS.reshape(score_BNXS.shape)
    # No exp overflows. The softmax does not depend on the maximum: no gradient is lost by stopping it.
    weight_BNXS = jnp.exp(score_BNXS - jax.lax.stop_gradient(jnp.max(score_BNXS, axis=-1, keepdims=True)))
    total_BNX = jnp.sum(weight_BNXS, axis=-1)
    out_BNXK = jnp.einsum(
        "BNXS,BNSK->BNXK",
        weight_BNXS.astype(value_BNSK.dtype),
        value_BNSK,
        preferred_element_type=jnp.float32,
    )
    out_BNQTK = (out_BNXK / total_BNX[..., None]).reshape(*shape_BNQT, head_dim)
    return jnp.einsum("BNQTK->BTNQK", out_BNQTK).reshape(query_BTHK.shape).astype(query_BTHK.dtype)


class LongMask(NamedTuple):
    """What a row too long for one mask sees: positions and segments of its tokens (None: one segment), the window."""

    positions_BT: Any
    segments_BT: Any
    window: Any


LONG = 512  # tokens; a longer row attends in spans
SPAN = 128  # queries of a long row whose scores exist at one time; on CPU 1.3 times as fast as 512


def long_attention(query_BTHK, key_BNKS, value_BNSK, mask: LongMask, scale: float, cap: float | None = None):
    """Causal `attention` over a row of any length, SPAN queries (C) at a time, in the backward pass, too."""
    rows, length = query_BTHK.shape[:2]
    # Their gradients add up over the spans, which they do in the dtype of what the spans share.
    dtype, key_BNKS, value_BNSK = key_BNKS.dtype, *(a.astype(jnp.float32) for a in (key_BNKS, value_BNSK))
    # Rounded up: 600 tokens are 5 spans of 128, with 40 places of padding.
    count = -(-length // SPAN)

    def cut(array):
        """[B, T, ...] as spans [count, B, C, ...]; the last one is padded, and what it gives for that is dropped."""
        padded = jnp.pad(array, [(0, 0), (0, count * SPAN - length)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, count, SPAN, *array.shape[2:]), 1, 0)

    # Without it the scan would keep every span's weights for the backward pass: [B, H, T, T] again.
    @jax.checkpoint
    def one(piece):
        query_BCHK, own, index = piece
        # Causal by the place in the row (query c of span i stands at 128 i + c), not by position: positions start anew
        # in each packed sequence.
        mask_BCS = (index * SPAN + jnp.arange(SPAN))[None, :, None] >= jnp.arange(length)[None, None, :]
        mask_BCS = mask_BCS & within_window(own.positions_BT, mask.positions_BT, mask.window)
        if mask.segments_BT is not None:
            mask_BCS = mask_BCS & (own.segments_BT[:, :, None] == mask.segments_BT[:, None, :])
        read = key_BNKS.astype(dtype), value_BNSK.astype(dtype)
        return attention(query_BCHK, *read, mask_BCS, scale, cap)

    own = mask._replace(
        positions_BT=cut(mask.positions_BT),
        segments_BT=None if mask.segments_BT is None else cut(mask.segments_BT),
        # lax.map cuts all it is given along the first axis.
        window=jnp.broadcast_to(mask.window, count),
    )
    parts = jax.lax.map(one, (cut(query_BTHK), own, jnp.arange(count)))
    return jnp.moveaxis(parts, 0, 1).reshape(rows, count * SPAN, *query_BTHK.shape[2:])[:, :length]


def attention_mask(positions_BT, segments_BT, window: int):
    """What each token of a row sees: one mask, as `attention` takes it; for a long row what `long_attention` needs."""
    length = positions_BT.shape[1]
    if length > LONG:
        # No window is one that nothing exceeds: within the map it is an array, and cannot be None.
        return LongMask(positions_BT, segments_BT, jnp.int32(window or jnp.iinfo(jnp.int32).max))
    # Length 3: rows 100, 110, 111. With segments 1 1 2 the last becomes 001: packed sequences do not see each other.
    mask_BTS = jnp.tril(jnp.ones((length, length), bool))[None]
    if segments_BT is not None:
        mask_BTS = mask_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
    return mask_BTS & within_window(positions_BT, positions_BT, window) if window else mask_BTS


def over_row(config, positions_BT, segments_BT, window: int, kernel: str):
    """The attention of rows over themselves by layers with this window, as `Block` calls it."""
    options = config.scale, config.attention_softcap
    whole = kernel != "xla" and positions_BT.shape[1] > LONG
    mask: Any = None if whole else attention_mask(positions_BT, segments_BT, window)
    if segments_BT is None:
        segments_BT = jnp.zeros_like(positions_BT)

    def attend(query_BTHK, key_BTNK, value_BTNK):
        if whole:
            return flash.attend(kernel, query_BTHK, key_BTNK, value_BTNK, segments_BT, *options, window), None
        plain = long_attention if isinstance(mask, LongMask) else attention
        new = jnp.einsum("BTNK->BNKT", key_BTNK), jnp.einsum("BTNK->BNTK", value_BTNK)
        return checkpoint_name(plain(query_BTHK, *new, mask, *options), flash.CONTEXT), None

    return attend


def over_view(config, rows: View, positions_BT, windows):
    """For each layer the attention of T new tokens over rows that lie side by side, as `Block` calls it."""
    size = rows.values_BNSK[0].shape[2]
    base = size - len(rows.new_C)
    place_S, first = jnp.arange(size), base + rows.count
    # start 4, base 6 and two new tokens, of which the second is asked: 1111001100.
    old_BTS = (place_S[None] < jnp.minimum(rows.start_B, base)[:, None])[:, None]
    last_T = first + jnp.arange(positions_BT.shape[1])
    new_BTS = ((place_S >= base)[None] & (place_S[None] <= last_T[:, None]))[None]
    seen_BTS = old_BTS | new_BTS
    position_BS = jnp.where(
        (place_S < base)[None], place_S[None], rows.start_B[:, None] + place_S[None] - base
    )
    masks = {
        window: seen_BTS & within_window(positions_BT, position_BS, window) if window else seen_BTS
        for window in {*windows}
    }

    def of(window, keys_BNKS, values_BNSK):
        def attend(query_BTHK, key_BTNK, value_BTNK):
            new = jnp.einsum("BTNK->BNKT", key_BTNK), jnp.einsum("BTNK->BNTK", value_BTNK)
            # One index for all rows. The tokens attend to themselves, too.
            keys = jax.lax.dynamic_update_slice_in_dim(keys_BNKS, new[0], first, axis=3)
            values = jax.lax.dynamic_update_slice_in_dim(values_BNSK, new[1], first, axis=2)
            heads = attention(query_BTHK, keys, values, masks[window], config.scale, config.attention_softcap)
            return heads, (keys, values)

        return attend

    return [*map(of, windows, rows.keys_BNKS, rows.values_BNSK)]


def over_pages(config, rows: Paged, positions_BT, windows):
    """For each layer the attention of T new tokens over their rows' pages, onto which it writes them, as `Block` calls
    it."""
    kind, length = type(rows.pool), positions_BT.shape[1]
    real_BT = jnp.arange(length)[None] < rows.count_B[:, None]
    page_BT, place_BT = places(rows.table_BP, positions_BT, real_BT, kernels.page_size(rows.pool))
    # A row that does not run sees the scrap that it writes, not all its pages.
    start_B = jnp.where(rows.count_B > 0, positions_BT[:, 0], 0)
    options = {"scale": config.scale, "cap": config.attention_softcap}

    def of(window, *layer):
        def attend(query_BTHK, key_BTNK, value_BTNK):
            written = kernels.WRITE[kind](layer, key_BTNK, value_BTNK, page_BT, place_BT)
            if kind is kernels.GpuPool and length > 1:  # its kernel takes one query a row
                keys_BNKS, values_BNSK = kernels.gpu_rows(written, rows.table_BP)
                place_BS = jnp.arange(keys_BNKS.shape[3])[None]
                seen_BTS = place_BS[:, None] <= positions_BT[:, :, None]
                if window:
                    seen_BTS = seen_BTS & within_window(positions_BT, place_BS, window)
                return attention(query_BTHK, keys_BNKS, values_BNSK, seen_BTS, **options), written
            heads = kernels.ATTEND[kind](
                written, query_BTHK, rows.table_BP, start_B, window=window, **options
            )
            return heads, written

        return attend

    return [*map(of, windows, *rows.pool)]


def within_window(query_BT, key_BS, window: int):
    """True for the keys that stand fewer than `window` tokens before the query; both are positions."""
    return query_BT[:, :, None] - key_BS[:, None, :] < window


ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": functools.partial(nn.gelu, approximate=True)}


class Weights(nn.Module):
    """A module whose parameters are declared by name alone: `self.weight("q_DHK")` has the shape its suffix says."""

    config: Config

    def weight(self, name: str):
        letters = dims.suffix(name)
        shape = self.config.shape(letters)
        # A norm starts as the identity, and a bias as nothing: scale 1, or 1 + 0 where it is zero-centred.
        if "_bias_" in name or (len(letters) == 1 and self.config.zero_centred):
            init = nn.initializers.zeros
        elif len(letters) == 1:
            init = nn.initializers.ones
        elif name == "embed_VD":
            # transformers' `initializer_range` of Llama and Qwen.
            init = nn.initializers.normal(0.02)
        else:
            # What a product sums over: the first axis (q_DHK: D, down_FD: F), but both of o_HKD's, H x K.
            inputs = 2 if letters == "HKD" else 1
            fan_in = 1
            for size in shape[:inputs]:
                fan_in *= size
            init = nn.initializers.normal(fan_in**-0.5)
        return self.param(name, init, shape, self.config.param_dtype).astype(self.config.dtype)

    def product(self, equation: str, values, name: str):
        """jnp.einsum of the values and the matrix of that name; with scale x (values A) B added where the parameters
        have adapters for it (lora.py)."""
        out = jnp.einsum(equation, values, self.weight(name))
        a, b = lora.names(name)
        if not self.has_variable("params", a):
            return out
        dtype, found = self.config.dtype, functools.partial(self.get_variable, "params")
        down = lora.scaled(found(a), found(lora.SCALE)).astype(dtype)
        given, made = equation.split(",")[0], equation.split("->")[1]
        # "BTD,DHK->BTHK": "BTD,DR->BTR", then "BTR,RHK->BTHK".
        low_BTR = jnp.einsum(f"{given},{dims.suffix(a)}->BTR", values, down)
        return out + jnp.einsum(f"BTR,{dims.suffix(b)}->{made}", low_BTR, found(b).astype(dtype))

    def norm(self, name: str, hidden):
        return rms_norm(hidden, self.weight(name), self.config.norm_eps, self.config.zero_centred)


class Block(Weights):
    """One layer: attention, then the gated feed-forward, each normed before and added to the residual stream.

    Attributes:
      cut: whether the residual stream is cut over its tokens, as a training that recomputes its layers keeps it.
    """

    cut: bool = False

    def pinned(self, value, letters: str):
        """Where the stream is cut, all tokens with a device's heads or part of F, forward and backward: left to itself
        XLA gathers whole weights to each device's tokens, and sums whole gradients."""
        return constrain(value, letters) if self.cut else value

    @nn.compact
    def __call__(self, hidden_BTD, rotation, attend):
        """attend(query_BTHK, key_BTNK, value_BTNK): returns the heads, and what the layer's cache has become."""
        config, rules = self.config, RULES_KEPT if self.cut else RULES_DECODE
        normed_BTD = self.pinned(self.norm("attn_norm_D", hidden_BTD), "BTD")
        query_BTHK = self.product("BTD,DHK->BTHK", normed_BTD, "q_DHK")
        key_BTNK = self.product("BTD,DNK->BTNK", normed_BTD, "k_DNK")
        value_BTNK = self.product("BTD,DNK->BTNK", normed_BTD, "v_DNK")
        if config.qkv_bias:
            query_BTHK = query_BTHK + self.weight("q_bias_HK")[None, None]
            key_BTNK = key_BTNK + self.weight("k_bias_NK")[None, None]
            value_BTNK = value_BTNK + self.weight("v_bias_NK")[None, None]
        if config.qk_norm:
            query_BTHK = self.norm("q_norm_K", query_BTHK)
            key_BTNK = self.norm("k_norm_K", key_BTNK)
        query_BTHK, key_BTNK = rotate(query_BTHK, *rotation), rotate(key_BTNK, *rotation)
        query_BTHK, key_BTNK = self.pinned(query_BTHK, "BTHK"), self.pinned(key_BTNK, "BTNK")
        value_BTNK = self.pinned(value_BTNK, "BTNK")
        heads_BTHK, kept = attend(query_BTHK, key_BTNK, value_BTNK)
        heads_BTHK = self.pinned(heads_BTHK, "BTHK")
        out_BTD = self.product("BTHK,HKD->BTD", heads_BTHK, "o_HKD")
        if config.o_bias:
            out_BTD = out_BTD + self.weight("o_bias_D")[None, None]
        if config.post_norm:
            out_BTD = self.norm("attn_post_norm_D", out_BTD)
        hidden_BTD = constrain(hidden_BTD + out_BTD, "BTD", rules)

        normed_BTD = self.pinned(self.norm("ffw_norm_D", hidden_BTD), "BTD")
        gate_BTF = self.pinned(self.product("BTD,DF->BTF", normed_BTD, "gate_DF"), "BTF")
        up_BTF = self.pinned(self.product("BTD,DF->BTF", normed_BTD, "up_DF"), "BTF")
        down_BTD = self.product("BTF,FD->BTD", ACTIVATIONS[config.activation](gate_BTF) * up_BTF, "down_FD")
        if config.post_norm:
            down_BTD = self.norm("ffw_post_norm_D", down_BTD)
        return constrain(hidden_BTD + down_BTD, "BTD", rules), kept


DEEP = 8  # layers that repeat; fewer are written out, which compiles as fast


def repeats(windows) -> list[tuple[int, int, int]]:
    """Layers that repeat, as (first, period, count): of Gemma 3's five local and one global ones, four times, and two
    more local ones (0, 6, 4), (24, 1, 2)."""
    found, start = [], 0
    while start < len(windows):
        rest = windows[start:]

        def count(period, rest=rest):
            times = 1
            while rest[period * times : period * (times + 1)] == rest[:period]:
                times += 1
            return times

        # The most layers in one scan; of equal ones the shortest period.
        period = max(
            range(1, len(rest) + 1), key=lambda p: (p * count(p) if count(p) > 1 or p == 1 else 0, -p)
        )
        found.append((start, period, count(period)))
        start += period * count(period)
    return found


class Transformer(Weights):
    """Embedding, blocks, final norm. See `Model.apply` for the contract."""

    remat: bool = False
    kernel: str = "xla"
    scan: bool = True

    @nn.compact
    def __call__(self, tokens_BT, positions_BT, segments_BT=None, cache=None):
        embed_VD = self.weight("embed_VD")
        # Declared so that `init` makes it; it is applied where log-probabilities are computed.
        if not self.config.tied:
            self.weight("head_DV")
        # Rows over "data" from here on: in training the table has D there, and the lookup would follow it.
        hidden_BTD = constrain(embed_VD[tokens_BT], "BTD")
        if self.config.scaled_embedding:
            # rounded to the compute dtype first, as transformers does: 55.4256 is 55.5 in bfloat16
            hidden_BTD = hidden_BTD * jnp.asarray(self.config.dim**0.5, hidden_BTD.dtype)
        windows = self.config.windows or (0,) * self.config.layers
        # By window, not by layer: of Gemma 3's 26 layers four have none and 22 have one, which makes two of each.
        rotations = {window: self.rotation(positions_BT, window) for window in sorted(set(windows))}
        if cache is None:
            attends = {
                window: over_row(self.config, positions_BT, segments_BT, window, self.kernel)
                for window in rotations
            }
            through = self.scanned if self.scan and not self.is_initializing() else self.each
            return self.norm("final_norm_D", through(hidden_BTD, windows, rotations, attends)), None
        over = over_pages if isinstance(cache, Paged) else over_view
        made: list[tuple] = []
        for layer, attend in enumerate(over(self.config, cache, positions_BT, windows)):
            block = Block(self.config, name=f"layer_{layer}")
            hidden_BTD, kept = block(hidden_BTD, rotations[windows[layer]], attend)
            made.append(kept)
        return self.norm("final_norm_D", hidden_BTD), cache.after(made, tokens_BT.shape[1])

    def each(self, hidden_BTD, windows, rotations, attends):
        """The rows through all layers, one after another, which makes their parameters."""
        for layer, window in enumerate(windows):
            block = Block(self.config, name=f"layer_{layer}")
            hidden_BTD, _ = block(hidden_BTD, rotations[window], attends[window])
        return hidden_BTD

    def scanned(self, hidden_BTD, windows, rotations, attends):
        """As `each`; many layers that repeat are one program, run over their stacked weights."""
        params, dtype = self.variables["params"], self.config.dtype
        block = Block(self.config, self.remat, parent=None)
        if self.remat:
            hidden_BTD = constrain(hidden_BTD, "BTD", RULES_KEPT)

        def through(window):
            def one(hidden_BTD, layer):
                return block.apply({"params": layer}, hidden_BTD, rotations[window], attends[window])[0]

            # What attention gives is kept: to make it anew costs most where rows are long.
            keep = jax.checkpoint_policies.save_only_these_names(flash.CONTEXT)
            return jax.checkpoint(one, policy=keep, prevent_cse=False) if self.remat else one

        steps = [through(window) for window in windows]
        for start, period, count in repeats(windows):
            layers = [params[f"layer_{start + layer}"] for layer in range(period * count)]
            if len(layers) < DEEP:
                for step, layer in zip(steps[start:], layers, strict=False):
                    hidden_BTD = step(hidden_BTD, layer)
                continue
            # [D, H, K] of each of `count` layers, in the compute dtype, as one [count, D, H, K]. Adapters keep theirs:
            # they are scaled before they are rounded.
            kept = {name for name in layers[0] if lora.is_adapter(name) or name == lora.SCALE}
            low = [{n: a if n in kept else a.astype(dtype) for n, a in layer.items()} for layer in layers]
            stacked = [jax.tree.map(lambda *each: jnp.stack(each), *low[at::period]) for at in range(period)]

            def body(hidden_BTD, repeated, steps=steps[start : start + period]):
                for step, layer in zip(steps, repeated, strict=True):
                    hidden_BTD = step(hidden_BTD, layer)
                return hidden_BTD, None

            hidden_BTD, _ = jax.lax.scan(body, hidden_BTD, stacked)
        return constrain(hidden_BTD, "BTD")

    def rotation(self, positions_BT, window: int):
        """cos and sin for the layers with this window (0: none)."""
        config = self.config
        if window and config.local_rope_theta is not None:
            return rope(positions_BT, config.head_dim, config.local_rope_theta)
        return rope(positions_BT, config.head_dim, config.rope_theta, config.rope_scaling)


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder as functions of its parameters."""

    config: Config

    def init(self, key) -> Any:
        """Fresh parameters: a nested dict of arrays named by their shapes."""
        # No parameter's shape depends on them, and nothing is computed from them.
        tokens_BT = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        return Transformer(self.config).lazy_init(key, tokens_BT, tokens_BT)["params"]

    @dims.check
    def apply(
        self,
        params,
        tokens_BT,
        positions_BT,
        segments_BT=None,
        cache=None,
        remat: bool = False,
        kernel: str = "xla",
        scan: bool = True,
    ):
        """Hidden states of each token, and the cache.

        Causal attention within each row, and within each segment where segments are given; with a cache a token also
        attends to what its row has there.

        Args:
          params: as `init` makes them, or with adapters beside them (lora.py).
          tokens_BT, positions_BT, segments_BT: int32.
          cache: a pages.View or Paged.
          remat: in the backward pass recompute each block, but for its attention, instead of storing it.
          kernel: what attends within rows of more than LONG tokens, where there is no cache: see `flash.chosen`.
          scan: run many layers that repeat as one program, over a second, stacked copy of their weights; else one after
            another. remat asks for it.

        Returns: (hidden_BTD after the final norm, the cache with the keys and values of these tokens, or None).
        """
        return Transformer(self.config, remat, kernel, scan).apply(
            {"params": params}, tokens_BT, positions_BT, segments_BT, cache
        )

    def head_DV(self, params):
        """The vocabulary head: the transposed embedding where the two are tied."""
        return params["embed_VD"].T if self.config.tied else params["head_DV"]
