"""Tasks from files with the columns problem, answer, reference_solution (JSONL, UTF-8)."""

from pathlib import Path

from int_jax.stages import StageError, read_jsonl
from int_jax.types import Task


def read_tasks(path: str | Path, domain: str) -> list[Task]:
    """The problems of a JSONL file, in its order; ids are "<file's name>-<row>".

    Raises: StageError naming file and row where a line is not JSON or lacks a problem or an answer.
    """
    path = Path(path)
    tasks = []
    for number, row in enumerate(read_jsonl(path), 1):
        if not isinstance(row, dict):
            raise StageError(f"{path}, row {number}: not a record of columns but {str(row)[:80]!r}")
        for column in ("problem", "answer"):
            if row.get(column) is None or not str(row[column]).strip():
                raise StageError(
                    f"{path}, row {number}: no {column!r}; columns found: {', '.join(row) or 'none'}"
                )
        reference = str(row.get("reference_solution") or "")
        tasks.append(
            Task(f"{path.stem}-{number}", domain, str(row["problem"]), reference, str(row["answer"]))
        )
    return tasks
