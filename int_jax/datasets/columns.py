"""What the columns of a row mean: problem, answer, reference_solution, and optionally incorrect_attempt, intervention,
intervention_guided_attempt; small plain values of other columns are kept as the task's meta."""

import ast
import dataclasses
import decimal
import hashlib
import json
import math
import re
from typing import Any

import numpy as np

from int_jax.datasets.code_columns import translated
from int_jax.datasets.sources import Fault, Number, Raw, Unusable, plain
from int_jax.proposers.parse import parse_intervention
from int_jax.types import Intervention, Task, normalised
from int_jax.verify import MAX_CHARS, gold_answer, gradable

TEXTS = ("problem", "reference_solution", "incorrect_attempt", "intervention_guided_attempt")
COLUMNS = (*TEXTS, "answer", "intervention")
# What unescaped LaTeX (\frac, \theta) becomes when it is read as a literal.
CONTROL = re.compile(r"[\a\b\v\f]|[\t\r](?=[A-Za-z])")
GRADED = ("math", "arithmetic")  # domains in which an answer is what stands in a box
META_CHARS = (
    200  # longer values of other columns (a proposer's prompt, its output) are not carried through a run
)
LINE_END = re.compile("\r\n?|[\x85\u2028]")  # as Windows, old Macs, mainframes and Unicode end a line
# "a\n \t\nb" -> "a\n\nb"
BLANK = re.compile(
    r"(^|\n)(?:[^\S\n]|[\u200b\ufeff])+(?=\n|\Z)"
)  # a line of white space alone, form feeds included
# How chat models write the end of a turn, of a text: an attempt that ends so has said its last word.
END_OF_TURN = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>"),
    *("<end_of_turn>", "<eos>", "</s>"),
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


def response_text(text: str, marks: tuple[str, ...] = END_OF_TURN) -> str:
    """A response as a model of ours would write it, so that its steps end where they do for a reader.

    Whatever ends a line is a newline, a line of white space alone is blank, and the marks of a turn's end that it ends
    in are left out. Blank lines at its beginning stay, and so does all that stands within a line.
    """
    # U+2029 ends a paragraph, which is a blank line.
    text = BLANK.sub(r"\1", LINE_END.sub("\n", text).replace("\u2029", "\n\n"))
    # "5<|im_end|>\n</s>" -> "5": one mark after the other, the longest that fits.
    while (body := text.rstrip()).endswith(marks):
        text = body[: -max(len(mark) for mark in marks if body.endswith(mark))]
    return text if text.strip() else ""


def printable(name: str) -> str:
    """A name as it can be shown: JSON lets one hold halves of letters, which no output takes."""
    return name.encode("utf-8", "backslashreplace").decode()


def row_of(raw: Raw, domain: str, needs: tuple[str, ...]) -> tuple[Row, list[str]] | Fault:
    """The row, and the names of columns that were not kept; or what is wrong with it."""
    raw = raw._replace(columns=translated(raw.columns))
    try:
        texts = {name: _text(raw.columns, name) for name in TEXTS}
        for name in ("incorrect_attempt", "intervention_guided_attempt"):
            texts[name] = response_text(texts[name])
        answer = _gold(_answer(_value(raw.columns, "answer")), domain)
        one = _intervention(_value(raw.columns, "intervention"))
        held = {**texts, "answer": answer, "intervention": one}
        for name in dict.fromkeys(("problem", "answer", *needs)):
            if not held[name]:
                found = ", ".join(map(printable, raw.columns)) or "none"
                raise _Bad(f"no {name}", f"no {name!r}; columns found: {found}")
        others = _others(raw.columns)
    except _Bad as bad:
        return Fault(raw.place, *bad.args)
    except RecursionError:
        return Fault(raw.place, "nested too deeply", "a value is nested too deeply to be read")
    meta = {k: float(v) if isinstance(v, Number) else v for k, v in others.items() if _small(k) and _small(v)}
    # In the order of TEXTS.
    problem, reference, attempt, guided = texts.values()
    task = Task(problem_id(problem), domain, problem, reference, answer, meta)
    return Row(raw.place, task, attempt, one, guided), [printable(k) for k in others if k not in meta]


def _value(columns: dict[str, Any], name: str):
    """A column's value; None where it is missing, which a NaN says, too."""
    value = columns.get(name)
    if isinstance(value, Unusable):
        raise _Bad(value.reason, f"{name!r}: {value.detail}")
    return None if isinstance(value, float) and math.isnan(value) else value


def _others(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns that are not ours, those that `local.prepare` packed into `meta` included."""
    others = {k: v for k, v in columns.items() if k not in COLUMNS and v is not None and v != ""}
    # A JSON object in a text, as Parquet and TFDS hold what has no columns of its own.
    packed = others.get("meta")
    if isinstance(packed, str) and packed.startswith("{"):
        try:
            others = {k: v for k, v in others.items() if k != "meta"} | json.loads(packed)
        except (ValueError, RecursionError):
            return others
    return others


def _small(value) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= META_CHARS and printable(value) == value
    return isinstance(value, bool | int)


def _text(columns: dict[str, Any], name: str) -> str:
    """A column of text as it stands; "" where it is missing or blank."""
    value = _value(columns, name)
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
    if "\0" in value:
        raise _Bad("NUL", f"{name!r} holds a NUL character at {value.index(chr(0))}: {value[:80]!r}")
    return value


def _answer(value) -> str:
    """An answer as text: a number by the digits it was written in.

    36.0 is "36", since a column of integers with gaps in it comes as floats, and 5e-05 is "0.00005": an exponent is how
    programs write it (Python 0.00005, too), and the paper's grader reads a product of 5 and Euler's number.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        text = value.text if isinstance(value, Number) else plain(np.float64(value)).text
        # 5e-05 -> 0.00005; an exponent beyond what an answer may have in digits stays.
        if "e" in text.lower() and abs((value := decimal.Decimal(text)).adjusted()) < MAX_CHARS:
            text = f"{value:f}"
        # 36.0 -> 36, -0.0 -> -0 -> 0
        return re.sub(r"^-(?=0$)", "", text.removesuffix(".0"))
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Bad(
            "wrong type", f"'answer' is {type(value).__name__} {str(value)[:80]!r}, not text or a number"
        )
    return _encodable(str(value), "answer") if str(value).strip() else ""


def _gold(answer: str, domain: str) -> str:
    """The answer that a response can give: 72 where the column holds a solution that ends in "#### 72"."""
    if domain not in GRADED or not answer:
        return answer
    if why := gradable(answer):
        raise _Bad("no response can give the answer", f"'answer' is {answer[:80]!r}: {why}")
    return gold_answer(answer)


def _intervention(value) -> Intervention | None:
    """The column `intervention`: {"content", "location"}, or that as JSON, as a Python literal, or as a proposer wrote
    it. None where there is none: a missing value, {}, or empty content without a location from 1 up."""
    if value is None or value == "" or value == {}:
        return None
    fields = _mapping(value) if isinstance(value, str) else value
    if isinstance(fields, Intervention):
        text = response_text(_encodable(fields.text, "intervention"))
        return dataclasses.replace(fields, text=text, raw=printable(fields.raw))
    if not isinstance(fields, dict) or not {"content", "location"} <= fields.keys():
        raise _Bad(
            "unreadable intervention", f"'intervention' is not content and location: {str(value)[:80]!r}"
        )
    content, location = _value(fields, "content") or "", _location(_value(fields, "location"))
    if not isinstance(content, str):
        raise _Bad("wrong type", f"the intervention's content is {type(content).__name__}, not text")
    # Formats without a null (tfds) write a missing record as "" and the lowest integer.
    if not content.strip() and (location is None or location < 0):
        return None
    if location is None:
        raise _Bad("unreadable intervention", f"no step number in location {fields['location']!r}")
    raw = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = response_text(_encodable(content, "intervention")).strip()
    return Intervention(location - 1, text, (), "file", printable(raw))


def _mapping(text: str):
    """A string's mapping; where it is no literal, the Intervention that the proposer's format reads out of it."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        # "\frac" read as JSON holds a form feed: the proposer's own reader takes it as LaTeX.
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
