"""One killable process that makes and scores reasoning-gym's problems: a hostile answer costs one verdict, no run."""

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from multiprocessing import connection

DEADLINE_S = 10.0  # for one score; making problems may take ten times as long
START_S = 120.0  # to import reasoning_gym: 1 s on an idle machine


@functools.cache
def shared(deadline_s: float) -> "Process":
    """The process of all domains with this deadline; it ends with the caller."""
    return Process(deadline_s)


class Process:
    """Starts when it is first asked, and again after it was killed or died."""

    def __init__(self, deadline_s: float = DEADLINE_S):
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ModuleNotFoundError("the domain reasoning_gym needs its package: pip install reasoning-gym")
        self.deadline_s = deadline_s
        self.process: subprocess.Popen | None = None
        self.owner = os.getpid()
        atexit.register(self.close)

    def ask(self, operation: str, **arguments) -> dict | None:
        """The reply; None if it did not come in time or the process died of the request.

        Raises: RuntimeError if the process does not start.
        """
        if self.process is not None and self.process.poll() is not None:  # it died between requests
            self.close()
        if self.process is None:
            self._start()
        deadline_s = self.deadline_s if operation == "score" else 10 * self.deadline_s
        try:
            self.process.stdin.write(json.dumps([operation, arguments]).encode("ascii") + b"\n")
            reply = self._line(deadline_s)
        except BrokenPipeError:
            reply = None
        except BaseException:  # its answer would be taken for the next one's
            self.close()
            raise
        if reply is None:
            self.close()
        return reply

    def close(self) -> None:
        """Kills the process at once; a forked child leaves it to its parent."""
        process, self.process = self.process, None
        if process is None or os.getpid() != self.owner:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: left behind
            process.wait(timeout=1)

    def _start(self) -> None:
        script = pathlib.Path(__file__).with_name("worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", script, str(self.deadline_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""},
        )
        if self._line(START_S) is None:
            self.close()
            raise RuntimeError(
                f"the reasoning_gym process was not ready in {START_S:.0f} s. "
                f"Does `{sys.executable} -P -c 'import reasoning_gym'` work?"
            )

    def _line(self, deadline_s: float) -> dict | None:
        expires, read = time.monotonic() + deadline_s, b""
        while not read.endswith(b"\n"):
            if not connection.wait([self.process.stdout.fileno()], max(0.0, expires - time.monotonic())):
                return None
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                return None
            read += part
        return json.loads(read)
