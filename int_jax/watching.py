"""How fast responses are drawn, and how much of the machine that takes: a line for some seconds of decoding."""

from collections.abc import Callable
from typing import Any, NamedTuple

# Bytes a second between a device's memory and its cores, as their makers state them.
BANDWIDTH = {
    "TPU v4": 1.228e12,
    "TPU v5": 2.765e12,
    "TPU v5 lite": 0.819e12,
    "TPU v6 lite": 1.64e12,
    "NVIDIA A100-SXM4-40GB": 1.555e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H200": 4.8e12,
}


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
        if bandwidth := BANDWIDTH.get(device.device_kind):
            line["useful_bytes"] = chunk.needed / seconds / (bandwidth * count)
        if stats := device.memory_stats():
            line["memory_gib"] = stats["bytes_in_use"] / 2**30
        self.tell(line)
