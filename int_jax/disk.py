"""Paths of a disk, and room on it: what is about to be written fits, or one message says how much is missing and what
is safe."""

import contextlib
import errno
import re
import shutil
from pathlib import Path

import jax
from safetensors import SafetensorError

FULL = ("No space left", "Disk quota exceeded")  # as the kernel, safetensors and tensorstore put it
SLACK = 1 << 20  # bytes of configs, tokenizer, metadata


def local(path: str | Path) -> Path:
    """The path. Raises: FileNotFoundError for an address, gs://bucket/runs, of which pathlib would make a folder "gs:".

    A run adds lines to files, renames them and maps them into memory: object storage does that where it is mounted.
    """
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(path)):
        raise FileNotFoundError(
            f"{path}: this is an address, and a path is needed; mount the bucket (Cloud Storage FUSE, Mountpoint for "
            "S3, rclone) and give the path under which it is mounted"
        )
    return Path(path)


def bytes_of(tree) -> int:
    """What the arrays of a tree take on a disk."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + SLACK


@contextlib.contextmanager
def room(path: Path, tree):
    """Write `tree` under `path`; a disk that is, or runs, full ends in one message."""
    needed = bytes_of(tree)
    if needed > shutil.disk_usage(_existing(path)).free:
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
    return next(place for place in (path, *path.parents) if place.exists())


def _full(path: Path, needed: int) -> OSError:
    disk = _existing(path)
    free = shutil.disk_usage(disk).free
    message = f"the disk is full: {path} needs {needed / 1e6:.1f} MB, {disk} has {free / 1e6:.1f} MB left"
    return OSError(errno.ENOSPC, f"{message}. Nothing was changed there: make room and run again")
