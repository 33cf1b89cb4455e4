"""Where rows come from: JSONL and Parquet files, directories and globs of them, TFDS and Hugging Face names.

A source is read row by row as plain columns; a row that cannot be read comes out as a Fault, which says where and why.
"""

import glob
import gzip
import importlib.util
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from int_jax.stages import StageError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# A file named so belongs to that split: train-00000-of-00002.parquet, test.jsonl.
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?=[-_.])")


class Raw(NamedTuple):
    """The columns of one row, and where it stands ("FILE, row 3": rows count from 1)."""

    place: str
    columns: dict[str, Any]


class Fault(NamedTuple):
    """A row that cannot be used: where, why in a word or two (what is counted), and the details."""

    place: str
    reason: str
    detail: str


def raw_rows(source: str | Path, split: str) -> Iterator[Raw | Fault]:
    """The rows of a source, in its order; see `datasets.read` for what a source may be."""
    name = str(source)
    if name.startswith(("tfds:", "huggingface:")):
        return _records(_named(name), name, split)
    if (Path(name) / "dataset_info.json").is_file():
        import tensorflow_datasets as tfds  # 0.3 s that a run from JSONL need not spend

        return _records(tfds.builder_from_directory(name), name, split)
    return itertools.chain.from_iterable(map(_file_rows, files(name, split)))


def files(source: str, split: str) -> list[Path]:
    """The files of a path, a glob or a directory, shards in the order of their names.

    In a directory whose files name their splits only those of `split` are taken. A path or a glob says itself which
    files it means.
    """
    path = Path(source)
    if path.is_dir():
        inside = [p for p in path.rglob("*") if p.name.endswith(SUFFIXES) and p.is_file()]
        shown = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        found = _of_split(sorted(shown), split, source)
    elif path.is_file():
        found = [path]
    else:
        found = sorted(map(Path, glob.glob(source, recursive=True)))
    if not found:
        kind = f"no files ({', '.join(SUFFIXES)}) in it" if path.is_dir() else "no such file"
        raise StageError(f"{source}: {kind}")
    for one in found:
        if not one.name.endswith(SUFFIXES):
            raise StageError(f"{one}: unknown kind of file; give one of {', '.join(SUFFIXES)}")
    return found


def _of_split(paths: list[Path], split: str, source: str) -> list[Path]:
    named = {path: match[1] for path in paths if (match := SPLIT.match(path.name))}
    if not named:
        return paths
    unnamed = [path.name for path in paths if path not in named]
    if split not in named.values() or unnamed:
        held = f"splits {', '.join(sorted(set(named.values())))}"
        also = f" and {len(unnamed)} files of no split ({unnamed[0]}, ...)" if unnamed else ""
        raise StageError(f"{source}: holds {held}{also}; name a split that is there, or the files by a glob")
    return [path for path in paths if named.get(path) == split]


def _file_rows(path: Path) -> Iterator[Raw | Fault]:
    return _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterator[Raw | Fault]:
    """A last line without its end that is no JSON is "truncated": a copy or a download that broke off."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                yield _json_row(line, f"{path}, row {number}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Fault(f"{path}, row {number + 1}", "truncated", f"the compressed file breaks off: {error}")


def _json_row(line: bytes, place: str) -> Raw | Fault:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:
        whole = line.endswith(b"\n")
        kind = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
        return Fault(place, kind if whole else "truncated", f"{error}: {line[:80]!r}")
    if not isinstance(row, dict):
        return Fault(place, "not a record", f"not a record of columns but {str(row)[:80]!r}")
    return Raw(place, row)


def _parquet_rows(path: Path) -> Iterator[Raw | Fault]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for start in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(batch.slice(start, 1), f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise StageError(f"{path}: not readable as Parquet: {error}") from None


def _parquet_row(one, place: str) -> Raw | Fault:
    try:
        return Raw(place, one.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Fault(place, "not UTF-8", str(error))


def _named(name: str):
    """The TFDS builder behind "tfds:NAME[/CONFIG][:VERSION]" or "huggingface:OWNER/NAME[/CONFIG]", prepared.

    What is not on the disk yet is prepared in array_record, which is read by random access and written without
    TensorFlow; whether a builder of the TFDS catalogue gets along without TensorFlow is up to its code.
    """
    import tensorflow_datasets as tfds

    prefix, _, rest = name.partition(":")
    try:
        if prefix == "tfds":
            builder = tfds.builder(rest, file_format="array_record")
        else:
            builder = _hugging_face(*rest.split("/"))
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        raise StageError(
            f"{name}: {error}; prepare it elsewhere and give its directory{_mend(error)}"
        ) from error
    except (ValueError, AssertionError, RuntimeError, OSError, TypeError) as error:
        raise StageError(
            f"{name}: {type(error).__name__}: {str(error)[:500]}. Prepared data sets are looked for in TFDS_DATA_DIR"
        ) from error
    return builder


def _mend(error: ModuleNotFoundError) -> str:
    ours = error.name in ("datasets", "huggingface_hub", "importlib_resources")
    return ", or pip install 'int_jax[hub]'" if ours else ""


def _hugging_face(owner: str, name: str = "", config: str | None = None):
    """TFDS's own names allow no capitals and no hyphens, so the repository goes to its builder as it is."""
    for package in ("datasets", "importlib_resources"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"no package {package!r}", name=package)
    from tensorflow_datasets.core.dataset_builders import huggingface_dataset_builder as hub

    repository = f"{owner}/{name}" if name else owner
    return hub.HuggingfaceDatasetBuilder(hf_repo_id=repository, hf_config=config, file_format="array_record")


def _records(builder, name: str, split: str) -> Iterator[Raw | Fault]:
    base = re.split(r"[\[+]", split)[0]  # "train[80%:]" is a split of TFDS, too
    if base not in builder.info.splits:
        raise StageError(f"{name}: no split {split!r}; it has {', '.join(sorted(builder.info.splits))}")
    try:
        examples = builder.as_data_source(split=split)
    except NotImplementedError as error:  # tfrecord has no random access
        raise StageError(f"{name}: {str(error)[:500]}") from error
    for number in range(len(examples)):
        place = f"{name}, {split}, row {number + 1}"
        try:
            yield Raw(place, plain(examples[number]))
        except UnicodeDecodeError as error:
            yield Fault(place, "not UTF-8", str(error))


def plain(value):
    """TFDS's bytes and numpy values as str and the types of Python."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return [plain(one) for one in value] if isinstance(value, list) else value
