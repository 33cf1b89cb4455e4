import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.sharding import make_mesh

VOCAB = 40
MODEL = build(
    Config("test", vocab=VOCAB, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffw=16, max_len=256)
)
IDS = st.integers(0, VOCAB - 1)


@st.composite
def rows(draw):
    """(plain prompt, informed prompt, response, step ends)."""
    plain = draw(st.lists(IDS, min_size=1, max_size=10))
    informed = draw(st.lists(IDS, min_size=1, max_size=40))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=11))
    response = draw(st.lists(IDS, min_size=sum(lengths), max_size=sum(lengths)))
    return plain, informed, response, tuple(np.cumsum(lengths).tolist())


@pytest.fixture(scope="module")
def engine():
    return Engine(MODEL, make_mesh(1, 1, jax.devices()[:1]), slots=4, score_tokens=512)


@pytest.fixture(scope="module")
def params():
    fresh = jax.device_get(jax.jit(MODEL.init)(jax.random.key(5)))
    return {**fresh, "embed_VD": fresh["embed_VD"] * 50}  # so that the context matters


def oracle(engine, params, row):
    """The ratio of each step from two calls of `score`, in float64."""
    plain, informed, response, ends = row
    [without] = engine.score(params, [plain + response])[0]
    [with_it] = engine.score(params, [informed + response])[0]
    gain = with_it[len(informed) :].astype(np.float64) - without[len(plain) :]
    return np.array([gain[a:b].sum() for a, b in zip((0, *ends), ends, strict=False)])


def first_below(ratios, threshold):
    return next((i for i, ratio in enumerate(ratios) if ratio < -threshold), None)


def test_locate_is_the_ratio_of_two_scores(engine, params):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(rows(), min_size=1, max_size=5), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def run(batch, threshold):
        ratios, locations = engine.locate(params, *zip(*batch, strict=True), threshold=threshold)
        assert len(ratios) == len(locations) == len(batch)
        for row, got, location in zip(batch, ratios, locations, strict=True):
            np.testing.assert_allclose(got, oracle(engine, params, row), atol=5e-5)
            assert location == first_below(got, threshold)

    run()


def fixed(seed, count):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        ends = np.cumsum(rng.integers(2, 6, 4)).tolist()
        ids = [rng.integers(0, VOCAB, n).tolist() for n in (5, 20, ends[-1])]
        out.append((*ids, tuple(ends)))
    return out


def test_both_outcomes_occur(engine, params):
    _, locations = engine.locate(params, *zip(*fixed(0, 12), strict=True), threshold=2.0)
    assert None in locations and len(set(locations)) > 2


@pytest.mark.parametrize("company", [1, 7, 30])
def test_locate_does_not_depend_on_padding_or_company(engine, params, company):
    batch = fixed(0, 3)
    alone = [engine.locate(params, *([part] for part in row)) for row in batch]
    # The company is long: other widths of the tokens and of the steps.
    long = [(list(range(9)), list(range(30)), [i % VOCAB for i in range(60)], tuple(range(5, 61, 5)))]
    ratios, locations = engine.locate(params, *zip(*(long * company + batch), strict=True))
    for i, ([expected], [location]) in enumerate(alone):
        np.testing.assert_allclose(ratios[company + i], expected, atol=2e-5)
        assert locations[company + i] == location


def test_the_same_prompt_locates_nothing(engine, params):
    batch = [(plain, plain, response, ends) for plain, _, response, ends in fixed(1, 4)]
    ratios, locations = engine.locate(params, *zip(*batch, strict=True))
    assert locations == [None] * 4 and all((r == 0).all() for r in ratios)


def test_the_first_step_below_the_threshold_is_taken(engine, params):
    """At a threshold just above each step's own value the location moves to a later step, or to None."""
    batch = fixed(0, 8)
    ratios, _ = engine.locate(params, *zip(*batch, strict=True))
    assert min(np.diff(np.sort(np.concatenate(ratios)))) > 1e-4
    for row, mine in zip(batch, ratios, strict=True):
        for value in mine[mine < 0]:
            for nudge in (-1e-5, 1e-5):
                threshold = float(-value) + nudge
                [again], [location] = engine.locate(params, *([part] for part in row), threshold=threshold)
                assert location == first_below(again, threshold)


def test_locate_does_not_depend_on_the_mesh(engine, params):
    batch = fixed(0, 5)
    other = Engine(MODEL, make_mesh(4, 2), slots=4, score_tokens=512)
    ratios, locations = other.locate(other.decode_params(params), *zip(*batch, strict=True))
    expected, wanted = engine.locate(params, *zip(*batch, strict=True))
    assert locations == wanted
    for got, want in zip(ratios, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_response_without_steps(engine, params):
    ratios, locations = engine.locate(params, [[1, 2], [3]], [[4], [5, 6]], [[7, 8], []], [(1, 2), ()])
    assert len(ratios[0]) == 2 and len(ratios[1]) == 0 and locations[1] is None


def test_nothing_to_locate(engine, params):
    assert engine.locate(params, [], [], [], []) == ([], [])


def test_lists_of_different_lengths_are_refused(engine, params):
    with pytest.raises(ValueError):
        engine.locate(params, [[1]], [[2]], [[3], [4]], [(1,), (1,)])
