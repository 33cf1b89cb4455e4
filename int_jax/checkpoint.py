"""State to and from disk (Orbax). A checkpoint is State and nothing else."""

import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from int_jax.types import State


def save(directory: str | Path, state: State) -> None:
    """Write the state as `directory`/<step>, then remove the older ones; a half-written one is never seen."""
    directory = Path(directory).absolute()
    step = int(state.step)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / str(step), state, force=True)
    for old in saved(directory):
        if old != step:
            shutil.rmtree(directory / str(old))


def saved(directory: str | Path) -> list[int]:
    """The steps whose checkpoints are complete, ascending."""
    directory = Path(directory)
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def restore(directory: str | Path, like: State) -> State | None:
    """The newest state, placed as `like` is; None where there is none."""
    steps = saved(directory)
    if not steps:
        return None
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(Path(directory).absolute() / str(steps[-1]), abstract)
