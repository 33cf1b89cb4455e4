"""Where a method works: a policy, a domain, the knobs of every stage, and a store for what they make.

A method is a function over a `Lab`, such as `intervention_training.intervention_training`. It draws (`attempts`,
`proposals`, `guided`) and trains (`fine_tune`, `reinforce`); each result has a name and is computed once: another
method that asks for the same stage gets the same rows. In a notebook the store is `Memory`, in a run the workdir.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from int_jax import intervention_training as method
from int_jax import lora, processes
from int_jax.domains import Domain
from int_jax.engine import Engine
from int_jax.lm import LM
from int_jax.lora import Lora
from int_jax.rollout import Stream, splice
from int_jax.rows import (
    ATTEMPTS,
    GAIN,
    GUIDED,
    PROPOSALS,
    ROWS,
    AttemptRow,
    GainRow,
    GuidedRow,
    ProposalRow,
    Stage,
    id_of,
)
from int_jax.sampler import ScoringSampler, independent, silent
from int_jax.types import State, Task, Trace

# Which guided attempts are kept: those with a right continuation; those whose continuations score more than those of
# the attempt's own step (`gains`); all.
FILTERS = ("solves", "gain", "none")
ROUND_SEED = 1_000_003  # between the seeds with which a proposer is asked again about an attempt


class Stopped(Exception):
    """A policy was not made: `why` is "skipped" or "diverged", the message says more, `note` holds it as JSON types."""

    def __init__(self, policy: str, why: str, said: str, **note):
        super().__init__(said)
        self.policy, self.why, self.said, self.note = policy, why, said, note


class NoData(Stopped):
    """There was nothing to fine-tune on."""


class Training(NamedTuple):
    """A training to be followed.

    Attributes:
      policy, round: what it makes, and how many trainings of that policy came before. section: its knobs, "sft" or
        "rl".
      first: makes the state where it begins. like: the shapes, dtypes and shardings of that, of which a training that
        goes on from a checkpoint needs no more.
      updates: from a state on, the (state, metrics) after each update. done(state, tokens): whether that was enough.
      total: updates that it is expected to take, for a progress bar. after: the training that it goes on with, or "".
      frozen: the policy's parameters that no state has, where adapters alone are trained.
    """

    policy: str
    section: str
    first: Callable[[], State]
    like: State
    updates: Callable[[State], Iterator[tuple[State, dict]]]
    done: Callable[[State, float], bool]
    total: int
    round: int = 0
    after: str = ""
    frozen: Any = None

    def params(self, state: State):
        """All parameters of the policy at a state."""
        return lora.join(self.frozen, state.params)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.policy}_round{self.round}" if self.round else self.policy


class Trained(NamedTuple):
    """How a training ended.

    Attributes:
      state: None where it diverged. lines: the metrics of each of its updates.
      diverged: what happened then: {"update", "what", "value", "checkpoint", "said"}.
      policy, section: see Training. after: the training that it went on with, or "".
    """

    state: State | None
    lines: list[dict[str, float]]
    diverged: dict[str, Any] | None = None
    policy: str = ""
    section: str = ""
    after: str = ""

    @property
    def tokens(self) -> int:
        return int(sum(line["tokens"] for line in self.lines))


class Store(Protocol):
    """Where a lab keeps what it makes."""

    def stage(
        self,
        stage: Stage,
        items: list,
        sampler: ScoringSampler,
        work: Callable,
        samples: int = 1,
        size: int | None = None,
    ) -> tuple[list, int]:
        """The rows of all items, and the tokens they took: stored ones where there are any.

        Args:
          sampler: what draws for the stage.
          work(sampler, part, progress) -> (rows, tokens): of all items without a stored row, in one call; what it is
            given draws as `sampler` does. progress(n) is called as responses finish.
          samples: responses of an item, at most. size: items that are stored together, where not the stage's own.
        """
        ...

    def drawing(
        self, name: str, update: int, sampler: ScoringSampler
    ) -> contextlib.AbstractContextManager[ScoringSampler]:
        """What draws as `sampler` does from the policy that the training of that name has at an update
        (`intervention_training.Drawing`)."""
        ...

    def follow(self, training: Training) -> Trained:
        """Drive a training to its end, from its last checkpoint where there is one."""
        ...

    def record(
        self, name: str, update: int, groups: list[list[Trace]], rewards: np.ndarray, advantages: list
    ) -> None:
        """Keep the rollouts of a batch of the training of that name (`intervention_training.Record`)."""
        ...

    def begun(self, name: str, update: int) -> method.Begun:
        """What was drawn of the batches from an update of the training of that name on, before it."""
        ...

    def keep(self, name: str, update: int, begun: method.Begun) -> None:
        """Keep that, for a training that goes on at that update."""
        ...

    def state(self, name: str, like: State) -> State:
        """The state in which the training of that name ended, laid out as `like` (shapes, dtypes and shardings)."""
        ...


class Memory:
    """A store that keeps nothing beyond the process."""

    def __init__(self):
        self.states: dict[str, State] = {}

    def stage(self, stage, items, sampler, work, samples=1, size=None):
        return work(sampler, items, silent)

    def drawing(self, name, update, sampler):
        return contextlib.nullcontext(sampler)

    def follow(self, training: Training) -> Trained:
        state, lines = training.first(), []
        # () where nothing is to be done: a generator would make its first update before it can be asked.
        for after, metrics in () if training.done(state, 0) else training.updates(state):
            state, line = after, as_line(metrics)
            lines.append(line)
            if spoiled := [what for what, value in line.items() if not math.isfinite(value)]:
                said = f"{training.policy} diverged at update {len(lines) - 1}: {spoiled[0]} is not finite"
                return Trained(None, lines, {"update": len(lines) - 1, "what": spoiled[0], "said": said})
            if training.done(state, sum(line["tokens"] for line in lines)):
                break
        self.states[training.name] = state
        return Trained(state, lines)

    def record(self, name, update, groups, rewards, advantages):
        pass

    def begun(self, name, update):
        return ()  # it never goes on with a training

    def keep(self, name, update, begun):
        pass

    def state(self, name: str, like: State) -> State:
        # A training that goes on from it donates what it is given.
        return jax.tree.map(lambda x: x.copy(), self.states[name])


def as_line(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an update as floats; "tokens": drawn for it, or trained where nothing was drawn."""
    line = {key: float(value) for key, value in jax.device_get(metrics).items()}
    return {**line, "tokens": line.get("tokens", line["trained_tokens"])}


# A program is compiled for each optimizer as an object: equal ones must be the same object, or every training of a
# run compiles its update anew and keeps it.
@functools.lru_cache
def adamw(learning_rate, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adamw(learning_rate, weight_decay=weight_decay))


@functools.lru_cache
def warmup_cosine(peak: float, updates: int, warmup: float) -> optax.Schedule:
    """From 0 to `peak` over a share `warmup` of the updates, then down to a tenth of it."""
    rising = max(1, round(warmup * updates))
    # optax wants at least one update after the warm-up.
    return optax.warmup_cosine_decay_schedule(0.0, peak, rising, max(updates, rising + 1), 0.1 * peak)


@dataclasses.dataclass
class Lab:
    """See the module.

    Attributes:
      engine: of the policy. base: its parameters, as loaded. domain: what judges and shows problems.
      tasks: the problems to train on. unsolved: whether those count alone that no attempt solves.
      knobs: keyword arguments of the method's functions by stage: "attempts" (and keep, keep_right: wrong and right
        attempts kept of each problem), "proposals" (and propose: the proposer), "guided", "sft" and "rl" (and
        learning_rate, weight_decay, clip_norm; sft: warmup; rl: updates, tasks: "hard" or "kept"), "gain".
      filter: which guided attempts are trained on: one of FILTERS.
      proposer_lm: the proposer's model, None for the policy itself. seed: of all random numbers.
      store: where results are kept. tell: shows a note to the user. lora: the adapters that are trained in place of all
        parameters. What starts from a policy with adapters goes on with these, so that each policy is the base model
        with one set of them.
      policies: parameters by name, "base" first, in the order in which they were made.
      rows, tokens: by stage. trained: by the training's name. notes: what did not go as planned.
      used: stages and trainings that were asked for; whoever wants to know what a method needs clears it before.
    """

    engine: Engine
    base: Any
    domain: Domain
    tasks: list[Task]
    knobs: Mapping[str, Mapping[str, Any]]
    seed: int = 0
    unsolved: bool = True
    filter: str = "solves"
    proposer_lm: LM | None = None
    store: Store = dataclasses.field(default_factory=Memory)
    tell: Callable[[str], object] = print
    lora: Lora | None = None

    def __post_init__(self):
        self._decoding: tuple[Any, Any] = None, None  # a policy, and it laid out for decoding
        self.policies: dict[str, Any] = {"base": self.base}
        self.rows: dict[Stage, list] = {}
        self.tokens: dict[Stage, int] = {}
        self.asked: dict[Stage, list] = {}  # the ids of each stage's items
        self.trained: dict[str, Trained] = {}
        self.used: set[Stage | str] = set()
        self.notes: list[str] = []

    def stage(
        self,
        stage: Stage,
        items: list,
        work: Callable,
        samples: int = 1,
        size: int | None = None,
        scored: Callable[[list], int] = lambda part: 0,
        engine: Engine | None = None,
        together: bool = False,
    ) -> list:
        """The rows of a stage, computed once; work(sampler, part, progress) -> rows, one for each item of the part.

        Of several processes each works on a part of the items (`processes.deal`).

        Args:
          samples, size: see Store. scored(part): tokens that the work reads, besides those that it draws.
          engine: what it draws with, where not the policy's.
          together: whether the work needs all processes at once, as scoring on the mesh of all devices does.
        """
        self.used.add(stage)
        asked = [id_of(item) if isinstance(item, (Task, Trace)) else item for item in items]
        if self.asked.setdefault(stage, asked) != asked:
            raise ValueError(
                f"the stage {stage.name} was computed for {len(self.asked[stage])} other items than the {len(asked)} "
                "that are asked for now: give the second method's stage another `of` or `round`"
            )
        if stage not in self.rows:

            def counted(sampler, part, progress):
                sampler.take_drawn()  # what was drawn before belongs to another stage
                dealt = independent(sampler) and not together
                parts = jax.process_count() if dealt else 1

                def share(items):
                    return work(sampler, items, lambda done: progress(parts * done))

                made = processes.deal(part, share, ROWS[stage.kind], dealt)
                return made, processes.total(sampler.take_drawn(), dealt) + scored(part)

            self.rows[stage], self.tokens[stage] = self.store.stage(
                stage, items, engine or self.engine, counted, samples, size
            )
        return self.rows[stage]

    def attempts(
        self, tasks: list[Task], stage: Stage = ATTEMPTS, params=None, **changes
    ) -> list[AttemptRow]:
        """A row for each problem.

        Args:
          stage: what they are, another one than the run's first. params: of another policy than the base model, as it
            is trained. changes: other knobs than "attempts" of `knobs`.
        """
        knobs = {**self.knobs["attempts"], **changes}
        # Taken out of the copy: they are the row's, and `method.attempts` does not know them.
        keep, keep_right = knobs.pop("keep"), knobs.pop("keep_right")
        decoding = self.decoding(params)

        def work(sampler, part, progress):
            return method.attempts(
                sampler,
                decoding,
                self.domain,
                part,
                **knobs,
                progress=progress,
                stream=Stream("attempts", stage.round),
                # At once: whole groups of all problems would not fit into memory.
                fold=lambda i, group: AttemptRow.of(part[i], group, keep, keep_right),
            )

        return self.stage(stage, tasks, work, knobs["samples"])

    def decoding(self, params=None):
        """Parameters laid out for decoding; the base model's for None. One policy is kept so, and none in training. Of
        several processes all ask for it at once."""
        params = self.base if params is None else params
        if self._decoding[0] is not params:
            self._let_go()
            self._decoding = params, self.engine.decode_params(params)
        return self._decoding[1]

    def _let_go(self) -> None:
        self._decoding = None, None

    def proposals(
        self, wrong: list[Trace], stage: Stage = PROPOSALS, propose: Callable | None = None
    ) -> list[ProposalRow]:
        """A row for each wrong attempt, by the base model or the knobs' own; by another proposer, or in another round,
        under a `stage` of its own."""
        knobs = {**self.knobs["proposals"]}
        # Proposers have no stream of their own for a round: it goes into the seed.
        seed = self.seed + ROUND_SEED * stage.round
        default = knobs.pop("propose")
        if lm := self.proposer_lm:
            self._let_go()
        engine, params, tokenizer = (
            (lm.engine, lm.params, lm.tokenizer) if lm else (self.engine, self.decoding(), None)
        )

        def work(sampler, part, progress):
            found, drops = method.proposals(
                sampler,
                params,
                self.domain,
                propose or default,
                part,
                seed,
                tokenizer=tokenizer,
                progress=progress,
                **knobs,
            )
            return [
                ProposalRow(trace.task.id, trace.key, one, drops.get(i, ""), tuple(drops.tried.get(i, ())))
                for i, (trace, one) in enumerate(zip(part, found, strict=True))
            ]

        return self.stage(stage, wrong, work, knobs["samples"], engine=engine)

    def splice(self, wrong: list[Trace], proposals: list[ProposalRow]) -> list[Trace]:
        """The guided attempts: of each wrong attempt that has an intervention."""
        pairs = [(t, row.intervention) for t, row in zip(wrong, proposals, strict=True) if row.intervention]
        tokenizer, separator = self.domain.tokenizer, self.domain.separator
        return splice([t for t, _ in pairs], [one for _, one in pairs], tokenizer, separator)

    def fits(self, trace: Trace) -> bool:
        """Whether a guided attempt fits into a row of training, and leaves the model a position to go on."""
        knobs = self.knobs["sft"]
        trained = len(trace.tokens) + (knobs["end_of_turn"] is not None)
        return trained <= knobs["row_length"] and self.can_go_on(trace)

    def can_go_on(self, trace: Trace) -> bool:
        """Whether the model has a position left behind it."""
        return len(trace.tokens) < self.engine.max_len

    def fits_rollout(self, trace: Trace) -> bool:
        """Whether a prompt and the longest response of the policy gradient fit into a row of training."""
        knobs = self.knobs["rl"]
        longest = min(len(trace.tokens) + knobs["sampling"].max_new_tokens, self.engine.max_len)
        return longest <= knobs["row_length"] and self.can_go_on(trace)

    def guided(self, traces: list[Trace], stage: Stage = GUIDED, params=None, **changes) -> list[GuidedRow]:
        """A row for each guided attempt that fits; of the stage "rewrites", whose prompts are not trained, for each
        that can be answered. stage, params, changes: as of `attempts`."""
        knobs = {**self.knobs["guided"], **changes}
        fits = self.can_go_on if stage.kind == "rewrites" else self.fits
        decoding = self.decoding(params)

        def work(sampler, part, progress):
            fit = [trace for trace in part if fits(trace)]
            stream = Stream(stage.kind, stage.round, by_attempt=True)
            rows = method.guided(
                sampler, decoding, self.domain, fit, **knobs, progress=progress, stream=stream
            )
            # A row for each, in order: what does not fit has one of no tries.
            made = {row.id: row for row in rows}
            return [made.get(id_of(trace)) or GuidedRow(trace, 0, 0) for trace in part]

        rows = self.stage(stage, traces, work, knobs["tries"])
        return [row for row in rows if fits(row.trace)]

    def gains(self, guided: list[Trace], wrong: list[Trace], stage: Stage = GAIN) -> list[GainRow]:
        """What the intervention of each guided attempt is worth; without a row where one of the two that are compared
        has no room to go on. wrong: the attempts that they were made of, at least."""
        left = method.own_steps(guided, wrong, self.domain)
        both = {
            id_of(a): (a, b)
            for a, b in zip(guided, left, strict=True)
            if self.can_go_on(a) and self.can_go_on(b)
        }
        knobs = self.knobs["gain"]
        decoding = self.decoding()

        def work(sampler, part, progress):
            pairs = [both[id_of(trace)] for trace in part]
            mended, cut = [a for a, _ in pairs], [b for _, b in pairs]
            return method.gains(sampler, decoding, self.domain, mended, cut, **knobs, progress=progress)

        return self.stage(stage, [a for a, _ in both.values()], work, 2 * knobs["samples"])

    def kept(self, guided: list[GuidedRow], wrong: list[Trace], stage: Stage = GAIN) -> list[Trace]:
        """The guided attempts to train on, by `filter`. wrong: the attempts that they were made of, at least."""
        if self.filter == "gain":
            worth = {
                row.id for row in self.gains([row.trace for row in guided], wrong, stage) if row.gain > 0
            }
            return [row.trace for row in guided if row.id in worth]
        return method.kept(guided, 1 if self.filter == "solves" else 0)

    def hard(self) -> list[Task]:
        """The problems that no attempt solved; all of them where `unsolved` asks for none."""
        if not self.unsolved:
            return self.tasks
        return [row.task for row in self.attempts(self.tasks) if not row.correct]

    def pool(self) -> list[Task]:
        """The problems for the policy gradient: hard ones, or of these the ones that the filter kept."""
        hard = self.hard()
        if self.knobs["rl"]["tasks"] == "hard" or GUIDED not in self.rows:
            return hard
        guided = [row for row in self.rows[GUIDED] if self.fits(row.trace)]
        # A problem without a right continuation is none of these, though SFT may take what was not filtered.
        ids = {trace.task.id for trace in method.kept(guided)}
        if self.filter == "gain" and GAIN in self.rows:
            ids = {row.task for row in self.rows[GAIN] if row.gain > 0}
        kept = [task for task in hard if task.id in ids]
        if hard and not kept:
            self.note(
                f"No problem was kept: RL has all {len(hard)} hard problems, though config.rl.pool = kept"
            )
        return kept or hard

    def note(self, said: str) -> None:
        """Note something that did not go as planned, and say it."""
        if said not in self.notes:
            self.notes.append(said)
            self.tell(said)

    def fine_tune(self, policy: str, traces: list[Trace], params=None, round: int = 0, **changes):
        """Fine-tune on guided attempts, from the base model or from `params`; returns the parameters.

        Args:
          changes: other knobs than "sft" of `knobs`: what else is trained needs a `weigh` of its own.

        Raises: Stopped where there are no traces that fit into a row of training, or the training diverged.
        """
        knobs = {**self.knobs["sft"], **changes}
        # One place for the end-of-turn token, where it is appended.
        room = knobs["row_length"] - (knobs["end_of_turn"] is not None)
        fit = [trace for trace in traces if len(trace.tokens) <= room]
        if lost := len(traces) - len(fit):
            self.note(
                f"{policy}: {lost} of {len(traces)} traces are longer than a row of training, {room} tokens"
            )
        if not (traces := fit):
            raise NoData(policy, "skipped", f"{policy} has no training data")
        total = method.sft_steps(len(traces), knobs["epochs"], knobs["batch_size"])
        rate = warmup_cosine(knobs.pop("learning_rate"), total, knobs.pop("warmup"))
        tx = adamw(rate, knobs.pop("weight_decay"), knobs.pop("clip_norm"))
        begin, frozen = self._begin(params)

        def first():
            return self.engine.state(begin, tx)

        def updates(state):
            return method.sft(self.engine, state, tx, traces, seed=self.seed, frozen=frozen, **knobs)

        def done(state, tokens):
            return int(state.step) >= total

        like = self.engine.abstract_state(begin, tx)
        return self._train(Training(policy, "sft", first, like, updates, done, total, round, frozen=frozen))

    def reinforce(
        self,
        policy: str,
        params,
        tasks: list[Task],
        tokens: float | None = None,
        after: str = "",
        total: int = 0,
        round: int = 0,
        **changes,
    ):
        """Policy gradient from `params`, for the knobs' updates or until `tokens` are drawn; returns the parameters.

        Args:
          after: goes on with the training of that name, its optimizer's moments too; `params` is then what KL is taken
            to. total: updates that `tokens` are expected to take. changes: other knobs than "rl" of `knobs`.

        Raises: Stopped where the training diverged.
        """
        knobs = {**self.knobs["rl"], **changes}
        del knobs["tasks"]
        planned, batch = knobs.pop("updates"), knobs["knobs"].updates
        if planned % batch:
            raise ValueError(
                f"{policy}: {planned} updates are no whole number of batches of {batch} updates each"
            )
        tx = adamw(knobs.pop("learning_rate"), knobs.pop("weight_decay"), knobs.pop("clip_norm"))
        begin, frozen = self._begin(params)
        like = self.engine.abstract_state(begin, tx)

        def first():
            return self.store.state(after, like) if after else self.engine.state(begin, tx)

        def record(*batch):
            self.store.record(training.name, *batch)

        def drawing(update, sampler):
            return self.store.drawing(training.name, update, sampler)

        def keep(update, begun):
            self.store.keep(training.name, update, begun)

        def updates(state):
            return method.reinforce(
                self.engine,
                state,
                tx,
                self.domain,
                tasks,
                **knobs,
                reference_params=params,
                record=record,
                drawing=drawing,
                frozen=frozen,
                last=planned if tokens is None else None,
                begun=self.store.begun(training.name, int(state.step)),
                keep=keep,
            )

        def done(state, drawn):
            return int(state.step) >= planned if tokens is None else drawn >= tokens

        batches = (total or planned) // batch
        training = Training(policy, "rl", first, like, updates, done, batches, round, after, frozen)
        return self._train(training)

    def _begin(self, params) -> tuple[Any, Any]:
        """What is trained of a policy, None for the base model, and what of it is not."""
        params = self.base if params is None else params
        return lora.split(lora.add(params, self.lora, self.seed) if self.lora else params)

    def _train(self, training: Training):
        self.used |= {training.name, *([training.after] if training.after else [])}
        self._let_go()
        found = self.store.follow(training)
        self.trained[training.name] = found._replace(
            state=None, policy=training.policy, section=training.section, after=training.after
        )
        if found.diverged or found.state is None:
            raise Stopped(training.policy, "diverged", **(found.diverged or {}))
        # Its moments, twice the memory of what was trained, go.
        self.policies[training.policy] = training.params(found.state)
        return self.policies[training.policy]

    def spent(self) -> dict[str, int]:
        """What `used` took: {"drawn": tokens generated, "trained": tokens in updates}."""
        trained = [self.trained[name] for name in self.used if isinstance(name, str)]
        drawn = sum(self.tokens[stage] for stage in self.used if isinstance(stage, Stage))
        return {
            "drawn": int(drawn + sum(one.tokens for one in trained if one.section == "rl")),
            "trained": int(sum(line["trained_tokens"] for one in trained for line in one.lines)),
        }
