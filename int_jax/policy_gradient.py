"""What an update of the policy gradient sees: rewards, advantages, weights, and how a batch is cut into updates.

The rollouts are the method's (`intervention_training.reinforce`), the terms of the loss those of `losses.py`.
docs/losses.md says which of these knobs make which published loss.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from int_jax import batching, losses
from int_jax.domains import Domain
from int_jax.engine import Engine
from int_jax.types import Batch, Trace

NORMALISATIONS = ("sequences", "tokens", "sequence_mean")
PARTS = ("score", "passed", "answered", "overlong")  # of a reward, in every domain

# The advantages of a batch: of its groups of traces, and their rewards [groups, samples], as [groups][samples] entries:
# a number, or an array [length] with one for each of the trace's tokens.
Advantages = Callable[[list[list[Trace]], np.ndarray], Sequence]


def by_group(kind: str) -> Advantages:
    """The advantages of losses.group_advantages, one a trace. Raises: ValueError for another kind than these."""
    if kind not in losses.ADVANTAGES:
        raise ValueError(f"advantage={kind!r}: choose {', '.join(losses.ADVANTAGES)}")

    def advantages(groups, rewards):
        # Two groups of three traces: 0 0 0 1 1 1.
        names = [index for index, group in enumerate(groups) for _ in group]
        return losses.group_advantages(np.ravel(rewards), names, kind).reshape(np.shape(rewards))

    return advantages


def from_first_error(advantages: Advantages, first_error: Callable[[Trace], int | None]) -> Advantages:
    """Punish what is wrong alone: a negative advantage holds from the first wrong step on, and is 0 before it. A trace
    in which no step is wrong (it was cut off, say) is punished as a whole."""

    def located(trace: Trace, advantage):
        # Advantages may be of tokens: one negative entry is enough to look for the error.
        step = first_error(trace) if np.min(advantage) < 0 else None
        start = 0 if step is None else trace.step_starts()[step]
        return np.where(np.arange(len(trace.tokens)) >= start, advantage, 0.0)

    def punished(groups, rewards):
        every = zip(groups, advantages(groups, rewards), strict=True)
        return [list(map(located, group, values)) for group, values in every]

    return punished


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
    """The reinforcement knobs; defaults are InT's (Table 5, and the PipelineRL fork that its release names).

    Attributes:
      problems, group: problems a batch and samples a problem.
      advantages: of a batch's traces, or of their tokens.
      normalise: "sequences" (token sum over the number of sequences), "tokens" (token mean), "sequence_mean".
      kl: weight of the KL stream to the starting policy.
      old: the policy to which ratios are taken: "current", as it is when the batch is drawn, or "sampler", by the
        log-probabilities with which it was drawn.
      passes, minibatches: how often a batch is gone through, and in how many parts: their product is its updates.
      lag: batches, at most, of which some is drawn already while one is drawn (`intervention_training.draw_batch`).
      refill: rounds, at most, in which problems are drawn in place of those whose samples all have one score; such
        groups are then no part of the batch (dynamic sampling, DAPO).
      rewards: weights of the parts of the reward (`reward_parts`). overlong: last tokens of the longest response,
        within which the part of that name falls.
      loss: clipping and ratios; what the ratios are taken to follows from `old` and the updates (`update_loss`).
    """

    problems: int = 32
    group: int = 8
    advantages: Advantages = dataclasses.field(default_factory=lambda: by_group("mean"))
    normalise: str = "sequences"
    kl: float = 0.0
    old: str = "current"
    passes: int = 1
    minibatches: int = 1
    lag: int = 0
    refill: int = 0
    rewards: dict[str, float] = dataclasses.field(default_factory=lambda: {"score": 1.0})
    overlong: int = 0
    loss: losses.LossConfig = losses.LossConfig()

    def __post_init__(self):
        for name, choices in {"normalise": NORMALISATIONS, "old": ("current", "sampler")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {', '.join(choices)}")

    @property
    def updates(self) -> int:
        """Of a batch."""
        return self.passes * self.minibatches

    @property
    def scores_old(self) -> bool:
        """Whether the policy that begins a batch scores it: it is another one from the second update on."""
        return self.old == "current" and self.updates > 1

    @property
    def update_loss(self) -> losses.LossConfig:
        """The loss of each update: the only one on a batch has its own log-probabilities as the old ones."""
        brought = self.scores_old or self.old == "sampler"
        return dataclasses.replace(self.loss, old="batch" if brought else "own")


def reward_parts(
    domain: Domain, groups: list[list[Trace]], knobs: PolicyGradient, limit: int
) -> dict[str, np.ndarray]:
    """The parts of the traces' rewards that `knobs.rewards` names, unweighted, [groups, samples] each.

    score: the verdict's. passed: 1 for one that passes. answered: 1 where there is an answer to be graded. overlong:
    losses.overlong_penalty. Others are the domain's own (its REWARDS; PARTS are those of every domain). limit: tokens
    of a response at most.
    """
    known: dict[str, Callable[[Trace], float]] = {
        "score": lambda trace: trace.judged.score,
        "passed": lambda trace: float(trace.judged.passed),
        "answered": lambda trace: float(trace.judged.reason in ("correct", "wrong")),
        "overlong": lambda trace: losses.overlong_penalty(int(trace.sampled.sum()), limit, knobs.overlong),
    }

    def part(name: str, trace: Trace) -> float:
        return known[name](trace) if name in known else domain.reward(trace, name)

    return {
        name: np.array([[part(name, trace) for trace in group] for group in groups], float)
        for name in knobs.rewards
    }


def weighted(parts: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    """The rewards, the weighted sums of their parts: [groups, samples]."""
    return np.sum([weight * parts[name] for name, weight in weights.items()], axis=0)


def one_outcome(group: list[Trace]) -> bool:
    """Whether a group's scores are all equal. One that is not finite differs: it is told, not left out."""
    scores = np.array([trace.judged.score for trace in group])
    return bool(np.isfinite(scores).all() and np.ptp(scores) == 0)


def advantages_of(groups: list[list[Trace]], rewards: np.ndarray, knobs: PolicyGradient) -> list:
    """The advantages of each group's traces; None for a group that is no part of the batch: with `knobs.refill`, one of
    one outcome."""
    # Those left out are not shown to `advantages` either: the mean of a batch is of what is trained on.
    kept = [i for i, group in enumerate(groups) if not (knobs.refill and one_outcome(group))]
    found: list = [None] * len(groups)
    for i, values in zip(kept, knobs.advantages([groups[i] for i in kept], rewards[kept]), strict=True):
        found[i] = values
    return found


def weigh(
    engine: Engine,
    groups: list[list[Trace]],
    advantages: list,
    knobs: PolicyGradient,
    params=None,
    reference_params=None,
) -> list[batching.Sequence]:
    """The traces of a batch with their weights, and with the log-probabilities that its updates need.

    Args:
      advantages: as of `advantages_of`.
      params: as the batch was drawn, laid out for decoding; scored once where the ratios of several updates are taken
        to them. reference_params: scored where there is a KL stream.
    """
    # A group without advantages (None) is no part of the batch.
    kept = [(group, values) for group, values in zip(groups, advantages, strict=True) if values is not None]
    traces = [trace for group, _ in kept for trace in group]

    def scored(params, needed: bool) -> list:
        if not (needed and traces):
            return [None] * len(traces)
        return engine.score(params, [t.tokens for t in traces], traces[0].temperature)[0]

    # A list each, one entry a trace: None where it is not needed.
    reference, old = scored(reference_params, bool(knobs.kl)), scored(params, knobs.scores_old)
    every = [one for _, values in kept for one in values]
    return [
        batching.reinforced(trace, advantage, knobs.normalise, *logps)
        for trace, advantage, *logps in zip(traces, every, reference, old, strict=True)
    ]


def minibatches(count: int, knobs: PolicyGradient, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Which of a batch's `count` traces each of its updates sees: in each pass every trace once, in a new order where
    there are several parts, as even as can be."""
    for _ in range(knobs.passes):
        # 10 traces in 4 parts: 3, 3, 2, 2.
        order = rng.permutation(count) if knobs.minibatches > 1 else np.arange(count)
        yield from np.array_split(order, knobs.minibatches)


def pack(sequences: list[batching.Sequence], knobs: PolicyGradient, row_length: int, rows: int) -> Batch:
    """The packed batch of one update, with the totals of all its sequences by `knobs.normalise`; those without an
    advantage move nothing and are left out, unless there is a KL stream."""
    drawn = float(sum(np.count_nonzero(one.rl) for one in sequences))
    totals = {"rl": drawn if knobs.normalise == "tokens" else float(len(sequences))}
    # sum / (N / k) = k x mean: the weight of the stream is in its denominator.
    totals["kl"] = totals["rl"] / knobs.kl if knobs.kl else 1.0
    return batching.pack([s for s in sequences if knobs.kl or s.advantage.any()], row_length, rows, totals)


def over_updates(every: list[dict]) -> dict:
    """The metrics of all updates on a batch as one: their mean, but the sum of the tokens and the largest gap."""
    if len(every) == 1:
        return every[0]
    how: dict[str, Callable] = {"trained_tokens": np.sum, "logp_gap_max": np.max}
    return {name: float(how.get(name, np.mean)([float(one[name]) for one in every])) for name in every[0]}


def lag_metrics(groups: list[list[Trace]], update: int, drawn: int) -> dict[str, float]:
    """lag: updates between the policy that drew a token and the one that is trained on it, mean over the tokens drawn.
    tokens: those that were drawn with the batch, of the next ones, too: all that it took."""

    def behind(trace: Trace) -> np.ndarray:
        starts, updates = np.array(trace.drawn_by).T
        # Spans from 5 and 9 on: tokens 5 6 7 8 are of the first, 9 ... of the second.
        spans = np.searchsorted(starts, np.flatnonzero(trace.sampled), side="right") - 1
        return update - updates[spans]

    every = [behind(trace) for group in groups for trace in group if trace.sampled.any()]
    return {"lag": float(np.concatenate(every).mean()) if every else 0.0, "tokens": float(drawn)}


def group_metrics(
    groups: list[list[Trace]], parts: dict[str, np.ndarray], rewards: np.ndarray, advantages: list
) -> dict[str, float]:
    """reward, the mean, and with several parts that of each, unweighted ("reward_score"); shares of groups without
    success ("never"), with some, with nothing but ("passed" alone decides), and of groups all of whose advantages are
    zero; mean log-probability of the tokens drawn, nats; mean length; tokens drawn. Of all groups that were drawn."""
    rates = np.array([[trace.judged.passed for trace in group] for group in groups], float)
    # [groups]; an advantage is a number or an array of tokens, and None is a group that was left out.
    flat = np.array([values is None or not any(np.any(one) for one in values) for values in advantages])
    # Rates are [groups, samples] of 0 and 1: none passed, all passed.
    lost, won = rates.max(1) == 0, rates.min(1) == 1
    never, always = float(lost.mean()), float(won.mean())
    traces = [trace for group in groups for trace in group]
    lengths = np.array([trace.sampled.sum() for trace in traces])
    logp = sum(float(trace.logp[trace.sampled].sum(dtype=np.float64)) for trace in traces)
    several = parts if len(parts) > 1 else {}
    return {
        "reward": float(rewards.mean()),
        **{f"reward_{name}": float(values.mean()) for name, values in several.items()},
        "never": never,
        "sometimes": 1.0 - never - always,
        "always": always,
        # Of scores 0 and 1 this is never + always, to the last digit.
        "zero_advantage": sum(float((kind & flat).mean()) for kind in (lost, won, ~lost & ~won)),
        "drawn_logp": logp / max(1, int(lengths.sum())),
        "length": float(lengths.mean()),
        "truncated": sum(trace.stop == "length" for trace in traces) / len(traces),
        "tokens": float(lengths.sum()),
    }
