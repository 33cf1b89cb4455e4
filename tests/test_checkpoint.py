"""Models in Hugging Face format and training states, to disk and back: every bit, and every refusal by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from int_jax import checkpoint
from int_jax.models import Config, build
from int_jax.sharding import RULES, make_mesh, shardings
from int_jax.types import State

CONFIG = Config(
    **{
        "family": "qwen3",
        "vocab": 24,
        "dim": 16,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 6,
        "ffw": 20,
    },
    **{"max_len": 64, "rope_theta": 5000.0, "qk_norm": True},
)
TIED = dataclasses.replace(CONFIG, tied=True)
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def random_params(config, dtype="float32"):
    rng = np.random.default_rng(0)
    like = jax.eval_shape(build(config).init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, dtype), like)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


@pytest.fixture
def model_dir(tmp_path):
    checkpoint.save_hf(tmp_path / "model", CONFIG, random_params(CONFIG))
    return tmp_path / "model"


def rewrite(directory, change):
    """Put other tensors into model.safetensors."""
    tensors = load_file(directory / checkpoint.SINGLE)
    change(tensors)
    save_file(tensors, directory / checkpoint.SINGLE)


# Hugging Face format --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_what_was_saved_comes_back_bit_for_bit(tmp_path, config, dtype):
    params = random_params(config, dtype)
    checkpoint.save_hf(tmp_path / "model", config, params)
    loaded_config, loaded = checkpoint.load_hf(tmp_path / "model", dtype=dtype)
    assert_same(loaded, params)
    assert loaded_config == dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_half_precision_widens_exactly(tmp_path):
    params = random_params(CONFIG, "bfloat16")
    checkpoint.save_hf(tmp_path / "model", CONFIG, params)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    _, loaded = checkpoint.load_hf(tmp_path / "model", dtype="float32")
    assert_same(loaded, jax.tree.map(lambda x: x.astype(jnp.float32), params))


def test_shards_with_an_index_equal_one_file(tmp_path, model_dir):
    params = random_params(CONFIG)
    checkpoint.save_hf(tmp_path / "cut", CONFIG, params, shard_bytes=3000)
    shards = sorted((tmp_path / "cut").glob("*.safetensors"))
    assert len(shards) > 3 and all(shard.stat().st_size < 3000 + 1000 for shard in shards)
    index = json.loads((tmp_path / "cut" / checkpoint.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "cut" / file, "np") as reader:
            assert name in reader.keys()  # noqa: SIM118 (it is not a dict)
    assert_same(checkpoint.load_hf(tmp_path / "cut")[1], params)

    shards[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{shards[1].name}: missing, but named by .*{checkpoint.INDEX}"
    ):
        checkpoint.load_hf(tmp_path / "cut")


def test_each_tensor_goes_where_the_table_says(model_dir):
    mesh = make_mesh(4, 2)
    _, params = checkpoint.load_hf(model_dir, mesh)
    assert_same(params, random_params(CONFIG))
    where = shardings(params, mesh, RULES)
    assert jax.tree.map(lambda x: x.sharding, params) == where
    assert params["layer_0"]["q_DHK"].addressable_shards[0].data.shape == (4, 2, 6)
    _, whole = checkpoint.load_hf(model_dir, mesh, rules={})
    assert whole["layer_0"]["q_DHK"].sharding.is_fully_replicated


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_transformers_loads_what_is_saved_and_agrees(tmp_path, config):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    checkpoint.save_hf(tmp_path / "model", config, random_params(config), shard_bytes=6000)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    config, params = checkpoint.load_hf(tmp_path / "model")
    tokens_BT = np.arange(10, dtype=np.int32)[None]

    @jax.jit
    def logits(params):
        hidden_BTD, _ = build(config).apply(params, tokens_BT, tokens_BT)
        return hidden_BTD @ build(config).head_DV(params)

    theirs_BTV = theirs(torch.tensor(tokens_BT, dtype=torch.long)).logits.detach().numpy()
    np.testing.assert_allclose(logits(params), theirs_BTV, atol=1e-4)

    # and back: what transformers writes, config.json included
    theirs.save_pretrained(tmp_path / "back")
    config_back, back = checkpoint.load_hf(tmp_path / "back")
    assert config_back == config
    assert_same(back, params)


def test_a_tied_model_may_carry_a_copy_of_its_embedding_but_no_other_head(tmp_path):
    directory = tmp_path / "model"
    checkpoint.save_hf(directory, TIED, random_params(TIED))
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert_same(checkpoint.load_hf(directory)[1], random_params(TIED))
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        checkpoint.load_hf(directory)


def faults():
    def cut(tensors):
        tensors[Q_PROJ] = tensors[Q_PROJ][:-1].copy()

    def integers(tensors):
        tensors[Q_PROJ] = tensors[Q_PROJ].astype(np.int32)

    yield "missing", lambda t: t.pop(Q_PROJ), ["missing", "(24, 16)"]
    yield "shape", cut, ["(23, 16)", "(24, 16)", "layer_1/q_DHK"]
    yield "dtype", integers, ["I32", "BF16"]
    yield (
        "extra",
        lambda t: t.update({Q_PROJ + "2": np.zeros((3, 5), np.float32)}),
        ["(3, 5)", "not part of the model"],
    )


@pytest.mark.parametrize(("change", "words"), [pytest.param(*rest, id=name) for name, *rest in faults()])
def test_wrong_tensors_are_named_before_any_is_read(model_dir, monkeypatch, change, words):
    rewrite(model_dir, change)
    monkeypatch.setattr(jax, "device_put", lambda *_: pytest.fail("a tensor was loaded before the check"))
    with pytest.raises(ValueError) as error:
        checkpoint.load_hf(model_dir)
    for word in [str(model_dir / checkpoint.SINGLE), Q_PROJ, *words]:
        assert word in str(error.value)


def test_a_missing_directory_config_or_weight_file_is_named(tmp_path, model_dir):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such directory"):
        checkpoint.load_hf(tmp_path / "nowhere")
    (model_dir / checkpoint.SINGLE).rename(tmp_path / "kept")
    with pytest.raises(
        FileNotFoundError, match=f"{model_dir}: neither {checkpoint.SINGLE} nor {checkpoint.INDEX}"
    ):
        checkpoint.load_hf(model_dir)
    (model_dir / checkpoint.SINGLE).write_bytes((tmp_path / "kept").read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{checkpoint.SINGLE}: not a complete safetensors file"):
        checkpoint.load_hf(model_dir)
    (model_dir / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: missing"):
        checkpoint.load_hf(model_dir)


def test_a_wrong_config_or_dtype_is_named(model_dir):
    with pytest.raises(ValueError, match="dtype = 'int8' is not one of"):
        checkpoint.load_hf(model_dir, dtype="int8")
    file = model_dir / "config.json"
    data = json.loads(file.read_text())
    for change, words in {
        "hidden_act": ["hidden_act", "relu"],
        "model_type": ["model_type", "relu", "qwen3"],
    }.items():
        file.write_text(json.dumps(data | {change: "relu"}))
        with pytest.raises(ValueError) as error:
            checkpoint.load_hf(model_dir)
        assert all(word in str(error.value) for word in [str(file), *words])
    file.write_text(json.dumps(data)[:-9])
    with pytest.raises(ValueError, match=r"config\.json: "):
        checkpoint.load_hf(model_dir)


def test_parameters_of_another_config_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="head_DV"):
        checkpoint.save_hf(tmp_path / "model", TIED, random_params(CONFIG))
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_model_keeps_the_card_and_drops_old_shards(tmp_path):
    directory = tmp_path / "model"
    checkpoint.save_hf(directory, CONFIG, random_params(CONFIG), shard_bytes=3000)
    (directory / "README.md").write_text("the card")
    checkpoint.save_hf(directory, TIED, random_params(TIED))
    assert {path.name for path in directory.iterdir()} == {
        *("README.md", "config.json", "generation_config.json", checkpoint.SINGLE)
    }
    assert_same(checkpoint.load_hf(directory)[1], random_params(TIED))


def test_a_save_that_dies_leaves_nothing_loadable_or_the_old_model(model_dir, monkeypatch):
    # a kill while writing: the old model is as it was
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_hf(model_dir, TIED, random_params(TIED))
    assert_same(checkpoint.load_hf(model_dir)[1], random_params(CONFIG))
    # a kill between two renames: the mixture does not load
    replace, count = Path.replace, iter(range(9))

    def dies(self, target):
        if next(count) == 1:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_hf(model_dir, TIED, random_params(TIED))
    with pytest.raises(FileNotFoundError, match=r"config\.json: missing"):
        checkpoint.load_hf(model_dir)


# A full disk ----------------------------------------------------------------------------------------------------


def almost_full(*_):
    return shutil._ntuple_diskusage(10**9, 10**9 - 100, 100)


def test_a_full_disk_is_one_message_and_changes_nothing(tmp_path, model_dir, monkeypatch):
    checkpoint.save(tmp_path / "states", small_state(1))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", almost_full)
        with pytest.raises(OSError, match=f"the disk is full: {model_dir} needs .* MB"):
            checkpoint.save_hf(model_dir, TIED, random_params(TIED))
        with pytest.raises(OSError, match=f"the disk is full: {tmp_path / 'states'} needs .* MB"):
            checkpoint.save(tmp_path / "states", small_state(2))

    # it fills up while writing: the words are those of safetensors and of tensorstore on a full tmpfs
    def fails(error):
        def write(*_, **__):
            raise error

        return write

    with monkeypatch.context() as patch:
        words = "Error while serializing: I/O error: No space left on device (os error 28)"
        patch.setattr(checkpoint, "save_file", fails(SafetensorError(words)))
        with pytest.raises(OSError, match="the disk is full"):
            checkpoint.save_hf(model_dir, TIED, random_params(TIED))
        words = "RESOURCE_EXHAUSTED: Failed to write 637734 bytes to file 11: No space left on device"
        patch.setattr(checkpoint.ocp.StandardCheckpointer, "save", fails(ValueError(words)))
        with pytest.raises(OSError, match="the disk is full"):
            checkpoint.save(tmp_path / "states", small_state(2))

    assert_same(checkpoint.load_hf(model_dir)[1], random_params(CONFIG))
    assert checkpoint.saved(tmp_path / "states") == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "states"]


# State ----------------------------------------------------------------------------------------------------------


def small_state(step, mesh=None):
    params = {
        "q_DHK": jnp.arange(64, dtype=jnp.float32).reshape(8, 4, 2) / 7 + step,
        "norm_D": jnp.ones(8, jnp.bfloat16),
    }
    state = State(jnp.asarray(step, jnp.int32), params, optax.adamw(1e-3).init(params))
    return jax.device_put(state, shardings(state, make_mesh(4, 2) if mesh is None else mesh, RULES))


def test_a_state_comes_back_bit_for_bit_on_any_mesh(tmp_path):
    state = small_state(3)
    checkpoint.save(tmp_path, state)
    for mesh in (make_mesh(4, 2), make_mesh(1, 1, jax.devices()[:1])):
        like = small_state(0, mesh)
        restored = checkpoint.restore(tmp_path, like)
        assert_same(restored, state)
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, like)


def test_the_newest_state_alone_is_kept(tmp_path):
    assert checkpoint.restore(tmp_path / "none", small_state(0)) is None
    for step in (9, 10):
        checkpoint.save(tmp_path, small_state(step))
    assert [path.name for path in tmp_path.iterdir()] == ["10"]
    # the same step again, with other values: the later ones count
    again = small_state(10)._replace(params=small_state(77).params)
    checkpoint.save(tmp_path, again)
    assert [path.name for path in tmp_path.iterdir()] == ["10"]
    assert_same(checkpoint.restore(tmp_path, small_state(0)), again)


def test_an_interrupted_save_is_never_picked_up(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, small_state(1))
    rmtree = shutil.rmtree

    def killed(self, *_):
        raise KeyboardInterrupt(f"killed at {self.name}")

    # Orbax is done, our rename is not: what a kill one instruction earlier leaves is less than this
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt, match=r"2\.fresh"):
            checkpoint.save(tmp_path, small_state(2))
    (tmp_path / "3.fresh.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.saved(tmp_path) == [1]
    assert_same(checkpoint.restore(tmp_path, small_state(0)), small_state(1))

    # a kill while the old ones are removed: what is half gone has lost its name
    def dies_at_1(path, **options):
        return killed(path) if Path(path).name.startswith("1") else rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies_at_1)
        with pytest.raises(KeyboardInterrupt, match=r"1\.stale"):
            checkpoint.save(tmp_path, small_state(2))
    assert checkpoint.saved(tmp_path) == [2]
    checkpoint.save(tmp_path, small_state(4))
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
