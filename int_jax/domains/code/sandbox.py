"""Programs against tests in killable processes: what came of each, whatever the program does. See worker.py."""

import functools
import json
import os
import pathlib
import sys
from typing import NamedTuple

from int_jax import workers

DEADLINE_S = 10.0
MEMORY_MIB = 512
UNGUARDED = (
    "this kernel cannot hold a program under test (seccomp, on Linux on x86-64 or arm64): set the domain's knob "
    "unguarded to run it behind Python's audit hook alone, which stops accidents and no attack"
)


class Item(NamedTuple):
    """A program, what the problem states in code before it, and the tests: Python each."""

    given: tuple[str, ...]
    program: str
    tests: str


class Outcome(NamedTuple):
    """What came of an item.

    Attributes:
      reason: "correct", "wrong", "unparsable", "timeout" (or more memory, more stack than it may have); "" where the
        tests themselves cannot be used.
      share: of the asserts that held, each in all of its turns. detail: what failed first.
    """

    reason: str
    share: float
    detail: str


class Sandbox(workers.Pool):
    """Workers that run programs, each within `deadline_s` seconds of wall and of processor time and `memory_mib`."""

    def __init__(self, deadline_s: float = DEADLINE_S, memory_mib: int = MEMORY_MIB, unguarded: bool = False):
        super().__init__(deadline_s=deadline_s)
        self.memory_mib, self.unguarded = memory_mib, unguarded

    def command(self) -> list[str]:
        script = pathlib.Path(__file__).with_name("worker.py")
        limits = str(self.deadline_s), str(self.memory_mib << 20)
        return [sys.executable, "-s", "-S", "-B", str(script), *limits, "un" * self.unguarded + "guarded"]

    def environment(self) -> dict[str, str]:
        """Nothing of the caller's but where Python's own libraries are; a set has the same order each time."""
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        return kept | {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}

    def judge(self, items: list[Item]) -> list[Outcome]:
        """What came of each item; equal ones run once.

        Raises: RuntimeError where the kernel cannot hold a program, or workers do not start.
        """
        distinct = list(dict.fromkeys(items))
        # The worker has a deadline of its own for each: this one is for a worker that does not keep it.
        replies = self.ask(dict(enumerate(map(request, distinct))), 2 * self.deadline_s + 10)
        found = {item: outcome(replies[i]) for i, item in enumerate(distinct)}
        return [found[item] for item in items]


def outcome(reply: bytes | None) -> Outcome:
    if reply is None:
        return Outcome("timeout", 0.0, "the worker was killed")
    told = json.loads(reply)
    if told["reason"] == "unguarded":
        raise RuntimeError(UNGUARDED)
    return Outcome(**told)


def request(item: Item) -> bytes:
    """Two lengths of eight hex digits, the program as JSON, the tests as they are."""
    program = json.dumps({"given": item.given, "program": item.program}).encode("ascii")
    tests = item.tests.encode("utf-8", "surrogatepass")
    # Lengths first: the worker forks, and each child reads its own part of the pipe and no more.
    return f"{len(program):08x}{len(tests):08x}".encode("ascii") + program + tests


@functools.cache
def shared(deadline_s: float, memory_mib: int, unguarded: bool) -> Sandbox:
    """The sandbox of all domains with these limits; it ends with the caller."""
    return Sandbox(deadline_s, memory_mib, unguarded)
