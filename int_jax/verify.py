"""Answer equality: is the final answer of a response the gold answer?

Where a response gives its answer is a choice by name (ANSWERS): its last box, or after "####" or "the answer is".
Equal text and equal numbers are settled here. Everything else is math-verify's to say, in worker processes
that can be killed: a computer algebra system may be asked for 9^(9^(9^9)), and no time-out inside a process
stops that. An item that outlives its deadline, or takes its worker down, costs one verdict and one worker;
never the run.

There are two graders (verify_worker.py): "strict", the paper's, and "tolerant", which also takes the same answer in
another dress. `disagreements` reports where they differ. docs/graders.md says where they depart from math-verify.
"""

import atexit
import collections
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from fractions import Fraction
from multiprocessing import connection
from typing import NamedTuple

from int_jax.types import Verdict

GRADERS = ("strict", "tolerant")
MAX_CHARS = 1_000  # of an answer, and of a gold answer
MAX_DIGITS = 100  # characters of a number compared here
DEADLINE_S = 10.0  # per item; a simple check takes about 1 ms
MAX_ITEMS = 1_000  # per worker process
START_S = 120.0  # for a worker to import math_verify: 1 s on an idle machine
MAX_FAILED_STARTS = 3  # in a row

# verify_worker.py spells the replies; b"" is a worker that was too late, or died on the item.
REASON = {b"c": "correct", b"w": "wrong", b"u": "unparsable", b"": "timeout"}
IDLE, STARTING = -1, -2  # a worker's `item` when it has none

INTEGER = re.compile(r"[+-]?[0-9]+")
# 5e-05 is how programs write 0.00005. Larger exponents are nobody's answer, and numbers of that many digits.
DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
FRACTION = re.compile(r"[+-]?[0-9]+/[0-9]*[1-9][0-9]*")
# "1,234" may be a list of two numbers and is left to math-verify; "1,034" may not: nobody writes 34 as 034.
THOUSANDS = re.compile(r"(?=.*,0)[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")


def _verdict(reason: str) -> Verdict:
    passed = reason == "correct"
    return Verdict(passed, float(passed), reason)


# Where an answer stands -----------------------------------------------------------------------------------------------

# \boxed{42}, \fbox {42}, \framebox[2cm]{42}; as TeX has it, \boxed 7; and a box cut off before its content.
BOX = re.compile(
    r"\\(?:boxed|fbox|framebox(?:\[[^\]]{0,40}\])*)(?![A-Za-z])\s*"
    r"(?:(?P<open>\{)|(?P<bare>[-+]?(?:\d[\d.,/]*|\\[A-Za-z]+(?:\s*\{[^{}]*\})*|[A-Za-z](?![A-Za-z])))|\Z)"
)
BRACES = re.compile(r"\\.|\{+|\}+", re.DOTALL)
HASHES = re.compile(r"^[ \t]*####(?!#)(.*\S)", re.MULTILINE)
PHRASE = re.compile(r"\banswer(?:\s+is|\s*[:=])\**(?:\s*:)?\s*", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")


def last_boxed(text: str) -> str | None:
    r"""The content of the last box (the innermost, if boxes are nested), however it is spelled, in linear time.

    Braces are matched as TeX does: `\{` and `\}` do not count. None if there is no box, or if the last one is
    not closed: a response that was cut in its final answer has none, whatever it boxed before.
    """
    box = None
    for box in BOX.finditer(text):  # noqa: B007
        pass
    if not box:
        return None
    if not box["open"]:
        return box["bare"] and box["bare"].rstrip(".,/")
    start, depth = box.end(), 1
    for token in BRACES.finditer(text, start):
        run = token.group()
        if run[0] == "{":
            depth += len(run)
        elif run[0] == "}":
            if len(run) >= depth:
                return text[start : token.start() + depth - 1]
            depth -= len(run)
    return None


def last_hashes(text: str) -> str | None:
    """What follows the last "####" that starts a line, as GSM8K's solutions end: "#### 72"."""
    found = HASHES.findall(text)
    return found[-1].strip("*$ \t").rstrip(".") if found else None


def last_phrase(text: str) -> str | None:
    """What follows the last "the answer is" or "answer:", to the end of the sentence, without a box around it."""
    phrases = list(PHRASE.finditer(text))
    if not phrases:
        return None
    line = text[phrases[-1].end() :].partition("\n")[0]
    return last_boxed(line) if BOX.search(line) else SENTENCE_END.split(line)[0].strip("*$ \t") or None


ANSWERS = {"boxed": last_boxed, "hashes": last_hashes, "phrase": last_phrase}


def find_answer(text: str, answer: str = "boxed") -> str | None:
    """The final answer of a response, None if it gives none. `answer` names one of ANSWERS."""
    if answer not in ANSWERS:
        raise ValueError(f"no answer {answer!r}: choose one of {', '.join(ANSWERS)}")
    return ANSWERS[answer](text)


def gives_answer(text: str, answer: str = "boxed") -> bool:
    """Whether a text has a box, be it cut off, or an answer where `answer` looks for it."""
    return bool(BOX.search(text)) or find_answer(text, answer) is not None


def gold_answer(text: str) -> str:
    r"""The gold answer in a column that may hold more: 72 for a solution that ends in "#### 72", and for \boxed{72}.

    A text without either is its own answer. Readers of columns and the graders both ask here.
    """
    if "####" in text:
        return last_hashes(text) or text.strip()
    boxes = list(BOX.finditer(text))
    whole = len(boxes) == 1 and re.fullmatch(r"[\s$]*", text[: boxes[0].start()])
    if whole and text.rstrip("$. \n").endswith("}" if boxes[0]["open"] else boxes[0]["bare"] or "\0"):
        return last_boxed(text) or text.strip()
    return text.strip()


# How a program writes a number that is none.
NO_NUMBER = re.compile(r"[+-]?(?:inf|nan)", re.IGNORECASE)


def gradable(gold: str) -> str | None:
    """Why no answer can meet the gold answer, None if one can: then its own text in a box passes both graders."""
    gold = gold_answer(gold)
    if not gold:
        return "it is empty"
    if len(gold) > MAX_CHARS:
        return f"it has {len(gold):,} characters, and an answer may have {MAX_CHARS:,}"
    if NO_NUMBER.fullmatch(gold):
        return f"{gold!r} is no number"
    if BOX.search(gold):
        return "it has a box within it"
    if last_boxed(f"\\boxed{{{gold}}}") != gold:
        return "its braces are not in pairs"
    return None


def _number(text: str) -> Fraction | None:
    """The value of an integer, a decimal or a fraction a/b of at most MAX_DIGITS characters, else None."""
    if len(text) > MAX_DIGITS:
        return None
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    return Fraction(text) if DECIMAL.fullmatch(text) or FRACTION.fullmatch(text) else None


# Equality -------------------------------------------------------------------------------------------------------------


def _settle(answer: str | None, gold: str) -> Verdict | None:
    """The verdict if it can be told without math-verify, else None."""
    if not answer or not answer.strip():
        return _verdict("no_answer")
    if max(len(answer), len(gold)) > MAX_CHARS:
        return _verdict("unparsable")
    answer, gold = " ".join(answer.split()), " ".join(gold.split())
    numbers = _number(answer), _number(gold)
    if answer == gold or (None not in numbers and numbers[0] == numbers[1]):
        return _verdict("correct")
    # Other unequal numbers may be roundings of each other.
    integers = None not in numbers and INTEGER.fullmatch(answer) and INTEGER.fullmatch(gold)
    return _verdict("wrong") if integers else None


class _Worker:
    """One process: busy with `item` (or IDLE, or STARTING) until `expires`, seconds of time.monotonic()."""

    def __init__(self, deadline_s: float, max_items: int):
        package = str(pathlib.Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.deadline_s = deadline_s
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "int_jax.verify_worker", str(deadline_s), str(max_items)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        )
        self.item, self.expires = STARTING, time.monotonic() + START_S

    def fileno(self) -> int:
        return self.process.stdout.fileno()

    def send(self, item: int, answer: str, gold: str, grader: str) -> None:
        """Raises BrokenPipeError if the process is gone. Never blocks: a request fits in a pipe's buffer."""
        # Another process that is being started may still hold its end of the pipe, and a write would succeed.
        if self.process.poll() is not None:
            raise BrokenPipeError(f"the worker ended with {self.process.returncode}")
        self.process.stdin.write(json.dumps([answer, gold, grader]).encode("ascii") + b"\n")
        self.item, self.expires = item, time.monotonic() + self.deadline_s

    def receive(self) -> bytes:
        """The two bytes of a reply, b"" if the process died instead."""
        return os.read(self.fileno(), 2)

    def stop(self) -> None:
        # Before wait(), while the pid is still ours. macOS refuses to signal a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        self.stop()
        self.process.stdin.close()
        self.process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: left behind
            self.process.wait(timeout=1)


class Pool:
    """Worker processes, started when first needed and kept for the next batch.

    Attributes:
      workers: the most processes at a time (about 60 MB each), by default one a core and at most 8.
      deadline_s: seconds of wall time for one item.
      max_items: a worker is replaced after so many.
    """

    def __init__(
        self, workers: int | None = None, deadline_s: float = DEADLINE_S, max_items: int = MAX_ITEMS
    ):
        self.workers = workers or min(8, os.cpu_count())
        self.deadline_s, self.max_items = deadline_s, max_items
        self.forget()

    def forget(self) -> None:
        """Leaves the processes to whoever else holds them: what a forked child must do."""
        self._staff: list[_Worker] = []
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

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._staff]

    def verify_batch(
        self, pairs: Iterable[tuple[str, str]], grader: str = "strict", answer: str = "boxed"
    ) -> list[Verdict]:
        """The verdicts of (response text, gold answer) pairs, in order. Threads take turns, batch by batch.

        Args:
          grader: one of GRADERS.
          answer: where a response gives its answer, one of ANSWERS.

        Raises:
          ValueError: a gold answer is empty, or there is no such grader or answer.
          RuntimeError: workers do not start.
        """
        if grader not in GRADERS:
            raise ValueError(f"no grader {grader!r}: choose one of {', '.join(GRADERS)}")
        pairs = list(pairs)
        for index, (_, gold) in enumerate(pairs):
            if not gold.strip():
                raise ValueError(f"pair {index} has an empty gold answer {gold!r}: nothing to compare with")
        found = [(find_answer(response, answer), gold_answer(gold)) for response, gold in pairs]
        verdicts = dict(enumerate(_settle(*pair) for pair in found))
        hard = {index: (*found[index], grader) for index, verdict in verdicts.items() if verdict is None}
        with self._lock:
            verdicts |= self._grade(hard)
        return list(verdicts.values())

    def _grade(self, requests: dict[int, tuple[str, str, str]]) -> dict[int, Verdict]:
        todo = collections.deque(requests)
        verdicts: dict[int, Verdict] = {}
        try:
            while len(verdicts) < len(requests):
                self._feed(todo, requests)
                self._listen(verdicts)
        except BaseException:  # a worker with a stale item would answer the next batch
            self.close()
            raise
        return verdicts

    def _feed(self, todo: collections.deque, requests: dict[int, tuple[str, str, str]]) -> None:
        """Gives each idle worker an item, and starts the workers that are missing."""
        for worker in [worker for worker in self._staff if worker.item == IDLE][: len(todo)]:
            try:
                worker.send(todo[0], *requests[todo[0]])
                todo.popleft()
            except BrokenPipeError:  # it died between items
                self._dismiss(worker)
        busy = sum(worker.item >= 0 for worker in self._staff)
        while len(self._staff) < min(self.workers, busy + len(todo)):
            self._staff.append(_Worker(self.deadline_s, self.max_items))

    def _listen(self, verdicts: dict[int, Verdict]) -> None:
        """Waits for a reply, a death or a deadline, and books whatever has come."""
        waiting = [worker for worker in self._staff if worker.item != IDLE]
        patience = min(worker.expires for worker in waiting) - time.monotonic()
        ready = connection.wait([worker.fileno() for worker in waiting], max(0.0, patience))
        if self._ended:
            threading.Event().wait()
        heard = [worker for worker in waiting if worker.fileno() in ready]
        late = [worker for worker in waiting if worker not in heard and worker.expires <= time.monotonic()]
        for worker in heard + late:
            reply = worker.receive() if worker in heard else b""
            if worker.item == STARTING:
                self._count_start(reply)
            else:
                verdicts[worker.item] = _verdict(REASON[reply[:1]])
            worker.item = IDLE
            if not reply.endswith(b"+"):
                self._dismiss(worker)

    def _count_start(self, reply: bytes) -> None:
        self._failed_starts = 0 if reply else self._failed_starts + 1
        if self._failed_starts == MAX_FAILED_STARTS:
            self._failed_starts = 0
            raise RuntimeError(
                f"{MAX_FAILED_STARTS} workers in a row were not ready in {START_S:.0f} s: see stderr. "
                f"Does `{sys.executable} -P -c 'import math_verify'` work?"
            )

    def _dismiss(self, worker: _Worker) -> None:
        self._staff.remove(worker)
        worker.kill()


_default = Pool()
atexit.register(_default.end)
os.register_at_fork(after_in_child=_default.forget)


def verify_batch(
    pairs: Iterable[tuple[str, str]], grader: str = "strict", answer: str = "boxed"
) -> list[Verdict]:
    """`Pool.verify_batch` in the process's own pool, which ends with it."""
    return _default.verify_batch(pairs, grader, answer)


class Disagreement(NamedTuple):
    """A pair on which the graders differ: its `row` in the list given, the response's answer, the gold answer, and what
    each grader says."""

    row: int
    answer: str
    gold: str
    strict: Verdict
    tolerant: Verdict


def disagreements(
    pairs: Iterable[tuple[str, str]], answer: str = "boxed"
) -> tuple[float, list[Disagreement]]:
    """Where the graders differ on (response text, gold answer) pairs, and how often: (share of the pairs, the pairs).

    Tolerant is at least strict, so each of them is a response that strict fails and tolerant passes, but for items
    that ran out of time in one of them.
    """
    pairs = list(pairs)
    told = zip(pairs, *(verify_batch(pairs, grader, answer) for grader in GRADERS), strict=True)
    found = [
        Disagreement(row, find_answer(response, answer) or "", gold, strict, tolerant)
        for row, ((response, gold), strict, tolerant) in enumerate(told)
        if strict.passed != tolerant.passed
    ]
    return len(found) / max(1, len(pairs)), found


def verify(response_text: str, gold_answer: str, grader: str = "strict") -> Verdict:
    r"""Grades the last box of a response against the gold answer.

    Args:
      grader: "strict", as in the paper, or "tolerant", which also takes the same answer in another form.

    Returns:
      A verdict with score 1 for "correct" and 0 for the rest: "wrong"; "no_answer", no box, an empty one, or
      a last box that is not closed; "unparsable", over 1,000 characters or nothing that math-verify parses;
      "timeout", over 10 s, or more than the worker survived (memory, stack). Whether a trace was truncated is
      for the caller to say, who knows why it stopped.

    Raises:
      ValueError: the gold answer is empty, or there is no such grader.
      RuntimeError: workers do not start.
    """
    return verify_batch([(response_text, gold_answer)], grader)[0]
