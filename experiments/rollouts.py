"""The rollouts of the policy gradient on disk, a file a batch: what was drawn, what it was worth, what it weighed.

A file is a gzip of JSON lines, a `rows.RolloutRow` each; it is written whole before the batch is trained on, and a
resumed run writes the same one again. With a checkpoint of the policy before it, it is all that the update depends on.
"""

import gzip
import json
from pathlib import Path

import numpy as np

from int_jax import disk
from int_jax.rows import RolloutRow
from int_jax.stages import write_atomically
from int_jax.types import Trace, from_json, to_json

# 2 M tokens, a batch of the paper's, are 58 MB of JSON and 23 MB at the lowest level: level 6 saves 2 MB of these, and
# takes eight times as long.
LEVEL = 1


def path_of(folder: Path, update: int) -> Path:
    """The file of the batch that begins at an update (from 0), in a policy's folder of a workdir."""
    return folder / "rollouts" / f"{update:06d}.jsonl.gz"


def write(
    folder: Path, update: int, groups: list[list[Trace]], rewards: np.ndarray, advantages: list
) -> None:
    """Write a batch's rollouts; rewards and advantages as `policy_gradient.advantages_of` takes and makes them."""
    lines = []
    for number, (group, worth, values) in enumerate(zip(groups, rewards, advantages, strict=True)):
        for index, trace in enumerate(group):
            advantage = None if values is None else np.asarray(values[index], np.float64)
            row = RolloutRow(trace, number, float(worth[index]), advantage)
            lines.append(json.dumps(to_json(row)) + "\n")
    write_atomically(path_of(folder, update), gzip.compress("".join(lines).encode(), LEVEL, mtime=0))


def read(folder: str | Path, update: int) -> list[list[RolloutRow]]:
    """The rollouts of the batch that begins at an update, by group. Raises: FileNotFoundError."""
    groups: dict[int, list[RolloutRow]] = {}
    path = path_of(disk.place(folder), update)
    with path.open("rb") as opened, gzip.open(opened, "rt", encoding="utf-8") as file:
        for line in file:
            row = from_json(RolloutRow, json.loads(line))
            groups.setdefault(row.group, []).append(row)
    return [*groups.values()]
