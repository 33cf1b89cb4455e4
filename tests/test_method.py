"""The method's own functions: who is kept, what is trained, what an update sees."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax import batching, losses, policy_gradient, rollout
from int_jax import intervention_training as method
from int_jax.domains.arithmetic import Arithmetic
from int_jax.engine import _finite, _start, _update
from int_jax.lab import adamw, warmup_cosine
from int_jax.policy_gradient import PolicyGradient, by_group
from int_jax.rows import AttemptRow, GuidedRow
from int_jax.sampler import Sampling
from int_jax.types import Intervention, Task, Trace, Verdict

SAMPLING = Sampling(max_new_tokens=10, stop_ids=(2, *range(20, 24)), seed=11)
ROW = {"row_length": 128, "rows": 4}


def named(trace, sample: int):
    """What tells a continuation from all others: two attempts at one problem differ in the steps before the splice."""
    return trace.task.id, tuple(trace.tokens[trace.prompt_len : max(trace.spliced, 0)].tolist()), sample


class Lucky(Arithmetic):
    """Chance decides, by the response's tokens: a random model then succeeds once in `odds` tries. Remembers them."""

    odds = 13

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.tries = {}

    def verify(self, trace):
        name = named(trace, trace.key[1])
        assert name not in self.tries, "drawn twice"
        passed = int(trace.response.sum()) % self.odds == 0
        self.tries[name] = trace.response.tolist(), passed
        return Verdict(passed, float(passed), "correct" if passed else "wrong")


@pytest.fixture(scope="module")
def params(engine):
    return engine.decode_params(jax.jit(engine.model.init)(jax.random.key(4)))


def made(prompt=3, steps=(4, 5), passed=False, **changes) -> Trace:
    """A trace of random-looking ids: a prompt and steps of the given lengths."""
    ends = tuple((prompt + np.cumsum(steps, dtype=int)).tolist())
    length = ends[-1] if ends else prompt
    tokens = (np.arange(length) * 37 % 90 + 4).astype(np.int32)
    verdict = Verdict(passed, float(passed), "correct" if passed else "wrong")
    drawn = np.arange(length) >= prompt
    logp = np.where(drawn, -1.5, 0).astype(np.float32)
    return Trace(Task("t", "d", "p"), tokens, prompt, drawn, logp, 1.0, ends, "stop", verdict).replace(
        **changes
    )


# --- failures, kept ---

OUTCOMES = st.lists(st.lists(st.booleans(), min_size=1, max_size=5), max_size=6)


@settings(deadline=None)
@given(OUTCOMES, st.integers(1, 6))
def test_failures_are_the_first_wrong_attempts_at_what_nobody_solved_or_at_all(outcomes, keep):
    groups = [[made(passed=p, key=(i, k)) for k, p in enumerate(group)] for i, group in enumerate(outcomes)]
    rows = [AttemptRow.of(made().task, group, keep) for group in groups]
    unsolved, every = [], []
    for i, group in enumerate(outcomes):
        wrong = [(i, k) for k, passed in enumerate(group) if not passed][:keep]
        every += wrong
        unsolved += wrong if sum(group) == 0 else []
    assert [trace.key for trace in method.failures(rows)] == unsolved
    assert [trace.key for trace in method.failures(rows, unsolved=False)] == every


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=6))
def test_kept_are_those_with_a_success(successes):
    results = [GuidedRow(made(key=(0, i)), 8, n) for i, n in enumerate(successes)]
    for least in (0, 1, 2):
        kept = [t.key[1] for t in method.kept(results, least)]
        assert kept == [i for i, n in enumerate(successes) if n >= least]


# --- guided ---


@pytest.fixture(scope="module")
def guided_attempts(tokenizer):
    """Eight guided attempts, two of each problem."""
    domain = Arithmetic(tokenizer)
    out = []
    for task, k in itertools.product(domain.tasks("train", 1, 4), range(2)):
        ids = tokenizer.encode(f"1 + {k} = 9\n\n9 + 1 = 3\n\n\\boxed{{3}}")
        prompt = rollout.open_trace(domain, task).tokens.tolist()
        tokens = np.array(prompt + ids, np.int32)
        drawn = np.arange(len(tokens)) >= len(prompt)
        zeros = np.zeros(len(tokens), np.float32)
        ends = domain.steps(tokens, len(prompt))
        trace = Trace(task, tokens, len(prompt), drawn, zeros, step_ends=ends, stop="stop", key=(0, k))
        out.append(rollout.splice(trace, Intervention(1, "9 + 1 = 10"), tokenizer))
    return out


def drawn(engine, params, tokenizer, traces, **knobs):
    domain = Lucky(tokenizer)
    return method.guided(engine, params, domain, traces, sampling=SAMPLING, **knobs), domain.tries


@pytest.fixture(scope="module")
def full(engine, params, tokenizer, guided_attempts):
    return drawn(engine, params, tokenizer, guided_attempts, tries=14, stop_at_success=False, at_once=5)


def test_all_tries_are_drawn_where_asked_and_counted(full, guided_attempts):
    results, tries = full
    assert len(tries) == 14 * len(guided_attempts)
    assert len({tuple(response) for response, _ in tries.values()}) > 0.9 * len(tries)  # of two attempts, too
    for result, trace in zip(results, guided_attempts, strict=True):
        mine = [tries[named(trace, k)] for k in range(14)]
        assert result.trace is trace and result.tries == 14
        assert result.successes == sum(passed for _, passed in mine)
        assert len(result.shown) == method.SHOWN and [p for _, p in result.shown] == [
            p for _, p in mine[: method.SHOWN]
        ]
    assert 0 < len(method.kept(results)) < len(results)  # else this file tests nothing


@pytest.mark.parametrize("at_once", [1, 5, 14, 32])
def test_early_stop_keeps_the_same_attempts_and_draws_a_prefix_of_the_same_tries(
    engine, params, tokenizer, guided_attempts, full, at_once
):
    results, tries = drawn(
        engine, params, tokenizer, guided_attempts, tries=14, stop_at_success=True, at_once=at_once
    )
    full_results, full_tries = full
    assert tries.items() <= full_tries.items()
    for result, other, trace in zip(results, full_results, guided_attempts, strict=True):
        outcomes = [full_tries[named(trace, k)][1] for k in range(14)]
        first = outcomes.index(True) if any(outcomes) else 13
        rounds = -(-(first + 1) // at_once)
        assert result.tries == min(rounds * at_once, 14)  # it leaves after the round of its first success
        assert {k for *n, k in tries if n == [*named(trace, 0)[:2]]} == set(range(result.tries))
        assert (result.successes > 0) == (other.successes > 0)
        assert result.successes == sum(outcomes[: result.tries])
    assert [t.key for t in method.kept(results)] == [t.key for t in method.kept(full_results)]


def test_nothing_to_continue(engine, params, tokenizer):
    assert method.guided(engine, params, Lucky(tokenizer), [], 8, SAMPLING) == []


# --- what is trained ---

STEPS = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@settings(deadline=None)
@given(st.integers(1, 5), STEPS, st.integers(1, 4), st.data())
def test_sft_trains_prefix_and_intervention_and_nothing_else(prompt, steps, inserted, data):
    """Whatever the switches: no prompt, no suffix, and an end-of-turn token only if its id is given."""
    cut = prompt + sum(steps[: data.draw(st.integers(0, len(steps) - 1))])
    end = cut + inserted
    whole = made(prompt, steps)
    ends = (*[e for e in whole.step_ends if e <= cut], end)
    policy = np.arange(end + 3)
    policy = (policy >= prompt) & (
        (policy < cut) | (policy >= end)
    )  # it drew all but the prompt and the intervention
    trace = made(prompt, [end - prompt], step_ends=ends, spliced=cut, stop="", sampled=policy[:end])
    prefix, intervention = (
        data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        data.draw(st.sampled_from([0.0, 0.25, 1.0])),
    )
    weigh = functools.partial(batching.intervention_weights, prefix=prefix, intervention=intervention)
    for end_of_turn in (None, 2):
        sequence = method.sft_sequence(trace, weigh, end_of_turn)
        spans = [0.0] * prompt + [prefix] * (cut - prompt) + [intervention] * inserted
        extra = [] if end_of_turn is None else [2]
        assert sequence.tokens.tolist() == trace.tokens.tolist() + extra
        assert sequence.ce.tolist() == spans + [intervention] * len(extra)
        assert not sequence.rl.any() and not sequence.kl.any() and sequence.temperature == 1.0
    # A trace that was continued, or a later step, is not trained behind the intervention.
    longer = made(prompt, [end - prompt, 3], step_ends=(*ends, end + 3), spliced=cut, sampled=policy)
    assert method.sft_sequence(longer, weigh, None).ce.tolist() == [*spans, 0.0, 0.0, 0.0]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_epoch_is_a_permutation(count, size, seed):
    per_epoch = -(-count // size)
    assert method.sft_steps(count, 3, size) == 3 * per_epoch
    slices = [method.epoch_slice(count, size, seed, step) for step in range(3 * per_epoch)]
    for epoch in range(3):
        parts = slices[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for part in parts for i in part) == list(range(count))
        assert all(len(part) == size for part in parts[:-1]) and 1 <= len(parts[-1]) <= size
    again = [method.epoch_slice(count, size, seed, step) for step in reversed(range(3 * per_epoch))]
    assert again[::-1] == slices  # of (seed, step) alone, not of what was asked before


def test_epochs_and_seeds_differ():
    orders = {tuple(method.epoch_slice(50, 50, seed, step)) for seed in range(3) for step in range(3)}
    assert len(orders) == 9


def span_logp(engine, params, traces):
    """Mean log-probability of the interventions, and of the prefixes."""
    scored, _ = engine.score(params, [t.tokens for t in traces])
    inside = [logp[t.spliced :].mean() for t, logp in zip(traces, scored, strict=True)]
    before = [logp[t.prompt_len : t.spliced].mean() for t, logp in zip(traces, scored, strict=True)]
    return np.mean(inside), np.mean(before)


@pytest.fixture(scope="module")
def tuned(engine, params, guided_attempts):
    """States after each update of three epochs of two, as (step, params, metrics)."""
    tx = optax.adam(3e-3)
    runs = method.sft(engine, engine.state(params, tx), tx, guided_attempts, 3, 4, 7, **ROW)
    return [(int(state.step), jax.device_get(state), metrics) for state, metrics in runs]


def test_sft_raises_the_interventions_probability(engine, params, guided_attempts, tuned):
    assert [step for step, _, _ in tuned] == [1, 2, 3, 4, 5, 6]
    before, after = (span_logp(engine, p, guided_attempts) for p in (params, tuned[-1][1].params))
    assert after[0] > before[0] + 0.3 and after[1] > before[1] + 0.3
    trained = sum(len(t.response) for t in guided_attempts) * 3
    assert sum(float(m["trained_tokens"]) for _, _, m in tuned) == trained


def test_trainings_of_equal_knobs_share_their_programs(engine, params, guided_attempts):
    """However many trainings a run has: each compiled program stays in memory to its end."""
    sizes = []
    for _ in range(3):
        tx = adamw(warmup_cosine(1e-3, 4, 0.1), 0.0, 1.0)
        for _ in method.sft(engine, engine.state(params, tx), tx, guided_attempts, 1, 4, 7, **ROW):
            pass
        sizes.append((_update._cache_size(), _start.cache_info().currsize))
    assert sizes[0] == sizes[1] == sizes[2]


def test_the_states_of_all_optimizers_are_checked_by_one_program(engine, params):
    """A schedule has a count of its own, a constant rate has none."""
    states = [
        engine.state(params, adamw(rate, 0.0, 1.0)) for rate in (1e-3, warmup_cosine(1e-3, 4, 0.1), 2e-3)
    ]
    found = [(engine.finite(state), _finite._cache_size()) for state in states]
    assert found == [(True, found[0][1])] * 3
    spoiled = jax.tree.map(lambda leaf: leaf * jax.numpy.nan, states[0].params)
    assert not engine.finite(states[0]._replace(params=spoiled))


@pytest.mark.parametrize("start", [0, 5])
def test_sft_goes_on_from_its_step_as_if_uninterrupted(engine, guided_attempts, tuned, start):
    """Wherever it began: `start` updates of another training change neither what follows nor its end."""
    tx = optax.adam(3e-3)
    step, state, _ = tuned[2]
    state = jax.tree.map(jax.numpy.asarray, state)
    state = state._replace(step=state.step + start)
    runs = method.sft(engine, state, tx, guided_attempts, 3, 4, 7, **ROW, start=start)
    later = [jax.device_get(s) for s, _ in runs]
    assert len(later) == 6 - step
    last = later[-1]._replace(step=later[-1].step - start)
    for got, expected in zip(jax.tree.leaves(last), jax.tree.leaves(tuned[-1][1]), strict=True):
        np.testing.assert_array_equal(got, expected)


# --- reinforcement ---


@pytest.mark.parametrize(
    ("knobs", "word"),
    [({"top_k": 20}, "top_k=20"), ({"top_p": 0.8}, "top_p=0.8"), ({"min_p": 0.1}, "min_p=0.1")],
)
def test_truncated_policies_are_refused(engine, params, tokenizer, knobs, word):
    sampling = dataclasses.replace(SAMPLING, **knobs)
    runs = method.reinforce(engine, None, None, Lucky(tokenizer), [], PolicyGradient(), sampling, **ROW)
    with pytest.raises(ValueError, match=word):
        next(runs)


def test_a_kl_without_its_reference_is_refused(engine, tokenizer):
    knobs = PolicyGradient(kl=0.1)
    with pytest.raises(ValueError, match=r"kl=0\.1 needs reference_params"):
        next(method.reinforce(engine, None, None, Lucky(tokenizer), [], knobs, SAMPLING, **ROW))


REWARDS = ([0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 0])


@pytest.fixture(scope="module")
def groups(engine, params, tokenizer):
    """Rollouts of the model itself; the outcomes are set by hand."""
    domain = Arithmetic(tokenizer)
    opened = [rollout.open_trace(domain, t) for t in domain.tasks("train", 2, len(REWARDS))]
    drawn = rollout.continue_traces(engine, params, domain, opened, 3, SAMPLING)
    return [
        [
            t.replace(verdict=Verdict(bool(r), float(r), "correct" if r else "wrong"))
            for t, r in zip(g, rs, strict=True)
        ]
        for g, rs in zip(drawn, REWARDS, strict=True)
    ]


def rewards_of(groups) -> np.ndarray:
    return np.array([[trace.verdict.score for trace in group] for group in groups])


def advantages_of(groups, kind: str = "mean") -> np.ndarray:
    return by_group(kind)(groups, rewards_of(groups))


def metrics_of(groups, kind: str = "mean") -> dict:
    rewards = rewards_of(groups)
    return policy_gradient.group_metrics(groups, {"score": rewards}, rewards, advantages_of(groups, kind))


def packed(engine, groups, knobs, reference_params=None):
    """The batch of the only update on these rollouts."""
    advantages = knobs.advantages(groups, rewards_of(groups))
    sequences = policy_gradient.weigh(engine, groups, advantages, knobs, reference_params=reference_params)
    return policy_gradient.pack(sequences, knobs, **ROW)


# One optimizer, one compiled program.
MOMENTUM, GENTLE = optax.sgd(1.0, momentum=0.9), optax.sgd(0.1)


def updated(engine, params, batch):
    state, metrics = engine.update(engine.state(params, MOMENTUM), batch, MOMENTUM, losses.LossConfig())
    return jax.device_get(state.params), metrics


@pytest.mark.parametrize("normalise", ["sequences", "tokens", "sequence_mean"])
@pytest.mark.parametrize("advantage", ["mean", "mean_std"])
def test_leaving_out_groups_of_one_outcome_changes_nothing(engine, params, groups, normalise, advantage):
    knobs = PolicyGradient(normalise=normalise, advantages=by_group(advantage))
    dropped = packed(engine, groups, knobs)
    sequences = []
    for group in groups:
        rewards = np.array([t.verdict.score for t in group])
        scale = rewards.std(ddof=1) + 1e-4 if advantage == "mean_std" else 1.0
        advantages = (rewards - rewards.mean()) / scale
        sequences += [batching.reinforced(t, a, normalise) for t, a in zip(group, advantages, strict=True)]
    total = sum(int(t.sampled.sum()) for g in groups for t in g) if normalise == "tokens" else 15
    kept = batching.pack(sequences, totals={"rl": total}, **ROW)
    assert float(dropped.rl_total) == float(kept.rl_total) == total
    assert np.count_nonzero(dropped.rl_MBT) == sum(
        int(t.sampled.sum()) for g in (groups[1], groups[3]) for t in g
    )
    (one, metrics), (other, _) = (updated(engine, params, batch) for batch in (dropped, kept))
    assert float(metrics["grad_norm"]) > 1e-3
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_groups_of_one_outcome_alone_move_nothing(engine, params, groups):
    batch = packed(engine, [groups[0], groups[2]], PolicyGradient())
    after, metrics = updated(engine, params, batch)
    assert float(metrics["grad_norm"]) == 0 and float(batch.rl_total) == 6
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(jax.device_get(params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_with_a_kl_every_group_stays(engine, params, groups):
    knobs = PolicyGradient(kl=0.5)
    batch = packed(engine, groups, knobs, params)
    drawn = sum(int(t.sampled.sum()) for g in groups for t in g)
    assert np.count_nonzero(batch.kl_MBT) == np.count_nonzero(batch.rl_MBT) == drawn
    assert float(batch.rl_total) == 15 and float(batch.kl_total) == 30
    inside = batch.kl_MBT > 0
    np.testing.assert_allclose(batch.reference_logp_MBT[inside], batch.sampler_logp_MBT[inside], atol=1e-5)


def test_an_update_of_reinforce(engine, params, tokenizer):
    """Two updates: their problems, their streams, and that the same state gives the same update again."""
    tx, domain, tasks = GENTLE, Lucky(tokenizer), Arithmetic(tokenizer).tasks("train", 3, 5)
    domain.odds = 2
    knobs = PolicyGradient(problems=3, group=4)
    runs = method.reinforce(engine, engine.state(params, tx), tx, domain, tasks, knobs, SAMPLING, **ROW)
    seen, states = [], []
    for _ in range(2):
        domain.tries.clear()
        state, metrics = next(runs)
        seen.append(dict(domain.tries))
        states.append(jax.device_get(state))
        rate = np.mean([passed for _, passed in domain.tries.values()])
        assert metrics["reward"] == pytest.approx(rate) and float(metrics["logp_gap_max"]) < 1e-4
    for step, tries in enumerate(seen):
        chosen = {tasks[i].id for i in method.epoch_slice(5, 3, SAMPLING.seed, step)}
        assert {task for task, *_ in tries} == chosen and len(tries) == 4 * len(chosen)
    for start in (0, 7):  # updates of another training before it
        domain.tries.clear()
        fresh = jax.tree.map(jax.numpy.asarray, states[0])
        fresh = fresh._replace(step=fresh.step + start)
        state, _ = next(
            method.reinforce(engine, fresh, tx, domain, tasks, knobs, SAMPLING, **ROW, start=start)
        )
        assert domain.tries == seen[1]
        state = jax.device_get(state._replace(step=state.step - start))
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(states[1]), strict=True):
            np.testing.assert_array_equal(a, b)


SEVERAL = {  # knobs of several updates on a batch -> scorings of a batch, by the policy that it began with
    "passes": ({"passes": 2}, 1),
    "minibatches": ({"passes": 2, "minibatches": 2, "group": 4}, 1),
    "to the sampler": ({"minibatches": 2, "old": "sampler"}, 0),
    "refill": ({"minibatches": 2, "refill": 2, "problems": 3, "group": 2}, 1),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_run_killed_within_a_batch_ends_with_the_same_bits(engine, params, tokenizer, monkeypatch, name):
    """Killed after the first update on its second batch, it goes on from the first batch's end."""
    changes, scorings = SEVERAL[name]
    knobs = PolicyGradient(**{"problems": 3, "group": 2, **changes})
    tx, domain, tasks = GENTLE, Lucky(tokenizer), Arithmetic(tokenizer).tasks("train", 3, 6)
    domain.odds = 2
    calls = {"score": 0, "update": 0}

    def counted(function):
        name, whole = function.__name__, function

        def call(*args, **kwargs):
            calls[name] += 1
            if calls["update"] > last:
                raise KeyboardInterrupt
            return whole(*args, **kwargs)

        monkeypatch.setattr(engine, name, call)

    def batches(state, count: int) -> list:
        runs = method.reinforce(engine, state, tx, domain, tasks, knobs, SAMPLING, **ROW)
        found = []
        for _ in range(count):
            domain.tries.clear()
            state, metrics = next(runs)
            numbers = {key: float(value) for key, value in metrics.items()}
            found.append((jax.device_get(state), numbers, dict(domain.tries)))
        return found

    last = 2 * knobs.updates
    counted(engine.score)
    counted(engine.update)
    first, second = batches(engine.state(params, tx), 2)
    assert (int(first[0].step), int(second[0].step)) == (knobs.updates, last)
    assert calls == {"score": 2 * scorings, "update": last}
    for number, (_, _, tries) in enumerate((first, second)):
        chosen = {tasks[i].id for i in method.epoch_slice(len(tasks), knobs.problems, SAMPLING.seed, number)}
        drawn = {task for task, *_ in tries}
        assert drawn > chosen if knobs.refill and number else drawn >= chosen
        assert knobs.refill or drawn == chosen
    calls["update"], last = 0, knobs.updates + 1
    with pytest.raises(KeyboardInterrupt):
        batches(engine.state(params, tx), 2)
    monkeypatch.undo()
    (again,) = batches(jax.tree.map(jax.numpy.asarray, first[0]), 1)
    assert again[1:] == second[1:]
    for got, expected in zip(jax.tree.leaves(again[0]), jax.tree.leaves(second[0]), strict=True):
        np.testing.assert_array_equal(got, expected)


REFILLED = {  # scores of the groups in the order drawn, problems, rounds -> groups drawn, groups of the batch
    "all tell something": ((1, 1, 1, 1), 2, 3, 2, 2),
    "one is replaced": ((0, 1, 1, 1), 2, 3, 3, 2),
    "the replacement is replaced": ((0, 1, 0, 1, 1), 2, 3, 4, 2),
    "the rounds end": ((0, 0, 0, 0, 0, 0), 2, 1, 4, 0),
    "the problems end": ((0, 1, 0), 2, 9, 3, 1),
    "they stay": ((0, 1, 1), 2, 0, 2, 2),
}


@pytest.mark.parametrize("name", REFILLED)
def test_groups_of_one_outcome_are_drawn_anew(tokenizer, monkeypatch, name):
    telling, problems, rounds, drawn, trained = REFILLED[name]
    tasks, left = [Task(str(i), "d", "p") for i in range(len(telling))], iter(telling)
    seen = []

    def advanced(engine, params, domain, groups, *rest):
        seen.extend(group[0].task.id for group in groups)
        return [(scored(1.0), scored(0.0 if next(left) else 1.0)) for _ in groups]

    monkeypatch.setattr(rollout, "advance", advanced)
    knobs = PolicyGradient(problems=problems, group=2, refill=rounds)

    def opened(domain, task):
        return made().replace(task=task)

    groups, _ = method.draw_batch(None, None, None, tasks, knobs, SAMPLING, 0, opened)
    assert len(groups) == drawn and len({*seen}) == len(seen) == drawn
    advantages = policy_gradient.advantages_of(groups, rewards_of(groups), knobs)
    assert sum(values is not None for values in advantages) == trained


OUTCOME = st.tuples(st.booleans(), st.integers(1, 9), st.booleans())  # passed, length, truncated


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda size: st.lists(st.lists(OUTCOME, min_size=size, max_size=size), min_size=1, max_size=5)
    )
)
def test_group_metrics_against_a_plain_loop(outcomes):
    groups = [
        [made(2, [n], passed=p, stop="length" if cut else "stop") for p, n, cut in group]
        for group in outcomes
    ]
    got = metrics_of(groups)
    count = never = always = right = tokens = truncated = 0
    for group in outcomes:
        passed = [p for p, _, _ in group]
        never += not any(passed)
        always += all(passed)
        for p, n, cut in group:
            count, right, tokens, truncated = count + 1, right + p, tokens + n, truncated + cut
    sizes = len(outcomes)
    expected = {
        "reward": right / count,
        "never": never / sizes,
        "sometimes": (sizes - never - always) / sizes,
        "always": always / sizes,
        "zero_advantage": (never + always) / sizes,
        "drawn_logp": -1.5,
        "length": tokens / count,
        "truncated": truncated / count,
        "tokens": tokens,
    }
    assert got == pytest.approx(expected, abs=1e-12)


def test_of_scores_0_and_1_every_share_keeps_its_last_digit():
    """3 + 2 of 13 groups: 3/13 + 2/13 is not 5/13 in floats, and a run's results.json holds the former."""
    rewards = [[0, 0]] * 3 + [[1, 1]] * 2 + [[0, 1]] * 8
    got = metrics_of([[scored(r) for r in group] for group in rewards])
    assert got["zero_advantage"] == 3 / 13 + 2 / 13 and got["sometimes"] == 1.0 - 3 / 13 - 2 / 13
    assert got["reward"] == 12 / 26


def scored(score: float, passed: bool | None = None) -> Trace:
    passed = score == 1 if passed is None else passed
    return made(2, [3], verdict=Verdict(passed, score, "correct" if passed else "wrong"))


PARTIAL = {  # groups of scores ("!": passed) -> reward, zero_advantage, never, always
    "different scores, none passed": ([[0.3, 0.1, 0, 0.5]], 0.225, 0, 1, 0),
    "equal partial scores": ([[0.3, 0.3, 0.3]], 0.3, 1, 1, 0),
    "equal scores that no float holds": ([[0.1] * 7], 0.1, 1, 1, 0),
    "one tie": ([[0.3, 0.3, 0.1]], 0.7 / 3, 0, 1, 0),
    "a score at the mean, its advantage zero": ([[0.25, 0.5, 0.75]], 0.5, 0, 1, 0),
    "negative": ([[-1.0, -0.5]], -0.75, 0, 1, 0),
    "negative and equal": ([[-1.0, -1.0]], -1.0, 1, 1, 0),
    "score 1, not passed": ([[1.0, 1.0]], 1.0, 1, 1, 0),
    "passed below 1, equal": ([["0.8!", "0.8!"]], 0.8, 1, 0, 1),
    "all passed, scores differ": ([["0.8!", "1.0!"]], 0.9, 0, 0, 1),
    "some passed, scores equal": ([["0.5!", 0.5]], 0.5, 1, 0, 0),
    "two groups": ([[0.3, 0.1], [0.2, 0.2]], 0.2, 0.5, 1, 0),
    "0 and 1": ([["1!", 0], [0, 0], ["1!", "1!"]], 0.5, 2 / 3, 1 / 3, 1 / 3),
    "a score beyond 1": ([[2.5, 0.5]], 1.5, 0, 1, 0),
    "one sample": ([[0.4]], 0.4, 1, 1, 0),
}


@pytest.mark.parametrize("advantage", ["mean", "mean_std"])
@pytest.mark.parametrize("name", PARTIAL)
def test_partial_scores(engine, name, advantage):
    """reward is the mean score, zero_advantage what the update sees; never and always ask who passed."""
    told, reward, zero, never, always = PARTIAL[name]
    groups = [[scored(float(str(s).strip("!")), str(s).endswith("!")) for s in group] for group in told]
    got = metrics_of(groups, advantage)
    shares = (got["reward"], got["zero_advantage"], got["never"], got["always"])
    assert shares == pytest.approx((reward, zero, never, always), abs=1e-12)
    knobs = PolicyGradient(advantages=by_group(advantage))
    batch = packed(engine, groups, knobs)
    assert (got["zero_advantage"] == 1) == (not batch.advantage_MBT.any())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_reaches_reward_and_loss_instead_of_being_left_out(engine, bad):
    groups = [[scored(bad), scored(0.0)], [scored(1.0), scored(0.0)]]
    assert not np.isfinite(metrics_of(groups)["reward"])
    batch = packed(engine, groups, PolicyGradient())
    assert (
        np.isnan(batch.advantage_MBT).any() and (batch.advantage_MBT == 0.5).any()
    )  # the other group is whole
