"""Where rows come from: JSONL and Parquet files, directories and globs of them, TFDS and Hugging Face names.

A source is read row by row as plain columns; a row that cannot be read comes out as a Fault, which says where and why.
"""

import codecs
import decimal
import gzip
import importlib.util
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from int_jax import disk
from int_jax.stages import StageError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# The words of a path that name a split, and the split they name.
SPLITS = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
# "math_train", "Train2", "mathTrain" hold the word train; "training", "latest", "contest" hold no split's.
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
UTF_16 = (
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
    b"{\0",
    b"\0{",
)  # how such a file begins, with a mark or without
FLOATS = {"halffloat": np.float16, "float": np.float32, "double": np.float64}  # as Arrow names its types
MAX_INT_DIGITS = 4_000  # Python converts no more than 4,300
SHOWN = 5  # files that a message names


class Raw(NamedTuple):
    """The columns of one row, and where it stands ("FILE, row 3": rows count from 1, as lines do)."""

    place: str
    columns: dict[str, Any]


class Fault(NamedTuple):
    """A row that cannot be used: where, why in a word or two (what is counted), and the details."""

    place: str
    reason: str
    detail: str


class Unusable(NamedTuple):
    """Stands for a value that cannot be told; it is a fault of its row only where somebody asks for its column."""

    reason: str
    detail: str


class Number(float):
    """A number that is no integer, and the digits it was written in: 0.00005 is not 5e-05, 1e400 is not infinite."""

    text: str

    def __new__(cls, text: str):
        made = super().__new__(cls, text)
        made.text = text
        return made


def raw_rows(source: str | Path, split: str) -> Iterator[Raw | Fault]:
    """The rows of a source, in its order; see `datasets.read` for what a source may be."""
    name = str(source)
    if by_name(name):
        return _records(_named(name), name, split)
    if prepared(name):
        import tensorflow_datasets as tfds  # 0.3 s that a run from JSONL need not spend

        return _records(tfds.builder_from_directory(name), name, split)
    return itertools.chain.from_iterable(map(_file_rows, files(name, split)))


def by_name(source: str) -> bool:
    return source.startswith(("tfds:", "huggingface:"))


def prepared(source: str) -> bool:
    """Whether a source is a directory that TFDS wrote."""
    return (Path(source) / "dataset_info.json").is_file()


def on_disk(source: str, split: str) -> list[Path]:
    """The files of the user's own that a source is read from: none where it is a name of TFDS or Hugging Face."""
    if by_name(source):
        return []
    if prepared(source):
        return sorted(path for path in Path(source).rglob("*") if path.is_file())
    return files(source, split)


def files(source: str, split: str) -> list[Path]:
    """The files of a path, a glob or a directory, shards in the order of their names.

    In a directory whose paths name splits as words of theirs ("math_train.jsonl", "test/part0.jsonl") only those of
    `split` are taken. The deepest name decides: "test_data/train.jsonl" is for training. A path says itself which file
    it means, and so does a glob, unless what it finds names several splits.

    Raises: StageError where there is no file; where a directory holds no file of `split`, or files that cannot be told
      apart, naming them.
    """
    path = disk.place(source)
    if path.is_dir():
        inside = [p for p in disk.below(path) if p.name.endswith(SUFFIXES)]
        # Not what lies in .cache and the like, as a download leaves it.
        shown = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        found = _of_split(shown, path, split, source)
    elif path.is_file():
        found = [path]
    else:
        found = disk.found(source)
        # What all paths share names no split of any: in train/*.jsonl the folder is the user's own choice.
        parents = found[0].parents if found else [path]
        common = next(folder for folder in parents if all(one.is_relative_to(folder) for one in found))
        if len({_split(one.relative_to(common), split)[0] for one in found} - {""}) > 1:
            found = _of_split(found, common, split, source)
    if not found:
        kind = f"no files ({', '.join(SUFFIXES)}) in it" if path.is_dir() else "no such file"
        raise StageError(f"{source}: {kind}")
    for one in found:
        if not one.name.endswith(SUFFIXES):
            raise StageError(f"{one}: unknown kind of file; give one of {', '.join(SUFFIXES)}")
    return found


def _split(path: Path, asked: str) -> tuple[str, str]:
    """The split that a path names and the word it does so with; ("", "") where it names none.

    Raises: StageError where one part of the path names two.
    """
    known = SPLITS if asked in SPLITS else SPLITS | {asked: asked}
    # The file's name first, then its folder, and so on upwards.
    for part in reversed(path.parts):
        words = [word for word in map(str.lower, WORD.findall(part)) if word in known]
        if len({known[word] for word in words}) > 1:
            raise StageError(
                f"{path}: {part!r} names the splits {' and '.join(words)}; rename it, or give a glob"
            )
        if words:
            return known[words[0]], words[0]
    return "", ""


def _of_split(paths: list[Path], root: Path, split: str, source: str) -> list[Path]:
    """Those of the paths below `root` that name the split; all of them where none names any."""
    named = {path: _split(path.relative_to(root), split) for path in paths}
    if not any(kind for kind, _ in named.values()):
        return paths
    # Asked for "val": files that say val; without any, those that name the same split otherwise ("validation").
    exact = [path for path, (_, word) in named.items() if word == split]
    chosen = exact or [path for path, (kind, _) in named.items() if kind == SPLITS.get(split, split)]
    unnamed = [path for path, (kind, _) in named.items() if not kind]
    if chosen and not unnamed and len({named[path][1] for path in chosen}) == 1:
        return chosen
    held = ", ".join(sorted({word for _, word in named.values() if word}))
    also = f" and {len(unnamed)} files of no split" if unnamed else ""
    some = ", ".join(str(path.relative_to(root)) for path in (unnamed or paths)[:SHOWN])
    raise StageError(
        f"{source}: holds splits {held}{also} ({some}{', ...' if len(unnamed or paths) > SHOWN else ''}), and "
        f"{split!r} is asked for; name a split that is there, or the files by a glob"
    )


# One file ---------------------------------------------------------------------------------------------------


def _file_rows(path: Path) -> Iterator[Raw | Fault]:
    """The rows of a file, whose first bytes say whether it is Parquet or compressed; a file without any is a fault."""
    with path.open("rb") as file:
        head = file.read(4)
    # PAR1 begins a Parquet file, 1f 8b a gzip stream, whatever their names are.
    if head == b"PAR1" or path.suffix == ".parquet":
        rows = _parquet_rows(path)
    else:
        rows = _jsonl_rows(path, compressed=head.startswith(b"\x1f\x8b"))
    # One row is read ahead, so that a file without any is told.
    first = next(rows, Fault(str(path), "empty file", "no row in it; write it again, or leave it out"))
    return itertools.chain([first], rows)


def _jsonl_rows(path: Path, compressed: bool) -> Iterator[Raw | Fault]:
    """A last line without its end that is no JSON is "truncated": a copy or a download that broke off."""
    number = 0
    with path.open("rb") as opened, gzip.open(opened) if compressed else opened as file:
        try:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith(UTF_16):
                    raise StageError(
                        f"{path}: UTF-16, and JSONL is UTF-8; convert it: iconv -f UTF-16 -t UTF-8"
                    )
                line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield _json_row(line, f"{path}, row {number}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Fault(f"{path}, row {number + 1}", "truncated", f"the compressed file breaks off: {error}")


def _json_row(line: bytes, place: str) -> Raw | Fault:
    try:
        # Bytes that are no UTF-8 become surrogates, which are a fault in the column they stand in.
        row = json.loads(
            line.decode("utf-8", "surrogateescape"),
            object_pairs_hook=_record,
            parse_float=Number,
            parse_int=_integer,
        )
    except RecursionError:
        return Fault(place, "nested too deeply", f"nested too deeply to be read: {line[:80]!r}")
    except ValueError as error:
        kind = "not JSON" if line.endswith(b"\n") else "truncated"
        return Fault(place, kind, f"{error}: {line[:80]!r}")
    if not isinstance(row, dict):
        return Fault(place, "not a record", f"not a record of columns but {line[:80]!r}")
    return Raw(place, row)


def _integer(text: str) -> int | Number:
    return int(text) if len(text) <= MAX_INT_DIGITS else Number(text)


def _record(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The columns of a row. One that stands there twice, with different values, has none that can be told."""
    row: dict[str, Any] = {}
    # json would keep the last of two values without a word.
    for key, value in pairs:
        if key in row and row[key] != value:
            value = Unusable("two values", f"given twice, with different values ({_short(row[key], value)})")
        row[key] = value
    return row


def _short(*values) -> str:
    return " and ".join(f"{value!r}"[:40] for value in values)


def _parquet_rows(path: Path) -> Iterator[Raw | Fault]:
    import pyarrow
    from pyarrow import parquet

    try:
        with path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                names = batch.schema.names
                for values in zip(*map(_parquet_column, batch.columns), strict=True):
                    number += 1
                    yield Raw(f"{path}, row {number}", _record(zip(names, values, strict=True)))
    except (pyarrow.ArrowException, OSError) as error:
        raise StageError(
            f"{path}: not readable as Parquet, whole or not at all: {error}; copy it again"
        ) from None


def _parquet_column(column) -> list:
    """The values of an Arrow array; text that is no UTF-8 is Unusable."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        # One bad text spoils the conversion of its column: cell by cell only that one is lost.
        values = [_parquet_cell(column[i : i + 1]) for i in range(len(column))]
    # Python has doubles alone: back to the column's own width, whose fewest digits are what was written.
    cast = FLOATS.get(str(column.type))
    return [plain(value if cast is None or value is None else cast(value)) for value in values]


def _parquet_cell(one):
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as error:
        return Unusable("not UTF-8", str(error))


# TFDS and Hugging Face --------------------------------------------------------------------------------------


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
            f"{name}: {error}; prepare it elsewhere and give its directory{_fix(error)}"
        ) from error
    except (ValueError, AssertionError, RuntimeError, OSError, TypeError) as error:
        raise StageError(
            f"{name}: {type(error).__name__}: {str(error)[:500]}. Prepared data sets are looked for in TFDS_DATA_DIR"
        ) from error
    return builder


def _fix(error: ModuleNotFoundError) -> str:
    ours = error.name in ("datasets", "huggingface_hub", "importlib_resources")
    return ", or pip install -e '.[hub]'" if ours else ""


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
    # Row by row: the source is read by random access, and may not fit into memory.
    for number in range(len(examples)):
        yield Raw(f"{name}, {split}, row {number + 1}", plain(examples[number]))


def plain(value):
    """Bytes, decimals and numpy's values as str and the types of Python; what is no UTF-8 as surrogates."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    # float32 0.1 is "0.1", where float() gives 0.10000000149011612.
    if isinstance(value, np.floating):  # the fewest digits that give the value back, without an exponent
        return Number(np.format_float_positional(value, unique=True, trim="-"))
    if isinstance(value, decimal.Decimal):
        return Number(f"{value.normalize():f}")
    if isinstance(value, np.ndarray):
        return plain([*value]) if value.ndim else plain(value[()])
    if isinstance(value, np.generic):
        return plain(value.item())
    return [plain(one) for one in value] if isinstance(value, list) else value
