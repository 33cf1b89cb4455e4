"""The training State to disk and back, through Orbax: State and nothing else."""

import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from int_jax import disk, processes
from int_jax.types import State

COMPLETE = "_CHECKPOINT_METADATA"  # the file that Orbax writes last


def save(directory: str | Path, state: State) -> None:
    """Write the state as `directory`/<step>, then remove all others.

    Only a complete checkpoint is ever named by digits alone: it is written under another name and renamed, and renamed
    again before it is removed, so a process may be killed at any moment.
    """
    directory = Path(directory).absolute()
    step = str(int(state.step))
    fresh, stale = directory / f"{step}.fresh", directory / f"{step}.stale"
    with disk.room(directory, state):
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(fresh, state, force=True)
        except BaseException:
            for part in directory.glob(f"{step}.fresh*"):
                shutil.rmtree(part)
            raise
    if processes.is_main_process():
        _rename(directory, step, fresh, stale)
    processes.barrier(f"{directory / step} is saved")


def _rename(directory: Path, step: str, fresh: Path, stale: Path) -> None:
    if (directory / step).exists():
        shutil.rmtree(stale, ignore_errors=True)
        (directory / step).rename(stale)
    fresh.rename(directory / step)
    for old in directory.iterdir():
        if old.name.isdigit() and old.name != step:
            old = old.rename(old.with_name(f"{old.name}.stale"))
        if ".stale" in old.name or ".fresh" in old.name:
            shutil.rmtree(old)


def saved(directory: str | Path) -> list[int]:
    """The steps whose checkpoints are complete, ascending."""
    return sorted(int(path.name) for path in Path(directory).glob("*") if path.name.isdigit())


def restore(directory: str | Path, like: State) -> State | None:
    """The newest state, placed as `like` is; None where there is none.

    Raises: FileNotFoundError where it is not there as a whole, naming it.
    """
    steps = processes.from_main_process(saved(directory))
    if not steps:
        return None
    newest = Path(directory).absolute() / str(steps[-1])
    from_there = f"goes on from step {steps[-2]}" if len(steps) > 1 else "begins this policy anew"
    fix = f"copy it again, or delete it: the run then {from_there}"
    if not processes.from_main_process((newest / COMPLETE).is_file()):
        raise FileNotFoundError(f"{newest}: no whole checkpoint, its {COMPLETE} is missing; {fix}")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(newest, abstract)
        except (ValueError, KeyError, OSError) as error:  # Orbax and tensorstore name no folder
            raise FileNotFoundError(f"{newest}: no whole checkpoint ({str(error)[:500]}); {fix}") from error
