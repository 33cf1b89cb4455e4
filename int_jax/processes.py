"""A run on several hosts: one process each, all running the same program on the mesh of all devices.

What every process computes alike (data order, random streams, the loop of the slots) it computes by itself. What might
differ (files that exist, a grader's time-out) process 0 decides, and it alone writes. With one process all of this is
nothing.
"""

import json

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_main_process() -> bool:
    """Whether this is process 0, which decides, writes and shows."""
    return jax.process_index() == 0


def from_main_process(value):
    """Process 0's value, of JSON types, on every process; all of them call this, and the others' value is ignored."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_main_process() else np.zeros(0, np.uint8)
    # A broadcast needs one shape on all processes: the length goes first, then the text.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = multihost_utils.broadcast_one_to_all(text if is_main_process() else np.zeros(size, np.uint8))
    return json.loads(np.asarray(sent, np.uint8).tobytes())


def to_host(array) -> np.ndarray:
    """The whole of a device array on the host; where parts of it live elsewhere, all processes call this."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
