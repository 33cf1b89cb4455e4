import collections
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax.estimates import (
    bootstrap_ci,
    effect_row,
    gain,
    maj_at_n,
    paired_bootstrap_ci,
    pass_at_k,
    summarize,
)

COUNTS = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
VALUES = st.lists(st.floats(-10, 10), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.data())
def test_pass_at_k_counts_the_draws_that_hold_a_correct_one(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = [any(draw) for draw in itertools.combinations([True] * c + [False] * (n - c), k)]
    assert pass_at_k(n, c, k) == pytest.approx(np.mean(draws), abs=1e-12)


@given(st.integers(1, 10**6), st.data())
def test_pass_at_1_is_the_share_of_correct(n, data):
    c = data.draw(st.integers(0, n))
    assert pass_at_k(n, c, 1) == pytest.approx(c / n, rel=1e-9)


@settings(deadline=None)
@given(st.integers(2, 3_000), st.data())
def test_pass_at_k_is_monotone_and_a_chance(n, data):
    c, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n - 1))
    here = pass_at_k(n, c, k)
    assert 0.0 <= here <= 1.0 and np.copysign(1, here) == 1
    assert pass_at_k(n, c + 1, k) >= here - 1e-12 and pass_at_k(n, c, k + 1) >= here - 1e-12


def test_pass_at_k_keeps_its_digits():
    # One correct of n: the chance is k / n exactly; 1 - prod(...) would keep 4 of its digits.
    assert pass_at_k(10**12, 1, 1) == pytest.approx(1e-12, rel=1e-14, abs=0)
    assert pass_at_k(10**6, 500_000, 500_000) == 1.0


@pytest.mark.parametrize(
    "n, c, k, named",
    [(4, 1, 5, "k=5 of n=4"), (4, 5, 1, "c=5 correct of n=4"), (4, -1, 1, "c=-1"), (4, 0, 0, "k=0")],
)
def test_pass_at_k_refuses_impossible_counts(n, c, k, named):
    with pytest.raises(ValueError, match=named):
        pass_at_k(n, c, k)


@settings(max_examples=30, deadline=None)
@given(VALUES, st.integers(0, 99))
def test_bootstrap_holds_its_bounds_and_repeats(values, seed):
    low, high = bootstrap_ci(values, seed, resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_ci(values, seed, resamples=200)
    wider = bootstrap_ci(values, seed, resamples=200, level=0.99)
    assert wider[0] <= low and high <= wider[1]


def test_bootstrap_equals_every_resample_there_is():
    values = [0.0, 0.25, 0.5, 1.0, 1.0]
    means = [np.mean(resample) for resample in itertools.product(values, repeat=5)]
    exact = np.quantile(means, [0.1, 0.9])
    assert bootstrap_ci(values, resamples=40_000, level=0.8) == pytest.approx(tuple(exact), abs=0.051)
    shifted = bootstrap_ci(np.add(values, 3.0), resamples=40_000, level=0.8)
    assert shifted == pytest.approx(np.add(bootstrap_ci(values, resamples=40_000, level=0.8), 3.0))


def test_bootstrap_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(1).normal(size=200)
    low, high = bootstrap_ci(values, resamples=50_000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(values.size), rel=0.02)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=2e-3)


def test_bootstrap_does_not_depend_on_how_memory_is_cut(monkeypatch):
    values = np.arange(17.0)
    whole = bootstrap_ci(values)
    monkeypatch.setattr("int_jax.estimates.CHUNK", 17 * 7)
    assert bootstrap_ci(values) == whole


def test_bootstrap_of_one_problem_and_of_none():
    assert bootstrap_ci([0.3]) == (0.3, 0.3)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_ci([])


@settings(max_examples=30, deadline=None)
@given(VALUES)
def test_paired_interval_cancels_what_the_pairs_share(values):
    b = np.asarray(values)
    assert paired_bootstrap_ci(b + 0.5, b, resamples=100) == pytest.approx((0.5, 0.5))
    low, high = paired_bootstrap_ci(b, -b, resamples=100)
    assert paired_bootstrap_ci(-b, b, seed=0, resamples=100) == pytest.approx((-high, -low), abs=1e-9)


def test_paired_interval_refuses_different_problems():
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_bootstrap_ci([1, 2], [1])


@settings(max_examples=20, deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=10))
def test_summarize_and_effect_row(counts):
    k = min(n for n, _ in counts)
    summary, row = summarize(counts, (1, k)), effect_row(np.asarray(counts))
    assert json.loads(json.dumps([summary, row])) == [summary, row]
    assert set(summary) == {"pass@1", f"pass@{k}"}
    one = summary["pass@1"]
    assert one["mean"] == pytest.approx(np.mean([c / n for n, c in counts]))
    assert summary[f"pass@{k}"]["mean"] == pytest.approx(np.mean([pass_at_k(n, c, k) for n, c in counts]))
    assert (one["problems"], one["samples"]) == (len(counts), sum(n for n, _ in counts))
    assert one["ci95"] == list(bootstrap_ci([pass_at_k(n, c, 1) for n, c in counts]))
    assert row["solved"] == sum(c > 0 for _, c in counts) and row["problems"] == len(counts)
    assert row["accuracy"] == pytest.approx(one["mean"]) and row["ci95"] == pytest.approx(one["ci95"])


def test_summarize_refuses_k_beyond_the_samples():
    with pytest.raises(ValueError, match="k=8 of n=4"):
        summarize([(8, 1), (4, 1)])


def votes(answers, gold):
    """Samples' answers as `maj_at_n` counts them."""
    counts = collections.Counter(answer for answer in answers if answer is not None)
    return [(answer, count, answer == gold) for answer, count in counts.items()]


def test_majority_vote():
    answers = [["1", "2", "2"], ["1", "2"], [None, None, "3"], [None], [], ["2", "1", "1", "2"]]

    def row(*golds):
        return maj_at_n(list(map(votes, answers, golds)), 13)

    assert row("2", "1", "3", "5", "5", "1")["mean"] == pytest.approx(3 / 6)
    told = row("2", "1", "3", "5", "5", "2")
    assert (told["mean"], told["problems"], told["samples"]) == (pytest.approx(4 / 6), 6, 13)
    assert json.loads(json.dumps(told)) == told


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.randoms())
def test_a_strict_majority_wins_in_any_order(some, random):
    answers = [*some, *["x"] * (len(some) + 1)]
    random.shuffle(answers)
    assert maj_at_n([votes(answers, "x")], len(answers))["mean"] == 1.0


PAIRS = st.integers(1, 9).flatmap(
    lambda n: st.lists(st.tuples(st.integers(0, n), st.integers(0, n)), min_size=1, max_size=9).map(
        lambda pairs: [[(n, c) for c in counts] for counts in zip(*pairs, strict=True)]
    )
)


@settings(max_examples=20, deadline=None)
@given(PAIRS)
def test_the_gain_is_the_paired_difference(pairs):
    a, b = pairs
    k = a[0][0]
    for key, row in gain(a, b, (1, k)).items():
        means = [summarize(counts, (1, k))[key]["mean"] for counts in pairs]
        assert row["mean"] == pytest.approx(means[0] - means[1], abs=1e-12) and row["problems"] == len(a)
        assert row["ci95"][0] <= row["ci95"][1]
    assert all(row["mean"] == 0 and row["ci95"] == [0, 0] for row in gain(a, a, (1, k)).values())
    shifted = gain([(2 * n, c + n) for n, c in a], [(2 * n, c) for n, c in a], (1,))["pass@1"]
    assert shifted["ci95"] == pytest.approx([0.5, 0.5])  # what the pairs share cancels
    with pytest.raises(ValueError, match="same problems twice"):
        gain(a, b[1:], (1,))
