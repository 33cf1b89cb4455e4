"""Each row of docs/losses.md against numbers worked by hand, and what its ingredients do on their own.

Six responses of three problems, A, B and C. old: the policy at the batch's start; every token had log p = -2 then.

    response   a1          a2     b1          b2     c1    c2
    reward     1           0      1           0      1     1
    ratio      1.5, 1      0.5    0.5, 0.5    2.5    1     1

C tells nothing. A reward of 1 in its group has the advantage A, of 0 the advantage -A; A is 1/2 for "mean", 1 for
"leave_one_out", sqrt(1/2) for "mean_std" (the deviation of 1 and 0 as a sample; its floor of 1e-4 is neglected).
"""

import ast
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from experiments import build, preflight
from experiments.configs import default
from int_jax import losses, policy_gradient
from int_jax.domains.arithmetic import Arithmetic
from int_jax.policy_gradient import PolicyGradient, by_group, from_first_error
from int_jax.types import Task, Trace, Verdict

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "losses.md"
RATIOS = {"a1": (1.5, 1.0), "a2": (0.5,), "b1": (0.5, 0.5), "b2": (2.5,), "c1": (1.0,), "c2": (1.0,)}
RIGHT = {"a1", "b1", "c1", "c2"}
S, K, P = math.sqrt(1 / 2), math.log(2), math.sqrt(5 / 12)

# Loss, and its slope in log p of each token: a1, a1, a2, b1, b1, b2, c1, c2.
WORKED = {
    # All ratios are 1. Sum of A: 2 - 1 + 2 - 1 = 2 halves, over 6 responses.
    "InT": (-0.5 * 2 / 6, [-1 / 12, -1 / 12, 1 / 12, -1 / 12, -1 / 12, 1 / 12, 0, 0]),
    # Means of responses, clipped to 0.8 .. 1.2: (1.2 + 1) / 2, -0.8, 0.5, -2.5: sum -1.7. What is clipped is flat.
    # KL of c2 alone, whose reference is twice as likely: k3 = 2 - ln 2 - 1, its slope -1; times 0.04 / 6.
    "GRPO": (1.7 * S / 6 + 0.04 * (1 - K) / 6, [0, -S / 12, 0, -S / 24, -S / 24, 2.5 * S / 6, 0, -0.04 / 6]),
    # Sums instead of means: 1.2 + 1 - 0.8 + 1 - 2.5 = -0.1.
    "Dr. GRPO": (0.5 * 0.1 / 6, [0, -1 / 12, 0, -1 / 24, -1 / 24, 1.25 / 6, 0, 0]),
    # C is no part of it: 6 tokens. 1.28 + 1 - 0.8 + 1 - 2.5 = -0.02.
    "DAPO": (0.02 * S / 6, [0, -S / 6, 0, -S / 12, -S / 12, 2.5 * S / 6, 0, 0]),
    # Ratios sqrt(1.5) and 0.5 leave 0.9997 .. 1.0004 where they are clipped; 1.0004 - 0.9997 + 0.5 - 2.5 = -1.9993.
    "GSPO": (1.9993 * S / 6, [0, 0, 0, -S / 24, -S / 24, 2.5 * S / 6, 0, 0]),
    "RLOO": (-2 / 6, [-1 / 6, -1 / 6, 1 / 6, -1 / 6, -1 / 6, 1 / 6, 0, 0]),
    # Mean 2/3 of all rewards, variance (4/9 + 8/9) / 5 = 4/15: a reward of 1 has P = sqrt(5/12), of 0 has -2 P.
    # P (1.2 + 1 + 1 + 1 + 1) - 2 P (0.8 + 2.5) = -1.4 P, over 8 tokens; C has advantages, too.
    "REINFORCE++": (1.4 * P / 8, [w * P / 8 for w in (0, -1, 0, -0.5, -0.5, 5, -1, -1)]),
    # Weights 1.28, 1, 0.5, 0.5, 0.5, 1.28, each times its advantage and log p = -2 + ln(ratio); a2's and half of b1's
    # cancel.
    "CISPO": (
        -S / 8 * (1.28 * (math.log(1.5) - 2) - 2 + 0.5 * (-K - 2) - 1.28 * (math.log(2.5) - 2)),
        [w * S / 8 for w in (-1.28, -1, 0.5, -0.5, -0.5, 1.28, 0, 0)],
    ),
    # One update: the ratios of the trainer to the sampler are 1.5, 1, 0.5, 0.5, 0.5, and 2.5, which is cut to 2.
    "TIS": (-0.5 * (1.5 + 1 - 0.5 + 1 - 2) / 6, [w / 12 for w in (-1.5, -1, 0.5, -0.5, -0.5, 2, 0, 0)]),
}


def rows_of_the_page() -> dict[str, dict]:
    """The knobs of each loss in the table."""
    found = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| loss"):
            name, _, knobs = (cell.strip() for cell in line.strip("|").split("|"))
            pairs = [one.split("=", 1) for one in re.findall(r"`([^`]+)`", knobs)]
            found[name] = {knob: ast.literal_eval(value) for knob, value in pairs}
    return found


PUBLISHED = rows_of_the_page()


def config_of(knobs: dict):
    c = default.get_config()
    for knob, value in knobs.items():
        group, name = knob.split(".")
        c[group][name] = value
    return c


def response(name: str) -> Trace:
    """One of the six responses, behind a prompt of two tokens; the sampler drew each token with log p = -2."""
    length = 2 + len(RATIOS[name])
    drawn = np.arange(length) >= 2
    verdict = Verdict(name in RIGHT, float(name in RIGHT), "correct" if name in RIGHT else "wrong")
    logp = np.where(drawn, -2.0, 0.0).astype(np.float32)
    tokens = np.full(length, ord(name[0]), np.int32)
    return Trace(Task(name[0], "d", "p"), tokens, 2, drawn, logp, step_ends=(length,), verdict=verdict)


def groups_of() -> list[list[Trace]]:
    return [[response(name) for name in pair] for pair in (("a1", "a2"), ("b1", "b2"), ("c1", "c2"))]


class Scores:
    """An engine that scores as the sampler did, or, as the reference, what is now, but c2 twice as likely."""

    def score(self, params, sequences, temperature):
        scored = [np.where(np.arange(len(s)) >= 2, -2.0, 0.0).astype(np.float32) for s in sequences]
        if params == "reference":
            for array, (name, ratios) in zip(scored, RATIOS.items(), strict=True):
                array[2:] += np.log(ratios) + (K if name == "c2" else 0.0)
        return scored, None


def loss_and_slopes(knobs: PolicyGradient, groups=None) -> tuple[float, np.ndarray]:
    """Of one update that sees the whole batch: by way of rewards, advantages, weights and packing, without a model."""
    groups = groups or groups_of()
    parts = policy_gradient.reward_parts(None, groups, knobs, limit=16_384)
    rewards = policy_gradient.weighted(parts, knobs.rewards)
    advantages = policy_gradient.advantages_of(groups, rewards, knobs)
    sequences = policy_gradient.weigh(Scores(), groups, advantages, knobs, "old", "reference")
    names = [*RATIOS][: len(sequences)]  # without C where it is no part of the batch
    packed = [n for n, s in zip(names, sequences, strict=True) if s.advantage.any() or s.kl.any()]
    batch = policy_gradient.pack(sequences, knobs, row_length=32, rows=1)
    batch = type(batch)(*(array[0] if np.ndim(array) == 3 else array for array in batch))
    drawn = {
        name: (batch.segments_MBT[0] == segment) & (batch.rl_MBT[0] > 0)
        for segment, name in enumerate(packed, 1)
    }
    now = batch.sampler_logp_MBT.copy()
    for name, at in drawn.items():
        now[0, at] += np.log(RATIOS[name]).astype(np.float32)

    def loss(logp):
        return losses.streams(logp, np.zeros_like(now), batch, knobs.update_loss)[0]

    value, slope = jax.value_and_grad(loss)(now)
    slopes = [np.asarray(slope[0])[drawn[n]] if n in drawn else np.zeros(len(RATIOS[n])) for n in RATIOS]
    return float(value), np.concatenate(slopes)


def test_the_page_and_the_numbers_name_the_same_losses():
    assert PUBLISHED.keys() == WORKED.keys()


@pytest.mark.parametrize("name", WORKED)
def test_a_published_loss_is_what_its_knobs_make(name):
    config = config_of(PUBLISHED[name])
    preflight.check(config)
    loss, slopes = loss_and_slopes(build.policy_gradient(config))
    expected, expected_slopes = WORKED[name]
    rel = 3e-4 if config.rl.advantage in ("mean_std", "batch") else 1e-6  # the floor
    assert loss == pytest.approx(expected, rel=rel, abs=1e-6)
    np.testing.assert_allclose(slopes, expected_slopes, rtol=rel, atol=1e-7)


# --- the ingredients ---

SHAPED = {  # tokens of a response, limit, buffer, penalty: DAPO's soft overlong punishment
    "short": (10, 100, 20, 0.0),
    "at the buffer's beginning": (80, 100, 20, 0.0),
    "one token into it": (81, 100, 20, -0.05),
    "half way": (90, 100, 20, -0.5),
    "at the limit": (100, 100, 20, -1.0),
    "several turns, longer than one may be": (250, 100, 20, -1.0),
    "the buffer is all of it": (50, 100, 100, -0.5),
}


@pytest.mark.parametrize("name", SHAPED)
def test_overlong_responses_are_punished_evenly(name):
    *arguments, penalty = SHAPED[name]
    assert losses.overlong_penalty(*arguments) == pytest.approx(penalty, abs=1e-12)


ADVANTAGES = {  # kind -> of rewards 1, 0, 0, 0 and 1, 1, 0, 0
    "mean": [0.75, -0.25, -0.25, -0.25, 0.5, 0.5, -0.5, -0.5],
    # Sample deviations 1/2 and sqrt(1/3).
    "mean_std": [1.5, -0.5, -0.5, -0.5, *(math.sqrt(3) / 2 * s for s in (1, 1, -1, -1))],
    "leave_one_out": [1.0, -1 / 3, -1 / 3, -1 / 3, 2 / 3, 2 / 3, -2 / 3, -2 / 3],
    # Mean 3/8; variance (3 * 25/64 + 5 * 9/64) / 7 = 15/56.
    "batch": [(r - 3 / 8) / math.sqrt(15 / 56) for r in (1, 0, 0, 0, 1, 1, 0, 0)],
}


@pytest.mark.parametrize("kind", losses.ADVANTAGES)
def test_advantages_worked_by_hand(kind):
    got = by_group(kind)([[None] * 4] * 2, np.array([[1.0, 0, 0, 0], [1, 1, 0, 0]]))
    np.testing.assert_allclose(np.ravel(got), ADVANTAGES[kind], rtol=3e-4)


PARTS = {  # weights, overlong -> reward of a wrong answer of 90 tokens, of a response of 100 that was cut off
    "the verdict": ({"score": 1.0}, 0, 0.0, 0.0),
    "half of it, and a form": ({"score": 0.5, "answered": 0.1}, 0, 0.1, 0.0),
    "overlong": ({"score": 1.0, "overlong": 1.0}, 20, -0.5, -1.0),
    "overlong, weighted": ({"overlong": 0.5}, 40, -0.375, -0.5),
    "the domain's": ({"score": 1.0, "right_steps": 2.0}, 0, 1.0, 2.0),
}


@pytest.mark.parametrize("name", PARTS)
def test_rewards_are_weighted_sums_of_named_parts(name, domain, monkeypatch):
    weights, overlong, wrong, cut = PARTS[name]
    monkeypatch.setattr(Arithmetic, "first_error", lambda self, trace: 1 if trace.stop == "stop" else None)

    def drawn(length: int, stop: str, reason: str) -> Trace:
        sampled, zeros = np.arange(length + 3) >= 3, np.zeros(length + 3, np.float32)
        ends, verdict = (3 + length // 2, 3 + length), Verdict(False, 0.0, reason)
        return Trace(Task("t", "d", "p"), zeros.astype(np.int32), 3, sampled, zeros, 1.0, ends, stop, verdict)

    group = [drawn(90, "stop", "wrong"), drawn(100, "length", "truncated")]
    knobs = PolicyGradient(rewards=weights, overlong=overlong)
    parts = policy_gradient.reward_parts(domain, [group], knobs, 100)
    rewards = policy_gradient.weighted(parts, weights)
    np.testing.assert_allclose(rewards, [[wrong, cut]])
    told = policy_gradient.group_metrics([group], parts, rewards, [[0.0, 0.0]])
    logged = {name: value for name, value in told.items() if name.startswith("reward")}
    means = {f"reward_{part}": parts[part].mean() for part in weights} if len(weights) > 1 else {}
    assert logged == {"reward": rewards.mean(), **means}


# --- advantages of tokens ---

LOCATED = {  # the first wrong step of a response of two steps of one token each -> its slopes, if it is wrong
    "the first step": (0, [1 / 12, 1 / 12]),
    "the second step": (1, [0, 1 / 12]),
    "none": (None, [1 / 12, 1 / 12]),
}


@pytest.mark.parametrize("name", LOCATED)
def test_only_tokens_from_the_first_error_on_are_punished(name):
    """Rewards are swapped: a1 and b1, of two tokens each, are wrong, a2 and b2 are right."""
    step, slopes = LOCATED[name]
    groups = [
        [
            t.replace(
                step_ends=tuple(range(3, len(t.tokens) + 1)),
                verdict=t.verdict._replace(score=1 - t.verdict.score),
            )
            for t in group
        ]
        for group in groups_of()
    ]
    asked = []

    def first_error(trace: Trace):
        asked.append(len(trace.response))
        return step

    knobs = PolicyGradient(advantages=from_first_error(by_group("mean"), first_error))
    _, got = loss_and_slopes(knobs, groups)
    np.testing.assert_allclose(got, [*slopes, -1 / 12, *slopes, -1 / 12, 0, 0], atol=1e-7)
    assert asked == [2, 2]  # of what is punished alone


# --- several updates on a batch ---


@pytest.mark.parametrize(("passes", "minibatches"), [(1, 1), (3, 1), (1, 4), (2, 3), (1, 7)])
def test_each_pass_sees_every_trace_once(passes, minibatches):
    knobs = PolicyGradient(passes=passes, minibatches=minibatches)
    found = [part.tolist() for part in policy_gradient.minibatches(10, knobs, np.random.default_rng(5))]
    passed = [found[i : i + minibatches] for i in range(0, len(found), minibatches)]
    orders = [[one for part in some for one in part] for some in passed]
    assert len(found) == knobs.updates and all(sorted(order) == list(range(10)) for order in orders)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert len({tuple(order) for order in orders}) == (passes if minibatches > 1 else 1)


@pytest.mark.parametrize(
    ("changes", "old"),
    [
        ({}, "own"),
        ({"passes": 2}, "batch"),
        ({"minibatches": 2}, "batch"),
        ({"old": "sampler"}, "batch"),
        ({"old": "sampler", "passes": 2}, "batch"),
    ],
)
def test_what_ratios_are_taken_to(changes, old):
    """The batch brings the policy at its start where there are several updates, scored once, or the sampler's."""
    knobs = PolicyGradient(**changes)
    assert knobs.update_loss.old == old
    seen = []

    class Engine:
        def score(self, params, sequences, temperature):
            seen.append(params)
            return [np.full(len(s), -7.0, np.float32) for s in sequences], None

    sequences = policy_gradient.weigh(Engine(), groups_of(), [[0.5, -0.5]] * 3, knobs, "now")
    scored = old == "batch" and knobs.old == "current"
    assert seen == (["now"] if scored else [])
    assert {float(one.old_logp[-1]) for one in sequences} == {-7.0 if scored else -2.0}
