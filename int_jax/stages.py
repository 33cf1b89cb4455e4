"""A run's working directory: stages as shards of typed JSONL, so that a killed run goes on where it stood.

A shard is one file, written whole or not at all; its first line holds what is counted over it, the others its rows. A
shard's content depends on the config and on earlier stages alone, so one that exists is never computed again.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from int_jax import processes


class StageError(Exception):
    """A run cannot go on; the message says what is wrong, where, and how to mend it."""


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all; a full disk ends in a StageError that says what is safe."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StageError(
                f"{path}: no space left on the disk. Finished shards and checkpoints are kept: "
                "free some space and run the same command again"
            ) from None
        raise


def flat(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    out: dict = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


class Workdir:
    """The directory of one run under one config.

    Args:
      config: plain JSON types; its `inputs` maps a stage's name to a JSONL file that replaces the stage's own rows.

    Raises: StageError if the directory belongs to another config, naming the keys that differ.
    """

    def __init__(self, path: str | Path, config: dict, versions: dict):
        self.path = Path(path)
        self.inputs = config.get("inputs", {})
        manifest = self.path / "manifest.json"
        config = json.loads(json.dumps(config))
        there = processes.agreed(manifest.read_text() if manifest.exists() else None)
        if there is not None:
            old = flat(json.loads(there)["config"])
            new = flat(config)
            differ = [
                k for k in sorted(old.keys() | new.keys()) if old.get(k, "unset") != new.get(k, "unset")
            ]
            if differ:
                lines = [f"  {k}: {old.get(k, 'unset')!r} there, {new.get(k, 'unset')!r} now" for k in differ]
                raise StageError(
                    f"{self.path} holds a run of another config. These keys differ:\n"
                    + "\n".join(lines)
                    + "\n"
                    "Use another --workdir, or delete this one"
                )
        elif processes.first():
            write_atomically(manifest, json.dumps({"config": config, "versions": versions}, indent=1) + "\n")

    def rows(self, stage: str, parts: list, work: Callable, done: Callable = lambda part: None):
        """All rows of a stage, and the sums over its shards' counts: (list of dict, dict).

        Args:
          parts: what each shard is made of. work(part) -> (rows, counts): rows and counts as JSON types, counts a flat
            dict of numbers. It is called only for shards that do not exist yet. done(part): called after each shard.
        """
        rows: list[dict] = []
        totals: dict[str, float] = {}
        own = self.inputs.get(stage)
        if own:
            return list(read_jsonl(Path(own))), totals
        for index, part in enumerate(parts):
            path = self.path / stage / f"{index:05d}.jsonl"
            if not processes.agreed(path.exists()):
                start = time.perf_counter()
                made, counts = work(part)
                lines = [json.dumps({"counts": counts}), *map(json.dumps, made)]
                if processes.first():
                    write_atomically(path, "\n".join(lines) + "\n")
                self.clock(stage, time.perf_counter() - start)
            first, *rest = processes.agreed([*read_jsonl(path)] if processes.first() else None)
            rows += rest
            done(part)
            for name, count in first["counts"].items():
                totals[name] = totals.get(name, 0) + count
        return rows, totals

    def clock(self, stage: str, seconds: float) -> None:
        """Note time spent on a stage; a run's restarts add up."""
        if not processes.first():
            return
        path = self.path / "clock.jsonl"
        old = path.read_text() if path.exists() else ""
        write_atomically(path, old + json.dumps({"stage": stage, "seconds": round(seconds, 3)}) + "\n")

    def wall_s(self) -> dict[str, float]:
        path = self.path / "clock.jsonl"
        spent: dict[str, float] = {}
        for line in read_jsonl(path) if path.exists() else ():
            spent[line["stage"]] = spent.get(line["stage"], 0.0) + line["seconds"]
        return {stage: round(seconds, 1) for stage, seconds in spent.items()}


def read_jsonl(path: Path) -> Iterator[dict]:
    """The records of a JSONL file; a bad line is a StageError that names file and line."""
    if not path.is_file():
        raise StageError(f"{path}: no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:  # of JSON, or of UTF-8
                raise StageError(f"{path}, line {number}: not JSON ({error}): {line[:80]!r}") from None
            yield row
