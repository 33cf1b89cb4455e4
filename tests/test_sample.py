import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax import sample
from int_jax.engine import Engine, _decode
from int_jax.models import Config, build, kernels
from int_jax.sampler import Request, Sampling
from int_jax.session import bucket, known_pages, prefix_pages, task_word, together
from int_jax.sharding import make_mesh

VOCAB = 54
MODEL = build(
    Config("test", vocab=VOCAB, dim=16, layers=2, heads=4, kv_heads=2, head_dim=4, ffw=24, max_len=256)
)
SEEDS = st.integers(0, 2**32 - 1)


def draws(rows, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    def full(value, dtype):
        return jnp.full(rows, value, dtype)

    words = (full(0, jnp.uint32),) * 3
    filters = (
        full(temperature, jnp.float32),
        full(top_k, jnp.int32),
        full(top_p, jnp.float32),
        full(min_p, jnp.float32),
    )
    return sample.Draw(*filters, jnp.full((rows, 2), -1), *words)


# --- keep ---


@settings(max_examples=80, deadline=None)
@given(
    SEEDS,
    st.sampled_from([0.3, 1.0, 4.0]),
    st.sampled_from([0, 1, 2, 5, 11, 12, 50]),
    st.floats(0.02, 0.98) | st.just(1.0),
    st.floats(0.001, 0.98) | st.just(0.0),
)
def test_keep_equals_transformers_in_that_order(seed, scale, top_k, top_p, min_p):
    torch = pytest.importorskip("torch")
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = (np.random.default_rng(seed).normal(size=(6, 12)) * scale).astype(np.float32)
    draw = draws(6, 1.0, top_k, top_p, min_p)
    got = jax.jit(sample.keep)(logits, draw.top_k_B, draw.top_p_B, draw.min_p_B)
    scores = torch.tensor(logits).double()
    # A neutral filter is left out, as `generate` of transformers leaves it out.
    filters = (TopKLogitsWarper, top_k, 0), (TopPLogitsWarper, top_p, 1), (MinPLogitsWarper, min_p, 0)
    for warper, value, neutral in filters:
        scores = scores if value == neutral else warper(value)(None, scores)
    np.testing.assert_array_equal(got, torch.isfinite(scores))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 14), st.floats(0.001, 1), st.floats(0, 1))
def test_the_likeliest_token_always_stays_and_rows_are_their_own(seed, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).normal(size=(4, 12)).astype(np.float32) * 5
    draw = draws(4, 1.0, top_k, top_p, min_p)
    keep = jax.jit(sample.keep)
    got = np.asarray(keep(logits, draw.top_k_B, draw.top_p_B, draw.min_p_B))
    assert got[np.arange(4), logits.argmax(1)].all()
    assert (got.sum(1) <= (top_k or 12)).all()
    alone = keep(logits[2:3], *(a[:1] for a in (draw.top_k_B, draw.top_p_B, draw.min_p_B)))
    np.testing.assert_array_equal(got[2:3], alone)
    # Another row's filters change nothing.
    other = keep(logits, draw.top_k_B.at[0].set(1), draw.top_p_B.at[1].set(0.01), draw.min_p_B.at[3].set(1))
    np.testing.assert_array_equal(got[2], np.asarray(other)[2])


@pytest.mark.parametrize("logits", [[0.0, -30, -40, -200], [25.0, 0, 0, 0], list(np.linspace(3, -3, 500))])
def test_neutral_filters_keep_every_token(logits):
    """top_p = 1 keeps all, also where the likeliest token's probability rounds to 1."""
    logits = np.asarray([logits], np.float32)
    assert np.asarray(sample.keep(logits, *draws(1)[1:4])).all()


# --- choose ---


FREE = sample.Spellings(*(jnp.zeros((1, 1), jnp.int32),) * 2)


@jax.jit
def choose(logits, keys, draw):
    return sample.choose(logits, keys, draw, jnp.zeros(len(logits), jnp.int32), FREE)


FILTERS = [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2}, {"top_k": 6, "top_p": 0.9, "min_p": 0.1}]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_draws_follow_the_softmax_of_what_is_kept(filters, temperature):
    count = 20_000
    logits = np.random.default_rng(5).normal(size=9).astype(np.float32) / np.float32(temperature)
    keys = jax.random.split(jax.random.key(11), count)
    draw = draws(count, temperature, **filters)
    tokens, logps = choose(jnp.broadcast_to(logits, (count, 9)), keys, draw)
    np.testing.assert_allclose(logps, jax.nn.log_softmax(logits)[tokens], atol=1e-6)
    kept = np.asarray(sample.keep(logits[None], draw.top_k_B[:1], draw.top_p_B[:1], draw.min_p_B[:1]))[0]
    probs = np.exp(np.float64(logits)) * kept
    expected = count * probs / probs.sum()
    seen = np.bincount(tokens, minlength=9)
    assert (seen[~kept] == 0).all() and (kept.sum() < 9) == bool(filters)
    chi2, free = np.sum((seen - expected)[kept] ** 2 / expected[kept]), kept.sum() - 1
    assert chi2 < free + 5 * np.sqrt(2 * free)  # fixed seed; 5 standard deviations


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(0, 5), st.floats(0.1, 1))
def test_greedy_is_the_argmax_whatever_is_kept(seed, top_k, top_p):
    logits = np.random.default_rng(seed).normal(size=(5, 12)).astype(np.float32)
    got, _ = choose(logits, jax.random.split(jax.random.key(seed), 5), draws(5, 0.0, top_k, top_p))
    np.testing.assert_array_equal(got, logits.argmax(1))


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 264, 1_000, 20_000, 128 * 137])
def test_draws_follow_the_weights_at_every_size(size):
    """One level of bins, two and three, whole ones and others; most weights are 0, as after a filter."""
    rng, count = np.random.default_rng(size), 20_000
    weights = np.where(rng.random(size) < 12 / size, rng.random(size), 0).astype(np.float32)
    weights[-1] = 0.5
    keys = jax.random.split(jax.random.key(size), count)
    tokens = np.concatenate(
        [
            jax.jit(sample.pick)(jnp.broadcast_to(weights, (1_000, size)), some)
            for some in keys.reshape(-1, 1_000)
        ]
    )
    seen, probs = np.bincount(tokens, minlength=size), weights / np.float64(weights).sum()
    assert (seen[weights == 0] == 0).all() and len(seen) == size
    kept = probs > 0
    chi2, free = np.sum((seen - count * probs)[kept] ** 2 / (count * probs[kept])), kept.sum() - 1
    assert chi2 <= free + 5 * np.sqrt(2 * free)  # fixed seed; 5 standard deviations


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(1, 200), st.sampled_from([0.0, 0.5, 1 - 2**-24, 1.0]))
def test_no_number_picks_what_has_no_weight(seed, size, uniform):
    """Also where u x total rounds to the total."""
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random((4, size)) < 0.3, rng.random((4, size)) ** 20, 0).astype(np.float32)
    weights[:, rng.integers(size)] += 1e-7
    got = np.asarray(sample._pick_few(jnp.asarray(weights[:, :128] + (size > 128)), jnp.full(4, uniform)))
    assert (
        (weights[:, :128] + (size > 128))[np.arange(4), got].all() if weights[:, :128].any(1).all() else True
    )


# --- generate ---


def make(slots=4, decode_steps=16, data=1, model=1) -> Engine:
    mesh = make_mesh(data, model, jax.devices()[: data * model])
    return Engine(MODEL, mesh, slots, decode_steps, score_tokens=512)


@pytest.fixture(scope="module")
def params():
    fresh = jax.device_get(jax.jit(MODEL.init)(jax.random.key(3)))
    return {**fresh, "embed_VD": fresh["embed_VD"] * 50}  # so that the context matters


def prompt(rng, length):
    return tuple(int(i) for i in rng.integers(0, VOCAB, length))


RNG = np.random.default_rng(0)
# Prompts of 1 to 60 tokens: two widths of the prefill, and growth of the cache beyond 64.
PROMPTS = [prompt(RNG, n) for n in (5, 1, 2, 31, 33, 60, 12, 5)]
REQUESTS = [Request(p, f"task-{i}", s) for i, p in enumerate(PROMPTS) for s in range(1 + i % 3)]
SAMPLING = Sampling(max_new_tokens=20, temperature=0.9, top_p=0.95, stop_ids=(7, 23, 41), seed=5)


@pytest.fixture(scope="module")
def alone(params):
    """Each response drawn by itself."""
    return [make().generate(params, [r], SAMPLING)[0] for r in REQUESTS]


def equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() and a.stop == b.stop
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)


def test_the_responses_differ_enough_to_tell(alone):
    assert {r.stop for r in alone} == {"stop", "length"}
    drawn = [tuple(r.tokens[len(q.prompt) :]) for q, r in zip(REQUESTS, alone, strict=True)]
    assert len(set(drawn)) == len(alone)


def test_responses_do_not_depend_on_their_company(params, alone):
    """Batch composition, order of requests, rows, decode_steps and so the order of refilling; pages, read ahead."""

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=20),
        # Each is several programs: a few tell as much as all.
        st.sampled_from([(4, 1, 32, False), (8, 7, 32, True), (4, 25, 4, True), (8, 25, 32, False)]),
    )
    def run(picked, sizes):
        slots, decode_steps, page, ahead = sizes
        engine = dataclasses.replace(make(slots, decode_steps), page=page, ahead=ahead)
        equal(engine.generate(params, [REQUESTS[i] for i in picked], SAMPLING), [alone[i] for i in picked])

    run()


def test_responses_do_not_depend_on_the_mesh(params, alone):
    engine = make(8, 16, 4, 2)
    equal(engine.generate(engine.decode_params(params), REQUESTS, SAMPLING), alone)


def test_nor_on_slots_being_empty(params):
    neutral = dataclasses.replace(SAMPLING, top_p=1.0)
    full = make(4).generate(params, REQUESTS[:4], neutral)  # no slot is left empty
    equal(full[:1], make(4).generate(params, REQUESTS[:1], neutral))


@pytest.mark.slow
def test_a_long_request_among_short_ones(params):
    """The cache grows under the short ones; nobody's tokens change."""
    rng = np.random.default_rng(9)
    requests = [Request(prompt(rng, n), "t", i) for i, n in enumerate((3, 80, 7, 4, 9, 3))]
    sampling = Sampling(max_new_tokens=40, seed=1)
    together = make(4, 5).generate(params, requests, sampling)
    assert [len(r.tokens) for r in together] == [43, 120, 47, 44, 49, 43]
    equal(together, [make(4, 16).generate(params, [r], sampling)[0] for r in requests])


def test_a_prefix_of_a_response_is_a_prompt(params):
    """Positions, not steps, name the draws: continuing a cut response gives the same tokens."""
    sampling = Sampling(max_new_tokens=16, seed=2)
    [whole] = make().generate(params, [Request(PROMPTS[0], "t", 0)], sampling)
    half = tuple(whole.tokens[:13].tolist())
    [rest] = make().generate(params, [Request(half, "t", 0)], dataclasses.replace(sampling, max_new_tokens=8))
    assert rest.tokens.tolist() == whole.tokens.tolist()
    np.testing.assert_allclose(rest.logp[13:], whole.logp[13:], atol=1e-5)


KNOBS = [
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.7, "temperature": 0.7},
    {"min_p": 0.2},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_the_returned_logp_is_that_of_score(params, knobs):
    sampling, engine = Sampling(max_new_tokens=20, **knobs), make(8)
    responses = engine.generate(params, REQUESTS, sampling)
    scored, _ = engine.score(params, [r.tokens for r in responses], sampling.temperature)
    for request, response, logp in zip(REQUESTS, responses, scored, strict=True):
        start = len(request.prompt)
        assert len(response.logp) == len(response.tokens) and (response.logp[:start] == 0).all()
        np.testing.assert_allclose(response.logp[start:], logp[start:], atol=1e-5)
        assert (response.logp[start:] < 0).all() and response.tokens[:start].tolist() == list(request.prompt)


def test_score_equals_float64_softmax_of_the_forward_pass(params):
    tokens = np.array(PROMPTS[6])
    hidden, _ = MODEL.apply(params, tokens[None], np.arange(12)[None])
    logits = np.asarray(hidden, np.float64)[0, :-1] @ np.asarray(params["head_DV"], np.float64) / 0.7
    expected = logits[np.arange(11), tokens[1:]] - np.log(np.exp(logits).sum(1))
    [[got], [entropy]] = make().score(params, [tokens], 0.7)
    np.testing.assert_allclose(got, [0, *expected], atol=1e-5)
    assert entropy[0] == 0 and (entropy[1:] > 0).all() and (entropy <= np.log(VOCAB)).all()


def test_score_does_not_depend_on_its_company(params):
    rng = np.random.default_rng(2)
    rows = [prompt(rng, n) for n in (1, 64, 65, 2, 96, 97, 30, 64)]
    engine = make()
    together = engine.score(params, rows)[0]
    for i, row in enumerate(rows):
        assert len(together[i]) == len(row) and together[i][0] == 0
        np.testing.assert_allclose(together[i], engine.score(params, [row])[0][0], atol=1e-5)


@pytest.mark.parametrize("top_k, top_p, min_p", [(3, 1.0, 0.0), (0, 0.5, 0.0), (0, 1.0, 0.4), (1, 1.0, 0.0)])
def test_only_kept_tokens_are_drawn(params, top_k, top_p, min_p):
    sampling = Sampling(max_new_tokens=12, top_k=top_k, top_p=top_p, min_p=min_p)
    for request, response in zip(REQUESTS, make(8).generate(params, REQUESTS, sampling), strict=True):
        length = len(response.tokens)
        tokens = np.zeros((1, 96), np.int32)
        tokens[0, :length] = response.tokens
        hidden = forward(params, tokens)[0, len(request.prompt) - 1 : length - 1]
        logits = hidden @ params["head_DV"]
        kept = np.asarray(sample.keep(logits, *draws(len(logits), 1.0, top_k, top_p, min_p)[1:4]))
        assert kept[np.arange(len(logits)), response.tokens[len(request.prompt) :]].all()


@jax.jit
def forward(params, tokens):
    return MODEL.apply(params, tokens, np.arange(tokens.shape[1])[None])[0]


def test_greedy_takes_the_likeliest_token_whatever_the_seed(params):
    first = make().generate(params, REQUESTS[:4], Sampling(max_new_tokens=10, temperature=0.0, seed=1))
    again = make().generate(params, REQUESTS[:4], Sampling(max_new_tokens=10, temperature=0.0, seed=2))
    for request, a, b in zip(REQUESTS, first, again, strict=False):
        assert a.tokens.tolist() == b.tokens.tolist()
        tokens = np.zeros((1, 96), np.int32)
        tokens[0, : len(a.tokens)] = a.tokens
        likeliest = (forward(params, tokens)[0] @ params["head_DV"]).argmax(-1)
        start = len(request.prompt)
        assert likeliest[start - 1 : len(a.tokens) - 1].tolist() == a.tokens[start:].tolist()


# --- stopping ---


@pytest.fixture(scope="module")
def endless(params):
    return make(8).generate(params, REQUESTS, Sampling(max_new_tokens=30))


@pytest.mark.parametrize("stop_ids", [(7,), (0,), (3, 9), (3, 9, 50)])
def test_a_stop_id_cuts_the_endless_response_and_is_kept(params, endless, stop_ids):
    """Several stop ids; 0 is also what the arrays are padded with."""
    got = make(8).generate(params, REQUESTS, Sampling(max_new_tokens=30, stop_ids=stop_ids))
    assert {r.stop for r in got} == {"stop", "length"}
    for request, response, whole in zip(REQUESTS, got, endless, strict=True):
        start = len(request.prompt)
        hits = np.flatnonzero(np.isin(whole.tokens[start:], stop_ids))
        end = start + hits[0] + 1 if len(hits) else len(whole.tokens)
        assert response.tokens.tolist() == whole.tokens[:end].tolist()
        assert response.stop == ("stop" if len(hits) else "length")


@pytest.mark.parametrize("ends", [(0, 0, 5), (4, 0), (0,)])
def test_stop_ids_in_the_prompt_stop_nothing(params, ends):
    request = Request(ends, "t", 0)
    [plain] = make().generate(params, [request], Sampling(max_new_tokens=6))
    [stopped] = make().generate(params, [request], Sampling(max_new_tokens=6, stop_ids=(0,)))
    assert 0 not in plain.tokens[len(ends) :], "choose another prompt: this one draws the stop id"
    assert stopped.tokens.tolist() == plain.tokens.tolist()


@pytest.mark.parametrize("limit", [1, 2, 15, 16, 17, 36])
def test_max_new_tokens_is_respected_and_shortens_only(params, endless, limit):
    got = make(8).generate(params, REQUESTS, Sampling(max_new_tokens=limit))
    for request, response, whole in zip(REQUESTS, got, endless, strict=True):
        assert len(response.tokens) == len(request.prompt) + limit and response.stop == "length"
        both = min(limit, 30) + len(request.prompt)
        assert response.tokens[:both].tolist() == whole.tokens[:both].tolist()


# --- seeds ---


def test_the_random_stream_is_named_by_seed_task_and_sample(params):
    names = [(seed, task, index) for seed in (0, 1, 2**32 - 1) for task in ("a", "b") for index in (0, 1, 2)]

    def once():
        return [
            response.tokens.tobytes()
            for seed in (0, 1, 2**32 - 1)
            for response in make().generate(
                params,
                [Request(PROMPTS[0], task, index) for task in ("a", "b") for index in (0, 1, 2)],
                Sampling(max_new_tokens=12, seed=seed),
            )
        ]

    drawn = once()
    assert drawn == once() and len(set(drawn)) == len(names)


def test_equal_requests_get_equal_responses(params):
    got = make().generate(params, [REQUESTS[0]] * 6, SAMPLING)
    equal(got, [got[0]] * 6)


def test_task_words_do_not_depend_on_the_process():
    assert [task_word(t) for t in ("", "a", "train-0-1")] == [634351890, 1431053258, 307778137]


# --- programs ---


def test_changing_how_tokens_are_drawn_compiles_nothing(params, request):
    events = []

    def listen(name, *_, **__):
        events.extend([name] * name.endswith("backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    request.addfinalizer(lambda: jax.monitoring.unregister_event_duration_listener(listen))
    engine = make(16, 9)  # nobody else's programs; all rows go together, whatever ends when
    base = Sampling(max_new_tokens=8, stop_ids=(1, 2))
    engine.generate(params, REQUESTS, base)
    programs, before = set(engine.programs), _decode._cache_size()
    events.clear()
    for change in (
        *({"temperature": 0.3}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}),
        *({"seed": 9}, {"stop_ids": (5,)}, {"stop_ids": ()}, {"stop_ids": (8, 3)}),
    ):
        engine.generate(params, REQUESTS, dataclasses.replace(base, **change))
    assert _decode._cache_size() == before and engine.programs == programs and not events
    engine.generate(params, REQUESTS, dataclasses.replace(base, max_new_tokens=90))
    assert events and _decode._cache_size() > before  # a longer cache is a new program: the counters do count


def test_the_number_of_programs_is_bounded(params):
    """By rows (4 and all 8), tokens of a prefill (32 and 64) and pages that are read, whatever the requests."""
    engine, rng = make(8, 6), np.random.default_rng(4)

    def draw():
        lengths = rng.integers(1, 61, rng.integers(1, 12))
        engine.generate(params, [Request(prompt(rng, n), "t", i) for i, n in enumerate(lengths)], SAMPLING)

    for _ in range(20):
        draw()
    kinds = [name for name, *_ in engine.programs]
    # A prompt may begin on pages of its own or on 1 page that it shares; 80 tokens at the end are 2 or 3 pages.
    bounds = {"_prefill": 3 * 2 * 2, "_decode": 2 * 2, "_copy": 2}
    for kind, bound in bounds.items():
        assert kinds.count(kind) <= bound, (kind, kinds)
    assert len(engine.programs) <= sum(bounds.values())


@pytest.mark.parametrize("more", [0, 1])
def test_the_pages_of_a_small_model_are_all_taken_at_once(monkeypatch, more):
    """Programs are compiled for a number of pages: only where 256 MiB do not hold all rows at full length it grows."""
    engine = make(256)
    every = 256 * -(-engine.max_len // engine.page) + 1
    monkeypatch.setattr(Engine, "_page_bytes", 2**28 // every + more)
    first = engine.pages_for(1, 20)
    assert (first == every) == (not more)
    assert (first == engine.pages_for(256, engine.max_len)) == (not more)


@pytest.mark.parametrize("slots", [4, 8])
def test_each_distinct_prompt_is_prefilled_once(params, slots, monkeypatch):
    engine = make(slots)
    distinct = [prompt(np.random.default_rng(i), 3 + i % 4) for i in range(7)]
    requests = [Request(p, "t", s) for s in range(5) for p in distinct]
    session = engine.session(params, Sampling(max_new_tokens=3))
    session.add(requests)
    responses = dict(ended for _ in iter(lambda: bool(session), False) for ended in session.take())
    assert session.schedule.prefilled == sum(len(p) - 1 for p in distinct)
    for number, request in enumerate(requests):
        assert tuple(responses[number].tokens[:-3]) == request.prompt


def test_a_reply_is_appended_and_a_fork_shares_what_is_before_it(params):
    """A conversation that goes on prefills the reply alone, and one that forks at a turn what differs; the tokens are
    those of the same prompts in another engine."""
    engine, sampling = make(8), Sampling(max_new_tokens=9, seed=3)
    session, found = engine.session(params, sampling), {}

    def drawn(*requests) -> list[list[int]]:
        first = len(session.requests)
        session.add(requests)
        while session:
            found.update(session.take())
        return [found[number].tokens.tolist() for number in range(first, len(session.requests))]

    asked = [Request(PROMPTS[5], "talk", 0), Request(PROMPTS[4], "other", 0)]
    (said, _), before = drawn(*asked), session.schedule.prefilled
    reply = [5, 9, 2, 30, 11]
    turns = [Request((*said, *reply), "talk", 1)]
    ((further,), spent) = drawn(*turns), session.schedule.prefilled - before
    # All but the last token of the prompt, and of what was drawn all but the last token is on the pages.
    assert spent == len(reply) == len(turns[0].prompt) - 1 - (len(said) - 1)
    forks = [
        Request((*said[:66], *other), "talk", 2 + i) for i, other in enumerate([(1, 2, 3), (4, 5), (1, 2, 3)])
    ]
    before = session.schedule.prefilled
    (*others,) = drawn(*forks)
    # 64 tokens are whole pages. Of the rest, less than half a page: computed, once for the two that are equal.
    assert session.schedule.prefilled - before == (2 + 3 - 1) + (2 + 2 - 1)
    alone = make(8).generate(params, [*asked, *turns, *forks], sampling)
    assert [r.tokens.tolist() for r in alone] == [said, found[1].tokens.tolist(), further, *others]


@pytest.mark.parametrize("ahead", [False, True])
def test_rows_that_are_put_back_draw_the_same_tokens(params, alone, ahead):
    """Pages for two of the long rows, where four are drawn together."""
    # Ten short ones end first (8 tokens): no more is expected of the long ones (18 to 20).
    chosen = [4] * 10 + [0, 1, 2, 13, 14] * 2
    engine = dataclasses.replace(make(4, 4), page=4, ahead=ahead)
    engine.cache_gib = 14 * kernels.page_bytes("xla", MODEL.config, 4, 1) / 2**30
    session = engine.session(params, SAMPLING)
    session.add([REQUESTS[i] for i in chosen])
    found = dict(ended for _ in iter(lambda: bool(session), False) for ended in session.take())
    assert session.schedule.pages == 14 and session.schedule.put_back > 0
    equal([found[number] for number in range(len(chosen))], [alone[i] for i in chosen])


def test_progress_counts_every_response_once(params):
    done = []
    make().generate(params, REQUESTS, SAMPLING, done.append)
    assert sum(done) == len(REQUESTS) and min(done) > 0


def test_no_requests():
    assert make().generate(None, [], SAMPLING) == []


@settings(deadline=None)
@given(st.integers(1, 10**6), st.sampled_from([2, 8, 32, 64]))
def test_buckets_hold_their_size_and_waste_at_most_half(size, least):
    got = bucket(size, least)
    assert got >= size and (got == least or got < 1.51 * size) and bucket(got, least) == got


@given(st.integers(0, 10**5))
def test_sizes_in_pages_hold_them_and_are_few(pages):
    known, before = known_pages(pages), prefix_pages(pages)
    assert known >= pages and known_pages(known) == known and (known <= 2 or known < 1.25 * pages + 1)
    assert before >= pages and prefix_pages(before) == before and (before <= 4 or before < 2 * pages)
    assert not prefix_pages(0)
    assert len({known_pages(one) for one in range(pages % 2048)}) <= 8 + 4 * 7


@given(st.integers(1, 4096), st.sampled_from([16, 32, 64, 128, 256, 512]), st.integers(1, 512))
def test_a_prefill_has_256_tokens_at_least_and_no_more_empty_rows_than_that_takes(count, width, most):
    rows = together(count, width, most)
    assert 1 <= rows <= most and (rows == most or rows * width >= 256)
    assert rows <= count or rows * width <= 256


# --- refusals ---


NAN, INF = float("nan"), float("inf")
BAD = {
    "max_new_tokens": [0, -1, 1.5, 2**31, "64", True, None],
    "temperature": [-0.1, NAN, INF, "1.0", None, [1.0]],
    "top_k": [-1, 2**31, 2.0, "20"],
    "top_p": [0.0, 1.1, NAN, "0.9"],
    "min_p": [-0.1, 1.5, INF, "0"],
    "seed": [-1, 2**32, "3", 0.5, None],
}
GOOD = {
    "max_new_tokens": [1, 2**31 - 1, np.int64(4)],
    "temperature": [0, 0.7, np.float32(0.7), 1e9],
    "top_k": [0, 2**31 - 1, np.int32(20)],
    "top_p": [1, 1e-6],
    "min_p": [0, 1],
    "seed": [0, 2**32 - 1, np.uint32(7)],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD.items() for value in values])
def test_bad_sampling_values_are_named(name, value):
    with pytest.raises(ValueError, match=re.escape(f"sampling.{name} = {value!r}: must be a ")):
        Sampling(**{name: value})


@pytest.mark.parametrize("name, value", [(name, value) for name, values in GOOD.items() for value in values])
def test_good_sampling_values_are_taken_as_they_are(name, value):
    assert getattr(Sampling(**{name: value}), name) == value


def test_an_empty_prompt_is_named(params):
    with pytest.raises(ValueError, match=r"request 1 \(task 'x'\) has an empty prompt"):
        make().generate(params, [Request((1,), "w", 0), Request((), "x", 0)], SAMPLING)


def test_what_the_model_has_no_place_for_is_named(params):
    longest, vocab = MODEL.config.max_len, MODEL.config.vocab
    with pytest.raises(
        ValueError, match=f"request 0 .*prompt of {longest} tokens: no room .* {longest} positions"
    ):
        make().generate(params, [Request((1,) * longest, "w", 0)], SAMPLING)
    for token in (vocab, -1):
        with pytest.raises(ValueError, match=f"request 1 .*token id {token}, outside .*0..{vocab - 1}"):
            make().generate(params, [Request((1,), "w", 0), Request((1, token), "x", 0)], SAMPLING)


def test_a_response_ends_with_the_models_positions(params):
    longest = MODEL.config.max_len
    prompt = tuple(np.random.default_rng(1).integers(0, MODEL.config.vocab, longest - 3).tolist())
    (cut,) = make().generate(params, [Request(prompt, "w", 0)], Sampling(20))
    assert len(cut.tokens) == longest and cut.stop == "length"
    (whole,) = make().generate(params, [Request(prompt[:-30], "w", 0)], Sampling(20))
    assert len(whole.tokens) == longest - 33 + 20


def test_slots_that_the_mesh_does_not_divide():
    with pytest.raises(ValueError, match="slots=6 is not a multiple of the mesh's data axis, 4"):
        make(6, data=4, model=2)
