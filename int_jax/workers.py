"""Processes that can be killed: one that is late, or dies, costs the item that it was asked, never the run.

No time-out inside a process stops 9^(9^(9^9)), a parser's recursion, or a program under test. A worker is a process of
its own, in a session of its own. It says READY once it has started, which takes it as long as it may and counts against
no item; then it reads a request and writes a reply, in turn. A reply is one line that ends in STAYS or in LEAVES: a
worker that leaves wants to be killed and replaced. `Pool` is the caller's side, `serve` the worker's.
"""

import abc
import atexit
import collections
import contextlib
import json
import logging
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import connection
from typing import Self

START_S = 120.0  # for a worker to import what it needs: 1 s on an idle machine
MAX_FAILED_STARTS = 3  # in a row
MEMORY_BYTES = 4 << 30  # address space
GRACE_S = 1.0  # the caller kills at the deadline; if it is gone, the worker ends itself this much later
READY, STAYS, LEAVES = b"ready", b"+\n", b"-\n"
IDLE, STARTING = -1, -2  # a worker's `item` when it has none
STDERR_CHARS = 2_000  # of a worker that does not start


class Worker:
    """One process: busy with `item` (or IDLE, or STARTING) until `expires`, seconds of time.monotonic()."""

    def __init__(self, command: list[str], environment: Mapping[str, str]):
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            bufsize=0,
            start_new_session=True,
            env=environment,
        )
        assert self.process.stdin and self.process.stdout  # they are pipes
        self.requests, self.replies = self.process.stdin, self.process.stdout
        os.set_blocking(self.requests.fileno(), False)
        self.item, self.expires = STARTING, time.monotonic() + START_S
        self.heard = b""

    def fileno(self) -> int:
        return self.replies.fileno()

    def send(self, item: int, request: bytes, deadline_s: float) -> None:
        """Raises BrokenPipeError if the process is gone and has seen nothing of the item."""
        # Another process that is being started may still hold its end of the pipe, and a write would succeed.
        if self.process.poll() is not None:
            raise BrokenPipeError(f"the worker ended with {self.process.returncode}")
        self.item, self.expires, self.heard = item, time.monotonic() + deadline_s, b""
        pipe, unsent = self.requests.fileno(), memoryview(request)
        writable = select.poll()
        writable.register(pipe, select.POLLOUT)
        # What does not fit in the pipe's buffer waits until it is read, no longer than the item may take.
        while unsent and writable.poll(1e3 * max(0.0, self.expires - time.monotonic())):
            try:
                unsent = unsent[os.write(pipe, unsent) :]
            except BrokenPipeError:
                if len(unsent) == len(request):
                    raise
                return  # it died of the item

    def receive(self) -> bytes | None:
        """A whole reply with its ending, b"" if the process died instead, None while more of it has to come."""
        part = os.read(self.fileno(), 1 << 16)
        self.heard += part
        return None if part and not part.endswith(b"\n") else self.heard if part else b""

    def stop(self) -> None:
        # Before wait(), while the pid is still ours. macOS refuses to signal a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        self.stop()
        for pipe in (self.requests, self.replies, self.stderr):
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: left behind
            self.process.wait(timeout=1)


class Pool(abc.ABC):
    """Workers of one kind, started when first needed and kept for the next items; they end with the caller's process.

    A forked child leaves them to its parent and starts its own. A subclass says what a worker is (`command`), and in
    which `environment`.

    Attributes:
      workers: the most processes at a time, by default one a core and at most 8.
      deadline_s: seconds of wall time for one item.
    """

    def __init__(self, workers: int | None = None, deadline_s: float = 10.0):
        self.workers = workers or min(8, os.cpu_count() or 1)
        self.deadline_s = deadline_s
        self.forget()
        _pools.add(self)

    @abc.abstractmethod
    def command(self) -> list[str]:
        """What starts a worker."""

    def environment(self) -> dict[str, str]:
        """The caller's, with this package in reach and without accelerators."""
        package = str(pathlib.Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}

    def forget(self) -> None:
        """Leaves the processes to whoever else holds them: what a forked child must do."""
        self._staff: list[Worker] = []
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._ended = False

    def close(self) -> None:
        """Kills the workers at once. The pool may be used again."""
        while self._staff:
            self._staff.pop().kill()

    def end(self) -> None:
        """Kills the workers as the interpreter ends. A daemon thread that waits for one waits on: what it would raise
        and print meets a stderr that is being taken apart, and aborts the process."""
        self._ended = True
        for worker in list(self._staff):
            worker.stop()
        if self._lock.acquire(blocking=False):  # nobody waits for them
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._staff]

    def ask(self, requests: Mapping[int, bytes], deadline_s: float | None = None) -> dict[int, bytes | None]:
        """The reply to each request, None where it did not come in time or the worker died. Threads take turns.

        Args:
          requests: by numbers from 0 up. deadline_s: seconds for each, by default the pool's.

        Raises: RuntimeError if workers do not start.
        """
        with self._lock:
            todo = collections.deque(requests)
            replies: dict[int, bytes | None] = {}
            try:
                while len(replies) < len(requests):
                    self._feed(todo, requests, self.deadline_s if deadline_s is None else deadline_s)
                    self._listen(replies)
            except BaseException:  # a worker with a stale item would answer the next batch
                self.close()
                raise
            return replies

    def _feed(self, todo: collections.deque, requests: Mapping[int, bytes], deadline_s: float) -> None:
        """Gives each idle worker an item, and starts the workers that are missing."""
        # The item leaves `todo` only when it is sent: one that met a dead worker goes to the next.
        for worker in [worker for worker in self._staff if worker.item == IDLE][: len(todo)]:
            try:
                worker.send(todo[0], requests[todo[0]], deadline_s)
                todo.popleft()
            except BrokenPipeError:  # it died between items
                self._dismiss(worker)
        # As many as there is work for: items under way and items that wait.
        busy = sum(worker.item >= 0 for worker in self._staff)
        while len(self._staff) < min(self.workers, busy + len(todo)):
            self._staff.append(Worker(self.command(), self.environment()))

    def _listen(self, replies: dict[int, bytes | None]) -> None:
        """Waits for a reply, a death or a deadline, and books whatever has come."""
        waiting = [worker for worker in self._staff if worker.item != IDLE]
        # Until the first deadline: whoever is late then has no more time.
        patience = min(worker.expires for worker in waiting) - time.monotonic()
        ready = connection.wait([worker.fileno() for worker in waiting], max(0.0, patience))
        if self._ended:
            threading.Event().wait()
        for worker in waiting:
            # A reply that came in time counts, though it is read late; b"" stands for a death and for a deadline.
            late = worker.expires <= time.monotonic()
            told = worker.receive() if worker.fileno() in ready else b"" if late else None
            if told is None:
                continue
            if worker.item == STARTING:
                self._count_start(worker, told == READY + STAYS)
            else:
                replies[worker.item] = told[: -len(STAYS)] if told else None
            worker.item = IDLE
            if not told.endswith(STAYS):
                self._dismiss(worker)

    def _count_start(self, worker: Worker, ready: bool) -> None:
        self._failed_starts = 0 if ready else self._failed_starts + 1
        if self._failed_starts == MAX_FAILED_STARTS:
            self._failed_starts = 0
            worker.stderr.seek(0)
            raise RuntimeError(
                f"{MAX_FAILED_STARTS} workers in a row were not ready in {START_S:.0f} s: "
                f"{' '.join(self.command())}\n{worker.stderr.read().decode(errors='replace')[-STDERR_CHARS:]}"
            )

    def _dismiss(self, worker: Worker) -> None:
        self._staff.remove(worker)
        worker.kill()


_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def _each(do: Callable[[Pool], None]) -> None:
    for pool in _pools:
        do(pool)


atexit.register(_each, Pool.end)
os.register_at_fork(after_in_child=lambda: _each(Pool.forget))


# The worker's side ----------------------------------------------------------------------------------------------------


def peak_bytes() -> int:
    """The process's own peak. On Linux ru_maxrss starts from the caller's peak, and a caller may hold models."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def serve(answer: Callable, deadline_s: float, max_items: int = 0, retire_bytes: int = 0) -> None:
    """Answer requests, lines of JSON that hold the arguments of `answer`, with JSON, until the caller is gone.

    Whatever else the process prints goes nowhere.

    Args:
      deadline_s: the longest that the caller waits for one. max_items: requests after which it leaves; 0: any number.
      retire_bytes: a peak above it may have left caches that starve the items after it, and it leaves; 0: none does.
    """
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS refuses address-space limits
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # A cluster that wants the run to end tells all its processes: what is being judged is judged to its end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The kernel's own action, so that it ends even a computation that never returns to the interpreter.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    replies, nowhere = os.fdopen(os.dup(1), "wb", 0), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    replies.write(READY + STAYS)
    for count, line in enumerate(sys.stdin.buffer, start=1):
        signal.setitimer(signal.ITIMER_REAL, deadline_s + GRACE_S)
        reply = json.dumps(answer(*json.loads(line))).encode("ascii")
        signal.setitimer(signal.ITIMER_REAL, 0)
        leaves = count == max_items or (retire_bytes and peak_bytes() > retire_bytes)
        replies.write(reply + (LEAVES if leaves else STAYS))
    os.killpg(0, signal.SIGKILL)  # the caller is gone: take any children along
