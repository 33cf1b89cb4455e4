"""Contenders in processes of their own, taking turns; medians and ranges of what they did."""

import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """One contender's process (worker.py). `hello`: its versions, device and threads.

    Args:
      contender: a module in contenders/. python: the interpreter. root: the tree that `import int_jax` takes.
      threads: CPUs that it may use, 0 for all.
    """

    def __init__(self, contender: str, python: str | Path, root: Path = ROOT, threads: int = 0):
        self.name = contender
        # An empty cache of compiled programs, so that every process compiles all that it runs.
        self.cache = tempfile.TemporaryDirectory(prefix="bench-cache-")
        told = {"PYTHONPATH": str(root), "JAX_COMPILATION_CACHE_DIR": self.cache.name, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [str(python), "-u", str(WORKER), contender, *([str(threads)] if threads else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | told, cwd=self.cache.name,
        )  # fmt: skip
        self.hello = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"benchmark worker {self.name}: ended with exit code {self.process.wait()} and gave no answer; what it "
                "said stands above"
            )
        return json.loads(line)

    def ask(self, **message) -> dict:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.cache.cleanup()


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of some figures, and the least and the most of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        def short(value):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"

        return f"{short(self.median)} ({short(self.least)} to {short(self.most)})"


def take_turns(workers: dict[str, Worker], tasks: dict[str, dict], rounds: int) -> dict[str, dict]:
    """What each contender of `tasks` did: the first call with its compilation, then `rounds` calls in turns.

    Returns, by contender: first (seconds, programs), rates (tokens a second of each round), peak_mib.
    """
    found: dict[str, dict] = {}
    for name, task in tasks.items():
        first = workers[name].ask(task=task)
        found[name] = {"first": first, "rates": [], "programs": [], "peak_mib": first["peak_mib"]}
    names = list(tasks)
    for turn in range(rounds):
        # Each begins in its turn: what comes right behind a slow contender may find a warmer or a colder machine.
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            answer = workers[name].ask(seed=turn + 1)
            found[name]["rates"].append(answer["tokens"] / answer["seconds"])
            found[name]["programs"].append(answer["programs"])
            found[name]["peak_mib"] = answer["peak_mib"]
    return found


def ratios(ours: list[float], theirs: list[float]) -> Spread:
    """Ours / theirs, round by round: what slows the machine for a while slows both."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
