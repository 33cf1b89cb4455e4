"""Answers that differ and answers that are equal, by the verdict that a careful person would give.

tests/answers/different.tsv passes neither grader; tests/answers/equal.tsv passes the tolerant one. docs/graders.md says
where the dependency decides otherwise.
"""

import pathlib
import re

import pytest

from int_jax.verify import gradable, verify_batch

ROOT = pathlib.Path(__file__).parents[1]


def pairs(name: str) -> list[tuple[str, str]]:
    lines = (ROOT / "tests" / "answers" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [(answer, gold) for answer, gold in (line.split("\t") for line in lines)]


def passed(some: list[tuple[str, str]], grader: str) -> list[bool]:
    return [v.passed for v in verify_batch([(f"\\boxed{{{answer}}}", gold) for answer, gold in some], grader)]


@pytest.mark.parametrize("grader", ["strict", "tolerant"])
def test_a_different_answer_never_passes(grader):
    different = pairs("different")
    wrong = [pair for pair, ok in zip(different, passed(different, grader), strict=True) if ok]
    assert wrong == [] and len(different) > 500


def test_an_equal_answer_passes_the_tolerant_grader():
    equal = pairs("equal")
    refused = [pair for pair, ok in zip(equal, passed(equal, "tolerant"), strict=True) if not ok]
    assert refused == [] and len(equal) > 340


def test_a_gold_answer_passes_as_it_is_written():
    """Whatever is gradable, whichever the grader: a gold answer that its own text fails could never be met."""
    golds = sorted({gold for name in ("different", "equal") for _, gold in pairs(name)})
    told = [gold for gold in golds if gradable(gold) is None][::8]
    for grader in ("strict", "tolerant"):
        verdicts = passed([(gold, gold) for gold in told], grader)
        assert [gold for gold, ok in zip(told, verdicts, strict=True) if not ok] == []


def documented() -> list[tuple[str, ...]]:
    lines = (ROOT / "docs" / "graders.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")
    ]
    return [(*(cell.strip("`") for cell in row[:2]), *row[2:5]) for row in rows]


def test_the_page_says_what_the_graders_do():
    from math_verify import LatexExtractionConfig, parse, verify

    rows = documented()
    assert len(rows) >= 15
    config = [LatexExtractionConfig()]
    for answer, gold, theirs, *_ in rows:
        read = [parse(f"\\boxed{{{text}}}", config, parsing_timeout=None) for text in (gold, answer)]
        assert verify(*read, timeout_seconds=None) == (theirs == "passes"), (answer, gold)
    for column, grader in ((3, "strict"), (4, "tolerant")):
        verdicts = passed([row[:2] for row in rows], grader)
        assert verdicts == [row[column] == "passes" for row in rows], grader


def test_the_page_counts_the_pairs():
    numbers = re.search(r"as are (\d+) different and (\d+) equal", (ROOT / "docs" / "graders.md").read_text())
    assert [len(pairs("different")), len(pairs("equal"))] == [int(n) for n in numbers.groups()]
