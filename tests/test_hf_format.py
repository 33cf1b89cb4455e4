"""Models in Hugging Face format, to disk and back: every bit, and every refusal by name."""

import ast
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_devices import xla_flags
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from trees import assert_same

from int_jax import hf_format
from int_jax.models import Config, build, hf
from int_jax.sharding import RULES, RULES_DECODE, make_mesh, shardings

ROOT = Path(__file__).resolve().parent.parent
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
WIDE = dataclasses.replace(CONFIG, kv_heads=4, vocab=32)  # all of its axes are divided by a (2, 4) mesh
LARGE = dataclasses.replace(CONFIG, vocab=2048, dim=96, ffw=2048, layers=8)
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def random_params(config, dtype="float32"):
    rng = np.random.default_rng(0)
    like = jax.eval_shape(build(config).init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, dtype), like)


@pytest.fixture
def model_dir(tmp_path):
    hf_format.save(tmp_path / "model", CONFIG, random_params(CONFIG))
    return tmp_path / "model"


def rewrite(directory, change):
    """Put other tensors into model.safetensors."""
    tensors = load_file(directory / hf_format.SINGLE)
    change(tensors)
    save_file(tensors, directory / hf_format.SINGLE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_what_was_saved_comes_back_bit_for_bit(tmp_path, config, dtype):
    params = random_params(config, dtype)
    hf_format.save(tmp_path / "model", config, params)
    loaded_config, loaded = hf_format.load(tmp_path / "model", dtype=dtype)
    assert_same(loaded, params)
    assert loaded_config == dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_half_precision_widens_exactly(tmp_path):
    params = random_params(CONFIG, "bfloat16")
    hf_format.save(tmp_path / "model", CONFIG, params)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    _, loaded = hf_format.load(tmp_path / "model", dtype="float32")
    assert_same(loaded, jax.tree.map(lambda x: x.astype(jnp.float32), params))


def test_shards_with_an_index_equal_one_file(tmp_path, model_dir):
    params = random_params(CONFIG)
    hf_format.save(tmp_path / "cut", CONFIG, params, shard_bytes=3000)
    shards = sorted((tmp_path / "cut").glob("*.safetensors"))
    assert len(shards) > 3 and all(shard.stat().st_size < 3000 + 1000 for shard in shards)
    index = json.loads((tmp_path / "cut" / hf_format.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "cut" / file, "np") as reader:
            assert name in reader.keys()  # noqa: SIM118 (it is not a dict)
    assert_same(hf_format.load(tmp_path / "cut")[1], params)

    shards[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{shards[1].name}: missing, but named by .*{hf_format.INDEX}"
    ):
        hf_format.load(tmp_path / "cut")


def test_each_tensor_goes_where_the_table_says(model_dir):
    mesh = make_mesh(4, 2)
    _, params = hf_format.load(model_dir, mesh)
    assert_same(params, random_params(CONFIG))
    where = shardings(params, mesh, RULES)
    assert jax.tree.map(lambda x: x.sharding, params) == where
    assert params["layer_0"]["q_DHK"].addressable_shards[0].data.shape == (4, 2, 6)
    _, whole = hf_format.load(model_dir, mesh, rules={})
    assert whole["layer_0"]["q_DHK"].sharding.is_fully_replicated


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_transformers_loads_what_is_saved_and_agrees(tmp_path, config):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    hf_format.save(tmp_path / "model", config, random_params(config), shard_bytes=6000)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    config, params = hf_format.load(tmp_path / "model")
    tokens_BT = np.arange(10, dtype=np.int32)[None]

    @jax.jit
    def logits(params):
        hidden_BTD, _ = build(config).apply(params, tokens_BT, tokens_BT)
        return hidden_BTD @ build(config).head_DV(params)

    theirs_BTV = theirs(torch.tensor(tokens_BT, dtype=torch.long)).logits.detach().numpy()
    np.testing.assert_allclose(logits(params), theirs_BTV, atol=1e-4)

    # and back: what transformers writes, config.json included
    theirs.save_pretrained(tmp_path / "back")
    config_back, back = hf_format.load(tmp_path / "back")
    assert config_back == config
    assert_same(back, params)


def test_a_tied_model_may_carry_a_copy_of_its_embedding_but_no_other_head(tmp_path):
    directory = tmp_path / "model"
    hf_format.save(directory, TIED, random_params(TIED))
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert_same(hf_format.load(directory)[1], random_params(TIED))
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        hf_format.load(directory)
    # a longer one that begins alike
    longer = lambda t: t.update({"lm_head.weight": np.pad(t["model.embed_tokens.weight"], ((0, 1), (0, 0)))})
    rewrite(directory, longer)
    with pytest.raises(ValueError, match=r"lm_head\.weight .* has shape \(25, 16\), expected \(24, 16\)"):
        hf_format.load(directory)


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
    loaded = lambda *_: pytest.fail("a tensor was loaded before the check")
    monkeypatch.setattr(jax, "make_array_from_callback", loaded)
    with pytest.raises(ValueError) as error:
        hf_format.load(model_dir)
    for word in [str(model_dir / hf_format.SINGLE), Q_PROJ, *words]:
        assert word in str(error.value)


def test_buffers_of_old_files_are_passed_over_and_nothing_else_is(model_dir):
    inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(model_dir, lambda t: t.update({inv_freq: np.ones(3, np.float32)}))
    assert_same(hf_format.load(model_dir)[1], random_params(CONFIG))


def test_an_index_that_is_none_and_a_tensor_in_two_files_are_named(tmp_path):
    directory = tmp_path / "cut"
    hf_format.save(directory, CONFIG, random_params(CONFIG), shard_bytes=3000)
    first, second = sorted(directory.glob("model-*"))[:2]
    tensors = load_file(second)
    save_file(tensors | {next(iter(load_file(first))): np.zeros(2, np.float32)}, second)
    with pytest.raises(ValueError, match=rf"{second.name}: tensor .* is in .*{first.name} too"):
        hf_format.load(directory)
    index = directory / hf_format.INDEX
    for text in (index.read_text()[:-9], "{}", "[]"):
        index.write_text(text)
        with pytest.raises(ValueError, match=rf"{hf_format.INDEX}: not an index with a weight_map"):
            hf_format.load(directory)


class Reader:
    """safe_open that writes down which part of which tensor is read, and how many bytes of them are held."""

    def __init__(self, *args):
        self.file = real_open(*args)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def keys(self):
        return self.file.keys()

    def get_slice(self, name):
        return Slice(name, self.file.get_slice(name))


class Slice:
    parts, held, most = [], 0, 0

    def __init__(self, name, stored):
        self.name, self.stored = name, stored
        self.get_shape, self.get_dtype = stored.get_shape, stored.get_dtype

    def __getitem__(self, cuts):
        array = self.stored[cuts]
        Slice.parts.append((self.name, tuple((cut.start, cut.stop) for cut in cuts)))
        Slice.held += array.nbytes
        Slice.most = max(Slice.most, Slice.held)
        weakref.finalize(array, Slice.free, array.nbytes)
        return array

    @staticmethod
    def free(size):
        Slice.held -= size


real_open = safe_open


@pytest.fixture
def reads(monkeypatch):
    Slice.parts, Slice.held, Slice.most = [], 0, 0
    monkeypatch.setattr(hf_format, "safe_open", Reader)
    return Slice


@pytest.mark.parametrize("rules", [RULES, RULES_DECODE, {}], ids=["training", "decoding", "whole"])
def test_each_part_of_a_file_is_read_once_and_let_go(tmp_path, reads, rules):
    """bfloat16 on disk and float32 here, so that no array of ours can be the one that was read."""
    mesh = make_mesh(2, 4)
    hf_format.save(tmp_path / "model", WIDE, random_params(WIDE, "bfloat16"), shard_bytes=5000)
    _, params = hf_format.load(tmp_path / "model", mesh, rules=rules)
    assert_same(params, jax.tree.map(lambda x: x.astype(jnp.float32), random_params(WIDE, "bfloat16")))

    shapes = {name: weight.hf_shape for name, weight in hf_format._weights(WIDE, params).items()}
    assert len(set(reads.parts)) == len(reads.parts)
    covered = {name: np.zeros(shape, int) for name, shape in shapes.items()}
    for name, cuts in reads.parts:
        covered[name][tuple(slice(*cut) for cut in cuts)] += 1
    assert all((count == 1).all() for count in covered.values())

    pieces = {name: sum(read == name for read, _ in reads.parts) for name in shapes}
    each = {"training": 8, "decoding": 4, "whole": 1}
    expected = each["whole"] if not rules else each["training" if rules is RULES else "decoding"]
    assert pieces[Q_PROJ] == pieces["lm_head.weight"] == pieces["model.embed_tokens.weight"] == expected
    assert pieces["model.norm.weight"] == (2 if rules is RULES else 1)
    assert reads.most <= 2 * max(np.prod(shape) for shape in shapes.values()), "more than one tensor was held"


LETTERS = ("DHK", "DNK", "HKD", "DF", "FD", "DV", "VD", "D", "HK", "K")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LETTERS), st.data())
def test_a_part_read_from_a_file_is_that_part_of_the_whole(letters, data):
    shape = tuple(data.draw(st.integers(1, 5)) for _ in letters)
    index = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        index.append(
            data.draw(st.just(slice(None)) | st.just(slice(start, size)) | st.just(slice(0, start + 1)))
        )
    ours = np.arange(np.prod(shape)).reshape(shape)
    got = hf.part_from_hf(letters, hf.to_hf(letters, ours), shape, tuple(index))
    np.testing.assert_array_equal(got, ours[tuple(index)])


def test_saving_holds_one_file_at_a_time_and_keeps_nothing(tmp_path):
    """numpy's arrays are traced, jax's are not."""
    params = jax.device_put(random_params(LARGE), shardings(random_params(LARGE), make_mesh(2, 4), RULES))
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    shard = 1 << 20
    assert size > 16 * shard
    tracemalloc.start()
    try:
        hf_format.save(tmp_path / "model", LARGE, params, shard_bytes=shard)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 4, "more than a file, a tensor, and what tracing takes"
    assert held < size / 8


PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import test_hf_format as here
here.hf_format.safe_open = here.Reader
config, params = here.hf_format.load(sys.argv[3], here.make_mesh(4, 2), "bfloat16")
assert not params["head_DV"].is_fully_addressable
here.hf_format.save(sys.argv[4], config, params, shard_bytes=3000)
with open(sys.argv[5], "w") as file:  # gloo prints on stdout, in the middle of a line if it comes to that
    print([cuts for name, cuts in here.Slice.parts if name == "lm_head.weight"], file=file)
"""


@pytest.mark.slow
def test_two_processes_read_their_own_parts_and_write_one_model(tmp_path):
    """Each has half of the mesh's data axis: of the head's columns, D, it reads that half."""
    hf_format.save(tmp_path / "model", CONFIG, random_params(CONFIG, "bfloat16"))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": xla_flags(4)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    folders = [str(tmp_path / name) for name in ("model", "copy", "read{}")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i), *(folder.format(i) for folder in folders)],
            env=environment,
            cwd=ROOT,
        )
        for i in range(2)
    ]
    assert [process.wait() for process in running] == [0, 0]
    for i in range(2):
        columns = [(8 * i, 8 * i + 4), (8 * i + 4, 8 * i + 8)]
        parts = [(rows, cut) for rows in ((0, 12), (12, 24)) for cut in columns]
        assert sorted(ast.literal_eval((tmp_path / f"read{i}").read_text())) == sorted(parts)
    assert_same(hf_format.load(tmp_path / "copy", dtype="bfloat16")[1], random_params(CONFIG, "bfloat16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "model", "read0", "read1"]


def test_a_missing_directory_config_or_weight_file_is_named(tmp_path, model_dir):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such directory"):
        hf_format.load(tmp_path / "nowhere")
    (model_dir / hf_format.SINGLE).rename(tmp_path / "kept")
    with pytest.raises(
        FileNotFoundError, match=f"{model_dir}: neither {hf_format.SINGLE} nor {hf_format.INDEX}"
    ):
        hf_format.load(model_dir)
    (model_dir / hf_format.SINGLE).write_bytes((tmp_path / "kept").read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{hf_format.SINGLE}: not a complete safetensors file"):
        hf_format.load(model_dir)
    (model_dir / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: missing"):
        hf_format.load(model_dir)


def test_a_wrong_config_or_dtype_is_named(model_dir):
    with pytest.raises(ValueError, match="dtype = 'int8' is not one of"):
        hf_format.load(model_dir, dtype="int8")
    file = model_dir / "config.json"
    data = json.loads(file.read_text())
    for change, words in {
        "hidden_act": ["hidden_act", "relu"],
        "model_type": ["model_type", "relu", "qwen3"],
    }.items():
        file.write_text(json.dumps(data | {change: "relu"}))
        with pytest.raises(ValueError) as error:
            hf_format.load(model_dir)
        assert all(word in str(error.value) for word in [str(file), *words])
    file.write_text(json.dumps(data)[:-9])
    with pytest.raises(ValueError, match=r"config\.json: "):
        hf_format.load(model_dir)


def test_parameters_of_another_config_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="head_DV"):
        hf_format.save(tmp_path / "model", TIED, random_params(CONFIG))
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_model_keeps_the_card_and_drops_old_shards(tmp_path):
    directory = tmp_path / "model"
    hf_format.save(directory, CONFIG, random_params(CONFIG), shard_bytes=3000)
    (directory / "README.md").write_text("the card")
    hf_format.save(directory, TIED, random_params(TIED))
    assert {path.name for path in directory.iterdir()} == {
        *("README.md", "config.json", "generation_config.json", hf_format.SINGLE)
    }
    assert_same(hf_format.load(directory)[1], random_params(TIED))


def test_a_save_that_dies_leaves_nothing_loadable_or_the_old_model(model_dir, monkeypatch):
    # a kill while writing: the old model is as it was
    with monkeypatch.context() as patch:
        patch.setattr(hf_format, "save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            hf_format.save(model_dir, TIED, random_params(TIED))
    assert_same(hf_format.load(model_dir)[1], random_params(CONFIG))
    # a kill between two renames: the mixture does not load
    replace, count = Path.replace, iter(range(9))

    def dies(self, target):
        if next(count) == 1:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            hf_format.save(model_dir, TIED, random_params(TIED))
    with pytest.raises(FileNotFoundError, match=r"config\.json: missing"):
        hf_format.load(model_dir)


# Parameters that are not finite ---------------------------------------------------------------------------------

NORM, EMBED = "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [Q_PROJ, NORM, EMBED])
def test_a_parameter_that_is_not_finite_is_named(tmp_path, stored, value, name):
    hf_format.save(tmp_path, CONFIG, random_params(CONFIG, stored))

    def spoil(tensors):
        tensors[name].reshape(-1)[[3, -1]] = value

    rewrite(tmp_path, spoil)
    with pytest.raises(ValueError) as error:
        hf_format.load(tmp_path, make_mesh(1, 1, jax.devices()[:1]))
    for word in [str(tmp_path / hf_format.SINGLE), name, "holds 2 values that are NaN or infinite"]:
        assert word in str(error.value)
    with pytest.raises(ValueError, match=r"values? that are NaN or infinite"):  # in the parts of a mesh
        hf_format.load(tmp_path, make_mesh(4, 2))


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (65504.0, "float16", None),  # the largest
        (
            1e6,
            "float16",
            "holds 2 values beyond float16, .* is 1e\\+06.: set dtype to 'bfloat16' or 'float32'",
        ),
        (-1e6, "float16", "holds 2 values beyond float16"),
        (1e6, "bfloat16", None),
        (3.3e38, "bfloat16", None),
        (3.4e38, "bfloat16", "holds 2 values beyond bfloat16"),
        (3.4e38, "float32", None),
        (1e-30, "float16", None),
    ],
)
def test_a_parameter_that_the_dtype_cannot_hold_is_named(model_dir, value, dtype, words):
    rewrite(model_dir, lambda t: t[Q_PROJ].reshape(-1).__setitem__([3, -1], value))
    if words is None:
        hf_format.load(model_dir, dtype=dtype)
        return
    with pytest.raises(ValueError, match=rf"{hf_format.SINGLE}: tensor {Q_PROJ} {words}"):
        hf_format.load(model_dir, make_mesh(1, 1, jax.devices()[:1]), dtype)


def test_a_large_tensor_is_looked_at_in_blocks():
    for dtype in ("float32", jnp.bfloat16, "float16"):
        wide = np.zeros((3, (1 << 23) + 1), dtype).T  # two blocks of rows
        assert hf_format._finite(wide)
        wide[-1, -1] = np.nan
        assert not hf_format._finite(wide)


# A full disk ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_message_and_changes_nothing(tmp_path, model_dir, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))
        with pytest.raises(OSError, match=f"the disk is full: {model_dir} needs .* MB"):
            hf_format.save(model_dir, TIED, random_params(TIED))

    def fails(*_):  # it fills up while writing: the words are those of safetensors on a full tmpfs
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(hf_format, "save_file", fails)
        with pytest.raises(OSError, match="the disk is full"):
            hf_format.save(model_dir, TIED, random_params(TIED))
    assert_same(hf_format.load(model_dir)[1], random_params(CONFIG))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
