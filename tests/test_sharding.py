import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.sharding import RULES, RULES_DECODE, constrain, make_mesh, shardings, spec

SIZES = {"vocab": 54, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffw": 24}
MODEL = build(Config("test", **SIZES, max_len=64, qk_norm=True))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(4, 2)


def specs(tree):
    return {
        jax.tree_util.keystr(k).split("'")[-2]: v.spec for k, v in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_parameters_are_sharded_by_their_suffix(mesh):
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    assert specs(shardings(params, mesh, RULES)) == {
        "embed_VD": P("model", "data"),
        "head_DV": P("data", "model"),
        "final_norm_D": P("data"),
        "attn_norm_D": P("data"),
        "ffw_norm_D": P("data"),
        "q_DHK": P("data", "model", None),
        "k_DNK": P("data", "model", None),
        "v_DNK": P("data", "model", None),
        "o_HKD": P("model", None, "data"),
        "q_norm_K": P(None),
        "k_norm_K": P(None),
        "gate_DF": P("data", "model"),
        "up_DF": P("data", "model"),
        "down_FD": P("model", "data"),
    }


def test_decoding_keeps_the_weights_whole_along_data(mesh):
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    for name, where in specs(shardings(params, mesh, RULES_DECODE)).items():
        assert "data" not in where, name
    assert specs(shardings(params, mesh, RULES_DECODE))["down_FD"] == P("model", None)


def test_the_optimizer_is_sharded_like_its_parameters(mesh):
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    opt = jax.eval_shape(optax.adamw(1e-3).init, params)
    where = shardings(opt, mesh, RULES)
    assert where[0].mu == where[0].nu == shardings(params, mesh, RULES)
    assert where[0].count.spec == P()


class OneMatrix:
    """In place of a model: its init compiles in no time."""

    config = Config("qwen3", 64, 16, 1, 2, 2, 8, 24, 64)

    @staticmethod
    def init(key):
        return {"gate_DF": jax.random.normal(key, (16, 24))}


def test_a_fresh_state_lives_where_it_belongs_and_is_the_same_on_every_mesh(mesh):
    tx = optax.adamw(1e-3)
    state = Engine(OneMatrix, mesh, slots=8).init(0, tx)
    assert state.params["gate_DF"].sharding.spec == P("data", "model")
    assert state.opt[0].mu["gate_DF"].sharding.spec == P("data", "model")
    one = Engine(OneMatrix, make_mesh(1, 1, jax.devices()[:1]), slots=8).init(0, tx)
    jax.tree.map(np.testing.assert_array_equal, state, one)


LETTERS = st.lists(st.tuples(st.sampled_from("BDHNFVKTLS"), st.integers(1, 12)), max_size=5)


@settings(deadline=None)
@given(LETTERS, st.sampled_from([(8, 1), (4, 2), (2, 4)]))
def test_an_axis_is_split_where_the_mesh_divides_it_and_used_once(axes, sizes):
    mesh = make_mesh(*sizes)
    letters, shape = "".join(letter for letter, _ in axes), tuple(size for _, size in axes)
    got = spec(letters, shape, mesh, RULES)
    assert len(got) == len(shape)
    seen = set()
    for letter, size, axis in zip(letters, shape, got, strict=True):
        wanted = "data" if letter in "BD" else "model" if letter in "HNFV" else None
        splits = wanted is not None and wanted not in seen and size % mesh.shape[wanted] == 0
        assert axis == (wanted if splits else None)
        seen |= {axis} - {None}


def test_an_indivisible_axis_is_whole_on_every_device(mesh):
    values = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    array = jax.device_put(values, shardings({"w_DF": values}, mesh, RULES)["w_DF"])
    assert array.sharding.spec == P(None, "model")
    assert {shard.data.shape for shard in array.addressable_shards} == {(5, 1)}
    np.testing.assert_array_equal(array, values)


WRONG = [("q_DHK", (16, 4)), ("norm_D", (4, 4)), ("embed_VD", (3, 4, 5)), ("weight", (4,))]


@pytest.mark.parametrize("name, shape", WRONG)
def test_a_rank_that_disagrees_with_its_name_names_the_parameter(mesh, name, shape):
    with pytest.raises(ValueError, match=rf"layer_1/{name}: .*\({', '.join(map(str, shape))}"):
        shardings({"layer_1": {name: np.zeros(shape)}}, mesh, RULES)


def test_scalars_need_no_suffix(mesh):
    assert shardings({"count": np.zeros(())}, mesh, RULES)["count"].spec == P()


@pytest.mark.parametrize(
    "given_sizes, shape",
    [((-1, 1), (8, 1)), ((-1, 2), (4, 2)), ((2, -1), (2, 4)), ((1, 8), (1, 8)), ((-1, 8), (1, 8))],
)
def test_mesh_sizes(given_sizes, shape):
    mesh = make_mesh(*given_sizes)
    assert tuple(mesh.shape.values()) == shape and mesh.axis_names == ("data", "model")
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert list(mesh.devices.flat) == jax.devices()


@pytest.mark.parametrize("sizes", [(3, 1), (4, 4), (-1, 3), (3, -1), (-1, 16), (0, 1), (-1, -1), (1, 1)])
def test_mesh_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match=r"does not fit 8 cpu device\(s\): choose sizes whose product is 8"):
        make_mesh(*sizes)


def test_a_mesh_over_some_devices():
    assert dict(make_mesh(2, 2, jax.devices()[2:6]).shape) == {"data": 2, "model": 2}
    with pytest.raises(ValueError, match="fit 3 cpu"):
        make_mesh(2, 2, jax.devices()[:3])


def test_constrain_pins_under_a_mesh_and_is_the_identity_without(mesh):
    value = jnp.zeros((8, 3, 16))
    assert constrain(value, "BTD") is value
    with jax.sharding.set_mesh(make_mesh(1, 1, jax.devices()[:1])):
        assert jax.jit(lambda v: constrain(v, "BTD"))(value).sharding.num_devices == 1
    with jax.sharding.set_mesh(mesh):
        out = jax.jit(lambda v: constrain(v * 1.0, "BTD"))(value)
    assert {shard.data.shape for shard in out.addressable_shards} == {(2, 3, 16)}


@pytest.mark.parametrize(("dtype", "exact"), [("float32", True), ("bfloat16", False)])
def test_float32_is_multiplied_as_float32_on_accelerators_too(dtype, exact):
    config = Config("qwen3", 40, 16, 1, 2, 1, 8, 24, 64, tied=True, dtype=dtype)
    engine = Engine(build(config), make_mesh(devices=jax.devices()[:1]))

    def program(values):
        return jax.jit(jnp.dot).lower(values, values).as_text()

    with jax.default_matmul_precision("default"):
        assert ("HIGHEST" in engine._call(program, jnp.ones((4, 4), dtype))) == exact
