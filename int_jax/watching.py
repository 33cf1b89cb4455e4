"""What a run tells of its speed: how fast responses are drawn, where the time of an update goes, what of the machine
that takes. Nothing that a run computes depends on it."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from int_jax import disk
from int_jax.roofline import DEVICES, Shape, training_flops
from int_jax.types import Batch


class Chunk(NamedTuple):
    """What one decode did (`session.EngineSession`).

    Attributes:
      seconds: since the one before was read: with the prefill between them, and the host's work.
      tokens: drawn. places: that the program had for tokens: its steps times its rows.
      needed: bytes that had to be read for these tokens: in each step the weights once on each replica, and the keys
        and values of each row that runs.
    """

    seconds: float
    tokens: int
    places: int
    needed: int


class Meter:
    """Adds up chunks, and tells a line of them every `every` seconds of decoding (0: one a chunk), and at its end.

    A line has: tokens_per_s; occupancy, the share of the places in the programs that drew a token; useful_bytes, what
    had to be read over what the devices can read in that time (absent where their bandwidth is not known), useful_gb_s
    (10^9 bytes a second of all devices); programs, compiled so far; memory_gib, in use on one device (absent on CPU).

    Args:
      engine: the one that draws. tell: is given each line.
    """

    def __init__(self, engine: Any, tell: Callable[[dict[str, float]], object], every: float = 10.0):
        self.engine, self.tell, self.every = engine, tell, every
        self.sum = Chunk(0.0, 0, 0, 0)
        self.seconds = 0.0  # of all chunks

    def __enter__(self) -> "Meter":
        self.engine.watch = self
        return self

    def __exit__(self, *_) -> None:
        self.engine.watch = None
        if self.sum.places:
            self._tell()

    def __call__(self, chunk: Chunk) -> None:
        seconds, tokens, places, needed = (a + b for a, b in zip(self.sum, chunk, strict=True))
        self.sum = Chunk(seconds, int(tokens), int(places), int(needed))
        self.seconds += chunk.seconds
        if self.sum.seconds >= self.every:
            self._tell()

    def _tell(self) -> None:
        chunk, self.sum = self.sum, Chunk(0.0, 0, 0, 0)
        seconds = max(chunk.seconds, 1e-9)
        device, count = self.engine.device, self.engine.local.devices.size
        line = {
            "seconds": chunk.seconds,
            "tokens": chunk.tokens,
            "tokens_per_s": chunk.tokens / seconds,
            "occupancy": chunk.tokens / max(1, chunk.places),
            "useful_gb_s": chunk.needed / seconds / 1e9,
            "programs": len(self.engine.programs),
        }
        if kind := DEVICES.get(device.device_kind):
            line["useful_bytes"] = chunk.needed / seconds / (kind.bandwidth * count)
        self.tell(line | memory(device))


def memory(device: jax.Device) -> dict[str, float]:
    """GiB in use on a device that tells it."""
    stats = device.memory_stats()
    return {"memory_gib": stats["bytes_in_use"] / 2**30} if stats else {}


# Of the time of an update: drawing its responses; what is left until all are graded; making a batch of them; the update
# itself; and checkpoints, results and report.
PARTS = ("sample", "grade", "pack", "update", "save")


class Split:
    """Where the time of a training goes: seconds by PARTS since it was last asked (`line`), and what was trained."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.tokens = self.seen = 0  # as of roofline.training_flops
        self.since = time.perf_counter()

    def lap(self, part: str) -> None:
        """What went by since the last lap was `part`."""
        now = time.perf_counter()
        self.seconds[part] += now - self.since
        self.since = now

    def drew(self, seconds: float) -> None:
        """A batch was drawn and graded since the last lap, in which tokens came for so many seconds; 0: not known."""
        before = self.seconds["sample"]
        self.lap("sample")
        if seconds:
            rest = max(0.0, self.seconds["sample"] - before - seconds)
            self.seconds["sample"] -= rest
            self.seconds["grade"] += rest

    def begin(self, batch: Batch) -> None:
        """An update on a batch begins: what went by before was packing."""
        self.lap("pack")
        real_MBT = np.asarray(batch.segments_MBT) > 0
        self.tokens += int(real_MBT.sum())
        self.seen += int((np.asarray(batch.positions_MBT)[real_MBT] + 1).sum(dtype=np.int64))

    def line(self, engine: Any) -> dict[str, float]:
        """The scalars of all since the last line, after which it begins anew.

        seconds/PART; trained_tokens_per_s, those that went through the model in the seconds of the updates; flops_used,
        the share of the devices' operations that the model needed in that time (MFU; where roofline.py has the
        devices); memory_gib, in use on one device, where it tells. engine: the one that trains.
        """
        seconds, tokens, seen = self.seconds, self.tokens, self.seen
        self.clear()
        found = {f"seconds/{part}": value for part, value in seconds.items()}
        update = max(seconds["update"], 1e-9)
        found["trained_tokens_per_s"] = tokens / update
        if kind := DEVICES.get(engine.device.device_kind):
            needed = training_flops(Shape.of(engine.model.config), tokens, seen)
            found["flops_used"] = needed / update / (kind.flops * engine.mesh.devices.size)
        return found | memory(engine.device)


class Profile(contextlib.AbstractContextManager):
    """Has jax.profiler record some updates of a training, for TensorBoard, XProf or Perfetto; each process its own.

    Args:
      folder: where. first, updates: the first one's number, from 0, and how many. each: updates of a batch.
    """

    def __init__(self, folder: Path, first: int, updates: int, each: int = 1):
        self.folder, self.first, self.last, self.each = folder, first, first + updates, each
        self.here = folder
        self.on = False

    def before(self, update: int) -> None:
        """A batch comes next that begins with this update."""
        wanted = update < self.last and update + self.each > self.first
        if wanted and not self.on:
            self.here = disk.folder_here(self.folder)
            jax.profiler.start_trace(str(self.here))
            self.on = True
        elif not wanted:
            self._stop()

    def __exit__(self, *_) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.on:
            self.on = False
            jax.profiler.stop_trace()
            disk.send(self.here, self.folder)
