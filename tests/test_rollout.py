"""Traces on the host: spliced, continued, told something by a partner, written to JSON and back."""

import dataclasses
import json
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import Batches, Dice, NewestFirst, Scattered

from int_jax import batching, rollout, types
from int_jax.domains.arithmetic import Arithmetic
from int_jax.rows import RolloutRow
from int_jax.sampler import Sampling
from int_jax.types import Intervention, Reply, Task, Trace, Verdict

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
    by = ((len(prompt), 3),)
    return Trace(task, tokens, len(prompt), drawn, logp, 0.7, ends, "stop", verdict, by, (1, 2))


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
        same = ("task", "prompt_len", "temperature", "key")
        assert [getattr(got, n) for n in same] == [getattr(trace, n) for n in same]
        assert got.stop == "" and got.verdict is None  # open again
        assert got.drawn_by == tuple(span for span in trace.drawn_by if span[0] < cut)

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
        assert got.step_ends == domain.steps(got.tokens, trace.prompt_len)
        assert got.drawn_by == (*trace.drawn_by, (start, 9))
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

    separator = ""
    turn_tokens = 12

    def replies(self, traces):
        return [Reply("add 1" if len(trace.partner) < 2 else "") for trace in traces]


def test_a_partner_is_heard_and_never_trained(engine, params, tokenizer, tasks):
    talkative = Talkative(tokenizer)
    turn = tokenizer.reply("add 1")
    opened = [rollout.open_trace(talkative, t) for t in tasks[:2]]
    whole = dataclasses.replace(SAMPLING, max_new_tokens=200)
    groups = rollout.continue_traces(engine, params, talkative, opened, 3, whole)
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
        assert all(0 < b - a <= talkative.turn_tokens for a, b in starts.reshape(-1, 2))
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


class Quiet(Arithmetic):
    """A conversation whose partner says nothing."""

    separator = ""


def test_with_a_silent_partner_a_conversation_is_one_turn_of_the_same_tokens(
    engine, params, tokenizer, tasks
):
    domains = Arithmetic(tokenizer), Quiet(tokenizer)
    opened = [rollout.open_trace(domains[0], task) for task in tasks]
    alone, quiet = (
        rollout.continue_traces(engine, params, domain, opened, 3, SAMPLING) for domain in domains
    )
    for a, b in zip(
        (t for group in alone for t in group), (t for group in quiet for t in group), strict=True
    ):
        assert a.tokens.tobytes() == b.tokens.tobytes() and a.logp.tobytes() == b.logp.tobytes()
        assert (a.stop, a.verdict, a.sampled.tolist()) == (b.stop, b.verdict, b.sampled.tolist())
        assert b.partner == () and b.step_ends == (len(b.tokens),)


# --- one queue, and a grader beside it ---


class Slow(Talkative):
    """A partner that replies to some, and a grader that is late now and then; says what it judged together."""

    def __init__(self, tokenizer, seed=0):
        super().__init__(tokenizer)
        self.rng, self.batches = np.random.default_rng(seed), []

    def replies(self, traces):
        every = zip(traces, super().replies(traces), strict=True)
        return [reply if int(trace.tokens[-1]) % 2 else Reply() for trace, reply in every]

    def verify_many(self, traces):
        self.batches.append(len(traces))
        time.sleep(float(self.rng.choice([0, 0, 0.003])))
        return super().verify_many(traces)

    def verify(self, trace):
        odd = bool(int(trace.response.sum()) % 2)
        return Verdict(odd, float(odd), "correct" if odd else "wrong")


def as_bytes(groups) -> bytes:
    return types.to_bytes([trace for group in groups for trace in group])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_in_whatever_order_turns_end_and_are_judged_the_traces_are_the_same(
    tokenizer, tasks, count, samples, first, random
):
    opened = [rollout.open_trace(Arithmetic(tokenizer), task) for task in tasks[:count]]
    found = []
    for kind in (Batches, NewestFirst, Scattered):
        domain, done, ended = Slow(tokenizer, random.randrange(99)), [], []

        def fold(index, group, ended=ended):
            ended.append(index)
            return group

        found.append(
            rollout.continue_traces(
                Dice(kind),
                None,
                domain,
                opened,
                samples,
                SAMPLING,
                rollout.Stream("s"),
                first,
                7,
                done.append,
                fold,
            )
        )
        assert sum(domain.batches) == count * samples and sorted(ended) == [*range(count)]
        assert sum(done) >= count * samples  # of turns
    assert as_bytes(found[0]) == as_bytes(found[1]) == as_bytes(found[2])
    for group in found[0]:
        assert [trace.key for trace in group] == [(SAMPLING.seed, first + g) for g in range(samples)]
        assert all(trace.verdict == domain.verify(trace) for trace in group)


def test_a_partners_reply_is_answered_before_other_traces_end(tokenizer, tasks):
    domain, sampler = Talkative(tokenizer), Dice(NewestFirst)
    opened = [rollout.open_trace(domain, task) for task in tasks[:3]]
    whole = dataclasses.replace(SAMPLING, max_new_tokens=200)
    rollout.continue_traces(sampler, None, domain, opened, 1, whole)
    assert [request.task for request in sampler.asked] == [
        f"{tasks[i].id}/samples" for i in (2, 2, 2, 1, 1, 1, 0, 0, 0)
    ]


class Gate(Dice):
    """Draws the last trace only after the grader has begun with another one, and lets it end then."""

    def __init__(self):
        super().__init__(NewestFirst)
        self.begun, self.drawn = threading.Event(), threading.Event()

    def generate(self, params, requests, *rest, **named):
        if len(self.asked) == 3:
            assert self.begun.wait(60)
            self.drawn.set()
        return super().generate(params, requests, *rest, **named)


def test_traces_are_judged_while_others_are_drawn(tokenizer, tasks):
    gate, batches = Gate(), []

    class Waits(Arithmetic):
        def verify_many(self, traces):
            batches.append(len(traces))
            gate.begun.set()
            assert gate.drawn.wait(60)
            return super().verify_many(traces)

    domain = Waits(tokenizer)
    opened = [rollout.open_trace(domain, task) for task in tasks[:4]]
    groups = rollout.continue_traces(gate, None, domain, opened, 1, SAMPLING)
    assert all(trace.verdict for group in groups for trace in group)
    assert batches == [1, 3]  # what ended while it was busy goes to it together


@pytest.mark.parametrize("kind", [Batches, NewestFirst])
def test_what_a_grader_raises_reaches_the_caller(tokenizer, tasks, kind):
    class Broken(Arithmetic):
        def verify(self, trace):
            raise ZeroDivisionError(f"of {trace.task.id}")

    domain = Broken(tokenizer)
    opened = [rollout.open_trace(domain, task) for task in tasks[:3]]
    with pytest.raises(ZeroDivisionError, match="of "):
        rollout.continue_traces(Dice(kind), None, domain, opened, 2, SAMPLING)


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
        tuple(draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3))),
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


@settings(max_examples=100, deadline=None)
@given(st.lists(traces(), max_size=3), st.lists(st.booleans(), min_size=3, max_size=3))
def test_records_survive_bytes_bit_for_bit(some, kept):
    """Rows of traces, some of them none; the arrays are their own, which may be written to."""
    rows = [RolloutRow(t, i, 0.5, np.arange(i) / 3 if kept[i] else None) for i, t in enumerate(some)]
    back = types.from_bytes(RolloutRow, types.to_bytes(rows))
    assert types.to_bytes(back) == types.to_bytes(rows) and len(back) == len(rows)
    for old, new in zip(rows, back, strict=True):
        assert new.trace.task == old.trace.task and new.trace.tokens.dtype == old.trace.tokens.dtype
        assert new.trace.logp.tobytes() == old.trace.logp.tobytes() and new.trace.logp.flags.writeable
        assert (new.advantage is None) == (old.advantage is None)


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
