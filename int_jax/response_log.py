"""Finished responses on disk while a stage or a batch is drawn: a run that was killed draws none of them again.

A log is a folder with a file for each process of each job, which only grows. Numbers are little-endian:

    file     MAGIC, then records
    record   length of its body uint32, CRC-32 of that length and the body uint32, the body
    body     of the first record: what the log belongs to, UTF-8
             of the others: key [16], stop uint8 (its place in STOPS), tokens int32 [n], log-probabilities float32 [n]

`key_of` tells how a request is known. Of a response only the n tokens that were drawn are written, not its prompt. A
file ends before its first record that is cut off or has another checksum: what is lost with it is drawn again.
"""

import dataclasses
import hashlib
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from int_jax import disk, processes
from int_jax.sampler import (
    BySession,
    Request,
    Response,
    Sampling,
    ScoringSampler,
    Session,
)
from int_jax.stages import StageError, told_if_full
from int_jax.tokenizer import Tokenizer

MAGIC = b"int_jax responses 1\n"
HEAD = struct.Struct("<II")  # length and checksum
KEY_BYTES = 16
STOPS = ("length", "stop")


class Place(NamedTuple):
    """Where a body is: bytes `start` to `end` of a file."""

    file: mmap.mmap
    start: int
    end: int


def key_of(request: Request, sampling: Sampling) -> bytes:
    """A digest of all that a response depends on, besides the parameters, which are the log's."""
    # Ids as "<i4": the same bytes on a machine that stores the high byte first. A repr holds no NUL.
    # Only the streams, limits and beginnings: the prompt stands behind them.
    text = repr((*request[1:], dataclasses.astuple(sampling)))
    ids = np.asarray(request.prompt, "<i4").tobytes()
    return hashlib.blake2b(text.encode() + b"\0" + ids, digest_size=KEY_BYTES).digest()


def record(body: bytes) -> bytes:
    return HEAD.pack(len(body), checksum(body)) + body


def checksum(body) -> int:
    # With the length: a crash may leave zeros where nothing was written yet, and these are no record.
    return zlib.crc32(body, zlib.crc32(struct.pack("<I", len(body))))


def bodies(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The bodies of a file's whole records, each with its place."""
    at, size = file.seek(len(MAGIC)), os.fstat(file.fileno()).st_size
    while len(head := file.read(HEAD.size)) == HEAD.size:
        length, expected = HEAD.unpack(head)
        start, at = at + HEAD.size, at + HEAD.size + length
        if at > size or checksum(body := file.read(length)) != expected:
            return
        yield start, body


class ResponseLog:
    """A context manager: at its end all is on disk.

    Attributes:
      found: where the responses are that the log held when it was opened, by key: bytes of files, which are read when
        they are asked for.
    """

    def __init__(
        self,
        folder: Path,
        about: str,
        every_s: float,
        told: Callable[[], object] = lambda: None,
        job: str = "",
    ):
        """Read what all processes wrote, however many there were.

        Args:
          about: what the log belongs to: a policy, and what is drawn from it. every_s: seconds after which what was
            written is forced to the disk, or sent to the address: of gs:// what a kill may cost. told: called when it
            was. job: of the jobs that write to this log at once, the name of this one: it reads what it wrote itself.
            The one without a name is alone, and reads all.

        Raises: StageError for a log that belongs to something else, naming its file.
        """
        prefix = f"{job}." if job else ""
        self.path = folder / f"{prefix}{jax.process_index()}.log"
        self.about, self.every_s, self.told = about, every_s, told
        self.found: dict[bytes, Place] = {}
        self._size = 0  # of this process's file, up to the end of its last whole record
        self._file: IO[bytes] | None = None
        self._here = self.path  # what is written to
        self._forced = time.monotonic()
        for path in sorted(folder.glob(f"{prefix}*.log")):
            here = disk.fetched(path)
            size = self._read(path, here)
            if path == self.path:
                self._size, self._here = size, here
        # Processes that draw in step must hand back the same ones, and none may write before all have read.
        agreed = [bytes.fromhex(key) for key in processes.from_main_process([*map(bytes.hex, self.found)])]
        if lacking := sum(key not in self.found for key in agreed):
            raise StageError(
                f"{folder}: process 0 finds {len(agreed)} responses there, and process {jax.process_index()} lacks "
                f"{lacking} of them: the workdir must lie where all processes see the same files"
            )
        self.found = {key: self.found[key] for key in agreed}

    def _read(self, path: Path, here: Path) -> int:
        """Note the responses of a file, which lies `here`; returns the size of what is whole of it."""
        places, size = [], 0
        with here.open("rb") as opened:
            start = opened.read(len(MAGIC))
            if not MAGIC.startswith(start.rstrip(b"\0")):
                raise StageError(
                    f"{path}: no log of responses as this version writes them: it begins with {start!r}; delete it: "
                    "what it may hold is drawn again"
                )
            for number, (place, body) in enumerate(bodies(opened)):
                size = place + len(body)
                if number:
                    places.append((body[:KEY_BYTES], place, size))
                elif (there := body.decode()) != self.about:
                    raise StageError(
                        f"{path}: holds responses of {there!r}, and these are of {self.about!r}; delete it, or use "
                        "another --workdir"
                    )
            # Mapped, not kept: the log of a stage may be larger than the memory. Its whole records alone: what is
            # behind them another job, whose file it is, may cut off.
            if places:
                file = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ)
                self.found |= {key: Place(file, start, end) for key, start, end in places}
        return size

    def get(self, key: bytes, prompt: tuple[int, ...]) -> Response | None:
        """The response to a request of that key and prompt, if the log held it when it was opened."""
        if (place := self.found.get(key)) is None:
            return None
        body = place.file[place.start + KEY_BYTES : place.end]
        count = (len(body) - 1) // 8
        tokens, logp = np.frombuffer(body, "<i4", count, 1), np.frombuffer(body, "<f4", count, 1 + 4 * count)
        return Response(
            np.concatenate([np.asarray(prompt, np.int32), tokens]),
            np.concatenate([np.zeros(len(prompt), np.float32), logp]),
            STOPS[body[0]],
        )

    def add(self, ended: list[tuple[bytes, int, Response]]) -> None:
        """Write responses, each with its key and the length of its prompt."""
        if not ended:
            return
        records = []
        for key, start, response in ended:
            tokens, logp = response.tokens[start:], response.logp[start:]
            stop = bytes([STOPS.index(response.stop)])
            arrays = np.asarray(tokens, "<i4").tobytes() + np.asarray(logp, "<f4").tobytes()
            records.append(record(key + stop + arrays))
        with told_if_full(self.path):
            file = self._opened()
            # Handed to the system at once: a kill of this process alone loses nothing that has ended, on a disk.
            file.write(b"".join(records))
            file.flush()
        if time.monotonic() - self._forced >= self.every_s:
            self._force(file)

    def _opened(self) -> IO[bytes]:
        """This process's file, cut behind its last whole record. It is made by its first response."""
        if self._file is None:
            if self._here == self.path:  # no copy
                self._here = disk.folder_here(self.path.parent) / self.path.name
                self._here.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._here.open("r+b" if self._size else "wb")
            self._file.truncate(self._size)
            self._file.seek(self._size)
            if not self._size:
                self._file.write(MAGIC + record(self.about.encode()))
        return self._file

    def _force(self, file: IO[bytes]) -> None:
        with told_if_full(self.path):
            file.flush()
            os.fsync(file.fileno())
            disk.send(self._here, self.path)
        self._forced = time.monotonic()
        self.told()

    def __enter__(self) -> "ResponseLog":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            with told_if_full(self.path), self._file as file:
                self._force(file)


def remove(folder: Path, job: str = "") -> None:
    """Remove a log that no process has open any more, or a folder of such logs, if there is one; of a job its own files
    alone, as others may be writing theirs."""
    if not processes.is_main_process():
        return
    if job:
        for path in folder.glob(f"{job}.*.log"):
            disk.remove(path)
    else:
        disk.remove(folder)


class LoggedSampler(BySession):
    """A `sampler.ScoringSampler` around another: what the log holds is given back without being drawn, and what is
    drawn is written to it as it ends. Tokens count as drawn either way, so that a resumed run counts what one that was
    not interrupted does."""

    def __init__(self, sampler: ScoringSampler, log: ResponseLog):
        self.sampler, self.log, self.drawn = sampler, log, 0

    @property
    def max_len(self) -> int:
        return self.sampler.max_len

    @property
    def spans_processes(self) -> bool:
        return self.sampler.spans_processes

    def decode_params(self, params: Any) -> Any:
        return self.sampler.decode_params(params)

    def score(self, *args, **named):
        return self.sampler.score(*args, **named)

    def session(self, params: Any, sampling: Sampling, tokenizer: Tokenizer | None = None) -> Session:
        return _LoggedSession(self, sampling, self.sampler.session(params, sampling, tokenizer))

    def take_drawn(self) -> int:
        count, self.drawn = self.drawn, 0
        return count


class _LoggedSession:
    """A session of a LoggedSampler around one of its sampler."""

    def __init__(self, owner: LoggedSampler, sampling: Sampling, session: Session):
        self.owner, self.sampling, self.session = owner, sampling, session
        self.count = 0
        self.found: list[tuple[int, int, Response]] = []  # in the log: number, length of the prompt, response
        # Of those that are drawn, by the order in which the inner session got them: number, key, length of the prompt.
        self.asked: list[tuple[int, bytes, int]] = []

    def add(self, requests: Sequence[Request]) -> None:
        missing = []
        for number, request in enumerate(requests, self.count):
            key, start = key_of(request, self.sampling), len(request.prompt)
            if (response := self.owner.log.get(key, request.prompt)) is not None:
                self.found.append((number, start, response))
            else:
                missing.append(request)
                self.asked.append((number, key, start))
        self.count += len(requests)
        self.session.add(missing)

    def __bool__(self) -> bool:
        return bool(self.found) or bool(self.session)

    def take(self) -> list[tuple[int, Response]]:
        ended, self.found = self.found, []
        if not ended:
            drawn = [(*self.asked[inner], response) for inner, response in self.session.take()]
            self.owner.log.add([(key, start, response) for _, key, start, response in drawn])
            ended = [(number, start, response) for number, _, start, response in drawn]
        return self._given(ended)

    def leave(self) -> list[tuple[int, Response]]:
        left = [(*self.asked[inner], response) for inner, response in self.session.leave()]
        # What has not ended another policy may go on with: it is no response of this one.
        self.owner.log.add([(key, start, response) for _, key, start, response in left if response.stop])
        ended, self.found = self.found, []
        return self._given([*ended, *((number, start, response) for number, _, start, response in left)])

    def _given(self, some: list[tuple[int, int, Response]]) -> list[tuple[int, Response]]:
        self.owner.drawn += sum(len(response.tokens) - start for _, start, response in some)
        return [(number, response) for number, _, response in some]
