"""Intervention Training from rollouts to policy gradient, as one resumable run.

    python experiments/run.py --config experiments/configs/int.py:tiny --workdir runs/demo

Stages: attempts, proposals, guided, effect, sft, rl, eval. Each leaves its files in the workdir; killed at any moment,
the same command goes on. Several hosts run the same command, each with --distributed. Ends with results.json,
report.html and the tables on the screen. Any knob can be changed on the command line: --config.rl.updates=100.
"""

import dataclasses
import errno
import importlib.metadata
import os
import sys
import time
from itertools import compress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

import int_jax
from experiments.command_line import define_config, parse
from experiments.data_stages import (
    Run,
    attempt,
    drift,
    effect,
    evaluate,
    guide,
    problems,
    propose,
    show,
    unsound,
    untried,
)
from experiments.preflight import BASELINES, check, check_lengths, planned
from experiments.training import fine_tune, optimizer, reinforce
from int_jax import checkpoint, datasets, domains, modules, processes, proposers, report, rollout, types
from int_jax import eval as estimates
from int_jax import intervention_training as method
from int_jax.engine import Engine
from int_jax.proposers import likelihood_ratio
from int_jax.sharding import make_mesh
from int_jax.stages import StageError, Workdir

CONFIG = define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "where everything that the run makes goes; reused to resume")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, where several hosts run as one"
)
PROCESSES = flags.DEFINE_integer(
    "processes", None, "how many; None on Cloud TPU and Slurm, which tell it themselves"
)
PROCESS = flags.DEFINE_integer("process", None, "this one's number, from 0")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "one process a host: start this command on each of them"
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def run_seed(config: ConfigDict, seed: int, workdir: Path, lm, checker) -> dict:
    """All stages with one seed; returns the results that it also writes. `checker`: the proposer's model, None for the
    policy itself."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {
        "python": sys.version.split()[0],
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    plain = {**config.to_dict(), "seed": seed}
    work = Workdir(workdir, plain, versions)
    engine = lm.engine
    domain = domains.load(config.domain.name, lm.tokenizer, **config.domain.knobs.to_dict())
    run = Run(config, seed, work, engine, lm.params, engine.decode_params(lm.params), domain, checker)
    results: dict = {"config": plain, "seed": seed, "versions": versions, "tokens": {}, "funnel": {}}
    results |= {"notes": [], "stopped": {}}

    train, test = problems(run)
    check_lengths(run, train, test)
    for task in (train + test)[:1]:
        run.probe = tuple(rollout.opened(domain, task).tokens.tolist())
    if part := unsound(run, run.decoding):
        raise StageError(
            f"{config.model}: the {part} of this model are not finite in config.dtype = {config.dtype}; "
            "set config.dtype = float32, or take other weights"
        )
    hardened = config.problems.hard
    rows, counts, held, held_counts = untried(train), {}, untried(test), {}
    if "train" in hardened or "int_rl" in config.arms:
        rows, counts = attempt(run, train, "attempts", "train" in hardened)
    if "test" in hardened:
        held, held_counts = attempt(run, test, f"attempts_{config.problems.test_split}", True)
    chosen = [row for row in rows if row["correct"] == 0 or "train" not in hardened]
    wrong = [types.trace_from_json(data) for row in chosen for data in row["wrong"]]
    results["tokens"]["attempts"] = int(counts.get("tokens", 0))
    results["tokens"]["attempts_held_out"] = int(held_counts.get("tokens", 0))
    results["funnel"] = {
        "problems": len(rows),
        **({"hard": len(chosen)} if "train" in hardened else {}),
        "attempts": sum(row["samples"] for row in rows),
        "wrong": len(wrong),
    }
    test = [types.task_from_json(row["task"]) for row in held if row["correct"] == 0]
    pool = [types.task_from_json(row["task"]) for row in chosen]
    if not test:
        raise StageError(
            f"no hard problem is left to evaluate on: none of {len(held)} held out has no right try in "
            f"{config.attempts.tries}; take harder problems or fewer tries"
        )
    datasets.disjoint(pool, test)  # whatever file the attempts came from
    policies = {"base": run.base}
    examples: list = []
    guided_traces: list = []
    if not pool:
        said = f"Nothing was trained: of {len(rows)} training problems each has a right try in {config.attempts.tries}"
        note(results, f"{said}. Take harder problems or fewer tries")
        results["stopped"] = {arm: {"why": "skipped"} for arm in config.arms}
    elif "int_rl" in config.arms:
        fine, guided_traces, examples, kept_ids = intervene(run, wrong, results)
        start_from_int(run, fine, policies, results)
        if config.rl.pool == "kept":
            pool = kept_pool(pool, kept_ids, results)
    if pool:
        policies |= reinforce_all(run, policies, pool, results)
    for name in set(config.export) & policies.keys():
        params = engine.decode_params(policies[name])  # in the dtype in which it is sampled and evaluated
        checkpoint.save_hf(workdir / "models" / name, lm.model.config, params, lm.tokenizer.path)
    sets = {"test": test, "train": pool[: config.eval.train_problems]}
    evaluate_all(run, policies, {which: some for which, some in sets.items() if some}, results)
    results["drift"], results["tokens"]["drift"] = drift(run, policies, guided_traces, wrong)
    results["programs"] = len(engine.programs)
    results["wall_s"] = stage_seconds(work)
    results = report.plain(results)
    if processes.first():
        report.write_results(workdir / "results.json", results)
        report.write_html(workdir / "report.html", results, examples)
    return results


def stop(results: dict, name: str, why: str, said: str, **more) -> None:
    """Note that a policy was not made, "diverged" or "skipped", and say it."""
    results["stopped"][name] = {"why": why, **more}
    note(results, said)


def note(results: dict, said: str) -> None:
    """Note something that did not go as planned, and say it."""
    results["notes"].append(said)
    show(f"\n{said}\n")


def start_from_int(run: Run, fine: list, policies: dict, results: dict) -> None:
    """Fine-tune on the guided attempts where there are any, and add the policy "int"."""
    if not fine:
        lost = losses_of(results["funnel"])
        said = f"InT made no training data: {lost}; see proposals and guided in {run.work.path}"
        stop(results, "int", "skipped", said)
        return
    trained = fine_tune(run, fine)
    results["tokens"]["sft"] = int(sum(line["tokens"] for line in trained.lines))
    if trained.diverged:
        stop(results, "int", "diverged", **trained.diverged)
    else:
        policies["int"] = trained.state.params  # its moments, twice the memory of the policy, go


def losses_of(funnel: dict) -> str:
    """Where the wrong attempts were lost: "12 of 18 proposals were unparsed, 4 too long, and ..."."""
    if not funnel["wrong"]:
        return "no wrong attempt was kept"
    dropped = [(funnel[name], report.label(name)) for name in proposers.DROPS if funnel[name]]
    said = [f"{count} of {funnel['wrong']} proposals were {name}" for count, name in dropped[:1]]
    said += [f"{count} {name}" for count, name in dropped[1:]]
    if funnel["spliced"]:
        said.append(
            f"no continuation of the {funnel['spliced']} spliced interventions was right in {funnel['guided']} tries"
        )
    return ", ".join(said)


def kept_pool(pool: list, kept_ids: set, results: dict) -> list:
    """The problems kept by the filter; all hard ones where it kept none, so that RL alone still has some."""
    kept = [task for task in pool if task.id in kept_ids]
    if not kept:
        note(
            results,
            f"No problem was kept: RL has all {len(pool)} hard problems, though config.rl.pool = kept",
        )
    return kept or pool


def evaluate_all(run: Run, policies: dict, sets: dict[str, list], results: dict) -> None:
    """pass@k and majority votes of every policy on sets of problems ("test", "train"), and what InT + RL gains.

    A policy that diverged is not evaluated: its numbers are None.
    """
    c = run.config.eval
    results |= {"eval": {}, "eval_train": {}, "counts": {}}
    results["tokens"]["eval"] = 0
    differ, judged = [], 0
    keys = {key: which for key, which in {"eval": "test", "eval_train": "train"}.items() if which in sets}
    for name, params in policies.items():
        found, voted, unlike, tokens = evaluate(run, name, params, sets)
        results["tokens"]["eval"] += tokens
        differ += unlike
        results["counts"][name] = found
        for key, which in keys.items():
            samples = sum(n for n, _ in found[which])
            judged += samples
            results[key][name] = estimates.summarize(found[which], c.ks) | {
                f"maj@{c.samples}": estimates.maj_at_n(voted[which], samples)
            }
    diverged = [name for name, how in results["stopped"].items() if how["why"] == "diverged"]
    for key, which in keys.items():
        unknown = {"mean": None, "ci95": [None, None], "problems": len(sets[which]), "samples": 0}
        results[key] |= {name: dict.fromkeys(results[key]["base"], unknown) for name in diverged}
    held_out = {name: found["test"] for name, found in results["counts"].items()}
    results["gain"] = {
        f"int_rl - {name}": gain(held_out.get("int_rl"), held_out.get(name), c.ks)
        for name in BASELINES
        if {"int_rl", name} <= results["eval"].keys()
    }
    if run.domain.graders:
        results["graders"] = {
            "decides": run.domain.graders[0],
            "responses": judged,
            "differ": len(differ),
            "examples": differ[:50],
        }


def gain(ours: list | None, theirs: list | None, ks: tuple) -> dict:
    """estimates.gain; its numbers are None where one of the two policies diverged."""
    if ours and theirs:
        return estimates.gain(ours, theirs, ks)
    problems = len(ours or theirs or ())
    return {f"pass@{k}": {"mean": None, "ci95": [None, None], "problems": problems} for k in ks}


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
    drops = [row["drop"] for row in rows]
    usable = [i for i, one in enumerate(found) if one is not None]
    patched = method.patched(run.domain, [wrong[i] for i in usable], [found[i] for i in usable])
    results["tokens"]["propose"] = int(counts.get("tokens", 0))
    for i, trace in zip(usable, patched, strict=True):
        if too_long(run, trace):
            drops[i] = "too_long"
    fits = [not drops[i] for i in usable]
    guided_rows, guided_counts = guide(run, patched, fits)
    usable, patched = list(compress(usable, fits)), list(compress(patched, fits))
    kept = [types.trace_from_json(row["trace"]) for row in guided_rows if row["successes"]]
    kept_ids = {trace.task.id for trace in kept}
    results["tokens"]["guided"] = int(guided_counts.get("tokens", 0))
    lost = {name: drops.count(name) for name in proposers.DROPS}
    none = sum(lost[name] for name in ("unparsed", "not_located", "too_long"))
    results["funnel"] |= {"proposed": len(wrong) - none, **lost}
    results["funnel"] |= {
        "spliced": len(patched),
        "guided": sum(row["tries"] for row in guided_rows),
        "kept": len(kept),
        "problems_kept": len(kept_ids),
    }
    results["proposers"] = compare(run, wrong, {c.proposals.proposer: found})
    if run.domain.oracle:
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
        example(run, wrong[i], rows[i], outcomes.get(i) or drops[i].replace("_", " "), shown.get(i, []))
        for i in range(min(60, len(wrong)))
    ]
    return (kept if c.sft.filtered else patched), patched, examples, kept_ids


def too_long(run: Run, trace) -> bool:
    """Whether a guided attempt does not fit into a row of training, or leaves the model no position to go on."""
    trained = len(trace.tokens) + run.config.sft.end_of_turn
    return trained > run.config.train.row_length or len(trace.tokens) >= run.engine.max_len


def compare(run: Run, wrong: list, known: dict) -> dict:
    """Exact-location accuracy of each proposer on the model's own failed attempts; reported, never used to filter."""
    c = run.config.proposals
    some = wrong[: c.compare_attempts]
    if not some or not run.domain.oracle:
        return {}
    truth = [run.domain.first_error(trace) for trace in some]
    for name in c.compare:
        rows, _ = propose(run, name, some, f"compare_{modules.file_stem(name)}")
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
    if "likelihood_ratio" in table:
        model = run.checker or run
        params = run.checker.params if run.checker else run.decoding
        every = likelihood_ratio.all_falls(model.engine, params, run.domain, some)
        table["likelihood_ratio"]["curve"] = likelihood_ratio.curve(every, truth)
    return table


def example(run: Run, trace, row: dict, outcome: str, shown: list) -> report.Example:
    """A wrong attempt for the report. row: its proposal; one from a file of the user's own need not name candidates."""
    one = row["intervention"] and types.intervention_from_json(row["intervention"])
    pieces = run.domain.tokenizer.pieces(trace.response)
    ends = [end - trace.prompt_len for end in trace.step_ends]
    attempt_shown = report.Attempt(pieces, trace.logp[trace.prompt_len :].tolist(), ends)
    truth = run.domain.first_error(trace)
    located = one.step if one else None
    continuations, tried = [tuple(s) for s in shown], row.get("candidates", [])
    return report.Example(trace.task, attempt_shown, located, truth, one, outcome, continuations, tried)


def reinforce_all(run: Run, policies: dict, pool: list, results: dict) -> dict:
    """RL from InT's checkpoint and from the base model: with the same RL tokens, then with InT's data tokens added. An
    arm without its start is skipped; without InT + RL to be compared with, RL alone has `rl.updates`."""
    c = run.config.rl
    tx = optimizer(c, c.learning_rate)
    made, curves, budget = {}, {}, None

    def arm(name: str, params, enough, planned: int, start=None):
        trained = reinforce(run, name, params, pool, enough, planned, tx, start)
        curves[name] = [*curves.get("rl", ()), *trained.lines] if name == "rl_matched" else trained.lines
        if trained.diverged:
            stop(results, name, "diverged", **trained.diverged)
        return trained.state

    def whole(step, tokens):
        return step >= c.updates

    if "int_rl" in run.config.arms and "int" not in policies:
        stop(results, "int_rl", "skipped", "InT + RL was skipped: it starts from InT, which was not made")
    elif "int_rl" in run.config.arms:
        if state := arm("int_rl", policies["int"], whole, c.updates):
            made["int_rl"] = state.params
            budget = sum(line["tokens"] for line in curves["int_rl"])
        del state
    if "rl" in run.config.arms:
        state = arm(
            "rl", run.base, whole if budget is None else lambda step, tokens: tokens >= budget, c.updates
        )
        if state:
            made["rl"] = jax.tree.map(lambda x: x.copy(), state.params)
        if c.matched and state and budget is not None:
            spent = results["tokens"]
            more = sum(spent[name] for name in ("attempts", "propose", "guided", "sft"))
            planned = round(more / max(1.0, budget / c.updates))
            state = arm("rl_matched", run.base, lambda step, tokens: tokens >= more, planned, state)
            if state:
                made["rl_matched"] = state.params
        elif c.matched and "int_rl" in run.config.arms:
            why = "it goes on from RL" if budget is not None else "there is no InT + RL whose tokens to match"
            stop(results, "rl_matched", "skipped", f"RL matched was skipped: {why}")
    names = ("reward", "zero_advantage", "never", "sometimes", "always", "length", "logp_gap")
    results["rl"] = {
        arm: {name: [line[name] for line in lines] for name in names} for arm, lines in curves.items()
    }
    results["tokens"]["rl"] = int(sum(line["tokens"] for lines in curves.values() for line in lines))
    return made


def across_seeds(every: list[dict], k: int) -> dict:
    """pass@1 and pass@k on the held-out problems over all seeds: each policy, and InT + RL's gain over RL alone. Where
    a seed has no such policy the mean is None: that of the others would hide it."""
    out: dict = {}
    arms = list(dict.fromkeys(arm for r in every for arm in r["counts"]))
    stopped = {arm: how["why"] for r in every for arm, how in r.get("stopped", {}).items()}
    for kk in (1, k):
        rates = {arm: [_rates(r["counts"].get(arm), kk) for r in every] for arm in arms}
        for baseline in BASELINES:
            if {"int_rl", baseline} <= rates.keys():
                pairs = zip(rates["int_rl"], rates[baseline], strict=True)
                rates[f"int_rl - {baseline}"] = [
                    None if a is None or b is None else np.subtract(a, b) for a, b in pairs
                ]
        out[f"pass@{kk}"] = {name: _over_seeds(values) for name, values in rates.items()}
        for name, row in out[f"pass@{kk}"].items():
            if row["mean"] is None:
                row["stopped"] = next(stopped[arm] for arm in name.split(" - ") if arm in stopped)
    return out


def _rates(counts: dict | None, k: int) -> list[float] | None:
    return counts and [estimates.pass_at_k(n, c, k) for n, c in counts["test"]]


def _over_seeds(values: list) -> dict:
    if all(rates is not None for rates in values):
        return estimates.seeds_ci(values)
    seeds = [None if rates is None else float(np.mean(rates)) for rates in values]
    return {"mean": None, "ci95": [None, None], "seeds": seeds}


def models(config: ConfigDict):
    """The policy, and the proposer's model or None, once config and memory plan have been looked through."""
    check(config)
    mesh = make_mesh(config.mesh.data, config.mesh.model)
    show(planned(config, mesh))

    def loaded(name: str, param_dtype: str | None, chat: ConfigDict, family: str = ""):
        lm = int_jax.load(name, mesh, config.dtype, param_dtype, chat.to_dict(), family)
        return dataclasses.replace(lm, engine=Engine(lm.model, mesh, config.slots, config.chunk))

    lm = loaded(config.model, config.param_dtype, config.chat, config.family)
    domains.load(config.domain.name, lm.tokenizer, **config.domain.knobs.to_dict())
    other = config.proposals.model
    return lm, loaded(other, None, config.proposals.chat) if other else None


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        config = CONFIG.value
    except OSError as error:
        raise StageError(str(error)) from None
    if config is None or WORKDIR.value is None:
        raise StageError("give --config experiments/configs/int.py:tiny and --workdir runs/demo")
    if DISTRIBUTED.value:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    start = time.perf_counter()
    try:
        lm, checker = models(config)
    except ValueError as error:
        raise StageError(str(error)) from None
    workdir = Path(WORKDIR.value)
    every = []
    for seed in config.seeds:
        folder = workdir if len(config.seeds) == 1 else workdir / f"seed{seed}"
        every.append(run_seed(config, seed, folder, lm, checker))
        show("\n" + report.tables(every[-1]))
    if len(every) > 1:
        summary = across_seeds(every, config.eval.ks[-1])
        if processes.first():
            report.write_results(workdir / "seeds.json", summary)
        show("\n" + report.seeds_table(summary))
    show(
        f"\n{every[-1]['programs']} compiled programs · {time.perf_counter() - start:.0f} s · {folder / 'report.html'}"
    )


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse)
    except (StageError, FileNotFoundError) as error:
        sys.exit(f"\nint_jax: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"\nint_jax: {error}")
