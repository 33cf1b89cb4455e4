"""Attention of rows over themselves by jax's kernels, interpreted, against a softmax in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax import models
from int_jax.models import flash
from int_jax.sharding import make_mesh

SCALE = 0.3


@pytest.fixture(scope="module", autouse=True)
def interpreted():
    with pytest.MonkeyPatch.context() as patch:
        splash = flash.tpu.splash_attention_kernel
        patch.setattr(splash, "make_splash_mha", functools.partial(splash.make_splash_mha, interpret=True))
        patch.setattr(flash.gpu, "mha", functools.partial(flash.gpu.mha, interpret=True))
        patch.setattr(flash, "BLOCK", 128)
        yield


def arrays(heads, kv_heads, dim, length, rows=2, dtype=np.float32, seed=0):
    """Query, key, value, what the output is multiplied with, and segments: of row 0 two and padding, of row 1 one."""
    random = np.random.default_rng(seed)
    shapes = [(rows, length, n, dim) for n in (heads, kv_heads, kv_heads, heads)]
    segments_BT = np.ones((rows, length), np.int32)
    segments_BT[0, length // 3 :] = 2
    segments_BT[0, length - length // 5 :] = 0
    return *(jnp.asarray(random.normal(size=shape), dtype) for shape in shapes), segments_BT


def exact(query_BTHK, key_BTNK, value_BTNK, segments_BT, cap, window):
    """In float64."""
    query, key, value = (np.asarray(a, np.float64) for a in (query_BTHK, key_BTNK, value_BTNK))
    shared = query.shape[2] // key.shape[2]
    score = SCALE * np.einsum("bthk,bshk->bhts", query, np.repeat(key, shared, 2))
    score = score if cap is None else cap * np.tanh(score / cap)
    place = np.arange(query.shape[1])
    seen = (place[:, None] >= place) & (segments_BT[:, :, None] == segments_BT[:, None, :])
    if window:
        seen &= place[:, None] - place < window
    score = np.where(seen[:, None], score, -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("bhts,bshk->bthk", weight / weight.sum(-1, keepdims=True), np.repeat(value, shared, 2))


CASES = [
    *(("tpu", 4, 2, 32, cap, window) for cap in (None, 5.0) for window in (0, 40)),
    ("tpu", 2, 2, 64, None, 0),
    ("tpu", 4, 1, 128, None, 0),
    ("gpu", 4, 2, 32, None, 0),
    ("gpu", 2, 2, 64, None, 0),
]


@pytest.mark.parametrize(("kind", "heads", "kv_heads", "dim", "cap", "window"), CASES)
@pytest.mark.parametrize("length", [128, 200])
def test_kernels_give_a_softmax_over_a_segment_and_its_gradient(
    kind, heads, kv_heads, dim, cap, window, length
):
    *parts, weight, segments_BT = arrays(heads, kv_heads, dim, length)
    options = {"cap": cap, "window": window}
    found = flash.attend(kind, *parts, segments_BT, SCALE, **options)
    assert np.abs(found - exact(*parts, segments_BT, **options)).max() < 1e-5

    # The gradient of the plain attention, whose own forward pass is compared with float64 in test_modules_of_attention.
    config = models.Config("llama", 9, 8, 1, heads, kv_heads, dim, 8, 512, query_scalar=SCALE**-2)
    config = dataclasses.replace(config, attention_softcap=cap)
    positions = np.arange(length)[None].repeat(2, 0)
    plain = models.transformer.over_row(config, positions, segments_BT, window, "xla")
    own = jax.grad(
        lambda *p: jnp.sum(weight * flash.attend(kind, *p, segments_BT, SCALE, **options)), range(3)
    )
    other = jax.grad(lambda *p: jnp.sum(weight * plain(*p)[0]), range(3))
    for mine, theirs in zip(own(*parts), other(*parts), strict=True):
        assert np.abs(mine - theirs).max() < 2e-4 * np.abs(theirs).max()


@settings(max_examples=6)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 90), min_size=1, max_size=4),
    st.sampled_from(["tpu", "gpu"]),
)
def test_a_segment_sees_nothing_of_another(seed, lengths, kind):
    *parts, _, _ = arrays(2, 2, 32, 128, rows=1, seed=seed)
    segments_BT = np.zeros((1, 128), np.int32)
    ends = np.minimum(np.cumsum(lengths), 128)
    for segment, (start, end) in enumerate(zip([0, *ends], ends, strict=False), 1):
        segments_BT[0, start:end] = segment
    found = flash.attend(kind, *parts, segments_BT, SCALE)
    alone = flash.attend(kind, *(p[:, : ends[0]] for p in parts), segments_BT[:, : ends[0]], SCALE)
    np.testing.assert_allclose(found[:, : ends[0]], alone, atol=1e-6)


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_each_device_has_its_own_rows_and_heads(kind, shape):
    """8 query heads and 2 of keys: over 4 and 8 devices each key/value head stands on several."""
    *parts, _, segments_BT = arrays(8, 2, 32, 128, rows=8)
    alone = flash.attend(kind, *parts, segments_BT, SCALE)
    with jax.sharding.set_mesh(make_mesh(*shape)):
        cut = jax.jit(functools.partial(flash.attend, kind, scale=SCALE))(*parts, segments_BT)
    np.testing.assert_allclose(cut, alone, atol=1e-6)


def test_bfloat16_is_summed_in_float32():
    *parts, _, segments_BT = arrays(2, 2, 32, 256, dtype=jnp.bfloat16)
    wide = exact(*(np.asarray(p, np.float32) for p in parts), segments_BT, None, 0)
    found = np.asarray(flash.attend("tpu", *parts, segments_BT, SCALE), np.float32)
    assert found.dtype == np.float32 and np.sqrt(np.mean((found - wide) ** 2) / np.mean(wide**2)) < 4e-3


@pytest.mark.parametrize(
    ("asked", "platform", "changed", "kind"),
    [
        ("", "cpu", {}, "xla"),
        ("", "tpu", {}, "tpu"),
        ("xla", "tpu", {}, "xla"),
        ("", "tpu", {"windows": (4, 0), "attention_softcap": 50.0}, "tpu"),
        ("", "tpu", {"dtype": "float16"}, "xla"),
        ("gpu", "gpu", {}, "gpu"),
        ("", "gpu", {"windows": (4, 0)}, "xla"),
        ("", "gpu", {"attention_softcap": 50.0}, "xla"),
        ("", "gpu", {"head_dim": 80}, "xla"),
    ],
)
def test_the_kernel_is_that_of_the_platform_where_it_can_serve_the_model(asked, platform, changed, kind):
    config = models.Config("llama", 9, 8, 2, 4, 2, 64, 8, 512)
    assert flash.chosen(asked, platform, dataclasses.replace(config, **changed)) == kind
