"""Training states to disk and back: every bit, which of them stay, and every refusal by name."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_same

from int_jax import checkpoint
from int_jax.checkpoint import Checkpoints, Keep
from int_jax.sharding import RULES, make_mesh, shardings
from int_jax.types import State

ROOT = Path(__file__).resolve().parents[1]


def small_state(step, mesh=None):
    params = {
        "q_DHK": jnp.arange(64, dtype=jnp.float32).reshape(8, 4, 2) / 7 + step,
        "norm_D": jnp.ones(8, jnp.bfloat16),
    }
    state = State(jnp.asarray(step, jnp.int32), params, optax.adamw(1e-3).init(params))
    return jax.device_put(state, shardings(state, make_mesh(4, 2) if mesh is None else mesh, RULES))


NEWEST = Keep()


def save(directory, *steps, keep=NEWEST):
    with Checkpoints(directory, keep) as checkpoints:
        for step in steps:
            checkpoints.save(small_state(step))


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_state_comes_back_bit_for_bit_on_any_mesh(tmp_path):
    state = small_state(3)
    save(tmp_path, 3)
    for mesh in (make_mesh(4, 2), make_mesh(1, 1, jax.devices()[:1])):
        like = small_state(0, mesh)
        restored = checkpoint.restore(tmp_path, like)
        assert_same(restored, state)
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, like)


def test_what_is_saved_is_the_state_as_it_was_though_its_arrays_are_given_away(tmp_path):
    """The file is written while updates go on in the state's own memory."""
    add = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    weights = np.arange(1 << 22, dtype=np.float32).reshape(1 << 11, -1)

    def begun() -> State:
        return add(State(jnp.asarray(0, jnp.int32), {"up_DF": jnp.asarray(weights)}, ()))

    state = begun()
    add(state)
    assert state.params["up_DF"].is_deleted()  # so they are
    with Checkpoints(tmp_path) as checkpoints:
        state = begun()
        checkpoints.save(state)
        for _ in range(5):
            state = add(state)
    assert_same(checkpoint.restore(tmp_path, state), State(np.int32(1), {"up_DF": weights + 1}, ()))


# --- which stay -----------------------------------------------------------------------------------------------------


def test_the_newest_state_alone_is_kept(tmp_path):
    assert checkpoint.restore(tmp_path / "none", small_state(0)) is None
    save(tmp_path, 9, 10)
    assert names(tmp_path) == ["10"]
    with pytest.raises(ValueError, match="step 10 already exists"):
        save(tmp_path, 10)
    assert_same(checkpoint.restore(tmp_path, small_state(0)), small_state(10))


SCORES = {1: 0.5, 2: 0.25, 3: 0.75, 4: 0.0, 5: 0.75, 6: 0.5, 7: 0.5, 8: 0.125}


@pytest.mark.parametrize(
    ("keep", "wanted", "starts"),
    [
        (Keep(), {8}, 1),
        (Keep(last=3), {6, 7, 8}, 1),
        (Keep(every=3), {3, 6, 8}, 1),
        (Keep(best=1), {5, 8}, 1),  # of equal ones the newest
        (Keep(best=2), {3, 5, 8}, 4),  # a run that was started again knows the scores
        (Keep(last=2, every=4, best=1), {4, 5, 7, 8}, 2),
    ],
    ids=str,
)
def test_what_is_kept(tmp_path, keep, wanted, starts):
    mesh = make_mesh(1, 1, jax.devices()[:1])
    for steps in np.array_split(sorted(SCORES), starts):
        with Checkpoints(tmp_path, keep) as checkpoints:
            for step in steps.tolist():
                checkpoints.save(small_state(step, mesh), SCORES[step] if keep.best else None)
    assert {*checkpoint.saved(tmp_path)} == wanted
    assert_same(checkpoint.restore(tmp_path, small_state(0)), small_state(8))


@pytest.mark.parametrize("starts", [1, 2, 5])
def test_a_checkpoint_without_a_score_is_never_one_of_the_best(tmp_path, starts):
    """One that was saved because of its time."""
    mesh, scores = make_mesh(1, 1, jax.devices()[:1]), {1: None, 2: 0.5, 3: None, 4: 0.25, 5: 0.25}
    for steps in np.array_split(sorted(scores), starts):
        with Checkpoints(tmp_path, Keep(best=1)) as checkpoints:
            for step in steps.tolist():
                checkpoints.save(small_state(step, mesh), scores[step])
    assert {*checkpoint.saved(tmp_path)} == {2, 5}


def test_the_last_one_always_stays():
    for bad in ({"last": 0}, {"every": -1}, {"best": -1}):
        with pytest.raises(ValueError, match="last must be at least 1"):
            Keep(**bad)


# --- kills, damage, a full disk -------------------------------------------------------------------------------------


def test_what_a_kill_left_half_written_or_half_removed_goes(tmp_path):
    save(tmp_path, 1, 2, keep=Keep(last=2))
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()  # its removal had begun
    assert_same(checkpoint.restore(tmp_path, small_state(0)), small_state(2))
    save(tmp_path)
    assert names(tmp_path) == ["2"]
    save(tmp_path, 3)
    assert names(tmp_path) == ["3"]


KILLED = """
import sys
from test_checkpoint import Checkpoints, small_state
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(int(sys.argv[2]), 100_000):
        checkpoints.save(small_state(step))
        print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_while_it_saves_the_newest_is_whole(tmp_path):
    """SIGKILL, again and again, of a process that does nothing but save: what it had said to be saved is there."""
    rng, next_step = np.random.default_rng(0), 1
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(next_step)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(int(rng.integers(2, 9))):
            begun = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        state = checkpoint.restore(tmp_path, small_state(0))
        next_step = int(state.step) + 1
        assert int(state.step) >= begun - 1  # the save before the one that may still be running
        assert_same(state, small_state(int(state.step)))
    save(tmp_path, next_step)
    assert names(tmp_path) == [str(next_step)]


@pytest.mark.parametrize("damage", ["empty", "half", "cut"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_stays(tmp_path, damage):
    """A copy or a disk that broke off: an empty folder, a file that is missing, one that is cut short."""
    save(tmp_path, 3)
    save(tmp_path / "other", 9)
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


def test_a_flipped_byte_in_the_numbers_is_refused(tmp_path):
    """Orbax sees nothing of it."""
    state = small_state(9, make_mesh(1, 1, jax.devices()[:1]))
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    state = state._replace(params={**state.params, "up_DF": jnp.asarray(weights)})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    [path] = [path for path in (tmp_path / "9").rglob("*") if path.is_file() and path.stat().st_size > 12_000]
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0x10
    path.write_bytes(whole)
    words = rf"{tmp_path / '9'}: damaged: .params\['up_DF'\] holds other numbers than were saved; .*delete it"
    with pytest.raises(FileNotFoundError, match=words):
        checkpoint.restore(tmp_path, state)


FULL_WORDS = {  # as the kernel and tensorstore put it
    "at once": ValueError(
        "RESOURCE_EXHAUSTED: Failed to write 637734 bytes to file 11: No space left on device"
    ),
    "in the background": OSError(errno.ENOSPC, "No space left on device"),
}


def test_a_disk_without_room_is_one_message_and_changes_nothing(tmp_path, monkeypatch):
    save(tmp_path / "states", 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))
        with pytest.raises(OSError, match=f"the disk is full: {tmp_path / 'states'} needs .* MB"):
            save(tmp_path / "states", 2)
    assert checkpoint.saved(tmp_path / "states") == [1]
    assert names(tmp_path) == ["states"]


@pytest.mark.parametrize("where", FULL_WORDS)
def test_a_disk_that_runs_full_is_one_message_and_keeps_what_was_saved(tmp_path, monkeypatch, where):
    save(tmp_path, 1)

    def fails(*_, **__):
        raise FULL_WORDS[where]

    manager, handler = checkpoint.ocp.CheckpointManager, checkpoint.ocp.StandardCheckpointHandler
    removes, tries = shutil.rmtree, []

    def too_early(path, ignore_errors=False):
        """The first time another thread still writes into it."""
        tries.append(path)
        if len(tries) > 1:
            removes(path, ignore_errors)
        elif not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", too_early)
        patch.setattr(*((manager, "save") if where == "at once" else (handler, "finalize")), fails)
        with Checkpoints(tmp_path) as checkpoints:
            with pytest.raises(OSError, match=f"the disk is full: {tmp_path} needs .* MB"):
                checkpoints.save(small_state(2))
                checkpoints.wait()
            assert names(tmp_path) == ["1"]
    assert_same(checkpoint.restore(tmp_path, small_state(0)), small_state(1))
    save(tmp_path, 2)  # with room again
    assert names(tmp_path) == ["2"]
