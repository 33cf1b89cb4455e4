"""The store of a run (`int_jax.lab.Store`): rows as shards of the workdir, trainings as checkpoints and scalars.

A shard that exists is not computed again; a training goes on from its last checkpoint. A job that makes a share of the
shards (`stages.Share`) trains nothing. Responses are kept as they end,
in a log each of a stage and of a batch of a training (response_log.py), until its shards or a checkpoint are there.
"""

import contextlib
import itertools
import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import arms, rollouts
from experiments.progress import bar
from int_jax import checkpoint, disk, processes, report, response_log
from int_jax.checkpoint import Checkpoints, Keep
from int_jax.engine import Engine
from int_jax.intervention_training import Begun
from int_jax.lab import Stopped, Trained, Training, as_line
from int_jax.preemption import Preempted
from int_jax.report import writers
from int_jax.response_log import LoggedSampler, ResponseLog
from int_jax.rows import ROWS, Stage, id_of
from int_jax.sampler import Request, Sampler, Sampling, ScoringSampler
from int_jax.stages import Awaited, Matching, StageError, Workdir, told_if_full, write_atomically
from int_jax.types import State, Trace, from_bytes, from_json, to_bytes, to_json
from int_jax.watching import Meter, Profile, Split

# What an update tells of itself, in the order in which one number spoils the next.
WATCHED = ("reward", "drawn_logp", "loss", "grad_norm", "update_norm", "param_norm")
VALIDATED = "validation/pass_at_1"  # of a line: what the best checkpoints are told apart by
LOG = "responses"  # the folder of a stage or training that has the logs of what was drawn for it
BEGUN = "begun"  # that of a training with what is drawn of its next batches
GIVEN = ("attempts", "proposals", "guided")  # stages whose rows may come from a file


class WorkdirStore:
    """See the module.

    Attributes:
      probe: a prompt from which a policy is seen to draw, or not.
      validate: scores a policy's parameters, `evaluate.validation`; None: nothing is scored while it trains.
      running: the training that goes on, as far as it came. changed: called where there is something new to report,
        before each stage and training, and every `config.report_every` batches of a training.
    """

    def __init__(self, config: ConfigDict, work: Workdir, engine: Engine, seed: int = 0):
        self.config, self.work, self.engine, self.seed = config, work, engine, seed
        self.probe: tuple[int, ...] = (0,)
        self.validate: Callable[[Sampler, Any], dict[str, float]] | None = None
        self.running: Trained | None = None
        self.changed: Callable[[], object] = lambda: None
        # What the engine tells of its updates; one without a clock tells nothing.
        self.split = engine.split if isinstance(engine, Engine) else Split()
        self.job = work.share.name if work.share else ""
        self._new = False  # what was there at the start was reported then
        c = config
        self.sizes = {
            "attempts": c.problems.shard,
            "attempts_held_out": c.problems.shard,
            "proposals": c.proposals.shard,
            "compare": c.proposals.shard,
            "guided": c.guided.shard,
            "rewrites": c.guided.shard,
            "gain": c.guided.shard,
            "eval": c.eval.shard,
        }

    def _report(self) -> None:
        if self._new:
            self.changed()

    def stage(
        self,
        stage: Stage,
        items: list,
        sampler: ScoringSampler,
        work: Callable,
        samples: int = 1,
        size: int | None = None,
    ):
        self._report()
        kind = ROWS[stage.kind]
        unit = "text" if stage.kind == "drift" else "sample"
        log = self.work.path / stage.name / LOG
        parts = chunks(items, size or self.sizes[stage.kind])
        total = samples * sum(len(part) for index, part in enumerate(parts) if self.work.makes(index))
        with bar(stage.name, total, unit) as shown:

            def counted(parts, lap):
                self._new = True
                sizes = [len(part) for part in parts]
                # `work` tells of each response; shards that were there already are told of here.
                shown.update(total - sum(sizes) * samples - shown.n)
                watched = self._watched(stage.name, sampler, shown)
                about, every = self._about(stage.name), self.config.log_every
                with ResponseLog(log, about, every, lap, self.job) as responses, watched:
                    some = [item for part in parts for item in part]
                    rows, tokens = work(LoggedSampler(sampler, responses), some, shown.update)
                cut = zip(consecutive(to_json(rows), sizes), shares(tokens, sizes), strict=True)
                return [(made, {"tokens": count}) for made, count in cut]

            matching = matching_of(stage, items) if stage.name in GIVEN else None
            try:
                rows, counts = self.work.rows(stage.name, parts, counted, matching, stage.kind)
            except Awaited:
                response_log.remove(log, self.job)
                raise
            response_log.remove(log, self.job)
            shown.update(total - shown.n)
        return [from_json(kind, row) for row in rows], int(counts.get("tokens", 0))

    def _watched(self, name: str, sampler: ScoringSampler, shown=None) -> contextlib.AbstractContextManager:
        """How fast `sampler` draws, as lines of the workdir's sampling.jsonl and beside the progress bar `shown`. Of
        several processes the first one's devices are told of."""
        if not isinstance(sampler, Engine) or not processes.is_main_process():
            return contextlib.nullcontext()

        def tell(line: dict[str, float]) -> None:
            rounded = {key: float(f"{value:.5g}") for key, value in line.items()}
            path = self.work.own(self.work.path / "sampling.jsonl")
            with told_if_full(path):
                disk.append(path, json.dumps({"stage": name, **rounded}) + "\n")
            if shown is not None:
                useful = f", {line['useful_bytes']:.0%} useful bytes" if "useful_bytes" in line else ""
                shown.set_postfix_str(
                    f"{line['tokens_per_s']:,.0f} tokens/s, {line['occupancy']:.0%} of places{useful}"
                )

        return Meter(sampler, tell)

    def _about(self, what: str) -> str:
        return f"{what}, seed {self.seed}"

    @contextlib.contextmanager
    def drawing(self, name: str, update: int, sampler: ScoringSampler):
        """See `lab.Store`. The logs of all updates since the last checkpoint stay: a restart makes these anew. Where
        batches overlap there are none: which policy goes on with a response depends on when the others end, and one
        that is read from a log ends at once."""
        if self.config.rl.lag:
            with self._watched(name, sampler) as meter:
                yield sampler
            self.split.drew(meter.seconds if meter else 0.0)
            return
        folder = self.work.path / name
        for old in self._before_checkpoint(folder, LOG):
            response_log.remove(old)
        about = self._about(f"{name} at update {update}")
        logged = ResponseLog(folder / LOG / f"{update:06d}", about, self.config.log_every)
        with logged as responses, self._watched(name, sampler) as meter:
            yield LoggedSampler(sampler, responses)
        self.split.drew(meter.seconds if meter else 0.0)

    def record(
        self, name: str, update: int, groups: list[list[Trace]], rewards: np.ndarray, advantages: list
    ) -> None:
        knobs = self.config.rl
        batch = update // (knobs.passes * knobs.minibatches)
        if knobs.keep_rollouts and batch % knobs.keep_rollouts == 0 and processes.is_main_process():
            rollouts.write(self.work.path / name, update, groups, rewards, advantages)

    def _before_checkpoint(self, folder: Path, kind: str) -> list[Path]:
        """What there is of a kind, named by updates, that a restart of a training does not need any more."""
        newest = max(checkpoint.saved(folder / "state"), default=0)
        return [path for path in (folder / kind).glob("[0-9]*") if int(path.name) < newest]

    def begun(self, name: str, update: int) -> Begun:
        """See `lab.Store`. Raises: StageError for a file that is not whole."""
        path = self.work.path / name / BEGUN / f"{update:06d}"
        content = processes.from_main_process(path.read_bytes().hex() if path.exists() else None)
        if content is None:
            return ()
        crc, body = bytes.fromhex(content[:8]), bytes.fromhex(content[8:])
        if zlib.crc32(body).to_bytes(4, "little") != crc:
            raise StageError(
                f"{path}: the file is damaged: it is not what was written. Delete it and run the same command again: "
                "the batches from that update on are then drawn from their beginning"
            )
        return from_bytes(tuple[tuple[Trace, ...], ...], body)

    def keep(self, name: str, update: int, begun: Begun) -> None:
        if processes.is_main_process():
            folder = self.work.path / name
            body = to_bytes([*begun])
            write_atomically(folder / BEGUN / f"{update:06d}", zlib.crc32(body).to_bytes(4, "little") + body)
            for old in self._before_checkpoint(folder, BEGUN):
                disk.remove(old)

    def state(self, name: str, like: State) -> State:
        found = checkpoint.restore(self.work.path / name / "state", like)
        assert found is not None, f"{name} was trained to its end, and that is a checkpoint"
        return found

    def follow(self, training: Training) -> Trained:
        """Drive a training until it is done, with scalars and checkpoints.

        The first number that is not finite ends it (`spoiled`), and such a state is not saved. The divergence is noted
        in the policy's folder, where a restart finds it instead of training again.

        Raises: Stopped in a job that makes a share of the data.
        """
        if self.work.share:
            raise Stopped(
                training.policy, "skipped", f"{training.policy}: a share of the data trains nothing"
            )
        self._report()
        folder = self.work.path / training.name
        state = checkpoint.restore(folder / "state", training.like) or training.first()
        note = folder / "diverged.json"
        known = processes.from_main_process(note.read_text() if note.exists() else None)
        with contextlib.ExitStack() as stack:
            scalars = None
            if processes.is_main_process():
                scalars = report.Scalars(
                    folder / "scalars",
                    None if known else int(state.step),
                    [*map(writers.load, self.config.writers)],
                    training.name,
                    f"{self.config.name}, seed {self.seed}",
                    self.config.to_dict() | {"seed": self.seed},
                )
                stack.enter_context(scalars)
            lines = processes.from_main_process(_lines(folder) if processes.is_main_process() else None)
            found = json.loads(known) if known else None
            self.running = Trained(None, lines, None, training.policy, training.section, training.after)
            label = arms.policies(self.config.arms)[training.policy].label
            shown = stack.enter_context(bar(f"{training.section}: {label}", training.total, "step"))
            shown.update(len(lines))

            def log(line: dict, watched: dict) -> None:
                if scalars is not None:
                    numbers = {key: value for key, value in line.items() if key != "step"}
                    scalars.write(line["step"], numbers, watched)
                shown.update(1)
                key = "reward" if "reward" in line else "loss"
                shown.set_postfix({key: f"{line[key]:.3f}"})

            if not found:
                state, fault = self._drive(training, state, lines, log, folder / "state")
                if fault:
                    found = self.divergence(training, int(state.step) - 1, *fault)
                    if processes.is_main_process():
                        write_atomically(note, json.dumps(found, indent=1) + "\n")
        self.running = None
        for kind in LOG, BEGUN:
            response_log.remove(folder / kind)
        return Trained(None if found else state, lines, found)

    def _drive(self, training: Training, state: State, lines: list[dict], log, folder: Path):
        """The loop of `follow`. Returns: (state, None), or (the spoiled state, (what is not finite, its value)).

        Args:
          lines: of the updates so far; those to come are added, and `log` is told of each.
        """

        def done(state) -> bool:
            return training.done(state, sum(line["tokens"] for line in lines))

        if not self.engine.finite(state):  # a checkpoint of another make
            return state, ("checkpoint", math.nan)
        if done(state):
            return state, None
        c, knobs = self.config, self.config[training.section]
        fault, step, start, validation_s = None, int(state.step), time.perf_counter(), 0.0
        logged = saved = step
        saved_at = start
        checkpoints = Checkpoints(folder, Keep(knobs.keep_last, knobs.keep_every, knobs.keep_best))
        each = c.rl.passes * c.rl.minibatches if training.section == "rl" else 1
        profile = Profile(folder.parent / "profile", c.profile.first, c.profile.updates, each)
        self.split.clear()
        with checkpoints, profile:
            profile.before(step)
            try:
                # An update donates the state before it.
                for batch, (after, metrics) in enumerate(training.updates(state), 1):
                    self._new = True
                    before, state, step = step, after, int(after.step)
                    line = {"step": step - 1, **as_line(metrics)}
                    self.split.lap("update")
                    watched = self.split.line(self.engine) if isinstance(self.engine, Engine) else {}
                    lines.append(line)
                    last = done(state)
                    fault = self.spoiled(line, state, training.params(state), last)
                    if self.validate and not fault and (last or passes(before, step, c.validation.every)):
                        begun = time.perf_counter()
                        with self.drawing(training.name, step, self.engine) as sampler:
                            line |= self.validate(sampler, training.params(state))
                        validation_s += time.perf_counter() - begun
                        self.split.clear()
                    log(line, watched)
                    logged = step
                    due = processes.from_main_process(
                        time.perf_counter() - saved_at >= 60 * c.checkpoint_minutes
                    )
                    if not fault and (last or due or passes(before, step, knobs.checkpoint_every)):
                        checkpoints.save(state, line.get(VALIDATED))
                        saved, saved_at = step, time.perf_counter()
                    if fault or last:
                        break
                    processes.end_if_asked(in_step=True)
                    if batch % c.report_every == 0:
                        self._report()
                    self.split.lap("save")
                    profile.before(step)
            except Preempted:
                # Nothing was updated since: it is raised where something is drawn or scored. Of a batch whose score is
                # missing there is no line, and it is trained again.
                if logged == step > saved:
                    checkpoints.save(state, lines[-1].get(VALIDATED))
                raise
        self.work.clock(training.section, time.perf_counter() - start - validation_s)
        if self.validate:
            self.work.clock("validation", validation_s)
        return state, fault

    def spoiled(self, line: dict[str, float], state: State, params, last: bool) -> tuple[str, float] | None:
        """What is not finite after an update, and its value: of the metrics, the parameters, the optimizer's moments,
        or, at the last update, of what the policy draws (after the others the next update's metrics tell). params: all
        of the policy."""
        for what in WATCHED:
            if not math.isfinite(line.get(what, 0.0)):
                return what, line[what]
        if not self.engine.finite(state):
            return "moments" if self.engine.finite(state.params) else "parameters", math.nan
        part = self.unsound(self.engine.decode_params(params)) if last else ""
        return (part, math.nan) if part else None

    def check_sound(self, decoding, prompt: Sequence[int]) -> None:
        """Refuse a model that cannot be sampled; later policies are probed with `prompt`. Raises: StageError."""
        self.probe = tuple(prompt)
        if part := self.unsound(decoding):
            raise StageError(
                f"{self.config.model}: the {part} of this model are not finite in config.dtype = {self.config.dtype}; "
                "set config.dtype = float32, or take other weights"
            )

    def unsound(self, decoding) -> str:
        """What of a policy is not finite: its parameters, in the dtype in which it samples, or the log-probability of
        what it draws (finite and huge parameters overflow on the way there); "" for one that can be sampled."""
        if not self.engine.finite(decoding):
            return "parameters"
        [response] = self.engine.generate(
            decoding, [Request(self.probe, "probe", 0)], Sampling(max_new_tokens=1)
        )
        return "" if np.isfinite(response.logp).all() else "log-probabilities"

    def divergence(self, training: Training, update: int, what: str, value: float) -> dict:
        """The note of a divergence: the update (from 0), what was not finite, the last checkpoint, the knob to turn."""
        name, section = training.name, training.section
        steps = checkpoint.saved(self.work.path / name / "state")
        kept = f"{name}/state/{steps[-1]}" if steps and what != "checkpoint" else None
        knobs, dtype = self.config[section], self.config.dtype
        wider = "" if dtype == "float32" else f"set config.dtype = float32 (now {dtype})"
        lower = " or ".join(
            f"config.{section}.{knob} (now {knobs[knob]:g})" for knob in ("learning_rate", "clip_norm")
        )
        if what == "reward":
            advice = f"The scores of the domain {self.config.domain.name} must be finite: look at its verify"
        elif update == 0 and what in ("drawn_logp", "loss", "grad_norm"):  # before anything was trained
            advice = f"Nothing was trained before it: {wider or 'look at the weights of config.model'}"
        else:
            advice = f"Lower {lower}" + (f", or {wider}" if wider else "")
        label = arms.policies(self.config.arms)[training.policy].label
        said = (
            f"{label} diverged at update {update}: {what} is {value:g}. "
            f"The last good checkpoint is {kept or 'what it started from'}. {advice}; then use another --workdir"
        )
        return {"update": update, "what": what, "value": f"{value:g}", "checkpoint": kept, "said": said}


def matching_of(stage: Stage, items: list) -> Matching:
    """How rows of a file of the user's own find the stage's items."""
    kind, by_id = ROWS[stage.kind], {id_of(item): item for item in items}

    def read(data: dict) -> tuple:
        row = from_json(kind, data)
        # A row of another id is handed on: `stages.matched` says that it belongs to nothing.
        if row.id in by_id:
            row.check(by_id[row.id])
        return row.id

    return Matching([*by_id], read)


def passes(before: int, step: int, every: int) -> bool:
    """Whether the updates from `before` to `step`, one batch, pass a multiple of `every`."""
    # From 8 to 12 with every = 10: 1 > 0.
    return step // every > before // every


def chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def consecutive(items: list, sizes: list[int]) -> list[list]:
    """Items as consecutive lists of these sizes."""
    rest = iter(items)
    return [[*itertools.islice(rest, size)] for size in sizes]


def shares(total: int, sizes: list[int]) -> list[int]:
    """A whole number as the sum of whole numbers that are in proportion to `sizes`, as near as can be."""
    # 10 to 2, 2, 1: up to each end 4, 8, 10 of it, so 4, 4, 2.
    ends = [total * end // sum(sizes) for end in itertools.accumulate(sizes)]
    return [end - start for start, end in itertools.pairwise([0, *ends])]


def _lines(folder: Path) -> list[dict]:
    path = folder / "scalars" / "scalars.jsonl"
    return [*map(json.loads, path.read_text().splitlines())]
