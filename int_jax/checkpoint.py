"""The training State to disk and back, through Orbax's CheckpointManager: State and nothing else.

A checkpoint is a folder named by its step. Orbax writes it under another name, renames it once it is whole, and then
alone removes those that are not kept: a process may be killed at any moment, and the newest of these folders is whole.
Orbax has no checksum of an array's numbers; beside them stand our own, which tell a byte that was flipped on the disk.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.utils import is_checkpoint_finalized

from int_jax import disk, processes
from int_jax.types import State

ITEM = "default"  # the folder in a checkpoint that holds the state, as Orbax calls it
COMPLETE = "_CHECKPOINT_METADATA"  # the file that Orbax writes last
UNFINISHED = "*.orbax-checkpoint-tmp*"
SCORE = "score"
SUMS = "sums"
TIMEOUT_S = 3_600  # of a write in the background


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints of a training stay.

    Attributes:
      last: so many of the newest, at least one: there a run goes on. every: those whose step is a multiple of it; 0:
        none. best: so many with the highest scores; of equal ones the newest.
    """

    last: int = 1
    every: int = 0
    best: int = 0

    def __post_init__(self):
        if self.last < 1 or min(self.every, self.best) < 0:
            raise ValueError(f"{self}: last must be at least 1, every and best at least 0")

    def policy(self) -> policies.PreservationPolicy:
        kept: list[policies.PreservationPolicy] = [policies.LatestN(self.last)]
        if self.every:
            kept.append(policies.EveryNSteps(self.every))
        if self.best:
            kept.append(
                policies.BestN(get_metric_fn=_score, n=self.best, keep_checkpoints_without_metrics=False)
            )
        return policies.AnyPreservationPolicy(kept)


def _score(metrics: dict[str, float]) -> float:
    return metrics[SCORE]


class Checkpoints:
    """The checkpoints that one training writes, in the background: a context manager, at whose end all are on disk."""

    def __init__(self, directory: str | Path, keep: Keep = Keep()):
        """Remove what an interrupted run left half written, or was about to remove."""
        self.directory = disk.absolute(directory)
        self._bytes = 0
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.policy(),
            best_fn=_score if keep.best else None,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(timeout_secs=TIMEOUT_S),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        steps = self._manager.all_steps()
        # As Orbax's policies see a checkpoint: its step, and the metrics that it was saved with.
        found = [SimpleNamespace(step=step, time=None, metrics=self._manager.metrics(step)) for step in steps]
        kept = keep.policy().should_preserve(found, context=policies.PreservationContext())
        for step in (step for step, stays in zip(steps, kept, strict=True) if not stays):
            self._manager.delete(step)

    def save(self, state: State, score: float | None = None) -> None:
        """Begin to write the state as `directory`/<step>. It is copied to the host before this returns, so that its
        arrays may be given to the next update.

        Args:
          score: what the best ones are told apart by; one without is none of them.

        Raises: OSError where the disk is full, now or while the one before was written; ValueError where there is a
          checkpoint of that step.
        """
        self.wait()  # what it removes makes room
        self._bytes = disk.bytes_of(state)
        with disk.room(self.directory, state), self._cleared():
            self._manager.save(
                int(state.step),
                args=ocp.args.StandardSave(state),
                metrics=None if score is None else {SCORE: score},
                custom_metadata={SUMS: sums(state)},
                # When to save is said by who calls, not by Orbax's own intervals.
                force=True,
            )

    def wait(self) -> None:
        """Return once all is on disk. Raises: OSError where that ran full."""
        with disk.told_when_full(self.directory, self._bytes), self._cleared():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _cleared(self):
        """Of a write that fails nothing stays."""
        try:
            yield
        except Exception:
            if processes.is_main_process():
                # A thread of Orbax may still write into it; what stays the next `Checkpoints` removes.
                for _ in range(100):
                    if not (parts := [*self.directory.glob(UNFINISHED)]):
                        break
                    for part in parts:
                        shutil.rmtree(part, ignore_errors=True)
                    time.sleep(0.01)
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()


def sums(tree) -> list[int]:
    """Of each array the sum of its words, modulo 2^32: the same on any mesh, and another one if a byte is."""
    found = []
    for leaf in jax.tree.leaves(tree):
        words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        # One after the other: the collectives of several at a time may meet in another order on another host.
        found.append(int(processes.to_host(jnp.sum(words, dtype=jnp.uint32))))
    return found


def saved(directory: str | Path) -> list[int]:
    """The steps whose checkpoints are complete, ascending."""
    steps = [path for path in disk.place(directory).glob("*") if path.name.isdigit()]
    # Of an address Orbax renames no folder: it writes a file into it at the end.
    return sorted(
        int(path.name) for path in steps if not disk.is_address(path) or is_checkpoint_finalized(path)
    )


def restore(directory: str | Path, like: State) -> State | None:
    """The newest state, placed as `like` is; None where there is none. On whatever mesh it was saved, no more is held
    than the one state.

    Args:
      like: a state, or its shapes, dtypes and shardings alone.

    Raises: FileNotFoundError where it is not there as a whole, naming it.
    """
    steps = processes.from_main_process(saved(directory))
    if not steps:
        return None
    newest = disk.absolute(directory) / str(steps[-1])
    from_there = f"goes on from step {steps[-2]}" if len(steps) > 1 else "begins this policy anew"
    fix = f"copy it again, or delete it: the run then {from_there}"
    if not processes.from_main_process((newest / COMPLETE).is_file()):
        raise FileNotFoundError(f"{newest}: no whole checkpoint, its {COMPLETE} is missing; {fix}")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            state = checkpointer.restore(newest / ITEM, abstract)
            expected = json.loads((newest / COMPLETE).read_text())["custom_metadata"][SUMS]
        except (ValueError, KeyError, OSError) as error:  # Orbax and tensorstore name no folder
            raise FileNotFoundError(f"{newest}: no whole checkpoint ({str(error)[:500]}); {fix}") from error
    for (path, _), one, other in zip(jax.tree.leaves_with_path(state), sums(state), expected, strict=True):
        if one != other:
            raise FileNotFoundError(
                f"{newest}: damaged: {jax.tree_util.keystr(path)} holds other numbers than were saved; {fix}"
            )
    return state
