"""The stages of a run that train a policy: SFT on guided attempts, and the policy gradient.

Each keeps checkpoints and scalars in a folder of the workdir named after its policy.
"""

import json
import time
from pathlib import Path

import jax
import optax

from experiments.data_stages import Run, bar
from int_jax import checkpoint, losses, processes, report
from int_jax import intervention_training as method


def optimizer(knobs, learning_rate) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(knobs.clip_norm)
    return optax.chain(clip, optax.adamw(learning_rate, weight_decay=knobs.weight_decay))


def train(run: Run, name: str, state, updates, every: int, enough, shown):
    """Drive an iterator of (state, metrics) until `enough(step, tokens)`, with scalars and checkpoints.

    Returns: (state, lines): lines are the metrics of every update since the beginning of this policy's training.
    """
    folder = run.work.path / name
    first = int(state.step)
    start = time.perf_counter()
    scalars = report.Scalars(folder / "scalars", resume_step=first) if processes.first() else None
    lines = processes.agreed([*_lines(folder)] if processes.first() else None)
    shown.update(len(lines))
    if not enough(first, sum(line["tokens"] for line in lines)):
        for after, metrics in updates(state):
            state, step = after, int(after.step)
            line = {key: float(value) for key, value in jax.device_get(metrics).items()}
            line.setdefault("tokens", line["trained_tokens"])
            if scalars is not None:
                scalars.write(step - 1, line)
            lines.append({"step": step - 1, **line})
            shown.update(1)
            shown.set_postfix(
                {"reward": f"{line['reward']:.3f}"} if "reward" in line else {"loss": f"{line['loss']:.3f}"}
            )
            done = enough(step, sum(line["tokens"] for line in lines))
            if done or step % every == 0:
                checkpoint.save(folder / "state", state)
            if done:
                break
        run.work.clock("sft" if name == "int" else "rl", time.perf_counter() - start)
    if scalars is not None:
        scalars.close()
    return state, lines


def _lines(folder: Path):
    path = folder / "scalars" / "scalars.jsonl"
    yield from map(json.loads, path.read_text().splitlines())


def fine_tune(run: Run, traces: list):
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


def policy_gradient(config) -> method.PolicyGradient:
    """The knobs of a config. Raises: ValueError, naming the knob and its choices."""
    c, packing = config.rl, config.train
    loss = losses.LossConfig(c.clip_low, c.clip_high, "current", c.ratio, packing.chunk, packing.remat)
    return method.PolicyGradient(c.problems, c.group, c.divide_by_std, c.normalise, c.kl, loss)


def reinforce(run: Run, name: str, params, tasks: list, enough, planned: int, tx, start=None):
    """Policy gradient from `params`, or on from the training state `start`, until `enough(step, tokens)`."""
    c, packing = run.config.rl, run.config.train
    knobs = policy_gradient(run.config)
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

    with bar(f"rl: {report.LABELS.get(name, name)}", planned, "update") as shown:
        return train(run, name, state, updates, c.checkpoint_every, enough, shown)
