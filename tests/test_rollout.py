"""Traces on the host: spliced, continued, told something by a partner, written to JSON and back."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax import batching, rollout, types
from int_jax.domains.arithmetic import Arithmetic
from int_jax.sampler import Sampling
from int_jax.types import Intervention, Task, Trace, Verdict

SAMPLING = Sampling(max_new_tokens=12, stop_ids=(2, *range(20, 30)), seed=5)  # digits stop, too: lengths vary


@pytest.fixture(scope="module")
def params(engine):
    return engine.decode_params(jax.jit(engine.model.init)(jax.random.key(3)))


@pytest.fixture(scope="module")
def tasks(domain):
    return domain.tasks("train", 0, 4)


# --- spliced ---

# Pieces are encoded apart, so a blank line is one token or two: ids that no encoding of the text would give.
RESPONSES = st.lists(
    st.sampled_from(["7 + 5 = 12", "so", "\n\n", "\n", ".\n", "\\boxed{", "}", " ", "3", "<|im_end|>"]),
    min_size=1,
    max_size=20,
)


def sampled(domain, task, pieces, seed=0) -> Trace:
    """A trace as if the policy had drawn the pieces, <|im_end|> as the stop token."""
    prompt = domain.tokenizer.render(domain.view(task, [], "solver"))
    stop = {"<|im_end|>": domain.tokenizer.stop_ids[:1]}
    ids = [i for piece in pieces for i in stop.get(piece) or domain.tokenizer.encode(piece)]
    tokens = np.array(prompt + ids, np.int32)
    drawn = np.arange(len(tokens)) >= len(prompt)
    logp = np.where(drawn, -np.random.default_rng(seed).random(len(tokens)), 0).astype(np.float32)
    ends = domain.steps(tokens, len(prompt))
    verdict = Verdict(False, 0.0, "wrong")
    return Trace(task, tokens, len(prompt), drawn, logp, 0.7, ends, "stop", verdict, 3, (1, 2))


def test_the_prefix_comes_back_byte_for_byte(domain, tasks):
    """Trap 10. The intervention follows it; it is not drawn by the policy, and nothing comes after it."""

    @settings(max_examples=150, deadline=None)
    @given(RESPONSES, st.sampled_from(["7 + 5 = 12", "so\n", "a\n\nb", "12\n\n\n"]), st.data())
    def run(pieces, text, data):
        trace = sampled(domain, tasks[0], pieces)
        step = data.draw(st.integers(0, len(trace.step_ends) - 1))
        cut = (trace.prompt_len, *trace.step_ends)[step]
        got = rollout.splice(trace, Intervention(step, text), domain.tokenizer)
        for name in ("tokens", "sampled", "logp"):
            array, old = getattr(got, name), getattr(trace, name)
            assert array[:cut].tobytes() == old[:cut].tobytes() and array.dtype == old.dtype, name
        assert domain.tokenizer.decode(got.tokens[cut:]) == text.rstrip("\n") + "\n\n"
        assert not got.sampled[cut:].any() and not got.logp[cut:].any()
        assert len(got.tokens) == len(got.sampled) == len(got.logp)
        assert got.step_ends == (*trace.step_ends[:step], len(got.tokens)) and got.spliced == cut
        same = ("task", "prompt_len", "temperature", "policy_update", "key")
        assert [getattr(got, n) for n in same] == [getattr(trace, n) for n in same]
        assert got.stop == "" and got.verdict is None  # open again

    run()


def test_the_first_step_replaced_keeps_the_prompt_alone(domain, tasks):
    trace = sampled(domain, tasks[0], ["1 + 1 = 3", "\n\n", "3 + 1 = 4"])
    got = rollout.splice(trace, Intervention(0, "1 + 1 = 2"), domain.tokenizer)
    prompt = trace.tokens[: trace.prompt_len].tolist()
    assert got.tokens.tolist() == prompt + domain.tokenizer.encode("1 + 1 = 2\n\n") and not got.sampled.any()


def test_a_step_that_was_drawn_as_it_stands_keeps_its_ids(domain, tasks):
    """The same text may be drawn in other ids than it is encoded in, and those are the policy's own."""
    trace = sampled(domain, tasks[0], ["7", "\n\n", "8"])
    drawn = tuple(i for piece in ("1 + 1 = 2", "\n", "\n") for i in domain.tokenizer.encode(piece))
    assert list(drawn) != domain.tokenizer.encode("1 + 1 = 2\n\n")
    got = rollout.splice(trace, Intervention(1, "1 + 1 = 2", drawn), domain.tokenizer)
    assert tuple(got.tokens[got.spliced :]) == drawn


def test_many_at_once_equal_one_by_one(domain, tasks):
    traces = [sampled(domain, t, ["7", "\n\n"] * n, n) for n, t in enumerate(tasks, 1)]
    ones = [Intervention(n, f"step {n}") for n in range(len(tasks))]
    together = rollout.splice(traces, ones, domain.tokenizer)
    for got, trace, one in zip(together, traces, ones, strict=True):
        assert types.to_json(got) == types.to_json(rollout.splice(trace, one, domain.tokenizer))
    assert rollout.splice([], [], domain.tokenizer) == []


@pytest.mark.parametrize("step", [-1, 2, 99])
def test_out_of_range_is_refused_with_task_and_step(domain, tasks, step):
    """Trap 2: never clipped."""
    trace = sampled(domain, tasks[1], ["7", "\n\n", "8"])
    with pytest.raises(IndexError, match=rf"task {tasks[1].id}: step {step} of an attempt of 2 steps"):
        rollout.splice(trace, Intervention(step, "x"), domain.tokenizer)
    with pytest.raises(IndexError, match="of 0 steps"):
        rollout.splice(rollout.open_trace(domain, tasks[1]), Intervention(0, "x"), domain.tokenizer)


@pytest.mark.parametrize("text", ["", " ", "\n\n"])
def test_an_empty_intervention_is_refused(domain, tasks, text):
    """Trap 3."""
    with pytest.raises(ValueError, match="empty"):
        rollout.splice(sampled(domain, tasks[0], ["7"]), Intervention(0, text), domain.tokenizer)


# --- continued ---


def test_what_is_open_is_continued(engine, params, domain, tasks):
    trace = sampled(domain, tasks[0], ["7 + 5 = 12", "\n\n", "so", "\n\n"])
    guided = rollout.splice(trace, Intervention(1, "12 + 1 = 13"), domain.tokenizer)
    start = len(guided.tokens)
    [group] = rollout.continue_traces(
        engine, params, domain, [guided], 5, SAMPLING, first_sample=3, policy_update=9
    )
    scored, _ = engine.score(params, [t.tokens for t in group], SAMPLING.temperature)
    assert len({t.tokens.tobytes() for t in group}) == 5 and {t.stop for t in group} <= {"stop", "length"}
    for index, (got, logp) in enumerate(zip(group, scored, strict=True)):
        for name in ("tokens", "sampled", "logp"):
            assert getattr(got, name)[:start].tobytes() == getattr(guided, name).tobytes(), name
        assert got.sampled[start:].all() and len(got.tokens) == len(got.sampled) == len(got.logp) > start
        np.testing.assert_allclose(got.logp[start:], logp[start:], atol=1e-5)
        assert (got.prompt_len, got.spliced, got.key) == (
            trace.prompt_len,
            guided.spliced,
            (SAMPLING.seed, 3 + index),
        )
        assert got.step_ends == domain.steps(got.tokens, trace.prompt_len) and got.policy_update == 9
        assert got.verdict == domain.verify(got) and got.temperature == SAMPLING.temperature
        assert (got.stop == "stop") == (int(got.tokens[-1]) in SAMPLING.stop_ids)


def test_an_attempt_is_its_own_whatever_else_is_asked(engine, params, domain, tasks):
    def drawn(chosen, samples=3, **knobs):
        traces = [rollout.open_trace(domain, t) for t in chosen]
        groups = rollout.continue_traces(engine, params, domain, traces, samples, SAMPLING, **knobs)
        return {(t.task.id, t.key): t.tokens.tolist() for group in groups for t in group}

    alone, all_of_them = drawn(tasks[:1]), drawn(tasks)
    assert alone.items() <= all_of_them.items() and drawn(tasks[::-1]) == all_of_them
    later = drawn(tasks[:1], 2, first_sample=1)
    assert later.items() <= alone.items() and len(later) == 2  # a sample is named by its index
    other = drawn(tasks[:1], stream=rollout.Stream("other"))
    assert other.keys() == alone.keys() and other != alone  # and by its stream
    again = drawn(tasks[:1], stream=rollout.Stream("other", round=1))
    assert again.keys() == alone.keys() and again != other  # in each round anew


class Talkative(Arithmetic):
    """A partner who answers twice, then is silent."""

    turn = "\n<|im_start|>user\nadd 1<|im_end|>\n<|im_start|>assistant\n"

    def reply(self, trace):
        told = self.tokenizer.decode(trace.response).count(self.turn)
        return self.tokenizer.encode(self.turn) if told < 2 else []


def test_a_partner_is_heard_and_never_trained(engine, params, tokenizer, tasks):
    talkative = Talkative(tokenizer)
    turn = tokenizer.encode(talkative.turn)
    opened = [rollout.open_trace(talkative, t) for t in tasks[:2]]
    groups = rollout.continue_traces(engine, params, talkative, opened, 3, SAMPLING)
    traces = [trace for group in groups for trace in group]
    assert len(traces) == 6
    first_turns = rollout.continue_traces(engine, params, Arithmetic(tokenizer), opened, 3, SAMPLING)
    for trace, silent in zip(traces, [t for group in first_turns for t in group], strict=True):
        mine = trace.sampled[trace.prompt_len :]
        starts = np.flatnonzero(np.diff(np.concatenate([[False], mine, [False]]).astype(int)))
        assert len(starts) == 6  # three own turns, and two of the partner between them
        for end, begin in starts[1:-1].reshape(-1, 2):
            assert trace.response[end:begin].tolist() == turn
        assert starts[0] == 0 and starts[-1] == len(
            mine
        )  # it has the last word: nothing is told to a finished trace
        assert all(
            0 < b - a <= SAMPLING.max_new_tokens for a, b in starts.reshape(-1, 2)
        )  # the limit is a turn's
        assert trace.tokens[: len(silent.tokens)].tolist() == silent.tokens.tolist()
        assert (trace.logp[~trace.sampled] == 0).all() and (trace.logp[trace.sampled] < 0).all()
        assert trace.verdict == talkative.verify(trace) and trace.stop in ("stop", "length")
        for normalise in ("sequences", "tokens", "sequence_mean"):
            sequence = batching.reinforced(trace, 2.0, normalise, np.ones(len(trace.tokens), np.float32))
            for weights in (sequence.rl, sequence.kl, sequence.advantage):
                np.testing.assert_array_equal(weights > 0, trace.sampled)
            assert not sequence.ce.any()
        total = batching.reinforced(trace, 2.0, "sequence_mean").rl.sum()
        np.testing.assert_allclose(total, 1.0, rtol=1e-6)
    scored, _ = engine.score(params, [t.tokens for t in traces])
    for trace, logp in zip(traces, scored, strict=True):
        np.testing.assert_allclose(trace.logp[trace.sampled], logp[trace.sampled], atol=1e-5)


# --- JSON ---

FLOATS = st.floats(width=32, allow_nan=True, allow_subnormal=True)
TEXT = st.text(max_size=8)


@st.composite
def traces(draw) -> Trace:
    length = draw(st.integers(0, 12))
    task = Task(
        draw(TEXT),
        "d",
        draw(TEXT),
        draw(TEXT),
        draw(TEXT),
        draw(st.dictionaries(TEXT, st.integers() | TEXT, max_size=2)),
    )
    return Trace(
        task,
        np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length)), np.int32),
        draw(st.integers(0, length)),
        np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)), bool),
        np.array(draw(st.lists(FLOATS, min_size=length, max_size=length)), np.float32),
        draw(st.floats(0, 2)),
        tuple(draw(st.lists(st.integers(0, 99), max_size=4))),
        draw(st.sampled_from(["stop", "length", ""])),
        draw(st.none() | st.builds(Verdict, st.booleans(), st.floats(0, 1), st.sampled_from(types.REASONS))),
        draw(st.integers(0, 99)),
        (draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 99))),
        draw(st.integers(-1, 12)),
    )


@settings(max_examples=300, deadline=None)
@given(traces())
def test_a_trace_survives_json_bit_for_bit(trace):
    back = types.from_json(types.Trace, json.loads(json.dumps(types.to_json(trace))))
    for field in trace.__dataclass_fields__:
        old, new = getattr(trace, field), getattr(back, field)
        if isinstance(old, np.ndarray):
            assert new.dtype == old.dtype and new.shape == old.shape
            nan = np.isnan(old)  # which NaN it is, JSON does not say
            assert (np.isnan(new) == nan).all() and new[~nan].tobytes() == old[~nan].tobytes()
        else:
            assert new == old and type(new) is type(old), field


def test_a_trace_without_a_verdict_says_so(domain, tasks):
    trace = rollout.open_trace(domain, tasks[0])
    with pytest.raises(ValueError, match=f"task {tasks[0].id}: this trace has no verdict yet"):
        _ = trace.judged
    assert trace.replace(verdict=Verdict(True, 1.0, "correct")).judged.passed


@settings(deadline=None)
@given(
    st.builds(Intervention, st.integers(), TEXT, st.tuples(st.integers(0, 9), st.integers(0, 9)), TEXT, TEXT)
)
def test_an_intervention_survives_json(one):
    assert types.from_json(types.Intervention, json.loads(json.dumps(types.to_json(one)))) == one
