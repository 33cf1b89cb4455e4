"""The released rules beside ours: equal where theirs are right, and each difference by its name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax.datasets import released
from int_jax.domains import math
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task

STEPS = [
    "First, note that n is even.",
    "Then n + 3 is even, too.",
    "So the sum is 12.",
    "The answer is \\boxed{12}.",
]
ATTEMPT = "\n\n".join(STEPS)
TASK = Task("t", "math", "What is the sum?", "The sum is 17.", "17")
RIGHT = "Then n + 3 is odd."


@pytest.fixture(scope="module")
def domain(tiny_dir):
    return math.Math(Tokenizer(tiny_dir))


def block(location, content: str) -> str:
    fields = json.dumps({"content": content, "location": location})
    return f"### Intervention\n\n<intervention>{fields}</intervention>"


def compare(domain, *outputs: str, task: Task = TASK):
    return released.compare(domain, task, ATTEMPT, list(outputs))


@pytest.mark.parametrize("location", [1, 2, 4])
def test_a_clean_output_gives_the_same_guided_attempt(domain, location):
    found = compare(domain, block(location, RIGHT))
    assert found.differences == ()
    assert found.theirs == found.ours == "\n\n".join([*STEPS[: location - 1], RIGHT])


WORDS = st.lists(st.sampled_from(["so", "n", "is", "odd", "even", "hence", "add"]), min_size=1, max_size=8)


@settings(deadline=None)
@given(WORDS, st.integers(1, len(STEPS)))
def test_clean_outputs_agree_whatever_they_say(domain, words, location):
    found = compare(domain, block(location, " ".join(words)))
    assert found.differences == () and found.theirs == found.ours


def test_the_first_usable_output_is_taken_by_both(domain):
    found = compare(
        domain, "no block", block(2, "The sum is 17."), block(2, RIGHT), block(3, "Something else.")
    )
    assert found.differences == () and found.ours.endswith(RIGHT)


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ([block("the end", RIGHT), block(2, RIGHT)], ("aborted",)),
        (["<intervention>```json\n" + block(2, RIGHT)[32:-15] + "\n```</intervention>"], ("repaired",)),
        ([block(2, "")], ("empty",)),
        ([block(0, RIGHT)], ("out_of_range",)),
        ([block(9, RIGHT)], ("out_of_range",)),
        ([block(2, "Hence the sum is \\\\frac{34}{2}.".replace("\\\\", "\\"))], ("leak",)),
        ([block(2, "There are 170 such numbers.")], ("substring",)),
        ([block(2, "n is even.\nThen n + 3 is odd.")], ("newlines",)),
    ],
)
def test_each_difference_has_its_name(domain, outputs, names):
    found = compare(domain, *outputs)
    assert found.differences == names
    assert set(names) <= released.DIFFERENCES.keys()


def test_what_only_they_would_splice_is_not_ours(domain):
    for output in (block(2, ""), block(0, RIGHT), block(9, RIGHT)):
        found = compare(domain, output)
        assert found.theirs is not None and found.ours is None
    assert compare(domain, block(0, RIGHT)).theirs == "\n\n".join([*STEPS[:-1], RIGHT])
