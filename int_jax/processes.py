"""A run on several hosts: one process each, all running the same program.

What every process computes alike (data order, random streams, updates on the mesh of all devices) it computes by
itself. What can be cut into items is dealt (`deal`): each works on its share, and all get everything. What might differ
(files that exist, the time) process 0 decides, and it alone writes. With one process all of this is nothing.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from int_jax import preemption, types
from int_jax.preemption import Preempted

CHUNK = 1 << 24  # bytes of each process that are exchanged at once: every device holds so many of all of them
PATIENCE_MS = 30 * 24 * 3600 * 1000  # for the others' shares: the coordinator tells of a process that is gone
SILENCE_S = 30  # after which a process that says nothing is gone, and jax ends the others, naming it
LEAVING_S = 40  # that one which has ended waits for the others to do so, too, before it is an error of all
_meetings = itertools.count()
_dealing = False


def join(address: str | None, count: int | None, number: int | None) -> None:
    """Become one of the processes of a run (`jax.distributed.initialize`). One that dies ends all others within a
    minute."""
    jax.distributed.initialize(
        address, count, number, heartbeat_timeout_seconds=SILENCE_S, shutdown_timeout_seconds=LEAVING_S
    )


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


def by_main_process(compute: Callable[[], Any]) -> Any:
    """What `compute` gives on process 0, of JSON types, on every process; where it raises, all of them do."""
    if jax.process_count() == 1:
        return compute()
    value, error = None, None
    if is_main_process():
        try:
            value = compute()
        except Exception as raised:
            error = raised
    value, said = from_main_process([value, error and told(error)])
    if error:
        raise error
    if said:
        raise RuntimeError(f"process 0 of {jax.process_count()} failed: {said}")
    return value


def end_if_asked(in_step: bool) -> None:
    """A place where a run that was asked to end does: between two programs of what takes long, with nothing half done.

    Args:
      in_step: whether all processes come here together; else each ends its own share (`deal`).

    Raises: Preempted, where all processes are in step all of them.
    """
    if jax.process_count() == 1 or _dealing:
        ends = preemption.asked()
    else:  # one that works alone on what all of them do must not part from the others
        ends = in_step and preemption.listening() and from_main_process(preemption.asked())
    if ends:
        raise Preempted


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def deal(items: list, work: Callable[[list], list], kind: Any, independent: bool) -> list:
    """The results of work on all items, in order, on every process; all of them call this together.

    Each process works on its share (`shares`), then the results are exchanged. Within a share nothing is dealt again.

    Args:
      work(part) -> a result for each item of the part. kind: the type of a result (`types.from_bytes`).
      independent: whether a process can work without the others (`sampler.independent`); else each does all of it, in
        step with them.

    Raises: what the work of this process raised; RuntimeError, naming process and error, where another's did;
      Preempted, on all of them, where one was asked to end.
    """
    global _dealing
    count, here = jax.process_count(), jax.process_index()
    if count == 1 or not independent or _dealing:
        return work(items)
    every = shares([size(item) for item in items], count)
    made, error = b"", None
    _dealing = True
    try:
        made = types.to_bytes(work([items[i] for i in every[here]]))
    except Exception as raised:
        error = raised
    finally:
        _dealing = False
    # Whoever failed says so first: its results will not come.
    failed = exchange(told(error).encode() if error else b"")
    ended = told(Preempted()).encode()
    if error and not isinstance(error, Preempted):
        error.add_note(f"on process {here} of {count}")
        raise error
    for process, said in enumerate(failed):
        if said not in (b"", ended):
            raise RuntimeError(f"process {process} of {count} failed: {said.decode()}")
    if ended in failed:
        raise Preempted
    out: list = [None] * len(items)
    for share, data in zip(every, exchange(made), strict=True):
        for i, result in zip(share, types.from_bytes(kind, data), strict=True):
            out[i] = result
    return out


def size(item: Any) -> int:
    """How much work an item is, as far as is known beforehand: the tokens of a trace that is to be continued or looked
    at, the letters of a problem; of a tuple its parts'."""
    if isinstance(item, tuple):
        return sum(map(size, item))
    if isinstance(item, types.Trace):
        return len(item.tokens)
    return len(item.problem) if isinstance(item, types.Task) else 0


def shares(sizes: list[float], count: int) -> list[list[int]]:
    """The indices of the items that each of `count` processes works on: the largest first, to and fro."""
    # Sizes 9 8 7 6 5 to 2 processes: 9 6 5 and 8 7.
    out: list[list[int]] = [[] for _ in range(count)]
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda i: -sizes[i])):
        turn, seat = divmod(place, count)
        out[count - 1 - seat if turn % 2 else seat].append(index)
    return [sorted(share) for share in out]


def total(number: int, independent: bool) -> int:
    """The sum over the processes of what each counted in its share; the number itself where nothing was dealt."""
    if jax.process_count() == 1 or not independent or _dealing:
        return number
    return sum(int(said) for said in exchange(str(number).encode()))


def exchange(mine: bytes) -> list[bytes]:
    """What each process gives, in their order, on every process; whoever is ready waits for the others."""
    from orbax.checkpoint import multihost  # slow to import

    # A collective that waits for hours may be taken for a fault, and it would not see that a process is gone.
    multihost.get_barrier_sync_fn()(key=f"exchange {next(_meetings)}", timeout_ms=PATIENCE_MS)
    sizes = multihost_utils.process_allgather(np.array(divmod(len(mine), CHUNK), np.int32))
    lengths = [whole * CHUNK + rest for whole, rest in sizes.tolist()]
    parts: list[list[bytes]] = [[] for _ in lengths]
    for start in range(0, max(lengths), CHUNK):
        # A power of two, so that few programs are compiled.
        width = 1 << (min(CHUNK, max(lengths) - start) - 1).bit_length()
        part = np.frombuffer(mine[start : start + width], np.uint8)
        rows = multihost_utils.process_allgather(np.pad(part, (0, width - len(part))))
        for process, row in enumerate(rows):
            parts[process].append(row[: max(0, lengths[process] - start)].tobytes())
    return [b"".join(some) for some in parts]


def to_host(array) -> np.ndarray:
    """The whole of a device array on the host; where parts of it live elsewhere, all processes call this."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
