"""Policies on sets of problems: pass@k, majority votes, what InT + RL gains, and where the domain's graders differ.

    python experiments/evaluate.py --config experiments/configs/int.py:tiny --model DIRECTORY --workdir runs/scored

scores any model alone on the held-out problems of a config, as a run scores its policies: the same problems, the same
random numbers, the same estimates. Its samples are kept in the workdir, and the numbers in evaluation_NAME.json there;
--policy gives NAME. The workdir may be that of a run with the same config: which problems are hard is then known.
"""

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # as run.py
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.92")

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments import arms, build
from experiments.command_line import define_config, parse
from experiments.preflight import check_lengths
from experiments.problems import problems
from experiments.progress import show
from experiments.store import WorkdirStore
from int_jax import disk, domains, estimates, privileged, processes, report, rollout
from int_jax.domains import Domain
from int_jax.lab import Lab
from int_jax.lm import LM, directory
from int_jax.rows import EvalRow, Stage
from int_jax.sampler import Sampler, Sampling, independent
from int_jax.sharding import make_mesh
from int_jax.stages import StageError, digest, told_if_full
from int_jax.types import Task, Trace
from int_jax.verify import MAX_CHARS

OURS = "int_rl"  # what the baselines are compared with


def held_out(config: ConfigDict, lab: Lab, test: list[Task]) -> list[Task]:
    """The problems to evaluate on: those that no attempt solves, where the config asks for hard ones."""
    if "test" not in config.problems.hard:
        return test
    stage = Stage("attempts_held_out")  # whose attempts themselves serve nothing
    hard = [row.task for row in lab.attempts(test, stage, keep=0, keep_right=0) if not row.correct]
    if not hard:
        raise StageError(
            f"no hard problem is left to evaluate on: none of {len(test)} held out has no right try in "
            f"{config.attempts.tries}; take harder problems or fewer tries"
        )
    return hard


def sets(config: ConfigDict, lab: Lab, test: list[Task]) -> dict[str, list[Task]]:
    """What the policies of a run are scored on: problems held out, and some of those that they were trained on."""
    every = {"test": test, "train": lab.pool()[: config.eval.train_problems]}
    return {name: tasks for name, tasks in every.items() if tasks}


def policy_rows(
    lab: Lab, name: str, sets: dict[str, list[Task]], samples: int, sampling: Sampling, shard: int
) -> list[EvalRow]:
    """A row for each problem of each set, under one policy. shard: problems of each set that are stored together."""
    items = [(which, task) for which, tasks in sets.items() for task in tasks]
    decoding = lab.decoding(lab.policies[name])

    def work(sampler, part, progress):
        groups = rollout.continue_traces(
            sampler,
            decoding,
            lab.domain,
            [rollout.open_trace(lab.domain, task) for _, task in part],
            samples,
            sampling,
            rollout.Stream("eval"),
            progress=progress,
        )
        privileged.refuse((trace for group in groups for trace in group), "evaluation")
        return [
            EvalRow(
                which,
                task.id,
                len(group),
                sum(trace.judged.passed for trace in group),
                votes(lab.domain, group),
                differing(lab.domain, group) if lab.domain.graders else (),
                tuple(float(trace.judged.score) for trace in group) if lab.domain.graded else (),
                means([lab.domain.measures(trace) for trace in group]),
            )
            for (which, task), group in zip(part, groups, strict=True)
        ]

    return lab.stage(Stage("eval", name), items, work, samples, shard * len(sets))


def validation(
    lab: Lab, tasks: list[Task], samples: int, sampling: Sampling
) -> Callable[[Sampler, Any], dict[str, float]]:
    """What a policy is scored by while it trains: a function of what draws and of its parameters, to scalars by their
    tags.

    It draws from streams of its own, the same ones each time: it changes nothing of the training, and two policies, or
    two updates, differ by what they say and not by luck.
    """
    prompts = [rollout.open_trace(lab.domain, task) for task in tasks]
    stream = rollout.Stream("validation")

    def score(sampler, params) -> dict[str, float]:
        decoding = sampler.decode_params(params)

        def counts_of(part: list[Trace]) -> list[tuple[int, int, int]]:
            """(samples, right ones, tokens drawn) from each prompt."""
            groups = rollout.continue_traces(sampler, decoding, lab.domain, part, samples, sampling, stream)
            privileged.refuse((trace for group in groups for trace in group), "validation")
            return [
                (
                    len(group),
                    sum(trace.judged.passed for trace in group),
                    sum(int(trace.sampled.sum()) for trace in group),
                )
                for group in groups
            ]

        counts = processes.deal(prompts, counts_of, tuple[int, int, int], independent(sampler))
        found = estimates.summarize([(drawn, right) for drawn, right, _ in counts], (1,))["pass@1"]
        low, high = found["ci95"]
        drawn = sum(tokens for *_, tokens in counts)
        told = {
            "pass_at_1": found["mean"],
            "pass_at_1_low": low,
            "pass_at_1_high": high,
            "tokens": float(drawn),
        }
        return {f"validation/{name}": value for name, value in told.items()}

    return score


def votes(domain: Domain, traces: list) -> tuple[estimates.Vote, ...]:
    """How many of a problem's responses give each answer, and whether it is right. Answers longer than MAX_CHARS, which
    no grader reads, do not vote."""
    found: dict[str, list] = {}
    for trace in traces:
        answer = domain.answer(trace)
        if answer and answer.strip() and len(answer) <= MAX_CHARS:
            vote = found.setdefault(" ".join(answer.split()), [0, trace.judged.passed])
            vote[0] += 1
    return tuple((answer, count, right) for answer, (count, right) in found.items())


def differing(domain: Domain, traces: list) -> tuple[dict[str, str], ...]:
    """The responses on which the domain's graders differ, and what each says."""
    return tuple(
        {"answer": d.answer, "gold": d.gold, "strict": d.strict.reason, "tolerant": d.tolerant.reason}
        for d in domain.disagreements(traces)[1]
    )


def evaluate(
    lab: Lab,
    sets: dict[str, list[Task]],
    samples: int,
    ks: tuple[int, ...],
    sampling: Sampling,
    shard: int,
    diverged: list[str],
    baselines: list[str],
) -> dict:
    """Every policy of a lab on sets of problems: "test", and perhaps "train".

    Args:
      diverged: policies that are not evaluated: their numbers are None. baselines: what InT + RL is compared with.

    Returns: {"eval", "eval_train", "counts", "gain"}, "scores" where the domain grades, "graders" where it has two.
    """
    out: dict = {"eval": {}, "eval_train": {}, "counts": {}}
    if lab.domain.graded:
        out["scores"] = {}
    keys = {key: which for key, which in {"eval": "test", "eval_train": "train"}.items() if which in sets}
    every: list[EvalRow] = []
    for name in lab.policies:
        rows = policy_rows(lab, name, sets, samples, sampling, shard)
        every += rows
        of_set = {which: [row for row in rows if row.set == which] for which in sets}
        found = {which: [(row.samples, row.correct) for row in some] for which, some in of_set.items()}
        out["counts"][name] = found
        if measured := means([row.measures for row in of_set.get("test", [])]):
            out.setdefault("measures", {})[name] = measured
        if lab.domain.graded:
            out["scores"][name] = {
                which: [float(np.mean(row.scores)) for row in some] for which, some in of_set.items()
            }
        for key, which in keys.items():
            drawn = sum(row.samples for row in of_set[which])
            out[key][name] = estimates.summarize(found[which], ks) | {
                f"maj@{samples}": estimates.maj_at_n([row.votes for row in of_set[which]], drawn)
            }
            if lab.domain.graded:
                out[key][name]["score"] = mean_score(out["scores"][name][which]) | {"samples": drawn}
    for key, which in keys.items():
        unknown = {"mean": None, "ci95": [None, None], "problems": len(sets[which]), "samples": 0}
        out[key] |= {name: dict.fromkeys(out[key]["base"], unknown) for name in diverged}
    held_out = {name: found["test"] for name, found in out["counts"].items()}
    out["gain"] = {
        f"{OURS} - {name}": gain(held_out.get(OURS), held_out.get(name), ks)
        for name in baselines
        if {OURS, name} <= out["eval"].keys()
    }
    for name, row in out["gain"].items() if lab.domain.graded else ():
        ours, theirs = (
            out["scores"].get(one, {}).get("test") for one in (OURS, name.removeprefix(f"{OURS} - "))
        )
        if ours and theirs:
            row["score"] = mean_score(np.subtract(ours, theirs).tolist())
    if lab.domain.graders:
        differ = [one for row in every for one in row.differ]
        out["graders"] = {
            "decides": lab.domain.graders[0],
            "responses": sum(row.samples for row in every),
            "differ": len(differ),
            "examples": differ[:50],
        }
    return out


def means(found: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each number over those that have it; None where none has."""
    known = {
        name: [value for one in found if (value := one.get(name)) is not None]
        for name in dict.fromkeys(name for one in found for name in one)
    }
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def mean_score(means: list[float]) -> dict:
    """The mean of a number of each problem; its interval is over problems, as those of pass@k."""
    return {
        "mean": float(np.mean(means)),
        "ci95": list(estimates.bootstrap_ci(means)),
        "problems": len(means),
    }


def gain(ours: list | None, theirs: list | None, ks: tuple) -> dict:
    """estimates.gain; its numbers are None where one of the two policies diverged."""
    if ours and theirs:
        return estimates.gain(ours, theirs, ks)
    problems = len(ours or theirs or ())
    return {f"pass@{k}": {"mean": None, "ci95": [None, None], "problems": problems} for k in ks}


def across_seeds(every: list[dict], k: int, baselines: list[str]) -> dict:
    """pass@1, pass@k and the score of domains that grade, on the held-out problems over all seeds: each policy, and
    InT + RL's gain over the baselines.
    Where a seed has no such policy the mean is None: that of the others would hide it."""
    out: dict = {}
    names = list(dict.fromkeys(name for r in every for name in r["counts"]))
    stopped = {name: how["why"] for r in every for name, how in r.get("stopped", {}).items()}
    metrics: dict[str, Callable[[dict, str], list[float] | None]] = {
        f"pass@{kk}": functools.partial(_rates, k=kk) for kk in (1, k)
    }
    if all("scores" in r for r in every):
        metrics = {"score": lambda r, name: r["scores"].get(name, {}).get("test"), **metrics}
    for metric, numbers in metrics.items():
        rates: dict[str, list] = {name: [numbers(r, name) for r in every] for name in names}
        for baseline in baselines:
            if {OURS, baseline} <= rates.keys():
                pairs = zip(rates[OURS], rates[baseline], strict=True)
                rates[f"{OURS} - {baseline}"] = [
                    None if a is None or b is None else np.subtract(a, b) for a, b in pairs
                ]
        out[metric] = {name: _over_seeds(values) for name, values in rates.items()}
        for name, row in out[metric].items():
            if row["mean"] is None:
                row["stopped"] = next(stopped[one] for one in name.split(" - ") if one in stopped)
    return out


def _rates(results: dict, name: str, k: int) -> list[float] | None:
    counts = results["counts"].get(name)
    return None if counts is None else [estimates.pass_at_k(n, c, k) for n, c in counts["test"]]


def _over_seeds(values: list) -> dict:
    if all(rates is not None for rates in values):
        return estimates.seeds_ci(values)
    seeds = [None if rates is None else float(np.mean(rates)) for rates in values]
    return {"mean": None, "ci95": [None, None], "seeds": seeds}


def alone(config: ConfigDict, model: str, name: str, folder: Path) -> list[dict]:
    """Score a model on the held-out problems of each seed of a config; returns the results that it also writes.

    Args:
      model: a Hugging Face directory or hub id. name: what it is called; "": after its directory.
    """
    try:
        config = build.fitted(config)
        name = name or f"model_{re.sub(r'[^0-9A-Za-z]+', '_', Path(model).resolve().name)}"
        if name in arms.policies(config.arms):
            raise ValueError(
                f"--policy {name}: a run of this config makes a policy of this name; take another"
            )
        mesh = make_mesh(config.mesh.data, config.mesh.model)
        lm = build.loaded(config, mesh, model)
        base = build.loaded(config, mesh, config.model) if "test" in config.problems.hard else None
    except ValueError as error:
        raise StageError(str(error)) from None
    every = [
        alone_seed(
            config, seed, lm, base, model, name, folder if len(config.seeds) == 1 else folder / f"seed{seed}"
        )
        for seed in config.seeds
    ]
    for found in every:
        show("\n" + report.tables(found))
    return every


def alone_seed(
    config: ConfigDict, seed: int, lm: LM, base: LM | None, model: str, name: str, folder: Path
) -> dict:
    """`alone` of one seed. base: the model whose attempts tell which problems are hard, where the config asks."""
    work = build.workdir(config, seed, folder)

    def lab(lm: LM) -> Lab:
        domain = domains.load(config.domain.name, lm.tokenizer, **config.domain.knobs.to_dict())
        return build.lab(config, seed, lm, None, domain, [], WorkdirStore(config, work, lm.engine, seed))

    scored = lab(lm)
    test = problems(config, work, scored.domain, seed).test
    check_lengths(config, scored, test)
    file = folder / f"evaluation_{name}.json"
    weights = {path.name: digest(path) for path in sorted(directory(model).glob("*.safetensors"))}
    known = processes.from_main_process(json.loads(file.read_text()) if file.exists() else None)
    if known and known["weights"] != weights:
        raise StageError(
            f"{file} is of another model, {known['model']}: give another --policy, or another --workdir"
        )
    about = {
        "config": {**config.to_dict(), "seed": seed},
        "seed": seed,
        "versions": build.versions(),
        "policies": [{"name": name, "label": name, "color": "blue", "dash": "", "headline": True}],
        "model": str(model),
        "weights": weights,
    }
    if processes.is_main_process():
        report.write_results(file, about)
    test = held_out(config, lab(base) if base else scored, test)
    scored.policies = {name: lm.params}
    c = config.eval
    sampling = build.sampling(c.sampling, scored.domain, seed)
    results = report.plain(
        about | evaluate(scored, {"test": test}, c.samples, c.ks, sampling, c.shard, [], [])
    )
    if processes.is_main_process():
        report.write_results(file, results)
    return results


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    if CONFIG.value is None or WORKDIR.value is None or MODEL.value is None:
        raise StageError(
            "give --config experiments/configs/int.py:tiny, --model DIRECTORY and --workdir runs/scored"
        )
    workdir = disk.place(WORKDIR.value)
    with told_if_full(workdir):
        alone(CONFIG.value, MODEL.value, POLICY.value, workdir)


if __name__ == "__main__":
    CONFIG = define_config()
    MODEL = flags.DEFINE_string("model", None, "what is scored: a Hugging Face directory or hub id")
    POLICY = flags.DEFINE_string("policy", "", "what it is called; empty: after its directory")
    WORKDIR = flags.DEFINE_string("workdir", None, "where samples and numbers go; reused to resume")
    try:
        app.run(main, flags_parser=parse)
    except (StageError, OSError) as error:
        sys.exit(f"\nint_jax: {error}")
