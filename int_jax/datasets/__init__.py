"""Tasks from data with the columns problem, answer, reference_solution, and what such data holds of later stages."""

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path

from int_jax.datasets.columns import COLUMNS, Row, problem_id, row_of
from int_jax.datasets.sources import Fault, by_name, files, on_disk, prepared, raw_rows
from int_jax.stages import StageError
from int_jax.types import Task, normalised

__all__ = [
    "Report",
    "Row",
    "Rows",
    "apart",
    "disjoint",
    "normalised",
    "on_disk",
    "overlap",
    "problem_id",
    "read",
    "read_tasks",
]

SHOWN = 5  # offenders that a report names


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of a source: str() is a summary line, then the first offenders.

    Attributes:
      rows: rows in the source, good and bad. problems: distinct problems among the good ones.
      faults: the bad ones, in order. left_out: rows of a column that is too long, or not plain, to be kept as meta.
    """

    source: str
    rows: int
    problems: int
    faults: tuple[Fault, ...] = ()
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Bad rows by reason, the commonest first."""
        return dict(collections.Counter(fault.reason for fault in self.faults).most_common())

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        summary = f"{self.source}: {self.rows} rows, {self.problems} problems; "
        summary += f"{len(self.faults)} bad rows: {reasons}" if self.faults else "no bad rows"
        if self.left_out:
            summary += "; not kept: " + ", ".join(f"{name} ({n} rows)" for name, n in self.left_out.items())
        more = len(self.faults) - SHOWN
        lines = [f"  {fault.place}: {fault.detail}" for fault in self.faults[:SHOWN]]
        return "\n".join([summary, *lines, *([f"  and {more} more"] if more > 0 else [])])


@dataclasses.dataclass(frozen=True)
class Rows:
    """The problems of a source (each once, in order of first appearance), its good rows, and the report."""

    tasks: list[Task]
    rows: list[Row]
    report: Report


def read(
    source: str | Path,
    domain: str,
    split: str = "train",
    skip_bad: bool = False,
    needs: tuple[str, ...] = (),
    refuse: Callable[[list[Task]], list[str]] | None = None,
) -> Rows:
    """Read a source's rows as tasks of a domain.

    Several rows may hold one problem, with different attempts or interventions: they share one Task, whose meta is the
    first one's. A row that repeats another in all this is a bad row, and so is one that gives its problem another
    answer or reference.

    Args:
      source: a .jsonl, .jsonl.gz or .parquet file; a directory or glob of them, shards in the order of their names;
        "tfds:NAME[/CONFIG][:VERSION]"; "huggingface:OWNER/NAME[/CONFIG]"; a directory that TFDS wrote
        (`local.prepare`).
      split: which split of a TFDS or Hugging Face name, or of a directory whose files name theirs.
      skip_bad: leave bad rows out instead of refusing the source; the report counts them either way.
      needs: columns that must not be empty besides problem and answer, of COLUMNS.
      refuse: says of each problem why it cannot be used, "" where it can (`Domain.faults`): its rows are bad ones.

    Raises: StageError, which says what is wrong with which rows; or that none is left.
    """
    for name in needs:
        if name not in COLUMNS:
            raise ValueError(f"needs: no column {name!r}; choose from {', '.join(COLUMNS)}")
    rows: list[Row] = []
    faults: list[Fault] = []
    left_out: collections.Counter[str] = collections.Counter()
    # firsts: the first row of each problem, in order of appearance. seen: where each content stands.
    firsts: dict[str, Row] = {}
    seen: dict[tuple, str] = {}
    for raw in raw_rows(source, split):
        made = raw if isinstance(raw, Fault) else row_of(raw, domain, tuple(needs))
        if isinstance(made, Fault):
            faults.append(made)
            continue
        row, ignored = made
        fault = _clash(row, firsts.get(row.task.id), seen)
        if fault:
            faults.append(fault)
            continue
        first = firsts.setdefault(row.task.id, row)
        seen[row.content] = row.place
        rows.append(dataclasses.replace(row, task=first.task))
        left_out.update(ignored)
    if refuse:
        why = dict(zip(firsts, refuse([row.task for row in firsts.values()]), strict=True))
        faults += [Fault(r.place, "unusable problem", why[r.task.id]) for r in rows if why[r.task.id]]
        rows = [row for row in rows if not why[row.task.id]]
        firsts = {name: row for name, row in firsts.items() if not why[name]}
    report = Report(str(source), len(rows) + len(faults), len(firsts), tuple(faults), dict(left_out))
    if faults and not skip_bad:
        raise StageError(f"{report}\nFix these rows, or say that bad rows are to be skipped (skip_bad)")
    if not rows:
        raise StageError(f"{report}\nNo row is left")
    return Rows([row.task for row in firsts.values()], rows, report)


def _clash(row: Row, first: Row | None, seen: dict[tuple, str]) -> Fault | None:
    """What is wrong with a row beside the rows before it."""
    if first is None:
        return None
    for column in ("answer", "reference"):
        mine, theirs = getattr(row.task, column).strip(), getattr(first.task, column).strip()
        if mine != theirs:
            detail = (
                f"another {column} ({mine[:40]!r}) than the same problem in {first.place} ({theirs[:40]!r})"
            )
            return Fault(row.place, "conflict", detail)
    if row.content in seen:
        return Fault(row.place, "duplicate", f"the same problem and contents as in {seen[row.content]}")
    return None


def read_tasks(path: str | Path, domain: str) -> list[Task]:
    """The problems of a source, in its order; see `read`, whose defaults it takes."""
    return read(path, domain).tasks


def apart(train: tuple[str, str], test: tuple[str, str]) -> None:
    """Refuse two sources, each with its split, that are read from the same files; "" is no source. Raises: StageError,
    naming them."""
    if not (train[0] and test[0]):
        return
    both = sorted(_origins(*train) & _origins(*test))
    if both:
        more = f" and {len(both) - SHOWN} more" if len(both) > SHOWN else ""
        raise StageError(
            f"{train[0]} (split {train[1]!r}) and {test[0]} (split {test[1]!r}) are read from the same files, so "
            f"that nothing would be held out: {', '.join(both[:SHOWN])}{more}. Let the files' names say their split "
            "(train, validation, test), or give each set its own"
        )


def _origins(source: str, split: str) -> set[str]:
    if by_name(source) or prepared(source):
        return {f"{source}, {split}"}
    return {str(path.resolve()) for path in files(source, split)}


def overlap(train: list[Task], test: list[Task]) -> list[Task]:
    """The training tasks whose problem is also in the test set, by its normalised text."""
    held_out = {normalised(task.problem) for task in test}
    return [task for task in train if normalised(task.problem) in held_out]


def disjoint(
    train: list[Task], test: list[Task], skip_bad: bool = False, names: tuple[str, str] = ("training", "test")
) -> list[Task]:
    """The tasks of the first set that are not in the second, which is held out from it and stays as it is.

    Raises: StageError where a problem is in both sets, naming the first ones, unless they are to be skipped.
    """
    both = {task.id for task in overlap(train, test)}
    if both and not skip_bad:
        shown = [f"  {task.id}: {task.problem[:80]!r}" for task in train if task.id in both][:SHOWN]
        raise StageError(
            f"{len(both)} of {len(train)} {names[0]} problems are in the {names[1]} set of {len(test)}, too:\n"
            + "\n".join(shown)
            + "\nTake them out of one of the sets, or say that bad rows are to be skipped: they are then left out of "
            f"the {names[0]} set"
        )
    return [task for task in train if task.id not in both]
