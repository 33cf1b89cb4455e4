"""Training states to disk and back: every bit, and every refusal by name."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from trees import assert_same

from int_jax import checkpoint
from int_jax.sharding import RULES, make_mesh, shardings
from int_jax.types import State


def test_a_full_disk_is_one_message_and_changes_nothing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "states", small_state(1))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))
        with pytest.raises(OSError, match=f"the disk is full: {tmp_path / 'states'} needs .* MB"):
            checkpoint.save(tmp_path / "states", small_state(2))

    def fails(*_, **__):  # it fills up while writing: the words are those of tensorstore on a full tmpfs
        raise ValueError(
            "RESOURCE_EXHAUSTED: Failed to write 637734 bytes to file 11: No space left on device"
        )

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.StandardCheckpointer, "save", fails)
        with pytest.raises(OSError, match="the disk is full"):
            checkpoint.save(tmp_path / "states", small_state(2))
    assert checkpoint.saved(tmp_path / "states") == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["states"]


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


@pytest.mark.parametrize("damage", ["empty", "half", "cut"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_stays(tmp_path, damage):
    """A copy or a disk that broke off: an empty folder, a file that is missing, one that is cut short."""
    checkpoint.save(tmp_path, small_state(3))
    checkpoint.save(tmp_path / "other", small_state(9))
    if damage == "empty":
        (tmp_path / "9").mkdir()
    else:
        (tmp_path / "other" / "9").rename(tmp_path / "9")
        for path in [*(tmp_path / "9").rglob("*")]:
            if path.is_file() and (path.name == "_CHECKPOINT_METADATA") == (damage == "half"):
                path.unlink() if damage == "half" else path.write_bytes(
                    path.read_bytes()[: path.stat().st_size // 2]
                )
    with pytest.raises(
        FileNotFoundError, match=rf"{tmp_path / '9'}: .*delete it: the run then goes on from step 3"
    ):
        checkpoint.restore(tmp_path, small_state(0))
    shutil.rmtree(tmp_path / "9")  # as it says
    assert_same(checkpoint.restore(tmp_path, small_state(0)), small_state(3))
