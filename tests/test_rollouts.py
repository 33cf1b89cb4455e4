"""The rollouts of each batch on disk: what was trained follows from them, and from nothing else that was drawn."""

import gzip

import jax
import numpy as np
import pytest
from test_method import GENTLE, ROW, SAMPLING, Lucky
from trees import assert_same

from experiments import rollouts
from int_jax import intervention_training as method
from int_jax import policy_gradient
from int_jax.domains.arithmetic import Arithmetic
from int_jax.policy_gradient import PolicyGradient, by_group, from_first_error

KNOBS = {
    "one update": PolicyGradient(problems=3, group=2),
    "several, some groups left out": PolicyGradient(problems=3, group=2, minibatches=2, refill=1),
    "advantages of tokens": PolicyGradient(
        problems=3, group=2, advantages=from_first_error(by_group("mean_std"), lambda trace: 0)
    ),
}


class Chance(Lucky):
    """One response in two is right; the same problems come again and again."""

    odds = 2

    def verify(self, trace):
        self.tries.clear()
        return super().verify(trace)


@pytest.fixture(scope="module")
def params(engine):
    return engine.decode_params(jax.jit(engine.model.init)(jax.random.key(4)))


@pytest.mark.parametrize("name", KNOBS)
def test_what_was_trained_can_be_computed_again(engine, params, tokenizer, tmp_path, name):
    knobs, domain = KNOBS[name], Chance(tokenizer)
    tasks, state = Arithmetic(tokenizer).tasks("train", 3, 6), engine.state(params, GENTLE)

    def record(*batch):
        rollouts.write(tmp_path, *batch)

    runs = method.reinforce(engine, state, GENTLE, domain, tasks, knobs, SAMPLING, **ROW, record=record)
    for _ in range(
        2
    ):  # the first batch begins where the second must not: at the parameters that are known here
        state, _ = next(runs)
    first = knobs.updates

    again = engine.state(params, GENTLE)
    for update in (0, first):
        groups = rollouts.read(tmp_path, update)
        traces = [[row.trace for row in group] for group in groups]
        advantages = [
            None if group[0].advantage is None else [row.advantage for row in group] for group in groups
        ]
        decoding = engine.decode_params(again.params)
        sequences = policy_gradient.weigh(engine, traces, advantages, knobs, decoding)
        rng = np.random.default_rng([SAMPLING.seed, update, method.CUT])
        for some in policy_gradient.minibatches(len(sequences), knobs, rng):
            batch = policy_gradient.pack([sequences[i] for i in some], knobs, **ROW)
            again, metrics = engine.update(again, batch, GENTLE, knobs.update_loss)
            assert float(metrics["trained_tokens"]) > 0
    assert_same(again, state)


def test_what_is_read_is_what_was_written(engine, params, tokenizer, tmp_path):
    # Groups of two: of six one is of one mind, and one is not, as good as always.
    knobs, domain = PolicyGradient(problems=6, group=2, refill=1), Chance(tokenizer)
    tasks, kept = Arithmetic(tokenizer).tasks("train", 3, 6), []
    state = engine.state(params, GENTLE)
    next(
        method.reinforce(
            engine,
            state,
            GENTLE,
            domain,
            tasks,
            knobs,
            SAMPLING,
            **ROW,
            record=lambda *batch: kept.append(batch),
        )
    )
    [(update, groups, rewards, advantages)] = kept
    assert any(found is None for found in advantages)
    rollouts.write(tmp_path, update, groups, rewards, advantages)
    rollouts.write(tmp_path, update, groups, rewards, advantages)  # a resumed run does
    content = rollouts.path_of(tmp_path, 0).read_bytes()
    assert content[4:8] == bytes(4)  # no time in it: the same bytes again
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["000000.jsonl.gz"]
    assert len(gzip.decompress(content).splitlines()) == sum(map(len, groups))
    for group, found, worth, values in zip(
        groups, rollouts.read(tmp_path, 0), rewards, advantages, strict=True
    ):
        for i, (trace, row) in enumerate(zip(group, found, strict=True)):
            assert row.trace.task == trace.task and row.trace.verdict == trace.verdict
            assert row.trace.key == trace.key and row.trace.step_ends == trace.step_ends
            assert_same(
                (row.trace.tokens, row.trace.logp, row.trace.sampled),
                (trace.tokens, trace.logp, trace.sampled),
            )
            assert row.reward == worth[i]
            assert (row.advantage is None) if values is None else row.advantage == values[i]
