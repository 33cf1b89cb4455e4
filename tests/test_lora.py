"""Adapters: a tree that says what it computes, trained alone by the one update, merged wherever something is drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_method import ROW, SAMPLING, guided_attempts  # noqa: F401 (guided_attempts is a fixture)
from test_rollouts import Chance
from test_while_it_trains import configured
from trees import assert_same

from experiments.store import WorkdirStore
from int_jax import checkpoint, lora
from int_jax.batching import intervention_weights, pack, supervised
from int_jax.domains.arithmetic import Arithmetic
from int_jax.engine import Engine
from int_jax.hf_format import leaves_by_path
from int_jax.lab import Lab, Memory
from int_jax.lora import MATRICES, Lora
from int_jax.losses import LossConfig
from int_jax.models import Config, build
from int_jax.policy_gradient import PolicyGradient
from int_jax.sharding import RULES, RULES_DECODE, make_mesh, shardings
from int_jax.stages import Workdir

SIZES = {"vocab": 54, "dim": 16, "layers": 2, "heads": 8, "kv_heads": 4, "head_dim": 6, "ffw": 24}
CONFIGS = {
    "qwen3": Config("qwen3", **SIZES, max_len=64, qk_norm=True, tied=True),
    "llama": Config("llama", **SIZES, max_len=64, qkv_bias=True, o_bias=True),
    "gemma3_text": Config(
        "gemma3_text", **SIZES, max_len=64, qk_norm=True, tied=True, post_norm=True, zero_centred=True,
        windows=(5, 0), activation="gelu_tanh", local_rope_theta=20.0, scaled_embedding=True,
    ),
}  # fmt: skip
ALL = Lora(3, 8.0, tuple(MATRICES))
GRADIENT = optax.trace(decay=0.0)  # its state is the gradient
IDS = np.random.default_rng(1).integers(0, 54, (8, 20)).astype(np.int32)


def engine_of(config, data=1, model=1) -> Engine:
    return Engine(build(config), make_mesh(data, model, jax.devices()[: data * model]), slots=8)


@functools.cache
def fresh(config):
    return jax.jit(build(config).init)(jax.random.key(3))


def shapes_of(config):
    return jax.eval_shape(build(config).init, jax.random.key(0))


def adapted(params, knobs: Lora = ALL, seed: int = 0):
    """Adapters of which none is zero any more."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        if "_lora_b_" not in path[-1].key:
            return leaf
        return (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, lora.add(params, knobs, seed))


def score(engine, params) -> np.ndarray:
    return np.stack(engine.score(params, IDS)[0])


def batch(rows: int = 8):
    """Eight sequences with unequal weights in micro-batches of so many rows."""
    rng = np.random.default_rng(2)
    return pack([supervised(ids, np.append(0, rng.random(19)).astype(np.float32)) for ids in IDS], 20, rows)


# --- the tree ---


def test_names_say_what_they_are():
    expected = {
        "q": ("q_lora_a_DR", "q_lora_b_RHK"),
        "k": ("k_lora_a_DR", "k_lora_b_RNK"),
        "v": ("v_lora_a_DR", "v_lora_b_RNK"),
        "o": ("o_lora_a_HKR", "o_lora_b_RD"),
        "gate": ("gate_lora_a_DR", "gate_lora_b_RF"),
        "up": ("up_lora_a_DR", "up_lora_b_RF"),
        "down": ("down_lora_a_FR", "down_lora_b_RD"),
    }
    assert {key: lora.names(name) for key, name in MATRICES.items()} == expected
    every = {name for pair in expected.values() for name in pair}
    plain = {path.rpartition("/")[2] for c in CONFIGS.values() for path in leaves_by_path(shapes_of(c))}
    assert all(map(lora.is_adapter, every)) and not any(map(lora.is_adapter, plain))


@settings(max_examples=30)
@given(st.sets(st.sampled_from([*MATRICES]), min_size=1), st.integers(1, 5), st.sampled_from([*CONFIGS]))
def test_what_is_split_is_joined_and_each_adapter_stands_beside_its_matrix(keys, rank, name):
    params = shapes_of(CONFIGS[name])
    made = lora.add(params, Lora(rank, 2.0, tuple(keys)), 0)
    trained, frozen = lora.split(made)
    assert lora.split(params) == (params, None) and lora.join(None, params) is params
    assert lora.join(frozen, trained) == made
    found = leaves_by_path(trained)
    wanted = {f"layer_{i}/{one}" for i in range(2) for key in keys for one in lora.names(MATRICES[key])}
    assert found.keys() == wanted
    for path, leaf in found.items():
        assert leaf.shape[-1 if "_lora_a_" in path else 0] == rank
        assert len(leaf.shape) == len(path.rpartition("_")[2])
    assert leaves_by_path(frozen).keys() == leaves_by_path(params).keys() | {
        f"layer_{i}/{lora.SCALE}" for i in range(2)
    }
    assert lora.add(made, ALL, 1) is made  # a training goes on with what is there


def test_a_model_without_such_matrices_is_refused():
    with pytest.raises(ValueError, match=r"none of the matrices q, k: its parameters are embed_VD"):
        lora.add({"embed_VD": np.zeros((3, 4))}, Lora(2, 1.0, ("q", "k")), 0)


def test_a_is_drawn_from_the_seed_and_its_place_within_peft_s_bound():
    params, big = shapes_of(CONFIGS["qwen3"]), Lora(64, 8.0, tuple(MATRICES))
    first, same, other = (leaves_by_path(lora.split(lora.add(params, big, s))[0]) for s in (0, 0, 1))
    drawn = {path: leaf for path, leaf in first.items() if "_lora_a_" in path}
    for path, leaf in drawn.items():
        bound = np.prod(leaf.shape[:-1]) ** -0.5  # o sums over heads and their parts
        assert 0.97 * bound < leaf.max() <= bound and 0.97 * bound < -leaf.min() <= bound
        assert abs(leaf.mean()) < 0.1 * bound
        np.testing.assert_array_equal(leaf, same[path])
        assert not np.array_equal(leaf, other[path])
    assert len({leaf.tobytes() for leaf in drawn.values()}) == len(drawn)
    assert not any(leaf.any() for path, leaf in first.items() if "_lora_b_" in path)


@pytest.mark.parametrize(("data", "model"), [(4, 2), (1, 8)])
def test_adapters_are_cut_as_their_matrices_and_the_rank_never(data, model):
    mesh = make_mesh(data, model)
    tree = lora.add(shapes_of(CONFIGS["qwen3"]), ALL, 0)["layer_0"]
    where = shardings(tree, mesh, RULES)
    for matrix in MATRICES.values():
        a, b = lora.names(matrix)
        whole, parts = tuple(where[matrix].spec), (tuple(where[a].spec), tuple(where[b].spec))
        inputs = len(parts[0]) - 1
        assert parts == ((*whole[:inputs], None), (None, *whole[inputs:]))


# --- the model ---


@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_adapters_change_no_bit(name):
    engine, params = engine_of(CONFIGS[name]), fresh(CONFIGS[name])
    np.testing.assert_array_equal(score(engine, params), score(engine, lora.add(params, ALL, 0)))


@pytest.mark.parametrize("key", MATRICES)
@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_adapters_of_each_matrix_compute_what_they_are_merged_to(name, key):
    config = CONFIGS[name]
    engine, params = engine_of(config), fresh(config)
    tree = adapted(params, Lora(3, 8.0, (key,)))
    plain, beside, merged = (score(engine, p) for p in (params, tree, engine.decode_params(tree)))
    assert np.abs(beside - plain).max() > 1e-2
    np.testing.assert_allclose(beside, merged, atol=2e-5)
    # By hand: W + (alpha / rank) A B, in float64.
    matrix, (a, b) = MATRICES[key], lora.names(MATRICES[key])
    layer = {k: np.asarray(v, np.float64) for k, v in tree["layer_1"].items()}
    expected = layer[matrix] + 8 / 3 * np.tensordot(layer[a], layer[b], 1)
    np.testing.assert_allclose(lora.merge(tree)["layer_1"][matrix], expected, atol=1e-6)
    assert leaves_by_path(lora.merge(tree)).keys() == leaves_by_path(params).keys()


def products(config, params) -> int:
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    traced = jax.make_jaxpr(lambda tree: build(config).apply(tree, tokens_BT, tokens_BT)[0])(params)
    return str(traced).count("dot_general")


def test_what_has_no_adapters_is_computed_without():
    """Seven products a layer, two of attention; two more for each matrix with adapters."""
    config = dataclasses.replace(CONFIGS["qwen3"], layers=1)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes_of(config))
    assert products(config, params) == 9
    assert products(config, lora.add(params, Lora(2, 1.0, ("q", "down")), 0)) == 13


def test_in_bfloat16_the_merged_matrix_is_rounded_once():
    config = dataclasses.replace(CONFIGS["llama"], dtype="bfloat16")
    engine = engine_of(config)
    base = engine.decode_params(fresh(config))
    tree = adapted(base)
    assert tree["layer_0"]["q_lora_a_DR"].dtype == jnp.float32
    merged = engine.decode_params(tree)
    layer = {k: np.asarray(v, np.float64) for k, v in tree["layer_0"].items()}
    exact = layer["q_DHK"] + 8 / 3 * np.tensordot(layer["q_lora_a_DR"], layer["q_lora_b_RHK"], 1)
    np.testing.assert_array_equal(merged["layer_0"]["q_DHK"], exact.astype(np.float32).astype(jnp.bfloat16))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merged))
    assert engine.decode_params(merged) is merged


# --- the update ---


def updated(config, mesh=(1, 1), rows=8, tx=GRADIENT, params=None):
    """The state and the metrics of one update of adapters, and the frozen parameters."""
    engine = engine_of(config, *mesh)
    params = engine._put(adapted(fresh(config)) if params is None else params)
    trained, frozen = lora.split(params)
    state, metrics = engine.update(
        engine.state(trained, tx), batch(rows), tx, LossConfig(logit_chunk=8, remat=False), frozen
    )
    return state, {key: float(value) for key, value in metrics.items()}, frozen


def slow_but(first, others):
    """The first by every `make test`, the others by `make slow`: each compiles an update, some ten seconds."""
    return [first, *(pytest.param(*one, marks=pytest.mark.slow) for one in others)]


@pytest.mark.parametrize("name", slow_but("qwen3", [["llama"], ["gemma3_text"]]))
def test_the_gradient_is_that_of_the_merged_matrix_by_the_chain_rule(name):
    """dA = s dW B^T and dB = s A^T dW, dW being the gradient of a full update of the merged model."""
    config = CONFIGS[name]
    tree = adapted(fresh(config))
    state, metrics, _ = updated(config)
    engine = engine_of(config)
    full, _ = engine.update(
        engine.state(lora.merge(tree), GRADIENT), batch(), GRADIENT, LossConfig(logit_chunk=8)
    )
    found, expected = leaves_by_path(state.opt.trace), {}
    for layer, leaves in full.opt.trace.items():
        for matrix in (one for one in MATRICES.values() if layer.startswith("layer_")):
            a, b = lora.names(matrix)
            grad, scale = np.asarray(leaves[matrix], np.float64), 8 / 3
            left, right = np.asarray(tree[layer][a]), np.asarray(tree[layer][b])
            inputs, outputs = left.ndim - 1, right.ndim - 1
            expected[f"{layer}/{a}"] = scale * np.tensordot(
                grad, right, (range(-outputs, 0), range(1, 1 + outputs))
            )
            expected[f"{layer}/{b}"] = scale * np.tensordot(left, grad, (range(inputs), range(inputs)))
    assert found.keys() == expected.keys()
    for path, grad in expected.items():
        np.testing.assert_allclose(found[path], grad, atol=2e-6, rtol=2e-5, err_msg=path)
    norm = np.sqrt(sum(np.square(grad).sum() for grad in expected.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5) and norm > 0.1


def test_an_update_moves_adapters_alone_and_leaves_the_frozen_where_it_is():
    config, tx = dataclasses.replace(CONFIGS["llama"], layers=1), optax.adamw(3e-2)
    engine = engine_of(config)
    base = engine._put(fresh(config))
    before = jax.tree.map(np.asarray, base)
    trained, frozen = lora.split(lora.add(base, ALL, 0))
    state, seen = engine.state(trained, tx), []
    start = jax.tree.map(np.asarray, state.params)
    for _ in range(30):
        state, metrics = engine.update(state, batch(), tx, LossConfig(logit_chunk=8), frozen)
        seen.append(float(metrics["loss"]))
    assert seen[-1] < seen[0] - 0.5
    after = leaves_by_path(frozen)
    for path, leaf in leaves_by_path(before).items():
        np.testing.assert_array_equal(after[path], leaf)
    for leaf, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(start), strict=True):
        assert not np.array_equal(leaf, old)
    # Adam's moments, too, are of the adapters alone.
    assert jax.tree.structure(state.opt[0].mu) == jax.tree.structure(trained)


MESHES = slow_but(
    ("qwen3", (4, 2)),
    [("qwen3", mesh) for mesh in ((8, 1), (2, 4), (1, 8))]
    + [("llama", mesh) for mesh in ((8, 1), (4, 2), (2, 4), (1, 8))],
)


@functools.cache
def on_one_device(name) -> dict[str, float]:
    return updated(CONFIGS[name])[1]


@pytest.mark.parametrize(("name", "mesh"), MESHES)
def test_an_update_is_the_same_on_every_mesh(name, mesh):
    _, metrics, _ = updated(CONFIGS[name], mesh)
    one = on_one_device(name)
    assert abs(metrics["loss"] - one["loss"]) < 1e-5
    assert abs(metrics["grad_norm"] - one["grad_norm"]) < 1e-5
    assert one["grad_norm"] > 0.1


def test_adapters_live_as_training_has_them_and_decoding_does_not():
    config = CONFIGS["qwen3"]
    engine = engine_of(config, 4, 2)
    params = engine._put(adapted(fresh(config)))
    state = engine.state(lora.split(params)[0], optax.adamw(1e-3))
    for tree in (state.params, state.opt[0].mu):
        for leaf, where in zip(
            jax.tree.leaves(tree), jax.tree.leaves(shardings(tree, engine.mesh, RULES)), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
    merged = engine.decode_params(params)
    for leaf, where in zip(
        jax.tree.leaves(merged), jax.tree.leaves(shardings(merged, engine.mesh, RULES_DECODE)), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)


@pytest.mark.slow
def test_micro_batches_change_nothing():
    whole, cut = (updated(CONFIGS["qwen3"], rows=rows) for rows in (8, 2))
    assert cut[1]["loss"] == pytest.approx(whole[1]["loss"], abs=1e-5)
    for left, right in zip(*(jax.tree.leaves(one[0].opt) for one in (whole, cut)), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


# --- the lab ---


def lab_of(engine, params, tasks, store, domain, knobs: Lora | None = ALL, **changes):
    steps = {"weight_decay": 0.0, "clip_norm": 1.0, **ROW}
    sft = {"epochs": 3, "batch_size": 4, "warmup": 0.1, "weigh": intervention_weights, "end_of_turn": None}
    rl = {"knobs": PolicyGradient(problems=2, group=3), "sampling": SAMPLING, "updates": 4, "tasks": "hard"}
    sections = {"sft": {**steps, "learning_rate": 3e-2, **sft}, "rl": {**steps, "learning_rate": 0.1, **rl}}
    return Lab(engine, params, domain, tasks, sections, unsolved=False, store=store, lora=knobs, **changes)


@pytest.fixture(scope="module")
def params(engine):
    return engine.decode_params(jax.jit(engine.model.init)(jax.random.key(4)))


@pytest.mark.slow
def test_rl_after_sft_goes_on_with_one_set_of_adapters_beside_the_base(
    engine, params, tokenizer, guided_attempts  # noqa: F811
):  # fmt: skip
    tasks = Arithmetic(tokenizer).tasks("train", 3, 6)
    lab = lab_of(engine, params, tasks, Memory(), Chance(tokenizer))
    start = lab.fine_tune("int", guided_attempts)
    end = lab.reinforce("int_rl", start, tasks)
    losses = [line["loss"] for line in lab.trained["int"].lines]
    assert losses[-1] < losses[0] - 0.2
    assert lab.policies.keys() == {"base", "int", "int_rl"} and lab.policies["base"] is params
    shape = jax.tree.structure(lora.add(params, ALL, lab.seed))
    for policy in (start, end):
        assert jax.tree.structure(policy) == shape
        frozen = leaves_by_path(lora.split(policy)[1])
        assert all(frozen[path] is leaf for path, leaf in leaves_by_path(params).items())  # kept once
    first, second = (leaves_by_path(lora.split(policy)[0]) for policy in (start, end))
    assert all(not np.array_equal(first[path], second[path]) for path in first)
    # The second training began where the first one ended, not anew.
    again = lab_of(engine, params, tasks, Memory(), Chance(tokenizer))
    [still] = [again.reinforce("int_rl", start, tasks, updates=0)]
    assert_same(lora.split(still)[0], lora.split(start)[0])
    # What samples and scores has the adapters in its matrices.
    np.testing.assert_allclose(
        engine.score(engine.decode_params(end), [guided_attempts[0].tokens])[0][0],
        engine.score(end, [guided_attempts[0].tokens])[0][0],
        atol=1e-4,
    )


def test_a_training_goes_on_from_its_checkpoint_which_has_adapters_alone(engine, params, tokenizer, tmp_path):
    tasks = Arithmetic(tokenizer).tasks("train", 3, 6)

    def trained(folder, updates: int):
        config = configured({"rl.checkpoint_every": 1, "arms": ("rl",), "export": ()})
        store = WorkdirStore(config, Workdir(folder, {}, {}), engine)
        lab = lab_of(engine, params, tasks, store, Chance(tokenizer))
        return lab.reinforce("rl", params, tasks, updates=updates), lab.trained["rl"].lines

    whole, lines = trained(tmp_path / "whole", 4)
    trained(tmp_path / "run", 2)
    again, resumed = trained(tmp_path / "run", 4)
    assert_same(again, whole)
    assert resumed == lines and any(line["grad_norm"] > 0 for line in lines)
    [step] = checkpoint.saved(tmp_path / "run" / "rl" / "state")
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(tmp_path / "run" / "rl" / "state" / str(step) / checkpoint.ITEM)
    adapters = leaves_by_path(lora.split(again)[0])
    assert leaves_by_path(saved["params"]).keys() == adapters.keys()
