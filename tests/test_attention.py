"""Long rows: attention a span of queries at a time gives what one square of scores gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from int_jax.models import Config, build, transformer


def outputs(config: Config, params, tokens, positions, segments, remat):
    """Hidden states, and the gradient of a random projection of them."""
    model = build(config)
    weights = jax.random.normal(jax.random.key(9), (*tokens.shape, config.dim))

    def loss(params):
        hidden, _ = model.apply(params, tokens, positions, segments, remat=remat)
        return jnp.sum(hidden * weights), hidden

    (_, hidden), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return hidden, grads


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * float(jnp.abs(a).max()))


@pytest.mark.parametrize(
    ("packed", "windows", "remat"),
    [(False, (), False), (True, (5, 0), False), (True, (5, 0), True)],
)
def test_spans_equal_one_square(monkeypatch, packed, windows, remat):
    config = Config("qwen3", 40, 32, 2, 4, 2, 8, 48, 512, qk_norm=True, tied=True, windows=windows)
    params = build(config).init(jax.random.key(0))
    length = 37  # no multiple of any span
    tokens = np.random.default_rng(0).integers(0, 40, (2, length))
    positions = np.tile(np.arange(length), (2, 1))
    segments = None
    if packed:
        segments = np.stack([np.arange(length) // 15 + 1, np.arange(length) // 20 + 1])
        positions = np.stack([np.arange(length) % 15, np.arange(length) % 20])
    with jax.numpy_rank_promotion("raise"):
        whole = outputs(config, params, tokens, positions, segments, remat)
        monkeypatch.setattr(transformer, "LONG", 36)
        monkeypatch.setattr(transformer, "SPAN", 6)
        spans = outputs(config, params, tokens, positions, segments, remat)
    jax.tree.map(same, whole, spans)


def test_a_long_row_never_holds_its_square(monkeypatch):
    config = Config("qwen3", 40, 32, 1, 4, 2, 8, 48, 4096, tied=True)
    model = build(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)

    def loss(params, tokens, positions):
        return model.apply(params, tokens, positions, remat=True)[0].sum()

    def held() -> int:
        fresh = lambda *args: loss(*args)  # a function of its own, so that nothing traced before is taken
        compiled = jax.jit(jax.grad(fresh)).lower(params, tokens, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    square = 4 * 1024 * 1024 * 4  # heads x T x S float32
    monkeypatch.setattr(transformer, "SPAN", 64)
    assert held() < square / 2
    monkeypatch.setattr(transformer, "LONG", 1024)
    assert held() > square
