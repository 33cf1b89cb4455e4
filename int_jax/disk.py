"""Room on a disk: what is about to be written fits, or one message says how much is missing and what is safe."""

import contextlib
import errno
import shutil
from pathlib import Path

import jax
from safetensors import SafetensorError

FULL = ("No space left", "Disk quota exceeded")  # as the kernel, safetensors and tensorstore put it


@contextlib.contextmanager
def room(path: Path, tree):
    """Write `tree` under `path`; a disk that is, or runs, full ends in one message."""
    slack = 1 << 20  # configs, tokenizer, metadata
    bytes_needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + slack
    disk = next(place for place in (path, *path.parents) if place.exists())

    def full():
        free = shutil.disk_usage(disk).free
        message = (
            f"the disk is full: {path} needs {bytes_needed / 1e6:.1f} MB, {disk} has {free / 1e6:.1f} MB left"
        )
        return OSError(errno.ENOSPC, f"{message}. Nothing was changed there: make room and run again")

    if bytes_needed > shutil.disk_usage(disk).free:
        raise full()
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        if any(words in str(error) for words in FULL):
            raise full() from None
        raise
