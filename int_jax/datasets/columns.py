"""What the columns of a row mean: problem, answer, reference_solution, and optionally incorrect_attempt, intervention,
intervention_guided_attempt; small plain values of other columns are kept as the task's meta."""

import ast
import dataclasses
import hashlib
import json
import math
import re
from typing import Any

from int_jax.datasets.sources import Fault, Raw
from int_jax.proposers.parse import parse_intervention
from int_jax.types import Intervention, Task, normalised

TEXTS = ("problem", "reference_solution", "incorrect_attempt", "intervention_guided_attempt")
COLUMNS = (*TEXTS, "answer", "intervention")
# What unescaped LaTeX (\frac, \theta) becomes when it is read as a literal.
CONTROL = re.compile(r"[\a\b\v\f]|[\t\r](?=[A-Za-z])")
META_CHARS = (
    200  # longer values of other columns (a proposer's prompt, its output) are not carried through a run
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: its task, and what it holds of later stages ("" and None where it holds nothing).

    Attributes:
      place: file and row. task: shared by all rows of one problem. attempt: a wrong attempt.
      intervention: `step` is the file's location minus one, `raw` the column as it stood. None where there is none.
      guided: the steps before the error, then the intervention.
    """

    place: str
    task: Task
    attempt: str = ""
    intervention: Intervention | None = None
    guided: str = ""

    @property
    def content(self) -> tuple:
        """Rows of one problem with the same content are duplicates."""
        return self.task.id, self.attempt, self.intervention, self.guided


class _Bad(Exception):
    """(reason, detail) of a Fault."""


def problem_id(problem: str) -> str:
    """16 hex digits of the SHA-256 of the normalised text: the same in whatever file, shard or order a problem comes.

    A run's random streams are named by it, so re-sharding a data set changes no sample.
    """
    return hashlib.sha256(normalised(problem).encode()).hexdigest()[:16]


def row_of(raw: Raw, domain: str, needs: tuple[str, ...]) -> tuple[Row, list[str]] | Fault:
    """The row, and the names of columns that were not kept; or what is wrong with it."""
    try:
        texts = {name: _text(raw.columns, name) for name in TEXTS}
        answer = _answer(raw.columns.get("answer"))
        one = _intervention(raw.columns.get("intervention"))
        held = {**texts, "answer": answer, "intervention": one}
        for name in dict.fromkeys(("problem", "answer", *needs)):
            if not held[name]:
                found = ", ".join(raw.columns) or "none"
                raise _Bad(f"no {name}", f"no {name!r}; columns found: {found}")
    except _Bad as bad:
        return Fault(raw.place, *bad.args)
    others = _others(raw.columns)
    meta = {k: v for k, v in others.items() if _small(v)}
    problem, reference, attempt, guided = texts.values()
    task = Task(problem_id(problem), domain, problem, reference, answer, meta)
    return Row(raw.place, task, attempt, one, guided), [k for k in others if k not in meta]


def _others(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns that are not ours, those that `local.prepare` packed into `meta` included."""
    others = {k: v for k, v in columns.items() if k not in COLUMNS and v is not None and v != ""}
    packed = others.get("meta")
    if isinstance(packed, str) and packed.startswith("{"):
        try:
            others = {k: v for k, v in others.items() if k != "meta"} | json.loads(packed)
        except ValueError:
            return others
    return others


def _small(value) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= META_CHARS)


def _text(columns: dict[str, Any], name: str) -> str:
    """A column of text as it stands; "" where it is missing or blank."""
    value = columns.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Bad("wrong type", f"{name!r} is {type(value).__name__} {str(value)[:80]!r}, not text")
    return _encodable(value, name) if value.strip() else ""


def _encodable(value: str, name: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Bad("not UTF-8", f"{name!r}: {error}") from None
    return value


def _answer(value) -> str:
    """An answer as text. Numbers are written as JSON writes them, 36.0 as "36": a column of integers with gaps in it
    comes as floats."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _Bad(
            "wrong type", f"'answer' is {type(value).__name__} {str(value)[:80]!r}, not text or a number"
        )
    return _encodable(str(value), "answer") if str(value).strip() else ""


def _intervention(value) -> Intervention | None:
    """The column `intervention`: {"content", "location"}, or that as JSON, as a Python literal, or as a proposer wrote
    it. None where there is none: a missing value, {}, or empty content without a location from 1 up."""
    if value is None or value == "" or value == {}:
        return None
    fields = _mapping(value) if isinstance(value, str) else value
    if isinstance(fields, Intervention):
        return fields
    if not isinstance(fields, dict) or not {"content", "location"} <= fields.keys():
        raise _Bad(
            "unreadable intervention", f"'intervention' is not content and location: {str(value)[:80]!r}"
        )
    content, location = fields["content"] or "", _location(fields["location"])
    if not isinstance(content, str):
        raise _Bad("wrong type", f"the intervention's content is {type(content).__name__}, not text")
    # Formats without a null (tfds) write a missing record as "" and the lowest integer.
    if not content.strip() and (location is None or location < 0):
        return None
    if location is None:
        raise _Bad("unreadable intervention", f"no step number in location {fields['location']!r}")
    raw = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return Intervention(location - 1, _encodable(content, "intervention").strip(), (), "file", raw)


def _mapping(text: str):
    """A string's mapping; where it is no literal, the Intervention that the proposer's format reads out of it."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if not CONTROL.search(str(value.get("content")) if isinstance(value, dict) else ""):
            return value
    tagged = text if "<intervention>" in text.lower() else f"<intervention>{text}</intervention>"
    one = parse_intervention(tagged)
    return one and dataclasses.replace(one, source="file", raw=text)


def _location(value) -> int | None:
    """12, 12.0, "12" and "Substep 12" are 12; None where there is no number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    digits = re.search(r"-?\d{1,19}", value) if isinstance(value, str) else None
    return int(digits[0]) if digits else value if type(value) is int else None
