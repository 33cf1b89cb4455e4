"""The rehearsal's problems: right by another way of computing, told consistently, wrong from the slip on."""

import itertools
import re
from fractions import Fraction

import numpy as np
import pytest
import sympy

import int_jax
from experiments import competition

NAMES = competition.lexicon(0, 200)


def numbers(statement: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", statement)]


def brute_force(statement: str) -> str:
    """The answer from the statement alone, without the chain of steps."""
    given = numbers(statement)
    if "progression" in statement:
        first, difference, count = given
        return str(sum(first + i * difference for i in range(count)))
    if "Real numbers" in statement:
        s, p = given[:2]
        x, y = sympy.symbols("x y")
        roots = sympy.solve([x + y - s, x * y - p], [x, y], dict=True)[0]
        return str(sympy.simplify((x**2 + y**2).subs(roots)) + s)
    if "remainder" in statement:
        base, _, _, _, modulus = given
        return str((pow(base, 4) + base * base) % modulus)
    if "bag" in statement:
        red, blue = given
        drawn = list(itertools.permutations([1] * red + [0] * blue, 2))
        return str(Fraction(sum(a and b for a, b in drawn), len(drawn)))
    if "f(x)" in statement:
        a, _, b, c, k = given
        return str(int(np.polyval([a, b, c], k)))
    return str(sympy.divisor_count(2 ** given[1] * 3 ** given[3] * 5 ** given[5]))


@pytest.fixture(scope="module")
def problems():
    rng = np.random.default_rng(5)
    return [competition.problem(rng, NAMES) for _ in range(60)]


def test_answers_are_right(problems):
    for one in problems:
        statement = one.statement.partition(") ")[2]
        assert int_jax.verify(f"\\boxed{{{brute_force(statement)}}}", one.answer).passed, (
            statement,
            one.answer,
        )


def test_both_tellings_end_in_the_answer(problems):
    for one in problems:
        own, reference = one.told()
        assert int_jax.verify("\n\n".join(own), one.answer).passed
        assert len(reference) == len(one.steps) == len(own) - 1
        assert one.answer in reference[-1]


def test_a_slip_is_the_first_difference(problems):
    for one in problems:
        right = one.told()[0]
        for slip in range(len(one.steps)):
            wrong = one.told(slip, 3)[0]
            assert [a == b for a, b in zip(right, wrong, strict=True)].index(False) == slip


def test_a_row_has_the_columns_of_a_data_file(problems):
    row = competition.row(problems[0])
    assert {"problem", "answer", "reference_solution"} <= row.keys()
    assert all(row.values())


def test_names_are_distinct():
    assert len(set(NAMES)) == 200 and competition.lexicon(0, 200) == NAMES
