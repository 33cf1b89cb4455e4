"""The worker behind `verify.py`: reads (answer, gold) pairs on stdin and replies in two bytes, pair by pair.

It is run by its path (`python -P verify_worker.py DEADLINE_S MAX_ITEMS`), so it imports neither the package
nor the caller's `__main__`. A request is a line of ASCII JSON. A reply is REPLIES[reason] (READY once, at the
start) and then STAYS or LEAVES: a worker that leaves wants to be killed and replaced.
"""

import json
import logging
import os
import pathlib
import resource
import signal
import sys

from math_verify import LatexExtractionConfig, parse, verify

MEMORY_BYTES = 4 << 30  # address space
RETIRE_BYTES = 1 << 30  # a peak above it may have left caches that starve the items after it
GRACE_S = 1.0  # the caller kills at the deadline; if it is gone, the worker ends itself this much later

REPLIES = {"correct": b"c", "wrong": b"w", "unparsable": b"u"}
READY, STAYS, LEAVES = b"r", b"+", b"-"


def grade(answer: str, gold: str) -> str:
    """A key of REPLIES. The box is read as LaTeX, whole or not at all.

    math_verify's default also takes the last number it finds in text that it cannot parse: "3 or maybe 5"
    with a stray macro would pass for 5.
    """
    latex = [LatexExtractionConfig()]
    answers, golds = (parse(f"\\boxed{{{text}}}", latex, parsing_timeout=None) for text in (answer, gold))
    if verify(golds, answers, timeout_seconds=None):
        return "correct"
    # A string in the list is only the fallback to comparing text.
    return "unparsable" if all(isinstance(parsed, str) for parsed in answers) else "wrong"


def peak_bytes() -> int:
    """The worker's own peak. On Linux ru_maxrss starts from the caller's peak, and a caller may hold models."""
    if sys.platform == "linux":
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    else:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def detach_output() -> int:
    """A private descriptor for replies; whatever else prints goes nowhere."""
    replies, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return replies


def main(deadline_s: float, max_items: int) -> None:
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS refuses address-space limits
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # The kernel's own action, so that it ends even a computation that never returns to the interpreter.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    replies = detach_output()
    os.write(replies, READY + STAYS)
    for count, line in enumerate(sys.stdin.buffer, start=1):
        signal.setitimer(signal.ITIMER_REAL, deadline_s + GRACE_S)
        reason = grade(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        leaves = count == max_items or peak_bytes() > RETIRE_BYTES
        os.write(replies, REPLIES[reason] + (LEAVES if leaves else STAYS))
    os.killpg(0, signal.SIGKILL)  # the caller is gone: take any children along


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
