import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax.batching import pack, reinforced, supervised
from int_jax.engine import Engine, _score, _update
from int_jax.losses import (
    ADVANTAGES,
    LossConfig,
    clipped_surrogate,
    group_advantages,
    k3,
    sequence_mean_BT,
    streams,
    token_logp,
)
from int_jax.models import Config, build
from int_jax.sharding import RULES, make_mesh, shardings
from int_jax.types import Batch, State, Task, Trace

ROWS, LENGTH, DIM, VOCAB = 3, 11, 8, 23
SEEDS = st.integers(0, 2**32 - 1)


def inputs(seed, temperature=1.0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(ROWS, LENGTH, DIM)).astype(np.float32)
    head = rng.normal(size=(DIM, VOCAB)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    # Row 0 is one sequence, row 1 two packed ones, row 2 begins in padding's zeros.
    positions = np.tile(np.arange(LENGTH), (ROWS, 1)).astype(np.int32)
    positions[1, 4:] -= 4
    positions[2, 6:] = 0
    return hidden, head, tokens, positions, np.broadcast_to(np.float32(temperature), (ROWS, LENGTH)).copy()


def oracle(hidden, head, tokens, positions, temperature):
    """The same in float64, without chunks: (logp, entropy)."""
    logits = np.einsum("btd,dv->btv", hidden.astype(np.float64), head.astype(np.float64))[:, :-1]
    logits = logits / np.where(temperature[:, 1:] > 0, temperature[:, 1:], 1)[..., None]
    norm = logits - logits.max(-1, keepdims=True)
    norm = norm - np.log(np.exp(norm).sum(-1, keepdims=True))
    picked = np.take_along_axis(norm, tokens[:, 1:, None].astype(int), -1)[..., 0]
    seen = positions[:, 1:] > 0
    first = np.zeros((len(tokens), 1))
    entropy = -(np.exp(norm) * norm).sum(-1)
    return np.hstack([first, np.where(seen, picked, 0)]), np.hstack([first, np.where(seen, entropy, 0)])


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.3, 0.7, 1.0, 2.0]))
def test_token_logp_and_entropy_equal_float64(seed, temperature):
    arguments = inputs(seed, temperature)
    (logp, entropy), expected = jax.jit(token_logp)(*arguments), oracle(*arguments)
    assert logp.dtype == entropy.dtype == jnp.float32
    np.testing.assert_allclose(logp, expected[0], atol=2e-5 / temperature, rtol=1e-5)
    np.testing.assert_allclose(entropy, expected[1], atol=2e-4, rtol=1e-5)


def test_the_prediction_of_a_token_is_read_from_the_one_before():
    """One token a row is changed: only its own column changes; one hidden state: only the column after it."""
    hidden, head, tokens, positions, temperature = inputs(0)
    positions[:] = np.arange(LENGTH)
    before = token_logp(hidden, head, tokens, positions, temperature)[0]
    for t in (1, 5, LENGTH - 1):
        other = tokens.copy()
        other[:, t] = (other[:, t] + 1) % VOCAB
        changed = np.flatnonzero(
            (token_logp(hidden, head, other, positions, temperature)[0] != before).any(0)
        )
        assert changed.tolist() == [t]
        moved = hidden.copy()
        moved[:, t - 1] += 1
        changed = np.flatnonzero(
            (token_logp(moved, head, tokens, positions, temperature)[0] != before).any(0)
        )
        assert changed.tolist() == [t]


def test_where_the_position_is_zero_both_are_zero():
    logp, entropy = token_logp(*inputs(1))
    zero = inputs(1)[3] == 0
    assert zero[:, 0].all() and zero.sum() == 3 + 1 + 5
    for array in (logp, entropy):
        assert (np.asarray(array) == 0).tolist() == zero.tolist()


def test_temperature_zero_is_scored_at_one():
    mixed = np.tile(np.array([0, 1, 0.5] * 4, np.float32)[:LENGTH], (ROWS, 1))
    *rest, _ = inputs(2)
    np.testing.assert_array_equal(token_logp(*rest, mixed * 0)[0], token_logp(*rest, mixed * 0 + 1)[0])
    np.testing.assert_allclose(token_logp(*rest, mixed)[0], oracle(*rest, mixed)[0], atol=5e-6)


def gradients(chunk, seed=3):
    hidden, head, tokens, positions, temperature = inputs(seed, 0.7)
    weight = np.random.default_rng(seed).normal(size=tokens.shape).astype(np.float32)

    def loss(hidden, head):
        return jnp.sum(weight * token_logp(hidden, head, tokens, positions, temperature, chunk)[0])

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head)


def test_values_and_gradients_equal_torch():
    torch = pytest.importorskip("torch")
    hidden, head, tokens, positions, _ = inputs(3, 0.7)
    weight = torch.tensor(np.random.default_rng(3).normal(size=tokens.shape).astype(np.float32)).double()
    h, w = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (hidden, head))
    logp = torch.log_softmax(h[:, :-1] @ w / 0.7, -1).gather(-1, torch.tensor(tokens[:, 1:, None]).long())[
        ..., 0
    ]
    loss = (weight[:, 1:] * logp * torch.tensor(positions[:, 1:] > 0)).sum()
    loss.backward()
    value, (d_hidden, d_head) = gradients(4)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(d_hidden, h.grad, atol=1e-5)
    np.testing.assert_allclose(d_head, w.grad, atol=2e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 10, 12, 1000])
def test_the_chunk_does_not_matter(chunk):
    (value, grads), (expected, expected_grads) = gradients(chunk), gradients(LENGTH)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, want in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, want, atol=3e-6)


def test_no_gradient_flows_through_the_entropy():
    hidden, head, *rest = inputs(4)
    grads = jax.grad(lambda h, w: token_logp(h, w, *rest)[1].sum(), (0, 1))(hidden, head)
    assert all((np.asarray(g) == 0).all() for g in grads)


# --- no [B, T, V] array ---


def whole_logits(program: str, rows, length, vocab):
    """Arrays of the program with a vocabulary axis and at least rows x length x vocab elements."""
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"[a-z]\d+\[(\d+(?:,\d+)*)\]", program)}
    return sorted(s for s in shapes if any(n % vocab == 0 for n in s) and np.prod(s) >= rows * length * vocab)


@pytest.mark.parametrize("chunk, found", [(8, False), (64, True)])
def test_the_logits_of_a_whole_row_never_exist(chunk, found):
    rows, length, dim, vocab = 4, 64, 8, 97

    def loss(hidden, head, tokens, positions, temperature):
        return token_logp(hidden, head, tokens, positions, temperature, chunk)[0].sum()

    ints, floats = jnp.zeros((rows, length), jnp.int32), jnp.zeros((rows, length))
    arguments = jnp.zeros((rows, length, dim)), jnp.zeros((dim, vocab)), ints, ints, floats
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile().as_text()
    # A chunk of all tokens shows that it would be seen.
    assert bool(whole_logits(program, rows, length, vocab)) == found


def test_score_and_update_hold_no_whole_logits():
    model = build(
        Config("test", vocab=97, dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffw=8, max_len=512)
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 256), jnp.int32)  # twice the chunk of 128
    batch, tx = pack([supervised([1] * 256, [1.0] * 256)] * 2, 256, 2), optax.sgd(1.0)
    state = State(jax.ShapeDtypeStruct((), jnp.int32), params, tx.init(params))
    for lowered in (
        _score.lower(model, params, tokens, np.float32(1)),
        _update.lower(state, batch, model, tx, LossConfig(logit_chunk=128)),
    ):
        program = lowered.compile().as_text()
        assert "f32[2,128,97]" in program and not whole_logits(program, 2, 256, 97)


# --- the policy gradient ---

FLOATS = st.floats(-3, 3, width=32)


@settings(deadline=None)
@given(FLOATS, FLOATS, FLOATS, st.sampled_from([0.1, 0.2, 1.0, 4.0]), st.sampled_from([0.1, 0.28, 4.0]))
def test_clipped_surrogate_is_the_formula(new, old, advantage, low, high):
    ratio = np.exp(np.float64(new) - old)
    expected = -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    got = float(clipped_surrogate(np.float32(new), np.float32(old), np.float32(advantage), low, high))
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("low, high", [(0.2, 0.2), (0.2, 0.28), (4.0, 4.0)])
def test_its_gradient_equals_torch_ppo(low, high):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    new, old, advantage = (rng.normal(size=200).astype(np.float32) * s for s in (1.5, 1.5, 1))
    grad = jax.grad(lambda x: clipped_surrogate(x, old, advantage, low, high).sum())(new)
    x, old, advantage = (torch.tensor(a, dtype=torch.float64) for a in (new, old, advantage))
    x.requires_grad_(True)
    ratio = torch.exp(x - old)
    loss = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - low, 1 + high)).sum()
    loss.backward()
    np.testing.assert_allclose(grad, x.grad, rtol=2e-5, atol=1e-6)


@settings(deadline=None)
@given(st.floats(-4, 4).filter(lambda g: abs(g - np.log(5)) > 1e-3), st.sampled_from([-2.0, -0.5, 0.5, 2.0]))
def test_int_s_epsilon_of_four_cuts_only_ratios_above_five_that_are_rewarded(gap, advantage):
    slope = jax.grad(lambda x: clipped_surrogate(x, 0.0, advantage, 4.0, 4.0))(jnp.float32(gap))
    assert (slope == 0) == (gap > np.log(5) and advantage > 0)


@settings(deadline=None)
@given(FLOATS, FLOATS)
def test_k3_is_never_negative_and_zero_at_equality(a, b):
    assert float(k3(np.float32(a), np.float32(b))) >= -1e-7
    assert float(k3(np.float32(a), np.float32(a))) == 0


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_the_expectation_of_k3_is_kl(seed):
    p, q = np.random.default_rng(seed).dirichlet(np.ones(6) * 2, 2) * 0.97 + 0.005
    got = np.sum(p * np.asarray(k3(np.log(p).astype(np.float32), np.log(q).astype(np.float32))))
    assert got == pytest.approx(np.sum(p * np.log(p / q)), abs=2e-5)


def micro(seed, per_sequence: bool):
    """Two rows of packed sequences, as one micro-batch; (logp, batch)."""
    rng = np.random.default_rng(seed)
    shape = (2, 9)
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
    drawn = (rng.random(shape) < 0.7) & (segments > 0)
    drawn[:, [1, 5]] = True
    weight, advantage = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        mine = (segments[row] == segment) & drawn[row]
        weight[row, mine] = 1 / mine.sum() if per_sequence else 1
        advantage[row, mine] = rng.choice([-1.5, 0.7])
    floats = [rng.normal(size=shape).astype(np.float32) for _ in range(4)]
    logp, sampler, reference, old = (-np.abs(a) for a in floats)
    zeros, totals = np.zeros(shape, np.int32), map(np.float32, (5, 3, 7))
    streams = np.abs(floats[0]), weight, drawn.astype(np.float32)
    others = advantage, sampler, reference, old, np.ones(shape, np.float32)
    return logp, Batch(zeros, zeros, segments, *streams, *others, np.int32(1), *totals)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.sampled_from([0.2, 4.0]))
def test_the_gspo_gradient_equals_torch(seed, clip):
    torch = pytest.importorskip("torch")
    logp, batch = micro(seed, per_sequence=True)
    config = LossConfig(clip, clip, old="batch", ratio="sequence")
    batch = batch._replace(ce_MBT=batch.ce_MBT * 0, kl_MBT=batch.kl_MBT * 0)
    grad = jax.grad(lambda x: streams(x, x * 0, batch, config)[0])(logp)
    with jax.enable_x64(True):
        # Terms of both signs may all but cancel: in float32 few digits of the sum are left. Nor are thirds exact there.
        exact, counts = jnp.asarray(logp, jnp.float64), np.round(1 / np.maximum(batch.rl_MBT, 0.1))
        weights = jnp.where(batch.rl_MBT > 0, 1 / counts.astype(np.float64), 0.0)
        loss, _ = streams(exact, exact * 0, batch._replace(rl_MBT=weights), config)
    x = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    total = 0
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        mine = torch.tensor((batch.segments_MBT[row] == segment) & (batch.rl_MBT[row] > 0))
        ratio = torch.exp((x[row] - torch.tensor(batch.old_logp_MBT[row]))[mine].mean())
        advantage = float(batch.advantage_MBT[row][mine.numpy()][0])
        total = total - torch.min(ratio * advantage, torch.clamp(ratio, 1 - clip, 1 + clip) * advantage)
    (total / 3).backward()
    np.testing.assert_allclose(loss, total.item() / 3, rtol=1e-9)
    np.testing.assert_allclose(grad, x.grad, atol=2e-6, rtol=2e-5)


def test_sequence_means_stay_where_their_rows_are():
    """Rows over four devices: the same gradient, and no row travels."""
    rng, mesh = np.random.default_rng(0), make_mesh(4, 2)
    values, weight = (rng.random((8, 16)).astype(np.float32) for _ in range(2))
    segments = np.sort(rng.integers(0, 4, (8, 16)), axis=1).astype(np.int32)
    tree = {"values_BT": values, "weight_BT": weight, "segments_BT": segments}

    def program(tree):
        def total(values):
            return jnp.sum(sequence_mean_BT(values, tree["weight_BT"], tree["segments_BT"]) ** 2)

        return jax.grad(total)(tree["values_BT"])

    there = jax.device_put(tree, shardings(tree, mesh, RULES))
    with jax.sharding.set_mesh(mesh):
        compiled = jax.jit(program).lower(there).compile()
    np.testing.assert_allclose(compiled(there), program(tree), rtol=1e-5)
    assert not re.search("all-(gather|reduce|to-all)|collective-permute", compiled.as_text())


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_sequence_means_are_those_of_each_segment(seed):
    logp, batch = micro(seed, per_sequence=False)
    got = np.asarray(sequence_mean_BT(logp, batch.rl_MBT, batch.segments_MBT))
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        mine = batch.segments_MBT[row] == segment
        mean = np.average(logp[row, mine], weights=batch.rl_MBT[row, mine])
        np.testing.assert_allclose(got[row, mine], mean, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    SEEDS, st.sampled_from(["own", "batch"]), st.sampled_from(["ppo", "cispo"]), st.sampled_from([0.0, 1.2])
)
def test_the_three_streams_equal_a_loop(seed, old, clip, cap):
    logp, b = micro(seed, per_sequence=False)
    config = LossConfig(0.2, 0.3, clip, old, importance_cap=cap)
    loss, (sums, gap_max) = streams(logp, np.abs(logp), b, config)
    ce = rl = kl = gap = 0.0
    for at in itertools.product(range(2), range(9)):
        new, drawn, a = np.float64(logp[at]), np.float64(b.sampler_logp_MBT[at]), b.advantage_MBT[at]
        was = new if old == "own" else np.float64(b.old_logp_MBT[at])
        ratio, weight = np.exp(new - was), min(np.exp(was - drawn), cap) if cap else 1.0
        clipped = np.clip(ratio, 0.8, 1.3)
        gain = min(ratio * a, clipped * a) if clip == "ppo" else clipped * a * new
        d = b.reference_logp_MBT[at] - new
        ce -= b.ce_MBT[at] * new / 5
        rl -= b.rl_MBT[at] * weight * gain / 3
        kl += b.kl_MBT[at] * (np.exp(d) - d - 1) / 7
        gap += abs(new - drawn) * (b.rl_MBT[at] > 0)
    assert float(loss) == pytest.approx(ce + rl + kl, rel=1e-4, abs=1e-5)
    for name, value in {"loss_ce": ce, "loss_rl": rl, "loss_kl": kl, "logp_gap_sum": gap}.items():
        assert float(sums[name]) == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert float(sums["rl_tokens"]) == (b.rl_MBT > 0).sum()
    widest = np.max(np.abs(logp - b.sampler_logp_MBT) * (b.rl_MBT > 0))
    assert float(gap_max) == pytest.approx(widest, rel=1e-5)


# --- advantages ---

REWARDS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0.0, 0.1, 1.0])), max_size=24)


@settings(deadline=None)
@given(REWARDS, st.sampled_from(ADVANTAGES))
def test_group_advantages_equal_numpy(pairs, kind):
    groups, rewards = [g for g, _ in pairs], [r for _, r in pairs]
    got = group_advantages(rewards, groups, kind)
    assert got.dtype == np.float32 and got.shape == (len(pairs),)
    groups = ["all"] * len(pairs) if kind == "batch" else groups
    for name in set(groups):
        index = [i for i, g in enumerate(groups) if g == name]
        mine = np.array([rewards[i] for i in index])
        if len(set(mine)) == 1:
            assert (got[index] == 0).all()  # exactly, also where 0.1 is summed
            continue
        expected = mine - mine.mean()
        if kind == "leave_one_out":
            expected = np.array([r - np.delete(mine, i).mean() for i, r in enumerate(mine)])
        if kind in ("mean_std", "batch"):
            expected = expected / (np.sqrt(np.sum(expected**2) / (len(mine) - 1)) + 1e-4)
        np.testing.assert_allclose(got[index], expected, rtol=1e-6, atol=1e-7)
        assert abs(np.sum(got[index], dtype=np.float64)) < 1e-5


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(1, 40), st.sampled_from(ADVANTAGES))
def test_a_uniform_group_is_exactly_zero(reward, size, kind):
    assert (group_advantages([reward] * size, ["one"] * size, kind) == 0).all()


def test_groups_named_by_tuples():
    groups = [("t", 0), ("t", 1), ("t", 0), ("t", 1)]
    assert group_advantages([1, 0, 0, 0], groups).tolist() == [0.5, 0, -0.5, 0]


def drawn_trace(rng, prompt=2, length=9):
    tokens = rng.integers(0, 29, length).astype(np.int32)
    sampled = np.arange(length) >= prompt
    return Trace(Task("t", "d", "p"), tokens, prompt, sampled, np.where(sampled, -1.0, 0).astype(np.float32))


@pytest.mark.parametrize(
    "rewards, still", [([1, 1, 1, 1], True), ([0, 0, 0, 0], True), ([1, 0, 1, 1], False)]
)
def test_an_update_on_one_outcome_moves_nothing(rewards, still):
    model = build(
        Config("test", vocab=29, dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffw=8, max_len=64)
    )
    engine = Engine(model, make_mesh(1, 1, jax.devices()[:1]), slots=4)
    tx, rng = optax.sgd(1.0), np.random.default_rng(0)
    state = engine.init(0, tx)
    before = jax.tree.map(np.asarray, jax.device_get(state.params))
    advantages = group_advantages(rewards, ["g"] * 4)
    sequences = [reinforced(drawn_trace(rng), a) for a in advantages]
    after, metrics = engine.update(
        state, pack(sequences, 18, 2, totals={"rl": 4}), tx, LossConfig(logit_chunk=8)
    )
    same = jax.tree.map(lambda a, b: bool((a == np.asarray(b)).all()), before, jax.device_get(after.params))
    assert all(jax.tree.leaves(same)) == still
    assert (float(metrics["grad_norm"]) == 0) == still and int(after.step) == 1
