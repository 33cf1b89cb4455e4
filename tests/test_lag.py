"""Batches that overlap: what is begun beside the one before, and goes on under the next policy."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from test_dialogue import WHOLE, Patient, letters, small  # noqa: F401 (fixtures)
from test_elastic import Ends, Killed, Run
from test_method import ROW, SAMPLING
from test_rollouts import Chance
from trees import assert_same

from experiments import preflight
from experiments.configs import default
from int_jax import intervention_training as method
from int_jax import policy_gradient
from int_jax.domains.arithmetic import Arithmetic
from int_jax.engine import Engine
from int_jax.policy_gradient import PolicyGradient
from int_jax.sampler import Request
from int_jax.sharding import make_mesh
from int_jax.stages import StageError

STILL = optax.sgd(0.0)


def same(one, other):
    """Whether two traces are the same, but for who drew them, and the last bits of log-probabilities."""
    assert_same((one.tokens, one.sampled), (other.tokens, other.sampled))
    np.testing.assert_allclose(one.logp, other.logp, atol=2e-6)
    for name in ("task", "prompt_len", "step_ends", "stop", "key", "partner", "verdict", "begin"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.fixture(scope="module")
def params(engine):
    return engine.decode_params(jax.jit(engine.model.init)(jax.random.key(4)))


@pytest.fixture(scope="module")
def tight(engine):
    """Places for four of the six responses of a batch, read every two tokens."""
    return Engine(engine.model, engine.mesh, slots=4, decode_steps=2, score_tokens=1024)


def flat(groups):
    return [trace for group in groups for trace in group]


def trained(engine, params, domain, tasks, tx, batches, sampling=SAMPLING, **changes):
    """The batches of a training: (groups, metrics, state, what was begun)."""
    knobs = PolicyGradient(**{"problems": 3, "group": 2, **changes})
    told, kept, out = [], {}, []
    runs = method.reinforce(
        engine,
        engine.state(params, tx),
        tx,
        domain,
        tasks,
        knobs,
        sampling,
        ROW["row_length"] if domain.separator else 1024,
        ROW["rows"],
        record=lambda *batch: told.append(batch),
        last=batches * knobs.updates,
        keep=lambda update, begun: kept.update({update: begun}),
    )
    for number, (state, metrics) in zip(range(batches), runs, strict=False):
        numbers = {name: float(value) for name, value in metrics.items()}
        out.append((told[number][1], numbers, jax.device_get(state), kept.get((number + 1) * knobs.updates)))
    return out


def arithmetic(tokenizer):
    return Chance(tokenizer), Arithmetic(tokenizer).tasks("train", 3, 6)


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("refill", [0, 1])
def test_a_policy_that_stands_still_draws_the_same(tight, params, tokenizer, lag, refill):
    """Whichever update a token is drawn at: all batches are those of no lag, token for token."""
    plain, late = (
        trained(tight, params, *arithmetic(tokenizer), STILL, 4, lag=k, refill=refill) for k in (0, lag)
    )
    late_tokens = 0.0
    for number, ((expected, metrics, _, _), (groups, told, _, begun)) in enumerate(
        zip(plain, late, strict=True)
    ):
        for one, other in zip(flat(groups), flat(expected), strict=True):
            same(one, other)
            assert all(number - lag <= update <= number for _, update in one.drawn_by)
        assert told["reward"] == metrics["reward"] and "lag" not in metrics
        assert [len(some) for some in begun] == [3] * min(lag, 3 - number)  # nothing behind the last batch
        late_tokens += told["tokens"]
    assert sum(told["lag"] for _, told, _, _ in late) > 0
    assert late_tokens == sum(metrics["tokens"] for _, metrics, _, _ in plain)


def test_a_text_to_stop_at_may_be_half_drawn(tight, params, tokenizer):
    """Half of it by one policy, half by the next."""
    plain = trained(tight, params, *arithmetic(tokenizer), STILL, 3)
    late = trained(tight, params, *arithmetic(tokenizer), STILL, 3, lag=1)
    # A text whose tokens stand on both sides of where a response was left.
    cut = [(t, t.drawn_by[1][0]) for groups, *_ in late for t in flat(groups) if len(t.drawn_by) > 1]
    texts = {tokenizer.decode(t.tokens[start - 1 : start + 1]) for t, start in cut if start < len(t.tokens)}
    stopped = 0
    for text in sorted(texts):
        sampling = dataclasses.replace(SAMPLING, stop=(text,))
        plain, late = (
            trained(tight, params, *arithmetic(tokenizer), STILL, 3, sampling, lag=lag) for lag in (0, 1)
        )
        for (expected, *_), (groups, *_) in zip(plain, late, strict=True):
            for one, other in zip(flat(groups), flat(expected), strict=True):
                same(one, other)
                spans = [start for start, _ in one.drawn_by[1:]]
                stopped += one.stop == "stop" and len(one.tokens) - 1 in spans
    assert stopped


def test_each_span_is_of_the_policy_that_it_names(tight, params, tokenizer):
    """The log-probabilities with which tokens were drawn are those of the policies by which they were."""
    tx = optax.sgd(3.0)
    domain, tasks = arithmetic(tokenizer)
    batches = trained(tight, params, domain, tasks, tx, 4, lag=2)
    policies = [params, *(tight.decode_params(jax.device_put(state.params)) for _, _, state, _ in batches)]
    mixed = 0
    for number, (groups, told, _, _) in enumerate(batches):
        traces, behind = flat(groups), []
        by = [tight.score(policy, [trace.tokens for trace in traces])[0] for policy in policies]
        for index, trace in enumerate(traces):
            bounds = [start for start, _ in trace.drawn_by[1:]] + [len(trace.tokens)]
            assert trace.drawn_by[0][0] == trace.prompt_len and trace.sampled[trace.prompt_len :].all()
            for (start, update), end in zip(trace.drawn_by, bounds, strict=True):
                np.testing.assert_allclose(trace.logp[start:end], by[update][index][start:end], atol=2e-5)
                behind += [number - update] * (end - start)
            mixed += len(trace.drawn_by) > 1
        assert told["lag"] == pytest.approx(np.mean(behind))
    assert mixed
    # The policies differ by more than the tolerance: a span that named another would be seen.
    [gap] = [np.abs(one - other).max() for one, other in zip(by[0][:1], by[-1][:1], strict=True)]
    assert gap > 1e-3


def test_a_conversation_goes_on_where_it_was(small, letters):  # noqa: F811
    engine, params, _ = small
    tight = Engine(engine.model, engine.mesh, slots=4, page=128, decode_steps=4, score_tokens=1024)
    domain = Patient(letters, turn_tokens=6)
    tasks = domain.tasks("hard_train", 0, 6)
    plain, late = (trained(tight, params, domain, tasks, STILL, 3, WHOLE, lag=lag) for lag in (0, 1))
    for (expected, _, _, _), (groups, _, _, _) in zip(plain, late, strict=True):
        for one, other in zip(flat(groups), flat(expected), strict=True):
            same(one, other)
    assert sum(told["lag"] for _, told, _, _ in late) > 0


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("stop", [(), ("1", "=2"), ("3 4 5",)])
def test_a_response_that_was_left_goes_on_as_it_would_have(engine, params, tokenizer, ahead, stop):
    """Whenever the session ends, and where a text to stop at, or to begin with, is half there."""
    one = Engine(engine.model, engine.mesh, slots=4, decode_steps=2, ahead=ahead)
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=14, stop=stop)
    prompts = [tuple(range(30, 36 + i)) for i in range(6)]
    requests = [Request(p, f"t{i}", i, "\n\n" if i % 3 == 0 else "") for i, p in enumerate(prompts)]
    whole = one.generate(params, requests, sampling, tokenizer=tokenizer)
    one.take_drawn()
    for rounds in range(6):
        found, session = {}, one.session(params, sampling, tokenizer)
        session.add(requests)
        for _ in range(rounds):
            found.update(session._round())
        found.update(session.leave())
        assert not session and sorted(found) == [*range(6)]
        left = [number for number, response in found.items() if not response.stop]
        again = [
            requests[n]._replace(
                prompt=tuple(found[n].tokens.tolist()), drawn=drawn, begin="" if drawn else begin
            )
            for n in left
            for drawn, begin in [(len(found[n].tokens) - len(prompts[n]), requests[n].begin)]
        ]
        rest = one.generate(params, again, sampling, tokenizer=tokenizer)
        for number, response in zip(left, rest, strict=True):
            logp = response.logp.copy()
            count = len(found[number].logp)
            assert not logp[len(prompts[number]) : count].any()  # the caller knows them
            logp[:count] = found[number].logp
            found[number] = response._replace(logp=logp)
        for number, expected in enumerate(whole):
            assert found[number].stop == expected.stop
            np.testing.assert_array_equal(found[number].tokens, expected.tokens)
            np.testing.assert_allclose(found[number].logp, expected.logp, atol=2e-6)
        assert one.take_drawn() == sum(len(r.tokens) - len(p) for r, p in zip(whole, prompts, strict=True))


CHANGES = {"rl.lag": 1, "rl.importance_cap": 2.0}


@pytest.fixture(scope="module")
def run(tokenizer, engine):
    params = jax.device_get(jax.jit(engine.model.init)(jax.random.key(4)))
    return Run("rl", params, tokenizer, [])


@pytest.fixture(scope="module")
def whole(run, engine, tmp_path_factory):
    """A training with a lag that is not interrupted: the parameters and the lines."""
    folder = tmp_path_factory.mktemp("lag")
    expected = run(Ends(engine), folder / "whole", **CHANGES)
    assert not (folder / "whole" / "rl" / "begun").exists()
    assert run(Ends(engine), folder / "plain")[1] != expected[1]  # another one than without a lag
    return expected


@pytest.mark.parametrize("left", [1, pytest.param(3, marks=pytest.mark.slow), 4])
def test_a_run_that_was_killed_goes_on_with_what_was_begun(run, whole, engine, tmp_path, left):
    """Bit for bit, though a token's policy depends on what else is drawn."""
    with pytest.raises(Killed):
        run(Ends(engine, left=left), tmp_path / "run", **CHANGES)
    # Those before a checkpoint go once it is written, which is in the background; a restart needs the others.
    names = {path.name for path in (tmp_path / "run" / "rl" / "begun").iterdir()}
    assert names >= {f"{update:06d}" for update in range(2 if left > 3 else 1, left + 1)}
    params, lines = run(Ends(engine), tmp_path / "run", **CHANGES)
    assert_same(params, whole[0])
    assert lines == whole[1]


def test_a_damaged_file_of_what_was_begun_is_named(run, engine, tmp_path):
    with pytest.raises(Killed):
        run(Ends(engine, left=4), tmp_path, **CHANGES)
    path = tmp_path / "rl" / "begun" / "000002"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StageError, match=r"begun/000002: the file is damaged.*Delete it"):
        run(Ends(engine), tmp_path, **CHANGES)
    path.unlink()
    run(Ends(engine), tmp_path, **CHANGES)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [({}, True), ({"importance_cap": 2.0}, False), ({"old": "sampler"}, False)],
)
def test_a_lag_wants_its_tokens_weighed(changes, refused):
    config = default.get_config()
    config.rl.update({"lag": 1, **changes})
    said = " ".join(preflight.policy_gradient_clashes(config))
    assert ("rl.lag = 1" in said) == refused


def test_the_lag_of_a_token_is_counted_by_hand(tokenizer):
    domain, [task, *_] = arithmetic(tokenizer)
    trace = method.rollout.open_trace(domain, task)
    start = len(trace.tokens)
    trace = method.rollout.append(trace, [7] * 5)
    drawn = np.arange(len(trace.tokens)) >= start
    drawn[start + 2] = False  # as a partner's
    trace = trace.replace(sampled=drawn, drawn_by=((start, 4), (start + 3, 6)))
    # Two tokens of update 4 and two of 6, at update 7.
    assert policy_gradient.lag_metrics([[trace]], 7, 11) == {"lag": 2.0, "tokens": 11.0}


def test_a_lag_is_the_same_on_a_mesh(engine, params, tokenizer):
    """With a policy that stands still, on eight devices: each replica goes on with rows of any other."""
    mesh = make_mesh(4, 2, jax.devices()[:8])
    there = Engine(engine.model, mesh, slots=8, decode_steps=2, score_tokens=1024)
    placed = there.decode_params(params)
    one = trained(engine, params, *arithmetic(tokenizer), STILL, 2)
    other = trained(there, placed, *arithmetic(tokenizer), STILL, 2, lag=1)
    for (expected, *_), (groups, *_) in zip(one, other, strict=True):
        for a, b in zip(flat(groups), flat(expected), strict=True):
            same(a, b)
