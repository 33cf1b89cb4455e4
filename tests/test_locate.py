"""Where `likelihood_ratio` locates an error: by how each step falls when the reference comes into view."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int_jax import rollout
from int_jax.domains import arithmetic
from int_jax.engine import Engine
from int_jax.proposers.likelihood_ratio import MARGIN, SHARE, all_falls, curve, falls, gains, location
from int_jax.sharding import make_mesh
from int_jax.types import Trace

# Gains of the tokens of three or four steps, nats, and the step that a careful person would name.
CASES = {
    "a right attempt with nothing to tell": ([[0, 0.1, 0], [0, 0, 0.2], [0.1, 0]], None),
    "one wrong number": ([[0, 0.1, 0], [0, -9, 0], [0.1, 0]], 1),
    "the wrong number is carried into later steps": ([[0, 0.1, 0], [0, -4, 0], [-9, 0, -3], [-12]], 1),
    "the wrong number is carried on from the first step": ([[0, 0, -6], [0, -9, 0, 0, 0], [0, -3, 0, 0]], 0),
    "the last step": ([[0, 0, 0], [0, 0, 0], [0, 0, 0, 0, -5]], 2),
    "a right step is worded otherwise, a little unlikelier": ([[0, -0.8, 0], [0, -9, 0], [0.1, 0]], 1),
    "nothing falls by more than the margin": ([[0, -0.3, 0], [0, -0.4, 0], [0.1, 0]], None),
    "every step is raised, the wrong one by 7.9": ([[4, 4, 9, 4], [4, 4, 8, 4], [4, 4, -4.1, 4]], 2),
    "every token is raised, the wrong number less": ([[3, 3, 3], [3, 0.5, 3], [3, 3, 3]], 1),
    "every token is lowered, the wrong number more": ([[-3, -3, -3], [-3, -7, -3], [-3, -3, -3]], 1),
    "a long wrong step that gains in all": ([[0, 0, 0], [2] * 20 + [-8], [0, 0, 0], [0] * 20], 1),
    "a long right step that loses a little in every token": ([[-0.2] * 40, [0, 0, -5], [0, 0, 0] * 20], 1),
    "raised unevenly, no token much below the median": ([[2, 2.2, 1.8], [2.4, 2, 1.9], [2, 2.1]], None),
    "one step": ([[0, 0, -3, 0]], 0),
    "no step": ([], None),
}


def flat(steps):
    return np.array([gain for step in steps for gain in step]), np.cumsum([len(step) for step in steps])


@pytest.mark.parametrize("case", CASES)
def test_the_located_step(case):
    steps, expected = CASES[case]
    assert location(falls(*flat(steps))) == expected


EIGHTHS = st.integers(-80, 80).map(lambda n: n / 8)  # sums of them are exact
ATTEMPTS = st.lists(st.lists(EIGHTHS, min_size=1, max_size=7), min_size=1, max_size=9)


@given(ATTEMPTS, EIGHTHS)
def test_the_same_gain_for_every_token_changes_nothing(steps, more):
    gain, ends = flat(steps)
    np.testing.assert_array_equal(falls(gain + more, ends), falls(gain, ends))


@given(ATTEMPTS)
def test_the_location_is_the_first_of_the_deep_steps(steps):
    """The definition, step by step in plain Python."""
    gain, ends = flat(steps)
    fall = [float(np.median(gain)) - min(step) for step in steps]
    np.testing.assert_array_equal(falls(gain, ends), fall)
    for margin in (0.0, MARGIN, 4.0):
        deep = [i for i, f in enumerate(fall) if f > margin and f >= SHARE * max(fall)]
        assert location(np.array(fall), margin) == (deep[0] if deep else None)


@given(st.lists(st.tuples(ATTEMPTS, st.one_of(st.none(), st.integers(0, 3))), max_size=6))
def test_the_curve_counts_what_each_margin_locates(attempts):
    every = [falls(*flat(steps)) for steps, _ in attempts]
    truths = [truth for _, truth in attempts]
    rows = curve(every, truths, (0.0, 0.5, 3.0))
    assert [row["margin"] for row in rows] == [0.0, 0.5, 3.0]
    for row in rows:
        found = [location(fall, row["margin"]) for fall in every]
        assert row["located"] == len(found) - found.count(None)
        exact = [step is not None and step == truth for step, truth in zip(found, truths, strict=True)]
        assert row["exact"] == sum(exact)
    assert all(a["located"] >= b["located"] for a, b in itertools.pairwise(rows))


def test_tokens_after_the_last_step_do_not_count():
    assert location(falls(np.array([0.0, 0, -3, 0, -99]), (2, 4))) == 1


# --- over a model ---


@pytest.fixture(scope="module")
def params(engine):
    fresh = jax.device_get(jax.jit(engine.model.init)(jax.random.key(5)))
    return {**fresh, "embed_VD": fresh["embed_VD"] * 6}  # so that the context matters


@pytest.fixture(scope="module")
def traces(domain):
    """Corrupted attempts at problems of every length, without a stop token after the last step."""
    rng = np.random.default_rng(0)
    out = []
    for k in range(8):
        one = arithmetic.chain(rng, 1 + k, 1.5)
        task = arithmetic.task(one, f"task{k}")
        opened = rollout.open_trace(domain, task)
        text = "\n\n".join(arithmetic.corrupted(rng, one))
        tokens = np.array([*opened.tokens, *domain.tokenizer.encode(text)], np.int32)
        ends = domain.steps(tokens, opened.prompt_len)
        drawn = np.arange(len(tokens)) >= opened.prompt_len
        out.append(Trace(task, tokens, opened.prompt_len, drawn, np.zeros(len(tokens)), step_ends=ends))
    return out


def test_a_gain_is_the_ratio_of_two_scores(engine, params, domain, traces):
    for trace, gain in zip(traces, gains(engine, params, domain, traces), strict=True):
        informed = rollout.open_trace(domain, trace.task, "teacher").tokens
        [without], [with_it] = (
            engine.score(params, [[*prompt, *trace.response]])[0]
            for prompt in (trace.tokens[: trace.prompt_len], informed)
        )
        expected = with_it[len(informed) :].astype(np.float64) - without[trace.prompt_len :]
        assert gain.shape == trace.response.shape
        np.testing.assert_allclose(gain, expected, atol=5e-5)


def test_falls_do_not_depend_on_company_or_mesh(engine, params, domain, traces):
    together = all_falls(engine, params, domain, traces)
    assert [len(fall) for fall in together] == [len(trace.step_ends) for trace in traces]
    for trace, fall in zip(traces[::3], together[::3], strict=True):
        [alone] = all_falls(engine, params, domain, [trace])
        np.testing.assert_allclose(fall, alone, atol=5e-5)
    other = Engine(engine.model, make_mesh(4, 2), slots=4, score_tokens=512)
    for fall, expected in zip(
        all_falls(other, other.decode_params(params), domain, traces), together, strict=True
    ):
        np.testing.assert_allclose(fall, expected, atol=5e-5)


def test_nothing_to_locate(engine, params, domain):
    assert all_falls(engine, params, domain, []) == []
