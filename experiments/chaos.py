"""Runs that are disturbed in every way that a cluster knows, and must end as one that was left alone.

    make chaos                                 # 25 kills, 5 SIGTERMs: hours on two cores
    make chaos ARGS="--kills 6 --terms 2"      # less of it

A small run on the CPU is made undisturbed, then again with SIGKILLs and SIGTERMs at random moments, a disk that
fills up (where a small tmpfs may be mounted), and a flipped byte in a checkpoint and in a file of rows, in an
order that the seed draws. A run that comes to its end before all of it has happened is compared, and another
one begun. Checkpoints and the exported model must then be the undisturbed run's, bit for bit, and so must tokens
and verdicts; log-probabilities, and what is made of them, up to rounding. At last a run is moved between one
device and eight, with other rows and slots: the same up to rounding.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from absl import app, flags
from safetensors.numpy import load_file

from int_jax import checkpoint
from int_jax.preemption import EXIT_CODE

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "arms": "('int_rl','rl')",
    "problems.train": 12,
    "problems.test": 4,
    "problems.shard": 4,
    "attempts.tries": 2,
    "proposals.compare": "()",
    "guided.tries": 4,
    "effect.problems": 2,
    "effect.samples": 2,
    "rl.updates": 6,
    "rl.problems": 2,
    "eval.samples": 2,
    "eval.ks": "(1,)",
    "eval.train_problems": 2,
    "checkpoint_minutes": 0.05,
}
MACHINES: tuple[tuple[int, dict], ...] = (  # devices, and what else is other there
    (1, {}),
    (8, {"mesh.data": 4, "mesh.model": 2, "train.rows": 4, "slots": 16}),
)
DISK_MB = 256
STARTING = 0.1  # share of the signals that come while a run still starts
PATIENCE_S = 900.0


class Surprise(Exception):
    """A run did what it must not."""


def started(folder: Path, machine: int = 0) -> subprocess.Popen:
    devices, knobs = MACHINES[machine]
    command = [sys.executable, "experiments/run.py", "--config", "experiments/configs/int.py:smoke"]
    command += [f"--config.{name}={value}" for name, value in (SMALL | knobs).items()]
    flags_of_xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    with (folder.parent / f"{folder.name}.txt").open("wb") as out:  # what the last start said
        return subprocess.Popen(
            [*command, "--workdir", str(folder)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags_of_xla},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def ended(folder: Path, process: subprocess.Popen) -> tuple[int, str]:
    """The exit code of a run, and what it said."""
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Surprise(f"{folder}: does not end within {PATIENCE_S:.0f} s") from None
    return process.returncode, (folder.parent / f"{folder.name}.txt").read_text(errors="replace")


def finished(folder: Path, machine: int = 0) -> None:
    code, said = ended(folder, started(folder, machine))
    if code:
        raise Surprise(f"{folder}: ended with {code}:\n{said[-3_000:]}")


def left(folder: Path) -> dict[str, Any]:
    """What a run leaves, but for its times and for what was counted (rows that are made again are counted again), by
    name: JSON, and of parameters and checkpoints their digests."""
    found = {path.name: json.loads(path.read_text()) for path in folder.glob("results.json")}
    for counted in ("wall_s", "versions", "programs", "tokens", "spent"):
        del found["results.json"][counted]
    for path in folder.glob("*/**/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(folder))] = [line for line in lines if "counts" not in line]
    for path in folder.glob("models/*/*.safetensors"):
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in newest(folder):
        metadata = json.loads((path / checkpoint.COMPLETE).read_text())
        found[str(path.relative_to(folder))] = metadata["custom_metadata"]
    return found


def apart(one, other, place: str = "") -> Iterator[str]:
    """Where two differ. Numbers with a fraction may by rounding: a log-probability depends on what is drawn beside it
    in its last bits, and so does the checksum of its row."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other} - {"crc32"}):
            yield from apart(one.get(name), other.get(name), f"{place}/{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from apart(a, b, f"{place}/{index}")
    elif isinstance(one, float) and isinstance(other, float):
        if not math.isclose(one, other, rel_tol=1e-4, abs_tol=5e-5):
            yield f"{place}: {one}, {other}"
    elif type(one) is not type(other) or one != other:
        yield f"{place}: {str(one)[:60]}, {str(other)[:60]}"


def newest(folder: Path) -> list[Path]:
    """The last checkpoint of each training."""
    states = sorted(folder.glob("*/state"))
    return [path / str(steps[-1]) for path in states if (steps := checkpoint.saved(path))]


def compare(folder: Path, whole: dict[str, Any]) -> None:
    if places := list(apart(left(folder), whole)):
        raise Surprise(f"{folder}: not as the undisturbed run:\n" + "\n".join(places[:20]))


class Disturbed:
    """A run to which things happen; each method is one, and tells whether there was anything to happen to."""

    def __init__(self, folder: Path, rng: np.random.Generator, pace_s: float):
        self.folder, self.rng, self.pace_s = folder, rng, pace_s
        folder.mkdir()
        # A disk of its own, which can fill up.
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
        self.mounted = subprocess.run(mount, capture_output=True).returncode == 0

    def running(self) -> subprocess.Popen | None:
        """A start of it, at a random moment; None where it came to its end before that."""
        process, begun = started(self.folder), time.time()
        early = self.rng.random() < STARTING
        wait = float(self.rng.uniform(0, self.pace_s))

        def works() -> bool:
            paths = [path for path in self.folder.rglob("*") if path.is_file()]
            return any(path.exists() and path.stat().st_mtime > begun for path in paths)

        while not early and process.poll() is None and not works():
            time.sleep(0.05)
        until = time.monotonic() + wait
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        if process.poll() is None:
            return process
        code, said = ended(self.folder, process)
        if code:
            raise Surprise(f"{self.folder}: ended with {code} by itself:\n{said[-3_000:]}")
        return None

    def kill(self) -> bool:
        if process := self.running():
            process.kill()
            process.wait()
        return process is not None

    def term(self) -> bool:
        if process := self.running():
            begun = time.monotonic()
            process.terminate()
            code, said = ended(self.folder, process)
            # It is not heard before the run's own code begins.
            if code not in (EXIT_CODE, -signal.SIGTERM) or "Traceback" in said:
                raise Surprise(f"{self.folder}: ended with {code} on SIGTERM:\n{said[-3_000:]}")
            print(f"    ended with {code} after {time.monotonic() - begun:.1f} s", flush=True)
        return process is not None

    def full_disk(self) -> bool:
        if not self.mounted:
            print("    no tmpfs may be mounted here: left out", flush=True)
            return True
        if process := self.running():
            ballast = self.folder / "ballast"
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                except OSError:
                    pass
            code, said = ended(self.folder, process)
            ballast.unlink()
            if code != 1 or not ("no space left" in said or "disk is full" in said) or "Traceback" in said:
                raise Surprise(f"{self.folder}: ended with {code} on a full disk:\n{said[-3_000:]}")
            print(f"    {said.strip().splitlines()[-1][:200]}", flush=True)
        return process is not None

    def flipped_checkpoint(self) -> bool:
        paths = newest(self.folder)
        if paths:
            path = paths[self.rng.integers(len(paths))]
            self._flip(
                max((one for one in path.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size)
            )
            self._refused(path)
            shutil.rmtree(path)  # as it says
        return bool(paths)

    def flipped_rows(self) -> bool:
        paths = sorted(self.folder.glob("*/[0-9]*.jsonl"))
        if paths:
            path = paths[self.rng.integers(len(paths))]
            self._flip(path)
            self._refused(path)
            path.unlink()  # as it says
        return bool(paths)

    def _flip(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[self.rng.integers(len(data) // 2, len(data))] ^= 1
        path.write_bytes(data)

    def _refused(self, path: Path) -> None:
        code, said = ended(self.folder, started(self.folder))
        if code != 1 or str(path) not in said or "delete" not in said or "Traceback" in said:
            raise Surprise(f"{path}: a flipped byte in it, and the run ended with {code}:\n{said[-3_000:]}")
        print(f"    {said.strip().splitlines()[-1][:200]}", flush=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


def disturb(workdir: Path, whole: dict[str, Any], pace_s: float, rng: np.random.Generator) -> None:
    """Everything that may happen, in an order that is drawn; over as many runs as it takes."""
    signals = {"kill": KILLS.value, "term": TERMS.value}
    events = [name for name, count in signals.items() for _ in range(count)]
    events = [
        str(name) for name in rng.permutation([*events, "full_disk", "flipped_checkpoint", "flipped_rows"])
    ]
    runs = 0
    while events:
        run, happened = Disturbed(workdir / f"run{runs}", rng, pace_s), 0
        try:
            while events:
                if getattr(run, events[0])():
                    happened += 1
                    print(f"  run {runs}: {events.pop(0)}", flush=True)
                elif events[0].startswith("flipped") and len(events) > 1:
                    events.append(events.pop(0))  # there is nothing yet to flip
                elif not events[0].startswith("flipped") or not run.kill():
                    break  # it came to its end
            finished(run.folder)
            compare(run.folder, whole)
            print(f"run {runs}: {happened} times disturbed, the same bits", flush=True)
        finally:
            run.close()
        runs += 1


def move(workdir: Path, pace_s: float, rng: np.random.Generator) -> None:
    """One run on devices that change; what it says is how far it is from the undisturbed one."""
    folder = workdir / "moved"
    for number in range(MOVES.value):
        process = started(folder, number % 2)
        trainings = len(newest(folder))
        # Behind the next training's first checkpoint, or where it ends by itself.
        while process.poll() is None and len(newest(folder)) == trainings:
            time.sleep(0.05)
        time.sleep(float(rng.uniform(0, min(pace_s, 3.0))))
        process.kill()
        process.wait()
    finished(folder, MOVES.value % 2)
    starts = json.loads((folder / "manifest.json").read_text())["starts"]
    one, other = (
        load_file(workdir / name / "models" / "int_rl" / "model.safetensors") for name in ("whole", "moved")
    )
    gap = max(float(np.abs(one[name] - other[name]).max()) for name in one)
    drawn = [(workdir / name / "attempts" / "00000.jsonl").read_text() for name in ("whole", "moved")]
    tokens = [[trace["tokens"] for row in rows(text) for trace in row["wrong"]] for text in drawn]
    print(f"moved: {len(starts)} machines in turn, parameters differ by {gap:.1e} at most", flush=True)
    if tokens[0] != tokens[1] or gap > 1e-3:
        raise Surprise(f"{folder}: more than rounding apart from the undisturbed run")


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()[1:]]


def main(_):
    workdir, begun = Path(WORKDIR.value).absolute(), time.monotonic()
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    finished(workdir / "warm")  # compiles, so that the next one's time is that of the work
    start = time.monotonic()
    finished(workdir / "whole")
    spent_s = time.monotonic() - start
    compare(workdir / "warm", whole := left(workdir / "whole"))
    print(f"undisturbed: {spent_s:.0f} s, twice the same bits", flush=True)
    rng, count = np.random.default_rng(SEED.value), KILLS.value + TERMS.value + 3
    disturb(workdir, whole, max(2.0, 2 * spent_s / count), rng)
    move(workdir, spent_s / 4, rng)
    signals = f"{KILLS.value} SIGKILLs, {TERMS.value} SIGTERMs"
    print(f"chaos: {signals}, {MOVES.value} moves in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", "runs/chaos", "where all runs go; what is there goes")
    KILLS = flags.DEFINE_integer("kills", 25, "SIGKILLs", lower_bound=0)
    TERMS = flags.DEFINE_integer("terms", 5, "SIGTERMs", lower_bound=0)
    MOVES = flags.DEFINE_integer("moves", 3, "changes of the devices", lower_bound=0)
    SEED = flags.DEFINE_integer("seed", 0, "of what happens when")
    try:
        app.run(main)
    except Surprise as error:
        sys.exit(f"\nchaos: {error}")
