"""A run's working directory: stages as shards of typed JSONL, so that a killed run goes on where it stood.

A shard is one file, written whole or not at all; its first line holds what is counted over it, how many rows it has and
a checksum, the others the rows. All shards of a stage that are missing are made together, by one call, and then
written: what that call has drawn so far is kept in a log (response_log.py). A shard's rows depend on the config, on the
files that files.json knows by their hash, and on earlier stages alone (log-probabilities up to rounding, as they are
computed beside others), so one that exists is never computed again, and it does not matter who made it: jobs that know
nothing of one another may make a stage together (`Share`).
"""

import codecs
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from int_jax import disk, processes

FIRST = {"counts", "rows", "crc32"}  # of a shard's first line
SHOWN = 5  # offenders that a message names
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # how file systems without hard links refuse one


class StageError(Exception):
    """A run cannot go on; the message says what is wrong, where, and how to fix it."""


class Awaited(Exception):
    """A stage has shards that other jobs are to make; the message says which stage, and how many are there."""


@dataclasses.dataclass(frozen=True)
class Share:
    """One of `count` jobs that make a run's stages together: it makes the shards whose place is `index` modulo `count`.

    What two jobs might write at once has a name of its own in each (`Workdir.own`); a shard has one maker.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """The share that "3/32" names. Raises: StageError."""
        found = re.fullmatch("([0-9]+)/([0-9]+)", text)
        if not found or not int(found[1]) < int(found[2]):
            raise StageError(f"--share={text}: it is I/N, job I of N, from --share=0/32 to --share=31/32")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """In names of files."""
        return f"{self.index}of{self.count}"


class Matching(NamedTuple):
    """How the rows of a file of the user's own find what they belong to: by ids, never by their place.

    Attributes:
      wanted: an id for each row that the stage needs, in its order. id_of: the id that a row carries; it raises
        KeyError, TypeError or ValueError for what is no row of the stage.
    """

    wanted: list[tuple]
    id_of: Callable[[dict], tuple]


@contextlib.contextmanager
def told_if_full(path: Path):
    """Write to `path`, or somewhere in it; a full disk ends in a StageError that says what is safe."""
    try:
        yield
    except OSError as error:
        # As the system puts it: `disk.room` says more.
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.strerror == os.strerror(error.errno):
            raise StageError(
                f"{path}: no space left on the disk. Finished shards, responses and checkpoints are kept: "
                "free some space and run the same command again"
            ) from None
        raise


def write_atomically(path: Path, content: str | bytes, first: bool = False) -> None:
    """Write a file whole or not at all; a full disk ends in a StageError that says what is safe.

    Args:
      first: leave a file that is there as it is. Of several jobs that come at once one alone has written it then; whose
        it is the caller reads.
    """
    content = content.encode() if isinstance(content, str) else content
    if disk.is_address(path):
        return disk.put(path, content, first)
    # Of this process alone (containers on several hosts have the same numbers), and in the same folder: a rename is
    # atomic only within a file system.
    scratch = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with told_if_full(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                # Else the new name could reach the disk before the content does.
                os.fsync(file.fileno())
            if first and linked(scratch, path):
                scratch.unlink()
            else:
                scratch.replace(path)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise


def linked(path: Path, other: Path) -> bool:
    """Give a file a second name, unless that is taken: on network file systems, too, the server decides who is first.
    False where the file system has no hard links."""
    try:
        os.link(path, other)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return False
    return True


def flat(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    out: dict = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def differing(trees: list[dict]) -> dict[str, list]:
    """The keys whose values are not the same in all trees, with the value in each; "unset" where there is none."""
    # Flat, so that a message names rl.group, and not rl with all that it holds.
    every = [flat(tree) for tree in trees]
    values = {key: [one.get(key, "unset") for one in every] for key in sorted(set().union(*every))}
    return {key: some for key, some in values.items() if any(one != some[0] for one in some)}


def refuse_differing_hosts(config: dict, versions: dict, share: Share | None = None) -> None:
    """Refuse a run whose processes were started with different configs, versions or shares: they would part without a
    word.

    Raises: StageError on all of them, naming the keys and what each process has.
    """
    mine = json.dumps({"config": config, "versions": versions, "share": share and str(share)}).encode()
    if differ := differing([json.loads(said) for said in processes.exchange(mine)]):
        lines = [
            f"  {key}: " + ", ".join(f"{v!r} on process {i}" for i, v in enumerate(some))
            for key, some in differ.items()
        ]
        raise StageError(
            "The processes of this run were not started alike. These keys differ:\n" + "\n".join(lines) + "\n"
            "Start the same command with the same packages on every host"
        )


class Workdir:
    """The directory of one run under one config.

    Its manifest has the config of the first start and, of each start that was not as the one before it, the values that
    were others than there (`machine`) and the versions; files.json has the data files of the first start.

    Args:
      config: plain JSON types; its `inputs` maps a stage's name to JSONL that replaces the stage's own rows: a file, a
        folder or a glob; a shard of a run, or all of them, too.
      versions: of what the numbers may depend on. machine: keys ("mesh.data") whose values may change between starts.
      share: of the shards that this job makes; None: all that are missing.

    Raises: StageError if the directory belongs to another config, naming the keys that differ.
    """

    def __init__(
        self,
        path: str | Path,
        config: dict,
        versions: dict,
        machine: Collection[str] = (),
        share: Share | None = None,
    ):
        self.path, self.share = disk.place(path), share
        self.inputs = config.get("inputs", {})
        # As the manifest gives it back: tuples are lists there.
        config = json.loads(json.dumps(config))
        first = {"config": config, "starts": [{"changed": {}, "versions": versions}]}
        there = self._began("manifest.json", "config", first)
        changed = differing([there["config"], config])
        if science := {key: values for key, values in changed.items() if key not in machine}:
            lines = [f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in science.items()]
            raise StageError(
                f"{self.path} holds a run of another config. These keys differ:\n" + "\n".join(lines) + "\n"
                "Use another --workdir, or delete this one"
            )
        start = {"changed": {key: new for key, (_, new) in changed.items()}, "versions": versions}
        # A share notes its starts in a copy of its own: two that add to one file would lose a note.
        notes = self.own(self.path / "manifest.json")
        there = self._read(notes, "config") or there
        starts = there.get("starts", [])
        if starts[-1:] != [start] and processes.is_main_process():
            write_atomically(notes, json.dumps(there | {"starts": [*starts, start]}, indent=1) + "\n")

    def own(self, path: Path) -> Path:
        """The file that this job writes for `path`: "clock.jsonl" is "clock.3of32.jsonl" in share 3/32."""
        return path.with_name(f"{path.stem}.{self.share.name}{path.suffix}") if self.share else path

    def makes(self, index: int) -> bool:
        """Whether this job makes a stage's shard of that place."""
        return not self.share or index % self.share.count == self.share.index

    def _began(self, name: str, key: str, content: dict) -> dict:
        """What the file of that name says since the first start, which is this one, with `content`, where there is
        none: of jobs that start at once all read that of one."""
        path = self.path / name
        found = self._read(path, key)
        if found is None:
            if processes.is_main_process():
                write_atomically(path, json.dumps(content, indent=1) + "\n", first=True)
            found = self._read(path, key)
        assert found is not None, f"{path} was written"
        return found

    def _read(self, path: Path, key: str) -> dict | None:
        """What a file says, of which `key` is a part; None where there is none."""
        text = processes.from_main_process(
            path.read_bytes().decode("utf-8", "replace") if path.exists() else None
        )
        if text is None:
            return None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get(key), dict):
            raise StageError(
                f"{path}: damaged: it does not hold the {key} of this run but {text[:80]!r}. Shards and checkpoints "
                "beside it are whole: if this command has the config that they were made with, delete that file and "
                "run the command again; it goes on from them"
            )
        return found

    def pin(self, files: dict[str, list[Path]]) -> None:
        """Note the content of the files from which a run takes its data; refuse others than those it began with.

        Args:
          files: those that each knob names.

        Raises: StageError, naming the files that are changed, new or gone, and the knob.
        """
        now = {
            knob: {str(path): processes.is_main_process() and digest(path) for path in some}
            for knob, some in files.items()
        }
        now = processes.from_main_process(now)
        then = self._began("files.json", "files", {"files": now})["files"]
        differ = [
            f"  {path}: {'new' if path not in then.get(knob, {}) else 'gone' if path not in some else 'changed'}"
            f" (config.{knob})"
            for knob, some in now.items()
            for path in sorted(some.keys() | then.get(knob, {}).keys())
            if some.get(path) != then.get(knob, {}).get(path)
        ]
        if differ:
            more = f"\n  and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
            raise StageError(
                f"{self.path} holds a run that began with other data:\n"
                + "\n".join(differ[:SHOWN])
                + more
                + "\nPut the old files back, or use another --workdir"
            )

    def rows(
        self,
        stage: str,
        parts: list,
        work: Callable,
        matching: Matching | None = None,
        kind: str = "",
    ):
        """All rows of a stage, and the sums over its shards' counts: (list of dict, dict).

        Args:
          parts: what each shard is made of. work(some, lap) -> [(rows, counts), ...]: of the parts whose shards do not
            exist yet and are this job's, all in one call; in a second one, where some were begun and not all of them.
            Rows and counts as JSON types, counts a flat dict of numbers. lap(): notes the time so far, so that it is
            not lost where the call does not come to its end.
          matching: for the rows of a file of the user's own; a stage without cannot be given.
          kind: under which its time is noted, the stage's name by default.

        Raises: Awaited where this job's shards are made, and others of the stage are not there.
        """
        rows: list[dict] = []
        totals: dict[str, float] = {}
        own = self.inputs.get(stage)
        if own:
            if matching is None:
                raise StageError(f"config.inputs.{stage} = {own!r}: the rows of this stage cannot be given")
            return matched(stage, own, matching)
        paths = [self.path / stage / f"{index:05d}.jsonl" for index in range(len(parts))]
        # Process 0 says which shards exist, and reads them for all: another host's disk may not show them yet.
        there = processes.from_main_process([path.exists() for path in paths])
        missing = [index for index, exists in enumerate(there) if not exists and self.makes(index)]
        noted = processes.from_main_process(self._noted(stage))
        # What an earlier call has counted holds for all shards of that call, and must not be mixed with this one's.
        begun = [index for index in missing if paths[index].name in noted]
        for some in begun, [index for index in missing if index not in begun]:
            if some:
                lap = self.stopwatch(kind or stage)
                made = work([parts[index] for index in some], lap)
                if processes.is_main_process():
                    self._write_shards({paths[i]: one for i, one in zip(some, made, strict=True)}, noted)
                lap()
        if self.share:
            there = processes.from_main_process([path.exists() for path in paths])
            if not all(there):
                raise Awaited(f"{stage}: {sum(there)} of {len(paths)} shards are there")
        elif processes.is_main_process():
            for path in self._notes(stage):
                path.unlink(missing_ok=True)
        for path in paths:
            counts, found = processes.from_main_process(shard(path) if processes.is_main_process() else None)
            rows += found
            add(totals, counts)
        return rows, totals

    def _notes(self, stage: str) -> list[Path]:
        """The files of `_noted`, of all jobs."""
        return sorted((self.path / stage).glob("counts*.json"))

    def _noted(self, stage: str) -> dict[str, dict[str, float]]:
        """By the name of a shard, what was counted over it by calls that were killed before all theirs were written."""
        noted: dict[str, dict[str, float]] = {}
        for path in self._notes(stage):
            # Another job may just have come to its end, and removed its own.
            with contextlib.suppress(FileNotFoundError):
                noted |= json.loads(path.read_text())
        return noted

    def _write_shards(
        self,
        made: dict[Path, tuple[list[dict], dict[str, float]]],
        noted: dict[str, dict[str, float]],
    ) -> None:
        """Write the rows and counts of each shard.

        What was counted over the call that made them all is noted before the first is written, and holds for the last:
        a run that is killed between two of them makes fewer shards anew, and counts less.
        """
        notes = self.own(next(iter(made)).parent / "counts.json")
        counts = {path.name: noted.get(path.name, counted) for path, (_, counted) in made.items()}
        if len(made) > 1 and not counts.keys() <= noted.keys():  # one alone is written whole or not at all
            write_atomically(notes, json.dumps(counts))
        for path, (rows, _) in made.items():
            write_shard(path, rows, counts[path.name])
        notes.unlink(missing_ok=True)

    def stopwatch(self, stage: str) -> Callable[[], None]:
        """A function that notes the time on a stage since it was last called, or since now."""
        then = time.perf_counter()

        def lap() -> None:
            nonlocal then
            now = time.perf_counter()
            self.clock(stage, now - then)
            then = now

        return lap

    def clock(self, stage: str, seconds: float) -> None:
        """Note time spent on a stage; a run's restarts add up."""
        if not processes.is_main_process():
            return
        path = self.own(self.path / "clock.jsonl")
        old = path.read_text() if path.exists() else ""
        write_atomically(path, old + json.dumps({"stage": stage, "seconds": round(seconds, 3)}) + "\n")

    def wall_s(self) -> dict[str, float]:
        """Seconds by stage, over all starts and jobs."""
        spent: dict[str, float] = {}
        for path in sorted(self.path.glob("clock*.jsonl")):
            for line in read_jsonl(path):
                if line.keys() != {"stage", "seconds"}:
                    raise StageError(
                        f"{path}: damaged: {str(line)[:80]!r} is no time of a stage; delete that line"
                    )
                spent[line["stage"]] = spent.get(line["stage"], 0.0) + line["seconds"]
        return {stage: round(seconds, 1) for stage, seconds in spent.items()}


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add(totals: dict[str, float], counts: dict[str, float]) -> None:
    for name, count in counts.items():
        totals[name] = totals.get(name, 0) + count


def shard(path: Path) -> tuple[dict[str, float], list[dict]]:
    """The counts and rows of a shard. Raises: StageError where it is not whole, naming it."""
    fix = f"delete {path} and run the same command again: this shard alone is computed anew"
    try:
        first, *rows = read_jsonl(path)
    except StageError as error:
        raise StageError(f"{error}. The shard is damaged: {fix}") from None
    except ValueError:
        raise StageError(f"{path}: an empty shard: {fix}") from None
    # A copy that broke off at the end of a line looks whole but for the number of its rows.
    if first.keys() != FIRST or first["rows"] != len(rows):
        said = f"{first['rows']} rows, it holds {len(rows)}" if "rows" in first else f"{str(first)[:80]!r}"
        raise StageError(f"{path}: the shard is damaged: its first line says {said}; {fix}")
    with path.open("rb") as file:
        next(file)
        if checksum(first["counts"], file) != first["crc32"]:
            raise StageError(f"{path}: the shard is damaged: its rows are not those that were written; {fix}")
    return first["counts"], rows


def write_shard(path: Path, rows: list[dict], counts: dict[str, float]) -> None:
    """What `shard` reads."""
    body = "".join(json.dumps(row) + "\n" for row in rows)
    first = {"counts": counts, "rows": len(rows), "crc32": checksum(counts, [body.encode()])}
    write_atomically(path, json.dumps(first) + "\n" + body)


def checksum(counts: dict[str, float], body: Iterable[bytes]) -> int:
    """CRC-32 of a shard's counts and its rows, as they stand in the file."""
    return functools.reduce(
        lambda sum, part: zlib.crc32(part, sum), body, zlib.crc32(json.dumps(counts).encode())
    )


def stage_files(source: str) -> list[Path]:
    """The JSONL files of a path, a folder or a glob, in the order of their names."""
    path = disk.place(source)
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not path.exists():
        found = disk.found(source)
    if not found:
        raise StageError(f"{source}: no {'*.jsonl in it' if path.is_dir() else 'such file'}")
    return found


def matched(stage: str, source: str, matching: Matching) -> tuple[list[dict], dict[str, float]]:
    """The rows of a file of the user's own in the order in which the stage needs them, and the counts of its shards.

    Raises: StageError, naming files and rows, where a row belongs to nothing in this run, two belong to the same, or
      something has none.
    """
    found: dict[tuple, tuple[str, dict]] = {}
    totals: dict[str, float] = {}
    faults: list[str] = []
    known = {*matching.wanted}
    for path in stage_files(source):
        for number, row in numbered(path):
            place = f"{path}, row {number}"
            if "counts" in row and row.keys() <= FIRST:  # a shard's first line
                add(totals, row["counts"])
                continue
            try:
                one = matching.id_of(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                faults.append(f"{place}: no row of the stage {stage} ({type(error).__name__}: {error})")
                continue
            if one not in known:
                faults.append(f"{place}: belongs to {_shown(one)}, which is not in this run")
            elif one in found:
                faults.append(f"{place}: belongs to {_shown(one)}, as {found[one][0]} does")
            # Faults are gathered, and all told together.
            found.setdefault(one, (place, row))
    faults += [f"{source}: no row for {_shown(one)}" for one in matching.wanted if one not in found]
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise StageError(
            f"config.inputs.{stage} = {source}: the rows do not match this run:\n  "
            + "\n  ".join([*faults[:SHOWN], *more])
            + f"\nGive one row for each of the {len(matching.wanted)} that this run needs, with its ids, as a shard of "
            f"the stage {stage} has them"
        )
    return [found[one][1] for one in matching.wanted], totals


def _shown(one: tuple) -> str:
    return " ".join(f"{part}"[:60] for part in one)


def read_jsonl(path: Path) -> Iterator[dict]:
    """The records of a JSONL file; a bad line is a StageError that names file and line."""
    return (row for _, row in numbered(path))


def numbered(path: Path) -> Iterator[tuple[int, dict]]:
    """The records of a JSONL file with their lines' numbers, from 1; blank lines and a byte-order mark are nothing."""
    if not path.is_file():
        raise StageError(f"{path}: no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:  # of JSON, or of UTF-8
                raise StageError(f"{path}, line {number}: not JSON ({error}): {line[:80]!r}") from None
            if not isinstance(row, dict):
                raise StageError(f"{path}, line {number}: not a record: {line[:80]!r}")
            yield number, row
