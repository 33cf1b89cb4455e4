"""Intervention Training from rollouts to policy gradient, as one resumable run.

    python experiments/run.py --config experiments/configs/int.py:tiny --workdir runs/demo

Stages: attempts, proposals, guided, effect, sft, rl, eval. Each leaves its files in the workdir; killed at any moment,
the same command goes on. Ends with results.json, report.html and the tables on the screen. Any knob can be changed on
the command line: --config.rl.updates=100.
"""

import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

import int_jax
from int_jax import checkpoint, datasets, domains, losses, proposers, report, rollout, types
from int_jax import eval as estimates
from int_jax import intervention_training as method
from int_jax.engine import Engine, Sampling
from int_jax.sharding import make_mesh
from int_jax.stages import StageError, Workdir

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "where everything that the run makes goes; reused to resume")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


@dataclasses.dataclass
class Run:
    """What every stage works with."""

    config: ConfigDict
    seed: int
    work: Workdir
    engine: Engine
    base: dict  # the base model's parameters, as loaded
    decoding: dict  # the same, laid out for decoding
    domain: object

    def sampling(self, knobs) -> Sampling:
        return Sampling(**knobs, stop_ids=self.domain.tokenizer.stop_ids, seed=self.seed)


@contextlib.contextmanager
def bar(stage: str, total: int, unit: str = "sample"):
    """A progress bar with stage, rate and time left."""
    with tqdm(total=total, desc=f"{stage:<22}", unit=f" {unit}s", dynamic_ncols=True, smoothing=0.1) as shown:
        yield shown


def chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def sharded(run: Run, stage: str, items: list, size: int, per_item: int, work):
    """Run a stage shard by shard behind one progress bar, counting the tokens drawn; see Workdir.rows.

    work(part, progress) -> rows.
    """
    with bar(stage, len(items) * per_item) as shown:
        finished = 0

        def done(part):
            nonlocal finished
            finished += len(part) * per_item
            shown.update(finished - shown.n)

        def counted(part):
            run.engine.take_drawn()
            rows = work(part, shown.update)
            return rows, {"tokens": run.engine.take_drawn()}

        return run.work.rows(stage, chunks(items, size), counted, done)


# Stages ---------------------------------------------------------------------------------------------------------------


def attempt(run: Run, split: str, count: int, file: str, stage: str):
    """Problems of a split that no try solves, and their wrong attempts.

    Returns: (rows, counts); a row is {"task", "samples", "correct", "wrong": traces}.
    """
    c = run.config.attempts
    tasks = datasets.read_tasks(file, run.domain.name) if file else run.domain.tasks(split, run.seed, count)

    def work(part, progress):
        groups = method.attempts(
            run.engine, run.decoding, run.domain, part, c.tries, run.sampling(c.sampling), progress
        )
        rows = [
            {
                "task": types.to_json(task),
                "samples": len(group),
                "correct": sum(trace.verdict.passed for trace in group),
                "wrong": [types.to_json(trace) for trace in method.failures([group], c.keep)],
            }
            for task, group in zip(part, groups, strict=True)
        ]
        return rows

    return sharded(run, stage, tasks, run.config.problems.shard, c.tries, work)


def propose(run: Run, name: str, wrong: list, stage: str):
    """An intervention for each wrong attempt, by one proposer. A row is {"intervention", "drop"}."""
    c = run.config.proposals

    def work(part, progress):
        found, drops = method.proposals(
            run.engine,
            run.decoding,
            run.domain,
            proposers.load(name),
            part,
            run.seed,
            samples=c.samples,
            sampling=run.sampling(c.sampling),
            max_prompt=c.max_prompt,
            progress=progress,
        )
        rows = [
            {"intervention": one and types.to_json(one), "drop": drops.get(i, "")}
            for i, one in enumerate(found)
        ]
        return rows

    return sharded(run, stage, wrong, c.shard, c.samples, work)


def guide(run: Run, traces: list):
    """Continue the guided attempts. A row is {"trace", "tries", "successes", "shown"}."""
    c = run.config.guided

    def work(part, progress):
        results = method.guided(
            run.engine,
            run.decoding,
            run.domain,
            part,
            c.tries,
            run.sampling(c.sampling),
            c.stop_at_success,
            c.at_once,
            progress,
        )
        rows = [
            {"trace": types.to_json(r.trace), "tries": r.tries, "successes": r.successes, "shown": r.shown}
            for r in results
        ]
        return rows

    return sharded(run, "guided", traces, c.shard, c.tries, work)


def effect(run: Run, wrong: list, interventions: list, guided_traces: list) -> dict:
    """The four-condition table (Table 1): fresh samples from the problem, the prefix, the prefix with the attempt's own
    wrong step, and the prefix with the intervention; one attempt a problem, all before any filter."""
    c = run.config.effect
    chosen: dict[str, tuple] = {}
    for trace, one, patched in zip(wrong, interventions, guided_traces, strict=True):
        chosen.setdefault(trace.task.id, (trace, one, patched))
    chosen_rows = list(chosen.values())[: c.problems]
    conditions = {
        "problem": [rollout.opened(run.domain, trace.task) for trace, _, _ in chosen_rows],
        "prefix": [
            rollout.truncated(trace, rollout.cut_at(trace, one.step)) for trace, one, _ in chosen_rows
        ],
        "prefix_error": [
            rollout.truncated(trace, trace.step_ends[one.step]) for trace, one, _ in chosen_rows
        ],
        "prefix_intervention": [patched for _, _, patched in chosen_rows],
    }
    # An attempt whose located step is its last one is finished, not open: its stop token goes.
    stops = run.domain.tokenizer.stop_ids
    conditions["prefix_error"] = [
        rollout.truncated(t, len(t.tokens) - 1) if t.tokens[-1] in stops else t
        for t in conditions["prefix_error"]
    ]
    items = [(name, i) for name in conditions for i in range(len(chosen_rows))]

    def work(part, progress):
        groups = rollout.continued(
            run.engine,
            run.decoding,
            run.domain,
            [conditions[name][i] for name, i in part],
            c.samples,
            run.sampling(run.config.eval.sampling),
            "/effect",
            progress=progress,
        )
        rows = [
            {"condition": name, "samples": len(g), "correct": sum(t.verdict.passed for t in g)}
            for (name, _), g in zip(part, groups, strict=True)
        ]
        return rows

    rows, counts = sharded(run, "effect", items, max(1, len(chosen_rows)), c.samples, work)
    table = {
        name: estimates.effect_row([(r["samples"], r["correct"]) for r in rows if r["condition"] == name])
        for name in conditions
        if chosen_rows
    }
    return {"table": table, "tokens": int(counts.get("tokens", 0))}


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
    scalars = report.Scalars(folder / "scalars", resume_step=first)
    lines = list(_lines(folder))
    shown.update(len(lines))
    if not enough(first, sum(line["tokens"] for line in lines)):
        for after, metrics in updates(state):
            state, step = after, int(after.step)
            line = {key: float(value) for key, value in jax.device_get(metrics).items()}
            line.setdefault("tokens", line["trained_tokens"])
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
            run.domain.tokenizer.stop_ids[0] if c.end_of_turn else None,
            losses.LossConfig(chunk=packing.chunk, remat=packing.remat),
        )

    with bar("sft", total, "update") as shown:
        return train(run, "int", state, updates, 50, lambda step, tokens: step >= total, shown)


def reinforce(run: Run, name: str, params, tasks: list, enough, planned: int, tx, start=None):
    """Policy gradient from `params`, or on from the training state `start`, until `enough(step, tokens)`."""
    c, packing = run.config.rl, run.config.train
    knobs = method.PolicyGradient(
        c.problems,
        c.group,
        c.divide_by_std,
        c.normalise,
        c.kl,
        losses.LossConfig(c.clip_low, c.clip_high, "current", c.ratio, packing.chunk, packing.remat),
    )
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


def evaluate(run: Run, name: str, params, tasks: dict[str, list]) -> dict[str, list[tuple[int, int]]]:
    """(samples, correct) of each problem of each set, for one policy."""
    c = run.config.eval
    items = [(part, task) for part, some in tasks.items() for task in some]
    decoding = run.engine.decode_params(params)

    def work(part, progress):
        prompts = [rollout.opened(run.domain, task) for _, task in part]
        groups = rollout.continued(
            run.engine,
            decoding,
            run.domain,
            prompts,
            c.samples,
            run.sampling(c.sampling),
            "/eval",
            progress=progress,
        )
        rows = [
            {"set": which, "task": task.id, "samples": len(g), "correct": sum(t.verdict.passed for t in g)}
            for (which, task), g in zip(part, groups, strict=True)
        ]
        return rows

    rows, counts = sharded(run, f"eval_{name}", items, c.shard * len(tasks), c.samples, work)
    found = {which: [(r["samples"], r["correct"]) for r in rows if r["set"] == which] for which in tasks}
    return found | {"tokens": int(counts.get("tokens", 0))}


def drift(run: Run, policies: dict, guided_traces: list, wrong: list) -> dict:
    """NLL under the base model of prefix, intervention and reference tokens; each policy's NLL of the interventions and
    its next-token entropy along the same attempts of the base model. Nats per token."""
    some = guided_traces[:256]
    logps, _ = run.engine.score(run.decoding, [t.tokens for t in some])
    prefix = [lp[t.prompt_len : t.spliced] for lp, t in zip(logps, some, strict=True)]
    step = [lp[t.spliced :] for lp, t in zip(logps, some, strict=True)]
    references = [
        (rollout.opened(run.domain, t.task).tokens, run.domain.tokenizer.encode(t.task.reference))
        for t in some
    ]
    told, _ = run.engine.score(run.decoding, [np.concatenate([p, r]) for p, r in references])
    reference = [lp[len(p) :] for lp, (p, _) in zip(told, references, strict=True)]
    nll = {
        name: float(-np.concatenate(spans).mean())
        for name, spans in {"prefix": prefix, "intervention": step, "reference": reference}.items()
        if sum(map(len, spans))
    }
    entropy, intervention = {}, {}
    fixed = wrong[:128]
    for name, params in policies.items():
        decoding = run.engine.decode_params(params)
        _, found = run.engine.score(decoding, [t.tokens for t in fixed])
        entropy[name] = float(
            np.concatenate([e[t.prompt_len :] for e, t in zip(found, fixed, strict=True)]).mean()
        )
        if some:
            after, _ = run.engine.score(decoding, [t.tokens for t in some])
            spans = [lp[t.spliced :] for lp, t in zip(after, some, strict=True)]
            intervention[name] = float(-np.concatenate(spans).mean())
    return {"nll": nll, "entropy": entropy, "intervention_nll": intervention}


# One run --------------------------------------------------------------------------------------------------------------


def run_seed(config: ConfigDict, seed: int, workdir: Path, lm) -> dict:
    """All stages with one seed; returns the results that it also writes."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {
        "python": sys.version.split()[0],
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    plain = {**config.to_dict(), "seed": seed}
    work = Workdir(workdir, plain, versions)
    engine = Engine(lm.model, lm.engine.mesh, config.slots, config.chunk)
    domain = domains.load(config.domain.name, lm.tokenizer, **config.domain.knobs)
    run = Run(config, seed, work, engine, lm.params, engine.decode_params(lm.params), domain)
    results: dict = {"config": plain, "seed": seed, "versions": versions, "tokens": {}, "funnel": {}}

    p = config.problems
    rows, counts = attempt(run, "hard_train", p.train, p.train_file, "attempts")
    held, held_counts = attempt(run, p.test_split, p.test, p.test_file, f"attempts_{p.test_split}")
    hard = [row for row in rows if row["correct"] == 0]
    wrong = [types.trace_from_json(data) for row in hard for data in row["wrong"]]
    results["tokens"]["attempts"] = int(counts.get("tokens", 0))
    results["tokens"]["attempts_held_out"] = int(held_counts.get("tokens", 0))
    results["funnel"] = {
        "problems": len(rows),
        "hard": len(hard),
        "attempts": sum(row["samples"] for row in rows),
        "wrong": len(wrong),
    }
    test = [types.task_from_json(row["task"]) for row in held if row["correct"] == 0]
    pool = [types.task_from_json(row["task"]) for row in hard]
    if not pool or not test:
        raise StageError(
            f"no hard problem is left: {len(pool)} of {len(rows)} for training and {len(test)} of {len(held)} held out "
            f"have no right try in {config.attempts.tries}; take harder problems or fewer tries"
        )
    policies = {"base": run.base}
    examples: list = []
    fine, guided_traces = [], []
    if "int_rl" in config.arms:
        fine, guided_traces, examples, kept_ids = intervene(run, wrong, results)
        if not fine:
            raise StageError(
                f"no guided attempt is left to fine-tune on: {len(guided_traces)} of {len(wrong)} wrong attempts were "
                "spliced, and no continuation was right; see proposals and guided in the workdir"
            )
        state, lines = fine_tune(run, fine)
        policies["int"] = state.params
        results["tokens"]["sft"] = int(sum(line["tokens"] for line in lines))
        pool = [task for task in pool if task.id in kept_ids] if config.rl.pool == "kept" else pool
    policies |= reinforce_all(run, policies, pool, results)

    sets = {"test": test, "train": pool[: config.eval.train_problems]}
    results |= {"eval": {}, "eval_train": {}, "counts": {}}
    results["tokens"]["eval"] = 0
    for name, params in policies.items():
        found = evaluate(run, name, params, sets)
        results["tokens"]["eval"] += found["tokens"]
        results["counts"][name] = {which: found[which] for which in sets}
        results["eval"][name] = estimates.summarize(found["test"], config.eval.ks)
        results["eval_train"][name] = estimates.summarize(found["train"], config.eval.ks)
    results["drift"] = drift(run, policies, guided_traces, wrong)
    results["programs"] = len(engine.programs)
    results["wall_s"] = stage_seconds(work)
    report.write_results(workdir / "results.json", results)
    report.write_html(workdir / "report.html", results, examples)
    return results


def stage_seconds(work: Workdir) -> dict[str, float]:
    """Wall seconds under the names that tokens are counted by."""
    spent: dict[str, float] = {}
    for stage, seconds in work.wall_s().items():
        head, _, rest = stage.partition("_")
        name = {"proposals": "propose", "attempts": "attempts_held_out" if rest else "attempts"}.get(
            head, head
        )
        spent[name] = round(spent.get(name, 0.0) + seconds, 1)
    return spent


def intervene(run: Run, wrong: list, results: dict):
    """Proposals, splices, the filter and the effect table; fills the funnel.

    Returns: (traces to fine-tune on, all guided traces, examples for the report, ids of the problems kept).
    """
    c = run.config
    rows, counts = propose(run, c.proposals.proposer, wrong, "proposals")
    found = [row["intervention"] and types.intervention_from_json(row["intervention"]) for row in rows]
    usable = [i for i, one in enumerate(found) if one is not None]
    patched = method.patched(run.domain, [wrong[i] for i in usable], [found[i] for i in usable])
    results["tokens"]["propose"] = int(counts.get("tokens", 0))

    guided_rows, guided_counts = guide(run, patched)
    kept = [types.trace_from_json(row["trace"]) for row in guided_rows if row["successes"]]
    kept_ids = {trace.task.id for trace in kept}
    results["tokens"]["guided"] = int(guided_counts.get("tokens", 0))
    drops = [row["drop"] for row in rows]
    lost = {name: drops.count(name) for name in proposers.DROPS}
    results["funnel"] |= {"proposed": len(wrong) - lost["unparsed"] - lost["too_long"], **lost}
    results["funnel"] |= {
        "spliced": len(patched),
        "guided": sum(row["tries"] for row in guided_rows),
        "kept": len(kept),
        "problems_kept": len(kept_ids),
    }
    results["proposers"] = compare(run, wrong, {c.proposals.proposer: found})
    if hasattr(run.domain, "first_error"):
        right = [run.domain.first_error(wrong[i]) == found[i].step for i in usable]
        results["funnel"]["kept_right"] = sum(
            ok for ok, row in zip(right, guided_rows, strict=True) if row["successes"]
        )
    table = effect(run, [wrong[i] for i in usable], [found[i] for i in usable], patched)
    results["effect"] = table["table"]
    results["tokens"]["effect"] = table["tokens"]
    outcomes = {
        i: ("kept" if row["successes"] else "no success") for i, row in zip(usable, guided_rows, strict=True)
    }
    shown = {i: row["shown"] for i, row in zip(usable, guided_rows, strict=True)}
    examples = [
        example(run, wrong[i], found[i], outcomes.get(i) or drops[i].replace("_", " "), shown.get(i, []))
        for i in range(min(60, len(wrong)))
    ]
    return (kept if c.sft.filtered else patched), patched, examples, kept_ids


def compare(run: Run, wrong: list, known: dict) -> dict:
    """Exact-location accuracy of each proposer on the model's own failed attempts; reported, never used to filter."""
    c = run.config.proposals
    if not hasattr(run.domain, "first_error"):
        return {}
    some = wrong[: c.compare_attempts]
    truth = [run.domain.first_error(trace) for trace in some]
    for name in c.compare:
        rows, _ = propose(run, name, some, f"compare_{name}")
        known[name] = [r["intervention"] and types.intervention_from_json(r["intervention"]) for r in rows]
    table = {}
    for name, found in known.items():
        exact = [one is not None and one.step == t for one, t in zip(found[: len(some)], truth, strict=True)]
        table[name] = {
            "exact": sum(exact),
            "located": sum(one is not None for one in found[: len(some)]),
            "traces": len(some),
            "ci95": list(estimates.bootstrap_ci(exact)),
        }
    return table


def example(run: Run, trace, one, outcome: str, shown: list) -> report.Example:
    pieces = run.domain.tokenizer.pieces(trace.response)
    ends = [end - trace.prompt_len for end in trace.step_ends]
    attempt_shown = report.Attempt(pieces, trace.logp[trace.prompt_len :].tolist(), ends)
    truth = run.domain.first_error(trace) if hasattr(run.domain, "first_error") else None
    located = one.step if one else None
    return report.Example(trace.task, attempt_shown, located, truth, one, outcome, [tuple(s) for s in shown])


def reinforce_all(run: Run, policies: dict, pool: list, results: dict) -> dict:
    """RL from InT's checkpoint and from the base model: with the same RL tokens, then with InT's data tokens added."""
    c = run.config.rl
    tx = optimizer(c, c.learning_rate)
    trained, curves, budget = {}, {}, None
    if "int_rl" in run.config.arms:
        state, lines = reinforce(
            run, "int_rl", policies["int"], pool, lambda step, tokens: step >= c.updates, c.updates, tx
        )
        trained["int_rl"], curves["int_rl"] = state.params, lines
        budget = sum(line["tokens"] for line in lines)
    if "rl" in run.config.arms:

        def same(step, tokens):
            return step >= c.updates if budget is None else tokens >= budget

        state, lines = reinforce(run, "rl", run.base, pool, same, c.updates, tx)
        trained["rl"], curves["rl"] = jax.tree.map(lambda x: x.copy(), state.params), lines
        if c.matched and budget is not None:
            spent = results["tokens"]
            more = sum(spent[name] for name in ("attempts", "propose", "guided", "sft"))
            planned = round(more / max(1.0, budget / c.updates))
            state, extra = reinforce(
                run, "rl_matched", run.base, pool, lambda step, tokens: tokens >= more, planned, tx, state
            )
            trained["rl_matched"], curves["rl_matched"] = state.params, lines + extra
    names = ("reward", "zero_advantage", "never", "sometimes", "always", "length", "logp_gap")
    results["rl"] = {
        arm: {name: [line[name] for line in lines] for name in names} for arm, lines in curves.items()
    }
    results["tokens"]["rl"] = int(sum(line["tokens"] for lines in curves.values() for line in lines))
    return trained


def across_seeds(every: list[dict], k: int) -> dict:
    """pass@1 and pass@k on the held-out problems over all seeds: each policy, and InT + RL's gain over RL alone."""
    out: dict = {}
    for kk in (1, k):
        rates = {
            arm: [[estimates.pass_at_k(n, c, kk) for n, c in r["counts"][arm]["test"]] for r in every]
            for arm in every[0]["counts"]
        }
        rows = {arm: estimates.seeds_ci(values) for arm, values in rates.items()}
        for baseline in ("rl", "rl_matched"):
            if "int_rl" in rates and baseline in rates:
                gains = [np.subtract(a, b) for a, b in zip(rates["int_rl"], rates[baseline], strict=True)]
                rows[f"int_rl - {baseline}"] = estimates.seeds_ci(gains)
        out[f"pass@{kk}"] = rows
    return out


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        config = CONFIG.value
    except OSError as error:
        raise StageError(str(error)) from None
    if config is None or WORKDIR.value is None:
        raise StageError("give --config experiments/configs/int.py:tiny and --workdir runs/demo")
    start = time.perf_counter()
    mesh = make_mesh(config.mesh.data, config.mesh.model)
    lm = int_jax.load(config.model, mesh=mesh, dtype=config.dtype)
    workdir = Path(WORKDIR.value)
    every = []
    for seed in config.seeds:
        folder = workdir if len(config.seeds) == 1 else workdir / f"seed{seed}"
        every.append(run_seed(config, seed, folder, lm))
        print("\n" + report.tables(every[-1]))
    if len(every) > 1:
        summary = across_seeds(every, config.eval.ks[-1])
        report.write_results(workdir / "seeds.json", summary)
        print("\n" + report.seeds_table(summary))
    print(
        f"\n{every[-1]['programs']} compiled programs · {time.perf_counter() - start:.0f} s · {folder / 'report.html'}"
    )


def parse(argv):
    """The command line; a knob or a config that does not exist ends in one line that names it."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        missing = str(error).strip("'\"")
        given = next((a for a in argv if a.partition("=")[0].split(".")[-1] == missing), missing)
        raise StageError(
            f"{given}: there is no such knob; experiments/configs/default.py has them all"
        ) from None
    except OSError as error:
        raise StageError(str(error)) from None


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse)
    except (StageError, FileNotFoundError) as error:
        sys.exit(f"\nint_jax: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"\nint_jax: {error}")
