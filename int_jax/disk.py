"""Paths, on a disk or on Google Cloud Storage: what differs between the two is here.

And room on a disk: what is about to be written fits, or one message says how much is missing and what is safe.
"""

import contextlib
import errno
import functools
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import jax
from etils import epath
from safetensors import SafetensorError

FULL = ("No space left", "Disk quota exceeded")  # as the kernel, safetensors and tensorstore put it
SLACK = 1 << 20  # bytes of configs, tokenizer, metadata
ADDRESS = "gs://"


# Paths ----------------------------------------------------------------------------------------------------------------


def place(path: str | Path) -> Path:
    """The path; of gs://bucket/runs an `epath.Path`, which reads, lists and joins as a path does. What is written there
    goes through `put` and its like.

    Raises: FileNotFoundError for another address, s3://bucket, of which pathlib would make a folder "s3:", and where
      what gs:// needs is not installed.
    """
    if is_address(path):
        _storage()
        return cast(Path, epath.Path(path))
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(path)):
        raise FileNotFoundError(
            f"{path}: this is an address, and a path or gs://... is needed; mount the bucket (Mountpoint for S3, "
            "rclone) and give the path under which it is mounted"
        )
    return Path(path)


def absolute(path: str | Path) -> Path:
    """`place`, from the root; an address is."""
    path = place(path)
    return path if is_address(path) else path.absolute()


def is_address(path: str | Path) -> bool:
    return str(path).startswith(ADDRESS)


@functools.cache
def _storage():
    """The file system of gs:// (fsspec's, of gcsfs), which `epath` takes, too."""
    try:
        import fsspec
        import gcsfs  # noqa: F401 (fsspec looks for it)
    except ImportError as error:
        raise FileNotFoundError(
            f"gs://: Google Cloud Storage needs gcsfs ({error}): pip install -e '.[gcs]', or mount the bucket and "
            "give the path under which it is mounted"
        ) from None
    # Other hosts and jobs write there, too: what there is is asked each time.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs")


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    """A folder of this process, which goes when it ends."""
    return tempfile.TemporaryDirectory(prefix="int_jax-")


def folder_here(path: Path) -> Path:
    """A folder on this machine's disk for what only writes to one: the path itself, or, of an address, a new
    one, whose files `send` writes there."""
    return Path(tempfile.mkdtemp(dir=_scratch().name)) if is_address(path) else path


def fetched(path: Path) -> Path:
    """The file or folder on this machine's disk: itself, or, of an address, a copy that goes when the process ends."""
    if not is_address(path):
        return path
    copy = folder_here(path) / path.name
    _storage().get(str(path), str(copy), recursive=path.is_dir())
    return copy


def found(pattern: str) -> list[Path]:
    """What there is of a glob, in the order of the names; ** is any depth."""
    if is_address(pattern):
        return sorted(place(ADDRESS + name) for name in _storage().glob(pattern))
    return sorted(map(Path, glob.glob(pattern, recursive=True)))


def below(folder: Path) -> list[Path]:
    """All files of a folder and of those in it, in the order of their names."""
    if is_address(folder):
        return sorted(place(ADDRESS + name) for name in _storage().find(str(folder)))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def send(here: Path, path: Path) -> None:
    """Write what `folder_here` stands for to the address: a file or a folder; on a disk it is there."""
    if is_address(path):
        for file in below(here) if here.is_dir() else [here]:
            _storage().put_file(str(file), str(path / file.relative_to(here)) if here.is_dir() else str(path))


# Writing --------------------------------------------------------------------------------------------------------------


def put(path: Path, content: bytes, first: bool = False) -> None:
    """Write an object at an address, whole or not at all. first: leave one that is there as it is.

    Raises: FileNotFoundError where the bucket is not there, or not to be written to, naming the address.
    """
    try:
        _storage().pipe_file(str(path), content, mode="create" if first else "overwrite")
    except FileExistsError:
        assert first, f"{path} is written anew"
    except Exception as error:  # of gcsfs, of Google's authentication, of the network
        raise FileNotFoundError(
            f"{path}: cannot be written ({type(error).__name__}: {error}); is there this bucket, and may this account "
            "write there (gcloud auth application-default login)?"
        ) from error


def append(path: Path, text: str) -> None:
    """Add lines to a file that stays small: an object is written anew."""
    if is_address(path):
        old = path.read_bytes() if path.exists() else b""
        put(path, old + text.encode())
    else:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if there is one."""
    if is_address(path):
        with contextlib.suppress(FileNotFoundError):
            _storage().rm(str(path), recursive=True)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def draft(target: Path) -> Iterator[Path]:
    """A new folder for what `publish` moves to `target`; it goes in any case."""
    # A sibling, not a temporary directory elsewhere: only within one file system is renaming atomic.
    new = target.with_name(f".{target.name}.{os.getpid()}.draft")
    new = folder_here(target) if is_address(target) else new
    new.mkdir(parents=True, exist_ok=is_address(target))
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def publish(draft: Path, target: Path, last: str, old: Iterable[Path] = ()) -> None:
    """Rename a draft to `target`, or, where that exists or is an address, move its files into it.

    Args:
      last: the file without which nothing loads the folder: from the first change on it is not there, and it comes back
        last. old: what is removed there.
    """
    if not is_address(target) and not target.exists():
        draft.rename(target)
        return
    for gone in (target / last, *old):
        remove(gone)
    # False sorts before True.
    for file in sorted(draft.iterdir(), key=lambda file: file.name == last):
        if is_address(target):
            send(file, target / file.name)
        else:
            file.replace(target / file.name)


# Room -----------------------------------------------------------------------------------------------------------------


def bytes_of(tree) -> int:
    """What the arrays of a tree take on a disk."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + SLACK


@contextlib.contextmanager
def room(path: Path, tree):
    """Write `tree` under `path`; a disk that is, or runs, full ends in one message."""
    needed = bytes_of(tree)
    if not is_address(path) and needed > shutil.disk_usage(_existing(path)).free:
        raise _full(path, needed)
    with told_when_full(path, needed):
        yield


@contextlib.contextmanager
def told_when_full(path: Path, needed: int):
    """Write, or wait for what is being written, under `path`: a disk that runs full ends in the message of `room`."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        if any(words in str(error) for words in FULL):
            raise _full(path, needed) from None
        raise


def _existing(path: Path) -> Path:
    # At an address what is full is the disk of the drafts.
    here = Path(tempfile.gettempdir()) if is_address(path) else path
    return next(one for one in (here, *here.parents) if one.exists())


def _full(path: Path, needed: int) -> OSError:
    disk = _existing(path)
    free = shutil.disk_usage(disk).free
    message = f"the disk is full: {path} needs {needed / 1e6:.1f} MB, {disk} has {free / 1e6:.1f} MB left"
    return OSError(errno.ENOSPC, f"{message}. Nothing was changed there: make room and run again")
