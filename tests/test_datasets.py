"""Data by columns: what is read comes back the same from every format, and nothing is lost without being counted."""

import collections
import datetime
import decimal
import gzip
import json
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from int_jax import datasets, domains, types
from int_jax import rows as stage_rows
from int_jax.batching import intervention_weights, reinforced
from int_jax.datasets import entry, local, problem_id, read, read_tasks
from int_jax.datasets.columns import Row, response_text
from int_jax.datasets.sources import files, plain
from int_jax.domains.arithmetic import chain, corrupted
from int_jax.intervention_training import failures
from int_jax.rollout import splice
from int_jax.stages import StageError, read_jsonl
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Task
from int_jax.verify import verify

GOOD = {"problem": "p", "answer": "1"}


def write(path: pathlib.Path, *rows) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def problems(count: int, prefix: str = "p") -> list[dict]:
    return [
        {"problem": f"{prefix} {i}?", "answer": str(i), "reference_solution": f"r {i}"} for i in range(count)
    ]


def essence(rows: list[Row]) -> list[tuple]:
    """Rows without the places where they stood and the column's own spelling of the intervention."""
    return [
        (r.task, r.attempt, r.guided, r.intervention and (r.intervention.step, r.intervention.text))
        for r in rows
    ]


# --- one row ---


def test_tasks_from_a_file(tmp_path):
    path = write(
        tmp_path / "olympiad.jsonl",
        {"problem": "p", "answer": 36, "reference_solution": "r", "source": "x", "prompt": "y" * 900},
        {"problem": "q", "answer": 0, "reference_solution": None},
    )
    first, second = read_tasks(path, "math")
    assert first == Task(problem_id("p"), "math", "p", "r", "36", {"source": "x"})
    assert second == Task(problem_id("q"), "math", "q", "", "0", {})
    assert read(path, "math").report.left_out == {"prompt": 1}


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("36", "36"),
        ("36.0", "36"),  # a column of integers with gaps comes as floats
        ("-36.0", "-36"),
        ("-0.5", "-0.5"),
        ("0.00005", "0.00005"),
        ("5e-05", "0.00005"),
        ("1E5", "100000"),
        ("6.02e+23", "602000000000000000000000"),
        ("2.50e-1", "0.250"),
        ("-1.0e0", "-1"),
        ("1e999999999", "1e999999999"),
        ("2.50", "2.50"),
        ("1.00", "1.00"),
        ("0.1234567890123456789012345", "0.1234567890123456789012345"),
        ("57.3", "57.3"),
        ("-0", "0"),
        ("-0.0", "0"),
        ("9223372036854775808", "9223372036854775808"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("1e400", "1" + "0" * 400),
        ('"36.0"', "36.0"),
        ('" x "', " x "),
        ('"1e400"', "1e400"),
    ],
)
def test_an_answer_keeps_the_digits_that_were_written(tmp_path, written, answer):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"problem": "p", "answer": {written}}}\n')
    assert read_tasks(path, "m")[0].answer == answer


@pytest.mark.parametrize(
    ("kind", "value", "answer"),
    [
        (pyarrow.float32(), 57.3, "57.3"),
        (pyarrow.float32(), 0.1, "0.1"),
        (pyarrow.float32(), 16777216.0, "16777216"),
        (pyarrow.float32(), 1e-7, "0.0000001"),
        (pyarrow.float16(), np.float16(57.3), "57.3"),
        (pyarrow.float64(), 5e-05, "0.00005"),
        (pyarrow.float64(), 57.3, "57.3"),
        (pyarrow.float64(), 1e22, "10000000000000000000000"),
        (pyarrow.float64(), 36.0, "36"),
        (pyarrow.float64(), -0.0, "0"),
        (pyarrow.decimal128(10, 2), decimal.Decimal("57.30"), "57.3"),
        (pyarrow.decimal128(38, 18), decimal.Decimal("0.00005"), "0.00005"),
        (pyarrow.decimal128(10, 2), decimal.Decimal("3600.00"), "3600"),
        (pyarrow.uint64(), 2**64 - 1, "18446744073709551615"),
        (pyarrow.int8(), -3, "-3"),
        (pyarrow.binary(), b"x+1", "x+1"),
        (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), "7", "7"),
        (pyarrow.float32(), None, "no answer"),
        (pyarrow.float32(), float("nan"), "no answer"),
        (pyarrow.null(), None, "no answer"),
        (pyarrow.float32(), float("inf"), "no response can give the answer"),
        (pyarrow.float64(), float("-inf"), "no response can give the answer"),
        (pyarrow.bool_(), True, "wrong type"),
        (pyarrow.date32(), datetime.date(2024, 1, 2), "wrong type"),
        (pyarrow.list_(pyarrow.int64()), [1], "wrong type"),
        (pyarrow.struct([("x", pyarrow.int64())]), {"x": 1}, "wrong type"),
    ],
)
def test_a_parquet_columns_answer_is_the_shortest_of_its_own_precision(tmp_path, kind, value, answer):
    columns = {"problem": ["p", "q"], "answer": pyarrow.array([value, value], kind)}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    if answer.startswith(("no ", "wrong type")):
        with pytest.raises(StageError, match=rf"2 {answer}\n.*x\.parquet, row 1"):
            read(tmp_path / "x.parquet", "math")
    else:
        assert [task.answer for task in read_tasks(tmp_path / "x.parquet", "math")] == [answer] * 2


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        ('"#### 72"', "72"),
        ('"48 / 2 = 24\\n48 + 24 = 72\\n#### 72"', "72"),
        ('"\\\\boxed{72}"', "72"),
        ('" 72 "', "72"),
        ('"x"', "x"),
        ("1e400", "1" + "0" * 400),
        ("5e-05", "0.00005"),
        ('"(1, 2]"', "(1, 2]"),
        ("Infinity", None),
        ("-Infinity", None),
        ('"inf"', None),
        ('"NaN"', None),
        ('"' + "x" * 1_001 + '"', None),
        ("1" + "0" * 5_000, None),
        ('"}{"', None),
        ('"\\\\frac{1}{2"', None),
    ],
    ids=lambda text: str(text)[:20],
)
def test_a_gold_that_no_response_can_give_is_a_bad_row(tmp_path, written, gold):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"problem": "p", "answer": {written}}}\n')
    if gold:
        assert [read_tasks(path, name)[0].answer for name in ("math", "arithmetic")] == [gold] * 2
        assert verify(f"\\boxed{{{gold}}}", gold).passed
    else:
        with pytest.raises(
            StageError, match=r"1 no response can give the answer\n.*x\.jsonl, row 1: 'answer' is"
        ):
            read(path, "math")
        assert read_tasks(path, "reasoning_gym")[0].answer  # it has scorers of its own


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(57.3), "57.3"),
        (np.float16(0.1), "0.1"),
        (np.float64(5e-05), "0.00005"),
        (np.array(57.3, np.float32), "57.3"),
        (decimal.Decimal("57.30"), "57.3"),
    ],
)
def test_numbers_of_numpy_keep_their_own_precision(value, text):
    assert plain(value).text == text and plain({"x": [value]})["x"][0] == float(text)
    assert plain(np.int32(7)) == 7 and plain(np.bool_(True)) is True
    assert [one.text for one in plain(np.array([57.3, 0.1], np.float32))] == ["57.3", "0.1"]


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"problem": "q"}, "no answer", "no 'answer'; columns found: problem"),
        ({"problem": "q", "answer": " \n"}, "no answer", "no 'answer'; columns found: problem, answer"),
        ({"problem": "q", "answer": None}, "no answer", "no 'answer'; columns found: problem, answer"),
        ({"problem": None, "answer": "1"}, "no problem", "no 'problem'; columns found: problem, answer"),
        ({"question": "q", "answer": "1"}, "no problem", "no 'problem'; columns found: question, answer"),
        ({}, "no problem", "no 'problem'; columns found: none"),
        ({"problem": ["q"], "answer": "1"}, "wrong type", "'problem' is list"),
        ({"problem": "q", "answer": True}, "wrong type", "'answer' is bool 'True'"),
        ({"problem": "q", "answer": ["1"]}, "wrong type", "'answer' is list"),
        ({**GOOD, "reference_solution": 3}, "wrong type", "'reference_solution' is int"),
        ({**GOOD, "incorrect_attempt": ["a"]}, "wrong type", "'incorrect_attempt' is list"),
        ({**GOOD, "intervention": "nothing"}, "unreadable intervention", "'nothing'"),
        ({**GOOD, "intervention": {"content": "c"}}, "unreadable intervention", "not content and location"),
        ({**GOOD, "intervention": {"content": "c", "location": "the end"}}, "unreadable", "'the end'"),
        ({**GOOD, "intervention": {"content": 3, "location": 2}}, "wrong type", "content is int"),
        ({"problem": "\ud800", "answer": "1"}, "not UTF-8", "'problem'"),
        ({**GOOD, "intervention": {"content": "\ud800", "location": 2}}, "not UTF-8", "'intervention'"),
        ({"problem": "q\0", "answer": "1"}, "NUL", "'problem' holds a NUL character at 1"),
        ({"problem": "q", "answer": float("nan")}, "no answer", "no 'answer'"),
        ({"problem": "q", "answer": float("inf")}, "no response", "'answer' is 'inf'"),
        ({"problem": float("nan"), "answer": "1"}, "no problem", "no 'problem'"),
        ({"problem": "q", "answer\ud800": "1"}, "no answer", "columns found: problem, answer\\ud800"),
        ({**GOOD}, "duplicate", "x.jsonl, row 1"),
        ({"problem": " P\n", "answer": "1"}, "duplicate", "x.jsonl, row 1"),
        ({"problem": "p", "answer": "2"}, "conflict", "another answer ('2') than the same problem in"),
        ({**GOOD, "reference_solution": "r"}, "conflict", "another reference ('r')"),
        ([1], "not a record", "[1]"),
        (None, "not a record", "null"),
    ],
)
def test_a_bad_row_is_fatal_with_file_row_and_reason_and_counted_where_it_is_skipped(
    tmp_path, row, reason, detail
):
    path = write(tmp_path / "x.jsonl", GOOD, {"problem": "z", "answer": "1"}, row)
    with pytest.raises(StageError, match="3 rows, 2 problems; 1 bad rows: 1 ") as error:
        read(path, "math")
    [offender] = [line for line in str(error.value).splitlines() if line.startswith("  ")]
    assert offender.startswith(f"  {path}, row 3: ") and detail in offender
    rest = read(path, "math", skip_bad=True)
    assert [t.problem for t in rest.tasks] == ["p", "z"] and len(rest.rows) == 2
    [(counted, count)] = rest.report.counts.items()
    assert counted.startswith(reason.split()[0]) and count == 1


@pytest.mark.parametrize("column", ["reference_solution", "incorrect_attempt", "intervention"])
def test_columns_that_the_method_needs_may_be_asked_for(tmp_path, column):
    path = write(tmp_path / "x.jsonl", {**GOOD, column: None})
    assert len(read(path, "math").tasks) == 1
    with pytest.raises(StageError, match=f"1 no {column}"):
        read(path, "math", needs=(column,))
    with pytest.raises(ValueError, match="no column 'reference'; choose from problem, "):
        read(path, "math", needs=("reference",))


def test_a_report_is_a_line_and_the_first_offenders(tmp_path):
    rows = [GOOD, *({"problem": f"{i}"} for i in range(7)), GOOD]
    said = str(read(write(tmp_path / "x.jsonl", *rows), "math", skip_bad=True).report).splitlines()
    assert said[0].endswith("x.jsonl: 9 rows, 1 problems; 8 bad rows: 7 no answer, 1 duplicate")
    assert len(said) == 7 and said[-1] == "  and 3 more"
    with pytest.raises(StageError, match="No row is left"):
        read(write(tmp_path / "y.jsonl", {}), "math", skip_bad=True)


ROWS = st.lists(
    st.sampled_from([GOOD, {"problem": "q", "answer": 2}, {"answer": "1"}, {"problem": "p"}, 7, "raw"]),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_every_row_is_good_or_counted(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("x") / "x.jsonl"
    lines = ["{'broken" if row == "raw" else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    try:
        found = read(path, "math", skip_bad=True)
    except StageError as error:
        assert "No row is left" in str(error) and not any("problem" in r for r in rows if r == GOOD)
        return
    assert len(found.rows) + sum(found.report.counts.values()) == found.report.rows == len(rows)
    distinct = {json.dumps(row) for row in rows if isinstance(row, dict) and len(row) == 2}
    assert len(found.rows) == len(found.tasks) == len(distinct)


# --- broken files ---

ROW = '{"problem": "p", "answer": "1"'
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ROW + "}", ""),
        (ROW + "}\r\n\r\n \t\r\n", ""),
        ("\ufeff" + ROW + "}\n", ""),
        ("\n\n" + ROW + "}\n\n", ""),
        (ROW + ', "note": "\\ud800"}\n', ""),
        (ROW + ', "\\ud800": 1}\n', ""),
        (ROW + ', "note": "\\u0000"}\n', ""),
        (ROW + ', "note": NaN, "more": Infinity, "reference_solution": NaN}\n', ""),
        (ROW + ', "note": 1, "note": 2}\n', ""),
        (ROW + ', "answer": "1"}\n', ""),
        (ROW + f', "note": 1{"0" * 5000}}}\n', ""),
        (ROW + ', "answer": "2"}\n', "two values"),
        ('{"problem": "q", "answer": "1", "problem": "p"}\n', "two values"),
        (ROW + ', "intervention": {"content": "c", "location": 1, "location": 2}}\n', "two values"),
        (ROW + f', "note": {DEEP}}}\n', "nested too deeply"),
        (ROW + f', "intervention": {DEEP}}}\n', "nested too deeply"),
        (DEEP + "\n", "nested too deeply"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000 + "\n", "nested too deeply"),
        ("\0\0\0\0\n", "not JSON"),
        (ROW + "}\0\n", "not JSON"),
        (ROW[:-5] + "\0" * 5, "truncated"),
        (ROW, "truncated"),
        ("", "empty file"),
        ("\n \n", "empty file"),
        ("\ufeff", "empty file"),
    ],
)
def test_a_line_that_is_damaged_is_a_bad_row_and_what_nobody_reads_is_not(tmp_path, text, reason):
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8", newline="")
    write(tmp_path / "y.jsonl", {"problem": "z", "answer": "1"})
    found = read(tmp_path, "m", skip_bad=True)
    assert [t.problem for t in found.tasks] == (["z"] if reason else ["p", "z"])
    assert found.report.counts == ({reason: 1} if reason else {})
    if reason:
        with pytest.raises(StageError, match=rf"1 {reason}\n  .*x\.jsonl.*: ") as error:
            read(tmp_path, "m")
        assert len(str(error.value)) < 1_000
    str(found.report).encode()
    json.dumps([types.to_json(task) for task in found.tasks], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (ROW.encode("utf-16"), "UTF-16, and JSONL is UTF-8; convert it"),
        (ROW.encode("utf-16-le"), "UTF-16"),
        (ROW.encode("utf-16-be"), "UTF-16"),
        (ROW.encode("utf-32"), "UTF-16"),
        (gzip.compress(ROW.encode("utf-16"), mtime=0), "UTF-16"),
        (b"PAR1 and no more", "not readable as Parquet"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, match):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(StageError, match=rf"x\.jsonl: .*{match}"):
        read(tmp_path / "x.jsonl", "m", skip_bad=True)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
@pytest.mark.parametrize("packed", [lambda raw: raw, gzip.compress])
def test_whether_a_file_is_compressed_its_bytes_say_and_not_its_name(tmp_path, name, packed):
    (tmp_path / name).write_bytes(packed(json.dumps(GOOD).encode()))
    assert len(read(tmp_path / name, "m").tasks) == 1


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -20])
def test_a_parquet_file_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(problems(50)), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StageError, match=r"x\.parquet: not readable as Parquet.*copy it again"):
        read(path, "m", skip_bad=True)


def test_bytes_that_are_no_utf8_are_a_fault_only_where_they_are_read(tmp_path):
    raw = pyarrow.array([b"p", b"\xff", b"q"], pyarrow.binary())
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    columns = {"problem": ["p", "q", "r"], "answer": ["1", "2", "3"], "note": texts}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    (tmp_path / "y.jsonl").write_bytes(b'{"problem": "s", "answer": "1", "note": "\xff"}\n')
    found = read(tmp_path, "m")
    assert [t.problem for t in found.tasks] == ["p", "q", "r", "s"] and found.report.left_out == {"note": 2}


def test_a_truncated_tail_and_bytes_that_are_no_utf8(tmp_path):
    good = json.dumps(GOOD).encode() + b"\n"
    path = tmp_path / "x.jsonl"
    path.write_bytes(good + b'{"problem": "\xff", "answer": "1"}\n' + b"\n" + b'{"problem": "q", "ans')
    report = read(path, "math", skip_bad=True).report
    assert [(f.place.rpartition(", ")[2], f.reason) for f in report.faults] == [
        ("row 2", "not UTF-8"),
        ("row 4", "truncated"),
    ]
    path.write_bytes(good + '{"problem": "é'.encode()[:-1])  # broken off within a letter
    assert read(path, "math", skip_bad=True).report.counts == {"truncated": 1}
    path.write_bytes(good[:-1])  # a last line without its end is whole if it is JSON
    assert len(read(path, "math").tasks) == 1


def test_a_compressed_file_that_breaks_off(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    random.seed(0)
    rows = [{**row, "reference_solution": str(random.random())} for row in problems(2000)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    path.write_bytes(whole)
    assert len(read(path, "math").tasks) == 2000
    path.write_bytes(whole[: len(whole) // 2])
    part = read(path, "math", skip_bad=True)
    assert part.report.counts == {"truncated": 1} and 0 < len(part.tasks) < 2000
    assert part.tasks == read_or_tasks(rows, tmp_path)[: len(part.tasks)]


def read_or_tasks(rows: list[dict], folder: pathlib.Path) -> list[Task]:
    return read(write(folder / "whole.jsonl", *rows), "math").tasks


def test_a_parquet_file_with_bytes_that_are_no_utf8_and_one_that_is_none(tmp_path):
    path = tmp_path / "x.parquet"
    raw = pyarrow.array([b"p", b"\xff", b"q"], pyarrow.binary())
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())  # what a careless writer leaves
    parquet.write_table(pyarrow.table({"problem": texts, "answer": ["1", "2", "3"]}), path)
    found = read(path, "math", skip_bad=True)
    assert [t.problem for t in found.tasks] == ["p", "q"] and found.report.counts == {"not UTF-8": 1}
    assert found.report.faults[0].place == f"{path}, row 2"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StageError, match=r"x\.parquet: not readable as Parquet"):
        read(path, "math")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("none.jsonl", r"none\.jsonl: no such file"),
        ("none/*.jsonl", "no such file"),
        ("empty", r"empty: no files \(\.jsonl"),
        ("x.csv", r"x\.csv: unknown kind of file; give one of \.jsonl"),
    ],
)
def test_what_is_no_source_is_named(tmp_path, name, match):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.csv").write_text("problem,answer\n")
    with pytest.raises(StageError, match=match):
        read(tmp_path / name, "math")


# --- shards, splits, formats ---


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_shards_or_order(tmp_path_factory, shards, rng):
    folder, rows = tmp_path_factory.mktemp("x"), problems(12)
    whole = read(write(folder / "whole.jsonl", *rows), "math").tasks
    rng.shuffle(rows)
    for i in range(shards):
        write(folder / "parts" / f"part-{i:02d}.jsonl", *rows[i::shards])
    parts = read(folder / "parts", "math").tasks
    assert parts == read(str(folder / "parts" / "part-*.jsonl"), "math").tasks
    assert [t.problem for t in parts] == [row["problem"] for i in range(shards) for row in rows[i::shards]]
    assert {t.id: t for t in parts} == {t.id: t for t in whole} and len(parts) == 12


def test_ids_are_fixed():
    """A golden value: it may never be updated, since streams of finished runs are named by it."""
    assert problem_id("What is 2 + 2?") == problem_id(" what  is\n2 + 2?") == "692a9daa52e42c50"
    assert problem_id("What is 2 + 3?") != problem_id("What is 2 + 2?")


def test_a_directorys_splits_are_kept_apart(tmp_path):
    for name, kind in (("data/train-0-of-2", "a"), ("data/train-1-of-2", "b"), ("data/test-0-of-1", "c")):
        write(tmp_path / f"{name}.jsonl", *problems(2, kind))
    write(tmp_path / ".cache" / "test-0.jsonl", GOOD)
    assert [t.problem for t in read(tmp_path, "math").tasks] == ["a 0?", "a 1?", "b 0?", "b 1?"]
    assert [t.problem for t in read(tmp_path, "math", "test").tasks] == ["c 0?", "c 1?"]
    with pytest.raises(StageError, match=r"holds splits test, train .*name a split that is there"):
        read(tmp_path, "math", "validation")
    write(tmp_path / "data" / "more.jsonl", GOOD)
    with pytest.raises(StageError, match=r"splits test, train and 1 files of no split \(data/more\.jsonl"):
        read(tmp_path, "math")


@pytest.mark.parametrize(
    ("names", "split", "taken"),
    [
        (("math_train.jsonl", "math_test.jsonl"), "train", ["math_train.jsonl"]),
        (("math_train.jsonl", "math_test.jsonl"), "test", ["math_test.jsonl"]),
        (("train/part0.jsonl", "train/part1.jsonl", "test/part0.jsonl"), "test", ["test/part0.jsonl"]),
        (
            ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
            "test",
            ["test-00000-of-00001.parquet"],
        ),
        (("data/validation/x.jsonl", "data/train/x.jsonl"), "validation", ["data/validation/x.jsonl"]),
        (("dev.jsonl", "train.jsonl"), "dev", ["dev.jsonl"]),
        (("dev.jsonl", "train.jsonl"), "validation", ["dev.jsonl"]),
        (("x.val.jsonl.gz", "x.train.jsonl.gz"), "valid", ["x.val.jsonl.gz"]),
        (("MathTrain.jsonl", "MathTest.jsonl"), "train", ["MathTrain.jsonl"]),
        (("TRAIN.jsonl", "TEST.jsonl"), "test", ["TEST.jsonl"]),
        (("train1.jsonl", "train2.jsonl", "test1.jsonl"), "train", ["train1.jsonl", "train2.jsonl"]),
        (
            ("test_data/train.jsonl", "test_data/test.jsonl"),
            "train",
            ["test_data/train.jsonl"],
        ),  # the deepest decides
        (
            ("train_test_split/train/a.jsonl", "train_test_split/test/a.jsonl"),
            "test",
            ["train_test_split/test/a.jsonl"],
        ),
        (("hard.jsonl", "easy.jsonl"), "hard", "holds splits hard and 1 files of no split (easy.jsonl)"),
        (  # no split's word: all of them
            ("contest.jsonl", "latest.jsonl", "training_notes.jsonl"),
            "test",
            ["contest.jsonl", "latest.jsonl", "training_notes.jsonl"],
        ),
        (("latest.jsonl",), "train", ["latest.jsonl"]),
        (("train.jsonl", "contest.jsonl"), "train", "1 files of no split (contest.jsonl)"),
        (("train.jsonl", "training_notes.jsonl"), "train", "1 files of no split (training_notes.jsonl)"),
        (("test.jsonl",), "train", "holds splits test (test.jsonl), and 'train' is asked for"),
        (("train.jsonl", "dev.jsonl"), "test", "holds splits dev, train"),
        (("dev.jsonl", "val.jsonl"), "validation", "holds splits dev, val (dev.jsonl, val.jsonl)"),
        (("dev.jsonl", "val.jsonl"), "val", ["val.jsonl"]),
        (("train_test.jsonl", "test.jsonl"), "test", "'train_test.jsonl' names the splits train and test"),
        (("a.jsonl", "b.jsonl"), "train", ["a.jsonl", "b.jsonl"]),
    ],
)
def test_splits_are_told_apart_wherever_their_name_is_a_word_of_the_path(tmp_path, names, split, taken):
    folder = tmp_path / "train_and_test"  # the name of the source itself says nothing
    for name in names:
        write(folder / name, GOOD)
    if isinstance(taken, str):
        with pytest.raises(StageError, match=re.escape(taken)):
            files(str(folder), split)
        return
    assert [str(path.relative_to(folder)) for path in files(str(folder), split)] == taken


@pytest.mark.parametrize(
    ("pattern", "split", "taken"),
    [
        ("*.jsonl", "train", ["a_train.jsonl", "b_train.jsonl"]),
        ("*.jsonl", "test", ["a_test.jsonl"]),
        ("*.jsonl", "validation", "holds splits test, train"),
        ("*train.jsonl", "test", ["a_train.jsonl", "b_train.jsonl"]),  # it says itself which files it means
        ("a_test.jsonl", "train", ["a_test.jsonl"]),
    ],
)
def test_a_glob_over_several_splits_is_cut_to_one(tmp_path, pattern, split, taken):
    for name in ("a_train", "b_train", "a_test"):
        write(tmp_path / f"{name}.jsonl", GOOD)
    if isinstance(taken, str):
        with pytest.raises(StageError, match=taken):
            files(str(tmp_path / pattern), split)
    else:
        assert [path.name for path in files(str(tmp_path / pattern), split)] == taken


def test_two_sources_of_the_same_files_are_refused(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "plain" / f"{name}.jsonl", GOOD)
        write(tmp_path / "split" / f"{name}_train.jsonl", GOOD)
        write(tmp_path / "split" / f"{name}_test.jsonl", GOOD)
    one, other, split = str(tmp_path / "plain"), str(tmp_path / "plain" / "*.jsonl"), str(tmp_path / "split")
    datasets.apart((split, "train"), (split, "test"))
    datasets.apart(("tfds:x", "train"), ("tfds:x", "test"))
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    for test in (one, other, str(tmp_path / "link"), f"{one}/b.jsonl"):
        with pytest.raises(
            StageError, match=r"the same files, so that nothing would be held out: .*b\.jsonl"
        ):
            datasets.apart((one, "train"), (test, "test"))
    with pytest.raises(StageError, match=r"held out: tfds:x, train"):
        datasets.apart(("tfds:x", "train"), ("tfds:x", "train"))
    with pytest.raises(StageError, match="held out"):
        local.prepare({"train": one, "test": one}, tmp_path / "data", skip_bad=True)


LATEX = "We need $\\frac{1}{2}\\theta$,\nnot é."
RELEASED = [
    {
        **problems(1)[0],
        "answer": 0,
        "incorrect_attempt": "One.\n\nTwo.\n\n\\boxed{7}",
        "intervention": {"content": LATEX, "location": 2},
        "intervention_guided_attempt": f"One.\n\n{LATEX}",
        "source": "omni",
    },
    {**problems(1)[0], "answer": 0, "incorrect_attempt": "Another.", "intervention": None, "source": "omni"},
    {**problems(2)[1], "answer": 1, "incorrect_attempt": None, "intervention": None, "source": "polaris"},
]


def test_every_format_brings_the_same_rows(tmp_path):
    """JSONL, gzip, Parquet, and the TFDS builder of our own, which imports no TensorFlow."""
    source = write(tmp_path / "x.jsonl", *RELEASED)
    expected = read(source, "math")
    assert [len(expected.tasks), len(expected.rows)] == [2, 3]
    assert expected.rows[0].task is expected.rows[1].task
    assert (expected.rows[0].intervention.step, expected.rows[0].intervention.text) == (1, LATEX)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    parquet.write_table(pyarrow.Table.from_pylist(RELEASED), tmp_path / "x.parquet")
    folder, reports = local.prepare({"train": source}, tmp_path / "data")
    assert reports["train"].rows == 3 and not reports["train"].faults
    for path in (tmp_path / "x.jsonl.gz", tmp_path / "x.parquet", folder):
        assert essence(read(path, "math").rows) == essence(expected.rows), path
    assert "tensorflow" not in sys.modules
    again = tfds.builder_from_directory(folder).as_data_source("train")
    assert plain(again[1])["incorrect_attempt"] == "Another."  # by random access, in the file's order


def test_preparing_keeps_held_out_problems_out(tmp_path):
    train, test = write(tmp_path / "a.jsonl", *problems(40)), write(tmp_path / "b.jsonl", *problems(2))
    with pytest.raises(StageError, match="2 of 40 training problems are in the test set of 2"):
        local.prepare({"train": train, "test": test}, tmp_path / "data")
    folder, _ = local.prepare({"train": train, "test": test}, tmp_path / "data", skip_bad=True)
    assert [t.problem for t in read(folder, "math").tasks] == [f"p {i}?" for i in range(2, 40)]
    assert len(read(folder, "math", "test").tasks) == 2
    with pytest.raises(StageError, match="no split 'dev'; it has test, train"):
        read(folder, "math", "dev")
    with pytest.raises(StageError, match="exists already"):
        local.prepare({"test": test}, tmp_path / "data")


class ForeignProblems(tfds.core.GeneratorBasedBuilder):
    """Somebody else's data set in TFDS: numbers and records as features of their own."""

    VERSION = tfds.core.Version("2.0.0")
    code_path = None

    def _info(self):
        text, features = tfds.features.Text(), tfds.features.FeaturesDict
        one = features({"content": text, "location": tfds.features.Scalar(np.int64)})
        columns = {"problem": text, "answer": tfds.features.Scalar(np.int32), "intervention": one}
        return tfds.core.DatasetInfo(builder=self, features=features(columns), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            one = {
                "content": f"step {i}" if i else "",
                "location": i or -(2**63),
            }  # a null, as tfds writes it
            yield i, {"problem": b"\xff" if i == 5 else f"é {i}", "answer": i, "intervention": one}


def test_any_tfds_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))  # TFDS_DATA_DIR
    ForeignProblems(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    found = read("tfds:foreign_problems:2.0.0", "math", skip_bad=True)
    assert [(t.problem, t.answer) for t in found.tasks] == [(f"é {i}", str(i)) for i in range(5)]
    assert found.report.counts == {"not UTF-8": 1}
    assert [r.intervention and r.intervention.step for r in found.rows] == [None, 0, 1, 2, 3]
    assert len(read("tfds:foreign_problems", "math", "train[:2]").tasks) == 2
    with pytest.raises(StageError, match="tfds:no_such_set: DatasetNotFoundError"):
        read("tfds:no_such_set", "math")
    assert "tensorflow" not in sys.modules


def test_a_hugging_face_name_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        StageError, match=r"huggingface:a/b: no package 'datasets'.*pip install -e '.\[hub\]'"
    ):
        read("huggingface:a/b", "math")


# --- the column `intervention` ---

BLOCK = {"content": LATEX, "location": 3}


@pytest.mark.parametrize(
    "value",
    [
        BLOCK,
        {**BLOCK, "location": 3.0},
        {**BLOCK, "location": "Substep 3"},
        json.dumps(BLOCK),
        str(BLOCK),
        '{"content": "We need $\\frac{1}{2}\\theta$,\\nnot é.", "location": 3}',  # LaTeX as a model writes it
        f"<intervention>{json.dumps(BLOCK)}</intervention>",
    ],
)
def test_spellings_of_an_intervention(tmp_path, value):
    path = write(tmp_path / "x.jsonl", {**GOOD, "intervention": value})
    one = read(path, "math").rows[0].intervention
    assert (one.step, one.text, one.source) == (2, LATEX, "file")


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])), st.integers(1, 99))
def test_an_intervention_comes_back_from_its_record_and_both_its_literals(
    tmp_path_factory, content, location
):
    block = {"content": content, "location": location}
    for value in (block, json.dumps(block), repr(block)):
        path = write(tmp_path_factory.mktemp("x") / "x.jsonl", {**GOOD, "intervention": value})
        one = read(path, "math").rows[0].intervention
        assert (one.step, one.text) == (location - 1, response_text(content).strip())


@pytest.mark.parametrize(
    "value", [None, "", {}, {"content": "", "location": -(2**63)}, {"content": None, "location": None}]
)
def test_no_intervention(tmp_path, value):
    assert (
        read(write(tmp_path / "x.jsonl", {**GOOD, "intervention": value}), "m").rows[0].intervention is None
    )


# --- held out ---


def test_overlap_is_found_by_the_normalised_text():
    train = [Task(str(i), "m", p) for i, p in enumerate(["Find x.", "Find y.", "caf\u00e9"])]
    test = [Task("a", "m", "find  X.\n"), Task("b", "m", "cafe\u0301")]
    assert datasets.overlap(train, test) == [train[0], train[2]] and datasets.overlap(train[1:2], test) == []
    with pytest.raises(
        StageError, match=r"2 of 3 training problems are in the test set of 2, too:\n  0: 'Find x\.'"
    ):
        datasets.disjoint(train, test)
    assert datasets.disjoint(train, test, skip_bad=True) == [train[1]]
    assert datasets.disjoint(train[1:2], test) == [train[1]]


# --- entering a run at any stage ---


@pytest.fixture(scope="module")
def domain(tiny_dir):
    return domains.load("arithmetic", Tokenizer(tiny_dir))


def released(seed: int, count: int = 6, attempts: int = 2) -> list[dict]:
    """Rows as the authors publish them: arithmetic problems, wrong attempts, the right step at the first error."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        one = chain(rng, 5, 1.5)
        for _ in range(attempts):
            steps = corrupted(rng, one)
            at = next((i for i, (a, b) in enumerate(zip(steps, one.steps, strict=False)) if a != b), 0)
            rows.append(
                {
                    "problem": one.problem,
                    "answer": one.values[-1],
                    "reference_solution": one.reference,
                    "incorrect_attempt": "\n\n".join(steps),
                    "intervention": {"content": one.steps[at], "location": at + 1},
                    "intervention_guided_attempt": "\n\n".join([*steps[:at], one.steps[at]]),
                }
            )
    return rows


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_a_run_may_enter_at_any_stage(tmp_path_factory, domain, seed):
    """The stages agree with each other, come back from JSON bit for bit, and splice to the authors' guided text."""
    folder = tmp_path_factory.mktemp("x")
    rows = read(write(folder / "x.jsonl", *released(seed)), "arithmetic", skip_bad=True).rows
    stages, counts = entry.stage_rows(rows, domain, filtered=True)
    paths = entry.write_stages(stages, folder / "inputs")
    attempts, proposals, guided = (
        [types.from_json(stage_rows.ROWS[stage], row) for row in read_jsonl(paths[stage])]
        for stage in ("attempts", "proposals", "guided")
    )
    wrong = failures(attempts)
    found = [row.intervention for row in proposals]
    assert [row.id for row in proposals] == [stage_rows.id_of(trace) for trace in wrong]
    usable = [i for i, one in enumerate(found) if one]
    again = splice([wrong[i] for i in usable], [found[i] for i in usable], domain.tokenizer, domain.separator)
    kept = [row.trace for row in guided]
    assert list(map(types.to_json, kept)) == list(map(types.to_json, again))
    assert counts["spliced"] == len(kept) and counts["differ"] == 0
    assert counts["attempts"] == len(rows) and counts["problems"] == len(attempts) == len(
        {r.task.id for r in rows}
    )
    assert len({(t.task.id, t.key) for t in wrong}) == len(wrong)
    by_attempt = {(row.task.id, row.attempt): row for row in rows}
    for trace in wrong:
        text = domain.tokenizer.text(trace.response)
        assert (trace.task.id, text) in by_attempt and not trace.verdict.passed
        assert trace.tokens[-1] in domain.tokenizer.stop_ids and trace.step_ends[-1] == len(trace.tokens)
    for trace in kept:
        guided_texts = {row.guided for row in rows if row.task.id == trace.task.id}
        assert domain.tokenizer.text(trace.response).rstrip("\n") in guided_texts


def test_imported_tokens_are_not_taken_for_samples_and_are_trained_all_the_same(tmp_path, domain):
    rows = read(write(tmp_path / "x.jsonl", *released(1)), "arithmetic", skip_bad=True).rows
    row = next(row for row in rows if row.intervention.step == 2)
    trace = entry.attempt(domain, row.task, row.attempt)
    assert not trace.sampled.any() and not trace.logp.any()
    assert not reinforced(trace, 1.0).rl.any()  # no policy gradient: its log-probabilities are not known
    [patched] = splice([trace], [row.intervention], domain.tokenizer, domain.separator)
    weights = intervention_weights(patched, prefix=2.0, intervention=3.0)
    where = np.arange(len(weights))
    expected = np.where(where < patched.prompt_len, 0, np.where(where < patched.spliced, 2.0, 3.0))
    np.testing.assert_array_equal(weights, expected)
    assert domain.tokenizer.text(patched.tokens[patched.spliced :]) == row.intervention.text + "\n\n"


BLANK_LINES = [
    *("\n\n", "\r\n\r\n", "\r\r", "\n\r\n", "\n \n", "\n\t \n", "\r\n  \r\n", "\n\f\n", "\n\v\n", "\n\xa0\n"),
    *("\u2029", "\u2028\u2028", "\x85\x85", "\n\u200b\n", "\n \n \n\n", "  \n\n"),
]
PIECES = ["7 + 5 = 13", "13 * 3 = 39", "\\boxed{39}"]


@pytest.mark.parametrize("blank", BLANK_LINES, ids=ascii)
@pytest.mark.parametrize("before", ["", "lines"])
def test_a_blank_line_ends_a_step_however_it_is_written(domain, blank, before):
    text = (blank if before else "") + blank.join(PIECES)
    trace = entry.attempt(domain, Task("t", "arithmetic", "Start with 7, add 5, times 3.", "", "36"), text)
    assert [step.strip() for step in domain.step_texts(trace)] == PIECES
    again = response_text(text)
    assert response_text(again) == again and "\r" not in domain.tokenizer.text(trace.response)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(BLANK_LINES), min_size=2, max_size=2), st.integers(1, 3))
def test_an_intervention_is_placed_alike_whatever_the_blank_lines(domain, blanks, location):
    task = Task("t", "arithmetic", "Start with 7, add 5, times 3.", "", "36")
    trace = entry.attempt(domain, task, PIECES[0] + blanks[0].replace("\n \n \n\n", "\n \n") + PIECES[1])
    plain_one = entry.attempt(domain, task, "\n\n".join(PIECES[:2]))
    one = Intervention(location - 1, "7 + 5 = 12")
    assert entry.located(domain, trace, one).step == entry.located(domain, plain_one, one).step


@pytest.mark.parametrize(
    "end",
    [
        *(
            "",
            "<|im_end|>",
            "<|im_end|>\n",
            "\n<|im_end|>",
            "<|im_end|><|im_end|>",
            "<|im_end|> <|endoftext|>\n\n",
        ),
        *("</s>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|im_end|>\r\n"),
    ],
    ids=ascii,
)
def test_an_attempt_ends_in_one_stop_token(domain, end):
    task = Task("t", "arithmetic", "Start with 7, add 5, times 3.", "", "36")
    trace = entry.attempt(domain, task, "\n\n".join(PIECES) + end)
    expected = entry.attempt(domain, task, "\n\n".join(PIECES))
    stops = np.isin(trace.response, domain.tokenizer.stop_ids)
    assert stops.sum() == 1 and stops[-1] and len(trace.step_ends) == 3
    assert domain.tokenizer.text(trace.response).strip() == domain.tokenizer.text(expected.response)
    assert trace.step_ends[-1] == len(trace.tokens) and trace.stop == "stop"


@pytest.mark.parametrize("text", ["", " ", "\r\n\r\n", "\u2029", "<|im_end|>", " </s>\n", "\f"])
def test_an_attempt_without_a_word_is_none(tmp_path, text):
    path = write(tmp_path / "x.jsonl", {**GOOD, "incorrect_attempt": text})
    with pytest.raises(
        StageError, match=r"1 no incorrect_attempt\n.*x\.jsonl, row 1: no 'incorrect_attempt'"
    ):
        read(path, "m", needs=("incorrect_attempt",))


@pytest.mark.parametrize(
    "text", ["a\n\nb", "x </s> y", "1  \n2", "  a", "\n\na", "a\tb", "a\n\n\n\nb", "a\fb"]
)
def test_what_is_no_line_end_stays_as_it_is(text):
    assert response_text(text) == text


def test_a_location_counts_the_files_pieces(domain):
    """Runs of newlines: the authors' split leaves empty pieces, which are no steps here."""
    text = "1 + 1 = 2\n\n\n\n2 + 1 = 3\n\n\n3 + 1 = 4\n\n\\boxed{4}"
    trace = entry.attempt(domain, Task("t", "arithmetic", "Start with 1, add 1.", "2", "2"), text)
    pieces = text.split("\n\n")
    assert pieces[1] == "" and len(trace.step_ends) == 4
    found = [entry.located(domain, trace, Intervention(i, "x")).step for i in range(-1, len(pieces) + 1)]
    assert found == [-1, 0, 1, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "drop"),
    [
        ({"intervention": None}, "unparsed"),
        ({"intervention": {"content": "7 + 5 = 12", "location": 9}}, "out_of_range"),
        ({"intervention": {"content": "7 + 5 = 12", "location": 0}}, "out_of_range"),
        ({"intervention": {"content": " ", "location": 1}}, "empty"),
        ({"intervention": {"content": "so it is 36", "location": 1}}, "leaked"),
    ],
)
def test_what_cannot_be_spliced_is_counted_by_its_reason(tmp_path, domain, change, drop):
    base = {
        "problem": "Start with 7, add 5, times 3.",
        "answer": 36,
        "incorrect_attempt": "7 + 5 = 13\n\n\\boxed{39}",
    }
    good = {
        **base,
        "intervention": {"content": "7 + 5 = 12", "location": 1},
        "intervention_guided_attempt": "else",
    }
    other = {**good, **change, "incorrect_attempt": "7 + 5 = 14\n\n\\boxed{42}"}
    rows = read(write(tmp_path / "x.jsonl", good, other), "arithmetic").rows
    stages, counts = entry.stage_rows(rows, domain)
    assert [p.drop for p in stages["proposals"]] == ["", drop] and stages.keys() == {
        "attempts",
        "proposals",
    }
    assert counts == collections.Counter(attempts=2, problems=1, spliced=1, differ=1) + collections.Counter(
        {drop: 1}
    ) | {name: 0 for name in counts if name not in ("attempts", "problems", "spliced", "differ", drop)}


def test_an_attempt_that_the_verifier_passes_is_no_failure(tmp_path, domain):
    base = {"problem": "Start with 7, add 5, times 3.", "answer": 36}
    texts = ["7 + 5 = 13\n\n\\boxed{39}", "7 + 5 = 12\n\n\\boxed{36}"]
    path = write(tmp_path / "x.jsonl", *({**base, "incorrect_attempt": t} for t in texts))
    stages, counts = entry.stage_rows(read(path, "arithmetic").rows, domain)
    assert counts["passed"] == 1 and "proposals" not in stages
    [row] = stages["attempts"]
    assert (row.samples, row.correct, len(row.wrong)) == (2, 1, 1)
    with pytest.raises(StageError, match=r"x\.jsonl, row 1: no 'incorrect_attempt'"):
        entry.stage_rows(read(write(tmp_path / "x.jsonl", base), "arithmetic").rows, domain)


def test_reading_files_imports_neither_tensorflow_nor_tfds(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD)
    code = (
        "import sys; from int_jax import datasets; datasets.read(sys.argv[1], 'm'); "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr
