import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax.batching import Sequence, intervention_weights, pack, reinforced, supervised
from int_jax.engine import Engine
from int_jax.losses import LossConfig
from int_jax.models import Config, build
from int_jax.sharding import make_mesh
from int_jax.types import Task, Trace

VOCAB = 30
STREAMS = ("ce", "rl", "kl")
FIELDS = ("tokens", *STREAMS, "advantage", "sampler_logp", "reference_logp", "old_logp")
TOTALS = {"ce": 7.0, "rl": 3.0, "kl": 11.0}
# The sampler is another policy, so that ratios and clipping matter.
CONFIG = LossConfig(clip_low=0.2, clip_high=0.3, old="batch", logit_chunk=8)


def sequence(rng, length) -> Sequence:
    weights = rng.random((3, length)).astype(np.float32) * (rng.random((3, length)) < 0.7)
    floats = rng.normal(size=(4, length)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, length).astype(np.int32)
    return Sequence(
        tokens, *weights, floats[0], *(floats[1:] - 3.4), temperature=float(rng.choice([0.7, 1.0]))
    )


LENGTHS = st.lists(st.integers(0, 12), max_size=14)


@settings(deadline=None)
@given(LENGTHS, st.integers(12, 20), st.integers(1, 5), st.integers(0, 99))
def test_pack_keeps_every_token_and_weight_exactly_once(lengths, row_length, rows, seed):
    rng = np.random.default_rng(seed)
    sequences = [sequence(rng, n) for n in lengths]
    batch = pack(sequences, row_length, rows)
    names = (*FIELDS, "positions", "segments", "temperature")
    flat = {name: getattr(batch, f"{name}_MBT") for name in names}
    assert len({a.shape for a in flat.values()}) == 1 and flat["tokens"].shape[1:] == (rows, row_length)
    flat = {name: a.reshape(-1, row_length) for name, a in flat.items()}
    found = []
    for row in range(len(flat["tokens"])):
        for segment in range(1, flat["segments"][row].max() + 1):
            (at,) = np.nonzero(flat["segments"][row] == segment)
            if len(at):
                assert (np.diff(at) == 1).all() and flat["positions"][row, at].tolist() == list(
                    range(len(at))
                )
                arrays = [flat[name][row, at].tobytes() for name in FIELDS]
                found.append((*arrays, *set(flat["temperature"][row, at])))
    full = [s for s in sequences if len(s.tokens)]
    expected = [(*(getattr(s, name).tobytes() for name in FIELDS), np.float32(s.temperature)) for s in full]
    assert sorted(found) == sorted(expected)
    padding = flat["segments"] == 0
    assert padding.sum() == padding.size - sum(lengths)
    for name in (*FIELDS, "positions"):
        assert (flat[name][padding] == 0).all(), name
    assert 1 <= batch.micro <= len(batch.segments_MBT) and not batch.segments_MBT[batch.micro :].any()


def test_updates_have_one_shape():
    """Up to 16 micro-batches; more are a power of two."""
    rng = np.random.default_rng(0)

    def micro(rows, row_length, count):
        batch = pack([sequence(rng, row_length)] * count, row_length, rows)
        assert batch.micro == -(-count // rows)
        return len(batch.tokens_MBT)

    assert [micro(2, 12, count) for count in (1, 2, 31, 32, 33)] == [16, 16, 16, 16, 32]
    assert [micro(1, 20_000, count) for count in (1, 3, 17)] == [16, 16, 32]


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 99))
def test_totals_are_the_sums_of_the_weights_unless_given(lengths, seed):
    rng = np.random.default_rng(seed)
    sequences = [sequence(rng, n) for n in lengths]
    batch = pack(sequences, 12, 2, totals={"rl": 5.0})
    for name in ("ce", "kl"):
        expected = sum(float(getattr(s, name).sum(dtype=np.float64)) for s in sequences) or 1.0
        assert float(getattr(batch, f"{name}_total")) == pytest.approx(expected, rel=1e-6)
    assert float(batch.rl_total) == 5.0


def test_a_stream_without_weights_has_a_total_that_divides():
    batch = pack([supervised([1, 2], [0, 0])], 4, 1)
    assert (batch.ce_total, batch.rl_total, batch.kl_total) == (1, 1, 1)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30))
def test_a_sequence_longer_than_a_row_is_refused(length, row_length):
    sequences = [supervised([1], [1.0]), supervised([1] * length, [1.0] * length)]
    if length <= row_length:
        pack(sequences, row_length, 1)
    else:
        with pytest.raises(ValueError, match=f"sequence 1 has {length} tokens, a row holds {row_length}"):
            pack(sequences, row_length, 1)


# --- loss and gradient do not depend on how the batch was cut ---

MODEL = build(
    Config("test", vocab=VOCAB, dim=16, layers=1, heads=4, kv_heads=2, head_dim=4, ffw=24, max_len=64)
)
TX = optax.sgd(1.0)


def engine(data=1, model=1):
    return Engine(MODEL, make_mesh(data, model, jax.devices()[: data * model]), slots=8, score_tokens=512)


@pytest.fixture(scope="module")
def params():
    fresh = jax.device_get(jax.jit(MODEL.init)(jax.random.key(1)))
    return {**fresh, "embed_VD": fresh["embed_VD"] * 50}  # of unit size: gradients are then well conditioned


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(7)
    return [sequence(rng, n) for n in (9, 5, 12, 5, 9, 5, 12, 9)]


def learn(params, batch, config=CONFIG, on=None):
    """The gradient, as the step that sgd(1.0) takes, and the metrics."""
    on = on or engine()
    state, metrics = on.update(on.state(params, TX), batch, TX, config)
    return jax.tree.map(lambda a, b: a - np.asarray(b), params, jax.device_get(state.params)), jax.device_get(
        metrics
    )


def same(got, expected):
    (grads, metrics), (wanted, wanted_metrics) = got, expected
    assert metrics.keys() == wanted_metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=2e-5, atol=1e-6, err_msg=name)
    for (path, a), (_, b) in zip(*map(jax.tree_util.tree_leaves_with_path, (grads, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max(), err_msg=str(path))


@pytest.fixture(scope="module")
def one_per_row(params, sequences):
    """The reference: a row each, all rows in one micro-batch."""
    return learn(params, pack_unpacked(sequences, 8))


def pack_unpacked(sequences, rows):
    """One sequence a row, each row padded to 12 tokens."""
    batches = [pack([s], 12, 1, TOTALS) for s in sequences]
    fields = {}
    for name in batches[0]._fields:
        arrays = [getattr(b, name) for b in batches]
        if name.endswith("_MBT"):
            arrays = [array[:1] for array in arrays]  # the others are padding
            fields[name] = np.concatenate(arrays).reshape(-1, rows, 12)
    return batches[0]._replace(**fields, micro=np.int32(len(sequences) // rows))


def test_the_reference_equals_a_plain_loss_of_each_sequence(params, sequences, one_per_row):
    """Without padding, packing, chunks or the engine: log_softmax of one sequence after the other."""

    @jax.jit
    def gradient(params, s):
        def loss(params):
            hidden, _ = MODEL.apply(params, s["tokens"][None], jnp.arange(len(s["tokens"]))[None])
            logits = jnp.matmul(hidden[0, :-1], params["head_DV"]) / s["temperature"]
            logp = jnp.take_along_axis(jax.nn.log_softmax(logits), s["tokens"][1:, None], 1)[:, 0]
            logp = jnp.concatenate([jnp.zeros(1), logp])
            ratio, gap, a = jnp.exp(logp - s["old_logp"]), s["reference_logp"] - logp, s["advantage"]
            values = -logp, -jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.3) * a), jnp.exp(gap) - gap - 1
            return sum(jnp.sum(s[name] * v) / TOTALS[name] for name, v in zip(STREAMS, values, strict=True))

        return jax.value_and_grad(loss)(params)

    each = [
        gradient(params, {name: jnp.asarray(value) for name, value in vars(s).items()}) for s in sequences
    ]
    value, grads = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *jax.device_get(each))
    got, metrics = one_per_row
    same((got, {"loss": metrics["loss"]}), (grads, {"loss": value}))


@pytest.mark.parametrize("rows", [1, 4])
def test_the_micro_batch_split_does_not_matter(params, sequences, one_per_row, rows):
    same(learn(params, pack_unpacked(sequences, rows)), one_per_row)


@pytest.mark.parametrize("seed", range(3))
def test_row_order_does_not_matter(params, sequences, one_per_row, seed):
    order = np.random.default_rng(seed).permutation(len(sequences))
    same(learn(params, pack_unpacked([sequences[i] for i in order], 4)), one_per_row)


@pytest.mark.parametrize("row_length, rows", [(24, 2), (66, 1)])
def test_packing_does_not_matter(params, sequences, one_per_row, row_length, rows):
    batch = pack(sequences, row_length, rows, TOTALS)
    assert batch.segments_MBT.max() > 1
    same(learn(params, batch), one_per_row)


def test_padding_and_empty_micro_batches_do_not_matter(params, sequences, one_per_row):
    batch = pack_unpacked(sequences, 4)
    wider = {
        name: np.pad(getattr(batch, name), ((0, 2), (0, 0), (0, 12)))
        for name in batch._fields
        if name.endswith("_MBT")
    }
    wider["temperature_MBT"] += wider["segments_MBT"] == 0
    same(learn(params, batch._replace(**wider)), one_per_row)


def test_the_device_count_does_not_matter(params, sequences, one_per_row):
    same(learn(params, pack_unpacked(sequences, 8), on=engine(4, 2)), one_per_row)


def test_rows_that_the_devices_do_not_divide(params, sequences, one_per_row):
    same(learn(params, pack(sequences, 24, 2, TOTALS), on=engine(4, 2)), one_per_row)


def test_gspo_does_not_depend_on_packing(params, sequences):
    config = dataclasses.replace(CONFIG, ratio="sequence")
    same(
        learn(params, pack(sequences, 66, 1, TOTALS), config),
        learn(params, pack_unpacked(sequences, 8), config),
    )


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_recomputing_layers_changes_nothing(params, sequences, one_per_row, mesh):
    config = dataclasses.replace(CONFIG, remat=True)
    same(learn(params, pack_unpacked(sequences, 8), config, on=engine(*mesh)), one_per_row)


def weighed(s: Sequence, keep):
    """The sequence with weight only on its first `keep` tokens."""
    on = np.arange(len(s.tokens)) < keep
    return dataclasses.replace(s, **{name: getattr(s, name) * on for name in STREAMS})


def cut(s: Sequence, keep):
    return dataclasses.replace(s, **{name: getattr(s, name)[:keep] for name in FIELDS})


def test_masked_tokens_equal_dropped_ones(params, sequences):
    masked = [weighed(s, len(s.tokens) - 2) for s in sequences]
    dropped = [cut(s, len(s.tokens) - 2) for s in sequences]
    same(learn(params, pack_unpacked(masked, 4)), learn(params, pack_unpacked(dropped, 4)))


def test_masked_sequences_equal_dropped_ones(params, sequences):
    masked = [weighed(s, 0 if i % 2 else 99) for i, s in enumerate(sequences)]
    same(learn(params, pack(masked, 24, 2, TOTALS)), learn(params, pack(sequences[::2], 24, 2, TOTALS)))


# --- weights ---


def trace(length, prompt, ends, spliced, sampled=None):
    sampled = np.arange(length) >= prompt if sampled is None else np.asarray(sampled, bool)
    tokens = np.arange(length, dtype=np.int32) % VOCAB
    logp = np.where(sampled, -np.arange(length) / 7, 0).astype(np.float32)
    return Trace(Task("t", "d", "p"), tokens, prompt, sampled, logp, 0.7, ends, spliced=spliced)


def guided(prompt, prefix, intervention, suffix, ends=()):
    """A guided attempt by the lengths of its spans: the policy drew prefix and suffix."""
    sampled = [0] * prompt + [1] * prefix + [0] * intervention + [1] * suffix
    return trace(len(sampled), prompt, ends, prompt + prefix, sampled)


@settings(deadline=None)
@given(st.data())
def test_intervention_weights_are_constant_on_each_span(data):
    """Wherever the steps end: a continuation may go on within the spliced step."""
    prompt, prefix, intervention, suffix = (data.draw(st.integers(low, 5)) for low in (1, 0, 1, 0))
    offsets = range(prompt + 1, prompt + prefix + intervention + suffix + 1)
    ends = tuple(sorted(data.draw(st.sets(st.sampled_from(offsets)))))
    weights = intervention_weights(guided(prompt, prefix, intervention, suffix, ends), 0.5, 2.0, 0.25)
    assert weights.dtype == np.float32
    assert weights.tolist() == [0.0] * prompt + [0.5] * prefix + [2.0] * intervention + [0.25] * suffix


def test_the_default_trains_prefix_and_intervention_alone():
    assert intervention_weights(guided(2, 2, 2, 3, (4, 6, 9))).tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert intervention_weights(guided(2, 2, 2, 0, (4, 6))).tolist() == [0, 0, 1, 1, 1, 1]
    assert intervention_weights(guided(2, 0, 4, 0, (6,))).tolist() == [0, 0, 1, 1, 1, 1]


def test_a_trace_without_an_intervention_has_no_weights():
    with pytest.raises(ValueError, match="task t: no intervention was spliced"):
        intervention_weights(trace(6, 2, (6,), -1))


def test_only_what_the_policy_drew_is_reinforced():
    one = trace(6, 2, (6,), 3, sampled=[0, 0, 1, 0, 1, 1])
    got = reinforced(one, 1.5)
    assert got.rl.tolist() == [0, 0, 1, 0, 1, 1] and got.advantage.tolist() == [0, 0, 1.5, 0, 1.5, 1.5]
    assert not got.ce.any() and not got.kl.any() and got.temperature == 0.7
    reference = np.linspace(-2, -1, 6)
    got = reinforced(one, 1.5, reference_logp=reference)
    assert got.kl.tolist() == [0, 0, 1, 0, 1, 1]
    np.testing.assert_array_equal(got.reference_logp, reference.astype(np.float32))


def test_a_trace_of_which_nothing_was_drawn():
    got = reinforced(trace(4, 2, (4,), 2, sampled=[0] * 4), 1.0, "sequence_mean")
    assert not got.rl.any() and np.isfinite(got.rl).all()


@pytest.mark.parametrize("normalise", ["sequences", "tokens", "sequence_mean"])
def test_the_normalisations_equal_a_loop(params, normalise):
    rng = np.random.default_rng(3)
    traces = [
        trace(n, 2, (n,), -1, sampled=(np.arange(n) >= 2) & (rng.random(n) < 0.8)) for n in (6, 9, 12, 4)
    ]
    advantages = [1.0, -0.5, 0.25, -0.75]
    drawn = sum(int(t.sampled.sum()) for t in traces)
    total = {"sequences": 4, "tokens": drawn, "sequence_mean": 4}[normalise]
    batch = pack(
        [reinforced(t, a, normalise) for t, a in zip(traces, advantages, strict=True)], 12, 8, {"rl": total}
    )
    _, metrics = learn(params, batch, CONFIG)

    logps, _ = engine().score(params, [t.tokens for t in traces], temperature=0.7)
    each, tokens = [], []
    for t, a, logp in zip(traces, advantages, logps, strict=True):
        ratio = np.exp(logp.astype(np.float64) - t.logp)[t.sampled]
        each.append(-np.minimum(ratio * a, np.clip(ratio, 0.8, 1.3) * a))
        tokens += list(each[-1])
    expected = {
        "sequences": np.sum(tokens) / len(traces),
        "tokens": np.mean(tokens),
        "sequence_mean": np.mean([np.mean(e) for e in each]),
    }[normalise]
    assert float(metrics["loss"]) == pytest.approx(expected, rel=2e-5)
    assert float(metrics["trained_tokens"]) == drawn
