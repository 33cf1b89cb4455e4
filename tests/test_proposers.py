"""Every proposer in the package obeys one contract; then what each of them does by itself."""

import inspect
import pkgutil

import jax
import numpy as np
import pytest

from int_jax import proposers, rollout
from int_jax.domains import arithmetic
from int_jax.domains.arithmetic import Arithmetic, corrupted
from int_jax.engine import Engine, Request, Response, Sampling
from int_jax.models import Config, build
from int_jax.proposers import likelihood_ratio
from int_jax.sharding import make_mesh
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Trace

NAMES = sorted(m.name for m in pkgutil.iter_modules(proposers.__path__) if m.name != "parse")
SAMPLING = Sampling(max_new_tokens=24, stop_ids=(2,))


class TwoTurns(Arithmetic):
    """A domain that asks for a guided solution before the check, as the paper does."""

    proposal_roles = ("teacher", "checker")


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    return Tokenizer(tiny_dir)


@pytest.fixture(scope="module")
def domain(tokenizer):
    return Arithmetic(tokenizer)


@pytest.fixture(scope="module")
def engine(tokenizer):
    model = build(Config("qwen3", tokenizer.vocab, 32, 2, 4, 2, 8, 64, 512, qk_norm=True, tied=True))
    return Engine(model, make_mesh(1, 1, jax.devices()[:1]), slots=8, chunk=8, score_tokens=1024)


@pytest.fixture(scope="module")
def params(engine):
    fresh = jax.device_get(jax.jit(engine.model.init)(jax.random.key(5)))
    return engine.decode_params({**fresh, "embed_VD": fresh["embed_VD"] * 6})  # so that the context matters


def attempt(domain, task, text, k=0) -> Trace:
    prompt = rollout.opened(domain, task).tokens.tolist()
    tokens = np.array([*prompt, *domain.tokenizer.encode(text), *domain.tokenizer.stop_ids], np.int32)
    drawn = np.arange(len(tokens)) >= len(prompt)
    zeros = np.zeros(len(tokens), np.float32)
    ends = domain.steps(tokens, len(prompt))
    return Trace(task, tokens, len(prompt), drawn, zeros, step_ends=ends, stop="stop", key=(0, k))


def traces_of(domain, count=12, seed=0):
    """Corrupted attempts at problems of every length; one in twenty is right."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(count):
        one = arithmetic.chain(rng, 1 + k % 8, 1.5)
        out.append(attempt(domain, arithmetic.task(one, f"task{k}"), "\n\n".join(corrupted(rng, one)), k))
    return out


@pytest.fixture(scope="module")
def traces(domain):
    return traces_of(domain)


class Scripted:
    """An engine whose model says what `say(prompt text, sample)` says, as text or ids; remembers what it was asked."""

    def __init__(self, tokenizer, say):
        self.tokenizer, self.say, self.asked = tokenizer, say, []

    def generate(self, params, requests: list[Request], sampling, progress=lambda done: None):
        self.asked.append((requests, sampling))
        out = []
        for request in requests:
            said = self.say(self.tokenizer.decode(request.prompt), request.sample)
            ids = [*self.tokenizer.encode(said), 2] if isinstance(said, str) else said
            tokens = np.array([*request.prompt, *ids], np.int32)
            out.append(Response(tokens, np.zeros(len(tokens), np.float32), "stop"))
            progress(1)
        return out


def propose(name, engine, params, domain, traces, samples=2, max_prompt=400, key=0, sampling=SAMPLING):
    drops = {}
    function = proposers.load(name)
    knobs = {"samples": samples, "sampling": sampling, "max_prompt": max_prompt, "drops": drops}
    return function(engine, params, domain, traces, key, **knobs), drops


# --- the contract ---


def test_the_package_holds_what_the_paper_needs():
    assert {"self_verify", "likelihood_ratio", "oracle"} <= set(NAMES)
    with pytest.raises(ValueError, match="no proposer 'majority' .*: choose one of " + ", ".join(NAMES)):
        proposers.load("majority")
    with pytest.raises(ValueError, match="no proposer 'parse'"):
        proposers.load("parse")


@pytest.mark.parametrize("name", NAMES)
def test_one_entry_a_trace_and_a_reason_for_exactly_the_missing_ones(name, engine, params, domain, traces):
    for max_prompt in (400, 90, 1):  # all fit, some fit, none
        found, drops = propose(name, engine, params, domain, traces, max_prompt=max_prompt)
        assert len(found) == len(traces)
        assert set(drops) == {i for i, one in enumerate(found) if one is None}
        assert set(drops.values()) <= set(proposers.DROPS)
        for one, trace in zip(found, traces, strict=True):
            if one is not None:
                assert isinstance(one, Intervention) and one.source == name and one.ids == ()
                assert proposers.fault(domain, trace, one) is None
                rollout.splice(trace, one, domain.tokenizer)
    assert propose(name, engine, params, domain, []) == ([], {})


@pytest.mark.parametrize("name", NAMES)
def test_a_proposal_does_not_depend_on_the_other_traces(name, engine, params, domain, traces):
    found, drops = propose(name, engine, params, domain, traces)
    part, part_drops = propose(name, engine, params, domain, traces[5:2:-1])
    assert part == found[5:2:-1] and part_drops == {5 - i: drops[i] for i in (3, 4, 5) if i in drops}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_called_alike(name):
    expected = [
        "engine",
        "params",
        "domain",
        "traces",
        "key",
        "samples",
        "sampling",
        "max_prompt",
        "drops",
        "progress",
    ]
    assert list(inspect.signature(proposers.load(name)).parameters) == expected


# --- oracle ---


def test_the_oracle_is_the_first_error_and_its_correction(domain):
    traces = traces_of(domain, 120, seed=3)
    found, drops = propose("oracle", None, None, domain, traces)
    for i, (one, trace) in enumerate(zip(found, traces, strict=True)):
        step = domain.first_error(trace)
        if step is None:
            assert one is None and drops[i] == "unparsed"
        elif domain.leaks(trace.task, domain.correction(trace, step)):
            assert one is None and drops[i] == "leaked"
        else:
            assert one == Intervention(step, domain.correction(trace, step), source="oracle")
    assert {"leaked", "unparsed"} == set(drops.values()) and len(drops) < len(traces) / 2


# --- self_verify ---


def right_block(domain, traces):
    """A checker that answers with the oracle's block, found by the attempt in its view."""
    answers = {}
    for trace in traces:
        chain = arithmetic.parse_problem(trace.task.problem)
        view = domain.view(trace.task, domain.step_texts(trace), "checker")[0]["content"]
        answers[view] = arithmetic.checker_response(chain, domain.step_texts(trace))
    return answers


def test_a_perfect_checker_is_the_oracle(domain, traces):
    answers = right_block(domain, traces)
    engine = Scripted(
        domain.tokenizer, lambda prompt, k: next(a for view, a in answers.items() if view in prompt)
    )
    found, drops = propose("self_verify", engine, None, domain, traces)
    best, best_drops = propose("oracle", None, None, domain, traces)
    assert [one and (one.step, one.text) for one in found] == [one and (one.step, one.text) for one in best]
    assert [one.raw for one in found if one] == [
        answers[domain.view(t.task, domain.step_texts(t), "checker")[0]["content"]]
        for t, one in zip(traces, found, strict=True)
        if one
    ]
    assert set(drops) == set(best_drops)


def test_later_candidates_are_retries(domain, traces):
    """Trap 5: whatever a candidate lacks costs that candidate alone; the first one that survives is taken."""
    block = '<intervention>{{"location": {}, "content": "{}"}}</intervention>'.format
    said = [
        "nothing",
        block("nowhere", "x"),
        block(99, "x"),
        block(1, ""),
        block(1, "\\\\boxed{1}"),
        block(1, "k5"),
        block(1, "k6"),
    ]
    engine = Scripted(domain.tokenizer, lambda prompt, k: said[k])
    found, drops = propose("self_verify", engine, None, domain, traces[:3], samples=7)
    assert [one.text for one in found] == ["k5"] * 3 and drops == {}
    for samples, reason in ((2, "unparsed"), (5, "unparsed")):
        found, drops = propose("self_verify", engine, None, domain, traces[:3], samples=samples)
        assert found == [None] * 3 and drops == dict.fromkeys(range(3), reason)


def test_the_check_sees_the_whole_conversation(domain, traces):
    """Trap 1: what is asked is the rendered view to its last token, which opens the assistant's turn."""
    engine = Scripted(domain.tokenizer, lambda prompt, k: "no")
    propose("self_verify", engine, None, domain, traces, samples=3, key=77)
    [(requests, sampling)] = engine.asked
    assert sampling.seed == 77
    expected = [
        tuple(domain.tokenizer.render(domain.view(t.task, domain.step_texts(t), "checker")))
        for t in traces
        for _ in range(3)
    ]
    assert [r.prompt for r in requests] == expected
    names = [(r.task, r.sample) for r in requests]
    assert len(set(names)) == len(names)  # each candidate has a random stream of its own


def test_two_turns_keep_the_first_answer_as_the_assistants(tokenizer, traces):
    domain = TwoTurns(tokenizer)

    def say(prompt, k):
        return "no block" if "Attempt:" in prompt else f"guided {prompt.count('add ')}\n\n\\boxed{{1}}"

    engine = Scripted(tokenizer, say)
    propose("self_verify", engine, None, domain, traces, samples=4)
    (first, _), (second, _) = engine.asked
    assert len(first) == len(traces) and len(second) == 4 * len(traces)
    for i, trace in enumerate(traces):
        teacher = domain.view(trace.task, [], "teacher")
        checker = domain.view(trace.task, domain.step_texts(trace), "checker")
        assert first[i].prompt == tuple(tokenizer.render(teacher))
        answer = {"role": "assistant", "content": say(tokenizer.decode(first[i].prompt), 0)}
        for request in second[4 * i : 4 * i + 4]:
            assert request.prompt == tuple(tokenizer.render([*teacher, answer, *checker]))
            assert tokenizer.decode(request.prompt).count("<|im_start|>") == 4
    assert not {(r.task, r.sample) for r in first} & {(r.task, r.sample) for r in second}


@pytest.mark.parametrize("two_turns", [False, True])
def test_a_prompt_that_is_too_long_is_noted_and_never_cut(tokenizer, traces, two_turns):
    """Trap 1: the released code cuts it to its first 30,000 tokens, and the end of the attempt is lost."""
    domain = (TwoTurns if two_turns else Arithmetic)(tokenizer)
    engine = Scripted(tokenizer, lambda prompt, k: "\\boxed{1}")
    propose("self_verify", engine, None, domain, traces, samples=1)
    whole = [r.prompt for r in engine.asked[-1][0]]
    limit = sorted(map(len, whole))[len(whole) // 2]
    engine.asked.clear()
    _, drops = propose("self_verify", engine, None, domain, traces, samples=1, max_prompt=limit)
    long = {i for i, prompt in enumerate(whole) if len(prompt) > limit}
    assert 0 < len(long) < len(whole) and {i for i, reason in drops.items() if reason == "too_long"} == long
    assert [r.prompt for r in engine.asked[-1][0]] == [p for i, p in enumerate(whole) if i not in long]
    assert all(len(r.prompt) <= limit for requests, _ in engine.asked for r in requests)


# --- likelihood_ratio ---


def test_the_location_is_the_engines(engine, params, domain, traces):
    plain = [rollout.opened(domain, t.task).tokens for t in traces]
    informed = [rollout.opened(domain, t.task, "teacher").tokens for t in traces]
    ends = [[e - t.prompt_len for e in t.step_ends] for t in traces]
    ratios, expected = engine.locate(
        params, plain, informed, [t.response for t in traces], ends, likelihood_ratio.THRESHOLD
    )
    assert likelihood_ratio.locations(engine, params, domain, traces) == expected
    for ratio, location in zip(ratios, expected, strict=True):
        below = np.flatnonzero(ratio < -likelihood_ratio.THRESHOLD)
        assert location == (below[0] if len(below) else None)
    assert (
        3 <= sum(location is not None for location in expected) < len(traces)
    )  # else this file tests nothing
    found, drops = propose("likelihood_ratio", engine, params, domain, traces)
    for i, (one, location) in enumerate(zip(found, expected, strict=True)):
        assert one is None or one.step == location
        assert location is not None or drops[i] == "unparsed"


def located(monkeypatch, tokenizer, step, said):
    """A likelihood_ratio that locates every error at `step`, over a model that says `said`."""
    monkeypatch.setattr(likelihood_ratio, "locations", lambda e, p, d, traces: [step] * len(traces))
    return Scripted(tokenizer, lambda prompt, k: said)


def test_the_replacement_is_asked_for_after_the_steps_before_it_with_the_reference_in_view(
    monkeypatch, domain, traces
):
    long = [t for t in traces if len(t.step_ends) > 3]
    engine = located(monkeypatch, domain.tokenizer, 2, "k\n\n")
    found, _ = propose("likelihood_ratio", engine, None, domain, long, samples=2)
    [(requests, sampling)] = engine.asked
    for i, trace in enumerate(long):
        informed = domain.tokenizer.render(domain.view(trace.task, [], "teacher"))
        kept = trace.tokens[trace.prompt_len : trace.step_ends[1]].tolist()
        assert {r.prompt for r in requests[2 * i : 2 * i + 2]} == {(*informed, *kept)}
    assert found == [Intervention(2, "k", source="likelihood_ratio")] * len(long)
    separator = domain.tokenizer.encode("\n\n")
    assert set(separator) <= set(sampling.stop_ids) and 2 in sampling.stop_ids


@pytest.mark.parametrize(
    "pieces", [["k", "\n\n", "more"], ["k", "\n", "\n", "more"], ["k", "\n", "\n", "\n", "more"], ["k\n\n"]]
)
def test_the_replacement_is_one_step(monkeypatch, domain, traces, pieces):
    """However the blank line is cut into tokens: no stop id alone ends "\\n", "\\n"."""
    ids = [i for piece in pieces for i in domain.tokenizer.encode(piece)]
    engine = located(monkeypatch, domain.tokenizer, 0, ids)
    found, drops = propose("likelihood_ratio", engine, None, domain, traces[:4], samples=1)
    assert [one and one.text for one in found] == ["k"] * 4, drops


def test_every_replacement_of_a_model_is_one_step(engine, params, domain, traces):
    found, _ = propose("likelihood_ratio", engine, params, domain, traces, samples=4)
    assert any(found)
    for one in found:
        assert one is None or "\n\n" not in one.text
