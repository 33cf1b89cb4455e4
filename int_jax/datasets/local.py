"""A TFDS builder for files of one's own: checked once, then array_record shards that every host reads by random access.

    local.prepare({"train": "hard.jsonl", "test": "held_out.parquet"}, "runs/data")
    datasets.read("runs/data/int_problems/1.0.0", "math", split="test")

`tfds.builder_from_directory` and `tfds.data_source` read the result, too. No TensorFlow is imported.
"""

import itertools
import json
import os
from pathlib import Path

import tensorflow_datasets as tfds

from int_jax import datasets
from int_jax.datasets.columns import Row

TEXTS = (
    "problem",
    "answer",
    "reference_solution",
    "incorrect_attempt",
    "intervention",
    "intervention_guided_attempt",
    "meta",
)


class IntProblems(tfds.core.GeneratorBasedBuilder):
    """The rows of `datasets.read`, split by split, in the files' order; every column is text, "" where it is empty.

    `intervention` is as the file had it or as JSON, `meta` the small values of the files' other columns as JSON.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # where tfds looks for checksums of downloads; asking for it needs importlib_resources

    def __init__(self, *, rows: dict[str, list[Row]] | None = None, **kwargs):
        self.rows = rows or {}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in TEXTS}
        features = tfds.features.FeaturesDict(texts)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(rows) for split, rows in self.rows.items()}

    def _generate_examples(self, rows: list[Row]):
        for number, row in enumerate(rows):
            yield number, record(row)


def record(row: Row) -> dict[str, str]:
    """The columns of a row as text."""
    return {
        "problem": row.task.problem,
        "answer": row.task.answer,
        "reference_solution": row.task.reference,
        "incorrect_attempt": row.attempt,
        "intervention": row.intervention.raw if row.intervention else "",
        "intervention_guided_attempt": row.guided,
        "meta": json.dumps(row.task.meta, ensure_ascii=False) if row.task.meta else "",
    }


def prepare(
    files: dict[str, str | Path], data_dir: str | Path, skip_bad: bool = False
) -> tuple[Path, dict[str, datasets.Report]]:
    """Read a source for each split with `datasets.read` and write them to data_dir/int_problems/1.0.0.

    No problem may be in two splits: of train it is left out if bad rows are skipped, otherwise that is an error.

    Returns: the directory, and each split's report.
    Raises: StageError for bad rows (see `datasets.read`), for overlap, and where the directory is there already.
    """
    target = Path(data_dir) / IntProblems.name / str(IntProblems.VERSION)
    if target.exists():
        raise datasets.StageError(f"{target} exists already; delete it or name another data_dir")
    for one, other in itertools.combinations(files, 2):
        datasets.apart((str(files[one]), one), (str(files[other]), other))
    read = {
        split: datasets.read(source, "", skip_bad=skip_bad, split=split) for split, source in files.items()
    }
    rows = {split: one.rows for split, one in read.items()}
    held_out = [task for split, one in read.items() if split != "train" for task in one.tasks]
    if "train" in read:
        kept = {task.id for task in datasets.disjoint(read["train"].tasks, held_out, skip_bad)}
        rows["train"] = [row for row in rows["train"] if row.task.id in kept]
    builder = IntProblems(rows=rows, data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir), {split: one.report for split, one in read.items()}
