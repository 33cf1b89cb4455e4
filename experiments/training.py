"""The stages of a run that train a policy: SFT on guided attempts, and the policy gradient.

Each keeps checkpoints and scalars in a folder of the workdir named after its policy.
"""

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import optax

from experiments.data_stages import Run, bar, unsound
from int_jax import checkpoint, losses, processes, report
from int_jax import intervention_training as method
from int_jax.policy_gradient import PolicyGradient, by_group, from_first_error
from int_jax.stages import write_atomically
from int_jax.types import State


def optimizer(knobs, learning_rate) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(knobs.clip_norm)
    return optax.chain(clip, optax.adamw(learning_rate, weight_decay=knobs.weight_decay))


class Trained(NamedTuple):
    """How a policy's training ended. lines: the metrics of every update since its beginning.

    state: None where it diverged. diverged: what happened then, as its folder's diverged.json holds it: {"update",
    "what", "value", "checkpoint", "said"}.
    """

    state: State | None
    lines: list[dict]
    diverged: dict | None


# What an update tells of itself, in the order in which one number spoils the next.
WATCHED = ("reward", "drawn_logp", "loss", "grad_norm", "update_norm", "param_norm")


def train(run: Run, name: str, state, updates, every: int, enough, shown) -> Trained:
    """Drive an iterator of (state, metrics) until `enough(step, tokens)`, with scalars and checkpoints.

    The first number that is not finite ends it (`spoiled`), and such a state is not saved. The divergence is noted in
    the policy's folder, where a restart finds it instead of training again.
    """
    folder = run.work.path / name
    note = folder / "diverged.json"
    known = processes.agreed(note.read_text() if note.exists() else None)
    scalars = None
    if processes.first():
        scalars = report.Scalars(folder / "scalars", resume_step=None if known else int(state.step))
    lines = processes.agreed([*_lines(folder)] if processes.first() else None)
    shown.update(len(lines))

    def log(step: int, metrics) -> dict:
        line = {key: float(value) for key, value in jax.device_get(metrics).items()}
        line.setdefault("tokens", line["trained_tokens"])
        if scalars is not None:
            scalars.write(step, line)
        lines.append({"step": step, **line})
        shown.update(1)
        name = "reward" if "reward" in line else "loss"
        shown.set_postfix({name: f"{line[name]:.3f}"})
        return line

    def ended(state) -> bool:
        return enough(int(state.step), sum(line["tokens"] for line in lines))

    found = json.loads(known) if known else None
    if not found:
        start, before = time.perf_counter(), len(lines)
        state, fault = _drive(run, state, updates, every, ended, log, folder / "state")
        if len(lines) > before:
            run.work.clock(section(name), time.perf_counter() - start)
        if fault:
            found = divergence(run, name, int(state.step) - 1, *fault)
            if processes.first():
                write_atomically(note, json.dumps(found, indent=1) + "\n")
    if scalars is not None:
        scalars.close()
    return Trained(None if found else state, lines, found)


def _drive(run: Run, state, updates, every: int, ended, log, folder: Path):
    """The loop of `train`. Returns: (state, None), or (the spoiled state, (what of it is not finite, its value))."""
    if not run.engine.finite(state):  # a checkpoint of another make
        return state, ("checkpoint", math.nan)
    if ended(state):
        return state, None
    step = int(state.step)  # read before an update donates the state
    for after, metrics in updates(state):
        before, state, step = step, after, int(after.step)
        line = log(step - 1, metrics)
        done = ended(state)
        if fault := spoiled(run, line, state, done):
            return state, fault
        if done or step // every > before // every:  # one batch may be several updates
            checkpoint.save(folder, state)
        if done:
            return state, None
    return state, None


def spoiled(run: Run, line: dict[str, float], state, last: bool) -> tuple[str, float] | None:
    """What is not finite after an update, and its value: of the metrics, the parameters, the optimizer's moments, or,
    at the last update, of what the policy draws (after the others the next update's metrics tell)."""
    for what in WATCHED:
        if not math.isfinite(line.get(what, 0.0)):
            return what, line[what]
    if not run.engine.finite(state):
        return "moments" if run.engine.finite(state.params) else "parameters", math.nan
    part = unsound(run, state.params) if last else ""
    return (part, math.nan) if part else None


def section(name: str) -> str:
    """The section of the config that trains a policy."""
    return "sft" if name == "int" else "rl"


def divergence(run: Run, name: str, update: int, what: str, value: float) -> dict:
    """The note of a divergence: the update (from 0), what was not finite, the last checkpoint and the knob to turn."""
    steps = checkpoint.saved(run.work.path / name / "state")
    kept = f"{name}/state/{steps[-1]}" if steps and what != "checkpoint" else None
    knobs, dtype = run.config[section(name)], run.config.dtype
    wider = "" if dtype == "float32" else f"set config.dtype = float32 (now {dtype})"
    lower = " or ".join(
        f"config.{section(name)}.{knob} (now {knobs[knob]:g})" for knob in ("learning_rate", "clip_norm")
    )
    if what == "reward":
        advice = f"The scores of the domain {run.config.domain.name} must be finite: look at its verify"
    elif update == 0 and what in ("drawn_logp", "loss", "grad_norm"):  # before anything was trained
        advice = f"Nothing was trained before it: {wider or 'look at the weights of config.model'}"
    else:
        advice = f"Lower {lower}" + (f", or {wider}" if wider else "")
    said = (
        f"{report.LABELS[name]} diverged at update {update}: {what} is {value:g}. "
        f"The last good checkpoint is {kept or 'what it started from'}. {advice}; then use another --workdir"
    )
    return {"update": update, "what": what, "value": f"{value:g}", "checkpoint": kept, "said": said}


def _lines(folder: Path):
    path = folder / "scalars" / "scalars.jsonl"
    yield from map(json.loads, path.read_text().splitlines())


def fine_tune(run: Run, traces: list) -> Trained:
    """SFT on the guided attempts from the base model."""
    c, packing = run.config.sft, run.config.train
    total = method.sft_steps(len(traces), c.epochs, c.batch)
    warmup = max(1, round(c.warmup * total))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, c.learning_rate, warmup, max(total, warmup + 1), 0.1 * c.learning_rate
    )
    tx = optimizer(c, rate)
    state = run.engine.state(run.base, tx)
    state = checkpoint.restore(run.work.path / "int" / "state", state) or state

    def updates(state):
        return method.sft(
            run.engine,
            state,
            tx,
            traces,
            c.epochs,
            c.batch,
            run.seed,
            packing.row_length,
            packing.rows,
            c.prefix,
            c.intervention,
            run.domain.tokenizer.end_of_turn if c.end_of_turn else None,
            losses.LossConfig(chunk=packing.chunk, remat=packing.remat),
        )

    with bar("sft", total, "update") as shown:
        return train(run, "int", state, updates, 50, lambda step, tokens: step >= total, shown)


def policy_gradient(config, domain) -> PolicyGradient:
    """The knobs of a config; the domain knows first errors. Raises: ValueError, naming the knob and its choices."""
    c, packing = config.rl, config.train
    advantages = by_group(c.advantage)
    if c.penalise == "from_first_error":
        advantages = from_first_error(advantages, domain.first_error)
    batch = ("problems", "group", "normalise", "kl", "old", "passes", "minibatches", "refill", "overlong")
    loss = ("clip", "clip_low", "clip_high", "ratio", "importance_cap")
    return PolicyGradient(
        **{name: c[name] for name in batch},
        advantages=advantages,
        rewards=c.rewards.to_dict(),
        loss=losses.LossConfig(**{name: c[name] for name in loss}, chunk=packing.chunk, remat=packing.remat),
    )


def reinforce(run: Run, name: str, params, tasks: list, enough, planned: int, tx, start=None) -> Trained:
    """Policy gradient from `params`, or on from the training state `start`, until `enough(step, tokens)`."""
    c, packing = run.config.rl, run.config.train
    knobs = policy_gradient(run.config, run.domain)
    sampling = run.sampling({"temperature": c.temperature, "max_new_tokens": c.max_new_tokens})
    fresh = run.engine.state(params, tx) if start is None else start
    state = checkpoint.restore(run.work.path / name / "state", fresh) or fresh

    def updates(state):
        return method.reinforce(
            run.engine,
            state,
            tx,
            run.domain,
            tasks,
            knobs,
            sampling,
            packing.row_length,
            packing.rows,
            params,
        )

    with bar(f"rl: {report.LABELS.get(name, name)}", planned // knobs.updates, "step") as shown:
        return train(run, name, state, updates, c.checkpoint_every, enough, shown)
