"""Intervention Training (InT, arXiv 2601.14209), to be read beside the paper: `intervention_training` is the method.

Every other function here takes values, not configs, and returns records; what it draws depends only on its arguments
and `seed`. Another method is another function over the same `Lab`; experiments/arms/ has those that are compared.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optax

from int_jax import batching, lora, losses, policy_gradient, proposers, rollout
from int_jax.domains import Domain
from int_jax.engine import Engine
from int_jax.policy_gradient import PolicyGradient
from int_jax.rollout import Stream
from int_jax.rows import AttemptRow, GainRow, GuidedRow, id_of, parted
from int_jax.sampler import Sampler, Sampling, ScoringSampler, silent
from int_jax.types import Intervention, State, Task, Trace

if TYPE_CHECKING:
    from int_jax.lab import Lab

FROM_PROBLEM, FROM_INTERVENTION = Stream("attempts"), Stream("guided", by_attempt=True)
PAIRED = Stream("gain", by_attempt=True)
SHOWN = 4  # continuations of a guided attempt whose text is kept for the report


def intervention_training(lab: "Lab"):
    """Intervention Training (Section 4): makes the policies "int" and "int_rl"; returns the parameters of the latter.

    Sample attempts at problems with a reference solution; keep those that fail. Let the model find the first error of
    each, by checking it against the reference, and write one corrective step. Cut the attempt before that step and
    append the step. Continue the result a few times and keep it if a continuation succeeds. Fine-tune on (prefix +
    intervention); from there, train with a policy gradient on outcome rewards alone, without references.
    """
    attempts = lab.attempts(lab.tasks)
    wrong = failures(attempts, lab.unsolved)
    proposals = lab.proposals(wrong)
    guided = lab.guided(lab.splice(wrong, proposals))
    start = lab.fine_tune("int", lab.kept(guided, wrong))
    return lab.reinforce("int_rl", start, lab.pool())


def attempts(
    engine: Sampler,
    params: Any,
    domain: Domain,
    tasks: list[Task],
    samples: int,
    sampling: Sampling,
    stream: Stream = FROM_PROBLEM,
    **how,
) -> list:
    """`samples` judged attempts at each problem, from the problem alone; `how` goes to `rollout.continue_traces`."""
    prompts = [rollout.open_trace(domain, task) for task in tasks]
    return rollout.continue_traces(engine, params, domain, prompts, samples, sampling, stream, **how)


def failures(rows: list[AttemptRow], unsolved: bool = True) -> list[Trace]:
    """The wrong attempts: those at problems that no attempt solved, or at all of them."""
    return [trace for row in rows if not (unsolved and row.correct) for trace in row.wrong]


def proposals(
    engine: ScoringSampler,
    params: Any,
    domain: Domain,
    propose: proposers.Proposer,
    wrong: list[Trace],
    seed: int,
    **knobs,
) -> tuple[list[Intervention | None], proposers.Drops]:
    """One intervention for each wrong attempt, or None; and why there is none, by the attempt's index."""
    drops = proposers.Drops()
    found = propose(engine, params, domain, wrong, seed, drops=drops, **knobs)
    return found, drops


def guided(
    engine: Sampler,
    params: Any,
    domain: Domain,
    traces: list[Trace],
    tries: int,
    sampling: Sampling,
    stop_at_success: bool = True,
    at_once: int = 8,
    keep: bool = False,
    progress=silent,
    stream: Stream = FROM_INTERVENTION,
) -> list[GuidedRow]:
    """Continue each guided attempt up to `tries` times, `at_once` together.

    keep: the first wrong and the first right continuation of each stay in its row, whole.

    With `stop_at_success` a guided attempt leaves after the continuations that brought its first success: the filter
    asks only whether there is one. Without it all tries are drawn, as in the paper (32): success rates are unbiased.
    """
    results = [GuidedRow(trace, 0, 0) for trace in traces]
    names = [stream.name(trace) for trace in traces]
    # Rounds of `at_once`: tries 0..7, then 8..15 of an attempt without success in its first. Sample numbers go on from
    # round to round, so that a try is the same however many are drawn at once. An attempt's next round waits for its
    # own last one, not for those of others.
    size = at_once if stop_at_success else tries
    attempt: list[int] = []  # of each continuation
    groups: dict[int, list[Trace]] = {}  # continuations of each attempt, of the round that it is in

    with rollout.Judging(engine, params, domain, sampling, progress=progress) as running:

        def draw(chosen: Iterable[int]) -> None:
            some = [(i, k) for i in chosen for k in range(results[i].tries, tries)[:size]]
            attempt.extend(i for i, _ in some)
            opened = [traces[i].replace(key=(sampling.seed, k)) for i, k in some]
            running.add(opened, [names[i] for i, _ in some])

        draw(range(len(traces)))
        while running:
            again = []
            for number, trace in running.take():
                i = attempt[number]
                group = groups.setdefault(i, [])
                group.append(trace)
                if len(group) == min(size, tries - results[i].tries):
                    results[i] = tried(domain, results[i], rollout.by_sample(groups.pop(i)), at_once, keep)
                    if results[i].tries < tries and not (stop_at_success and results[i].successes):
                        again.append(i)
            draw(again)
    return results


def tried(domain: Domain, row: GuidedRow, group: list[Trace], at_once: int, keep: bool) -> GuidedRow:
    """The row of a guided attempt with a round of continuations more."""
    prompt = len(row.trace.tokens)
    # A continuation is known by the attempt that it continues, not by its own sample number.
    wrong, right = parted([trace.replace(key=row.trace.key) for trace in group])
    return dataclasses.replace(
        row,
        tries=row.tries + len(group),
        successes=row.successes + len(right),
        wrong=(*row.wrong, *wrong)[: int(keep)],
        right=(*row.right, *right)[: int(keep)],
        shown=row.shown
        or tuple(
            (rollout.text_from(domain, t, prompt), t.judged.passed) for t in group[: min(SHOWN, at_once)]
        ),
    )


def own_steps(guided: list[Trace], wrong: list[Trace], domain: Domain) -> list[Trace]:
    """For each guided attempt the wrong one that it was made of, cut behind the step that the intervention replaces."""
    found = {id_of(trace): trace for trace in wrong}
    out = []
    for trace in guided:
        attempt = found[id_of(trace)]
        end = attempt.step_ends[len(trace.step_ends) - 1]
        out.append(rollout.reopen(attempt, end, domain.tokenizer, domain.separator))
    return out


def gains(
    engine: Sampler,
    params: Any,
    domain: Domain,
    guided: list[Trace],
    left: list[Trace],
    samples: int,
    sampling: Sampling,
    progress=silent,
    stream: Stream = PAIRED,
) -> list[GainRow]:
    """What each intervention is worth: `samples` continuations of the guided attempt, and as many of the attempt with
    its own step (`left`, see `own_steps`), both from the same random streams."""
    pairs = [trace for pair in zip(guided, left, strict=True) for trace in pair]
    groups = rollout.continue_traces(
        engine, params, domain, pairs, samples, sampling, stream, progress=progress
    )

    def scores(group: list[Trace]) -> tuple[float, ...]:
        return tuple(float(trace.judged.score) for trace in group)

    def text(start: Trace, group: list[Trace]) -> str:
        return rollout.text_from(domain, group[0], len(start.tokens))

    return [
        GainRow(
            trace.task.id,
            trace.key,
            scores(mended),
            scores(other),
            (text(trace, mended), text(cut, other)),
        )
        for trace, cut, mended, other in zip(guided, left, groups[::2], groups[1::2], strict=True)
    ]


def kept(rows: list[GuidedRow], successes: int = 1) -> list[Trace]:
    """The guided attempts with at least so many right continuations."""
    return [row.trace for row in rows if row.successes >= successes]


def sft(
    engine: Engine,
    state: State,
    tx: optax.GradientTransformation,
    traces: list[Trace],
    epochs: int,
    batch_size: int,
    seed: int,
    row_length: int,
    rows: int,
    weigh: Callable[[Trace], np.ndarray] = batching.intervention_weights,
    end_of_turn: int | None = None,
    loss: losses.LossConfig = losses.LossConfig(),
    start: int = 0,
    frozen=None,
) -> Iterator[tuple[State, dict]]:
    """Fine-tune on traces given the problem: -sum_t w_t log p_t / sum_t w_t over each batch.

    As `weigh` stands, prefix and intervention are trained, and no suffix; an end-of-turn token is appended only if its
    id is given. Goes on at update `state.step` - `start`; yields the state and metrics after each update. The order is
    a function of (seed, epoch).

    Args:
      weigh: the weight w of each token of a trace. start: updates that the state had before this fine-tuning began.
      frozen: as of `Engine.update`.
    """
    steps = sft_steps(len(traces), epochs, batch_size)
    for step in range(int(state.step) - start, steps):
        chosen = [traces[i] for i in epoch_slice(len(traces), batch_size, seed, step)]
        sequences = [sft_sequence(trace, weigh, end_of_turn) for trace in chosen]
        state, metrics = engine.update(state, batching.pack(sequences, row_length, rows), tx, loss, frozen)
        yield state, metrics


def sft_sequence(
    trace: Trace, weigh: Callable[[Trace], np.ndarray], end_of_turn: int | None
) -> batching.Sequence:
    """A trace with its weights; the end-of-turn token is appended, with the weight of the token before it, only if its
    id is given."""
    weights, tokens = weigh(trace), trace.tokens
    if end_of_turn is not None:
        tokens, weights = np.append(tokens, end_of_turn), np.append(weights, weights[-1])
    return batching.supervised(tokens, weights)


def sft_steps(count: int, epochs: int, batch_size: int) -> int:
    # 5 traces in batches of 2 are 3 updates an epoch: the last batch is smaller.
    return epochs * -(-count // batch_size)


def epoch_slice(count: int, size: int, seed: int, step: int) -> list[int]:
    """Which of `count` items the step takes: consecutive slices of one permutation an epoch, the last one shorter."""
    per_epoch = -(-count // size)
    # 5 items, slices of 2, step 4: epoch 1, its second slice, order[2:4].
    order = np.random.default_rng([seed, step // per_epoch]).permutation(count)
    return order[step % per_epoch * size :][:size].tolist()


# What is told of a batch: its first update, groups, rewards [groups, samples], and advantages (`advantages_of`).
Record = Callable[[int, list[list[Trace]], np.ndarray, list], object]


def unrecorded(update: int, groups: list[list[Trace]], rewards: np.ndarray, advantages: list) -> None:
    """The record of callers that keep none."""


# What is drawn of the batches to come, the next first: their groups of traces, some open, some judged.
Begun = Sequence[Sequence[tuple[Trace, ...]]]

# What draws a batch: of the update that it begins at and the engine, a sampler for the time that it is drawn.
Drawing = Callable[[int, ScoringSampler], contextlib.AbstractContextManager[ScoringSampler]]


def unlogged(update: int, sampler: ScoringSampler) -> contextlib.AbstractContextManager[ScoringSampler]:
    """The engine itself: for callers that keep nothing of a batch that was not drawn to its end."""
    return contextlib.nullcontext(sampler)


def reinforce(
    engine: Engine,
    state: State,
    tx: optax.GradientTransformation,
    domain: Domain,
    tasks: list[Task],
    knobs: PolicyGradient,
    sampling: Sampling,
    row_length: int,
    rows: int,
    reference_params=None,
    start: int = 0,
    opened: Callable[[Domain, Task], Trace] = rollout.open_trace,
    record: Record = unrecorded,
    drawing: Drawing = unlogged,
    frozen=None,
    last: int | None = None,
    begun: Begun = (),
    keep: Callable[[int, Begun], object] = lambda update, begun: None,
) -> Iterator[tuple[State, dict]]:
    """Group-relative policy gradient on outcome rewards: as `opened` stands, from the problems alone.

    Goes on at update `state.step` - `start`, a whole number of batches, for as long as it is asked; yields the state
    and metrics after all updates on each batch. What is drawn and how it is cut are functions of (seed, update), so
    training may stop and go on after any batch; with `knobs.lag` they are also functions of what is `begun`. Sequences
    without an advantage are left out of the packed batch; they count in its totals, so the gradient is that of the
    whole batch.

    Args:
      start: as of `sft`; negative where earlier trainings of the same schedule went before. opened: what a group
        continues.
      record: told of each batch before it is trained on. drawing: with what it is drawn. frozen: as of `Engine.update`.
      last: the update, as `state.step` counts, behind which nothing is trained, so that nothing is drawn for it.
      begun: what was drawn of the batches from this update on (`draw_batch`); keep(update, begun): told of it, and of
        the update at which it is wanted, before each batch is trained on.

    Raises: ValueError for rollouts drawn with top-k, top-p or min-p, whose log-probabilities are not the policy's.
    """
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p:
        raise ValueError(
            f"reinforce: top_k={sampling.top_k}, top_p={sampling.top_p}, min_p={sampling.min_p} draw from a truncated "
            "policy, whose log-probabilities the update does not see; set top_k=0, top_p=1, min_p=0"
        )
    if knobs.kl and reference_params is None:
        raise ValueError(f"reinforce: kl={knobs.kl} needs reference_params, the policy to stay near")
    while True:
        step, params = int(state.step) - start, engine.decode_params(lora.join(frozen, state.params))
        left = knobs.lag if last is None else (last - int(state.step)) // knobs.updates - 1
        before = sampled(begun)
        with drawing(int(state.step), engine) as sampler:
            groups, begun = draw_batch(
                sampler, params, domain, tasks, knobs, sampling, step, opened, begun, min(knobs.lag, left)
            )
        if knobs.lag:
            keep(int(state.step) + knobs.updates, begun)
        parts = policy_gradient.reward_parts(domain, groups, knobs, sampling.max_new_tokens)
        rewards = policy_gradient.weighted(parts, knobs.rewards)
        advantages = policy_gradient.advantages_of(groups, rewards, knobs)
        record(step, groups, rewards, advantages)
        sequences = policy_gradient.weigh(engine, groups, advantages, knobs, params, reference_params)
        del params  # the updates need their memory
        every, rng = [], np.random.default_rng([sampling.seed, step, CUT])
        for some in policy_gradient.minibatches(len(sequences), knobs, rng):
            batch = policy_gradient.pack([sequences[i] for i in some], knobs, row_length, rows)
            state, metrics = engine.update(state, batch, tx, knobs.update_loss, frozen)
            every.append(metrics)
        told = policy_gradient.group_metrics(groups, parts, rewards, advantages)
        if knobs.lag:
            drawn = sampled([groups]) + sampled(begun) - before
            told |= policy_gradient.lag_metrics(groups, step, drawn)
        yield state, {**policy_gradient.over_updates(every), **told}


REFILL, CUT = 1, 2  # what a stream of random numbers of a batch is for


def draw_batch(
    engine: Sampler,
    params: Any,
    domain: Domain,
    tasks: list[Task],
    knobs: PolicyGradient,
    sampling: Sampling,
    step: int,
    opened: Callable[[Domain, Task], Trace],
    begun: Begun = (),
    ahead: int = 0,
) -> tuple[list[list[Trace]], Begun]:
    """The rollouts of the batch that begins at `step`, a group a problem; and what is begun of the next ones.

    Of the next `ahead` batches so much is drawn as there is room for beside this one: the places of responses that have
    ended are not empty until the longest has. The policy goes on with them where the one before it broke off
    (`Trace.drawn_by`; in-flight updates of PipelineRL, Piché et al. 2025, partial rollouts of APRIL, Zhou et al. 2025).
    Which policy drew a token then depends on how many rows fit on the machine. A batch is complete, long responses
    included, so that none is missing because it was slow.

    With `knobs.refill` further problems, in an order drawn for this batch, follow in place of those of one outcome: as
    many as are missing in each round, while there are any.
    """

    prompts: dict[str, Trace] = {}  # rendered once each

    def prompt(task: Task) -> Trace:
        if task.id not in prompts:
            prompts[task.id] = opened(domain, task)
        return prompts[task.id]

    def fresh(indices: Iterable[int]) -> list[tuple[Trace, ...]]:
        some = [prompt(tasks[i]) for i in indices]
        return [tuple(one.replace(key=(sampling.seed, k)) for k in range(knobs.group)) for one in some]

    def batch(place: int) -> list[int]:
        # A batch is several updates: step / updates is its number.
        return epoch_slice(len(tasks), knobs.problems, sampling.seed, step // knobs.updates + place)

    chosen = batch(0)
    wanted = len(chosen)
    order = np.random.default_rng([sampling.seed, step, REFILL]).permutation(len(tasks))
    others = [i for i in order.tolist() if i not in chosen]
    window: list[Sequence[tuple[Trace, ...]]] = [*begun]
    window += [fresh(batch(place)) for place in range(len(begun), ahead + 1)]
    groups: list[list[Trace]] = []
    for _ in range(1 + knobs.refill):
        flat = [group for some in window for group in some]
        streams = [Stream(f"update{step + i * knobs.updates}") for i, some in enumerate(window) for _ in some]
        starts = [len(prompt(group[0].task).tokens) for group in flat]
        first = len(window[0])
        found = iter(rollout.advance(engine, params, domain, flat, starts, streams, first, sampling, step))
        window = [[next(found) for _ in some] for some in window]
        groups += map(list, window[0])
        # Groups of one outcome stay among `groups`, for the metrics, and get no advantages.
        missing = wanted - sum(not policy_gradient.one_outcome(group) for group in groups)
        chosen, others = others[:missing], others[missing:]
        if not chosen:
            break
        window[0] = fresh(chosen)
    return groups, window[1:]


def sampled(batches: Iterable[Iterable[Iterable[Trace]]]) -> int:
    """Tokens drawn of batches of groups of traces."""
    return sum(int(trace.sampled.sum()) for batch in batches for group in batch for trace in group)
