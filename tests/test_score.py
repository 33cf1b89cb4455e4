"""How `score` packs sequences into calls: what is computed follows what is asked, and few programs are compiled."""

import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.session import bucket, row_bucket
from int_jax.sharding import make_mesh


def calls(lengths, data=1, most=8192):
    """(width, rows, indices) of each call."""
    engine = types.SimpleNamespace(mesh=types.SimpleNamespace(shape={"data": data}), score_tokens=most)
    return list(Engine._score_groups(engine, lengths))


RNG = np.random.default_rng(0)
SHORT, RAGGED = RNG.integers(60, 140, 512).tolist(), np.exp(RNG.uniform(2.3, 8.3, 300)).astype(int).tolist()
# lengths of the sequences, most tokens that may be computed, most programs
ASKED = {
    "nothing": ([], 0, 0),
    "one short trace": ([20], 64, 1),
    "one of no tokens": ([0], 64, 1),
    "one of 65": ([65], 96, 1),
    "one longer than score_tokens": ([9000], 12288, 1),
    "five alike": ([90] * 5, 5 * 96, 2),
    "twelve short": (SHORT[:12], 2_000, 3),
    "a long one among short ones": ([4000] + [50] * 11, 4096 + 16 * 64, 2),
    "128 short": (SHORT[:128], 20_000, 4),
    "512 short": (SHORT, 70_000, 4),
    "300 from 10 to 4,000": (RAGGED, 265_000, 13),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_computed_follows_what_is_asked(name):
    lengths, most_tokens, most_programs = ASKED[name]
    found = calls(lengths)
    assert sum(width * rows for width, rows, _ in found) <= most_tokens
    assert len({(width, rows) for width, rows, _ in found}) <= most_programs


@given(
    st.lists(st.integers(0, 9000), max_size=60) | st.lists(st.integers(0, 200), max_size=300),
    st.sampled_from([1, 2, 8]),
)
def test_every_sequence_is_in_one_call_that_holds_it(lengths, data):
    found = calls(lengths, data)
    assert sorted(i for _, _, group in found for i in group) == list(range(len(lengths)))
    for width, rows, group in found:
        assert len(group) <= rows and rows % data == 0
        assert width == bucket(max(lengths[i] for i in group))
        assert rows == data or rows * width <= 8192
        assert rows == data or sum(2 * max(lengths[i], 33) > width for i in group) >= rows / 2


@given(st.integers(1, 400), st.sampled_from([1, 2, 8]), st.integers(1, 40))
def test_rows_come_in_few_sizes_and_at_most_half_are_empty(count, least, factor):
    most = least * factor
    rows = row_bucket(count, least, most)
    assert rows in {min(least * 4**k, most) for k in range(6)}
    assert rows == least or rows <= 2 * count
    assert rows >= min(count, most) / 4


def test_the_packing_does_not_change_the_log_probabilities():
    config = Config("test", vocab=40, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffw=16, max_len=256)
    model = build(config)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(5)))
    params["embed_VD"] = params["embed_VD"] * 50  # so that the context matters
    engine = Engine(model, make_mesh(1, 1, jax.devices()[:1]), slots=4, score_tokens=512)
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 40, n).tolist() for n in (1, 20, 64, 65, 90, 3, 33, 130, 7)]
    together, entropies = engine.score(params, rows)
    for row, logp, entropy in zip(rows, together, entropies, strict=True):
        [[alone], [alone_entropy]] = engine.score(params, [row])
        assert logp.shape == entropy.shape == (len(row),) and logp[0] == 0
        np.testing.assert_allclose(logp, alone, atol=1e-5)
        np.testing.assert_allclose(entropy, alone_entropy, atol=1e-5)
    assert engine.score(params, []) == ([], [])
