"""Intervention Training from rollouts to policy gradient, as one resumable run.

    python experiments/run.py --config experiments/configs/int.py:tiny --workdir runs/demo

Problems, then the arms (each draws attempts, proposals and continuations and trains, as its module says), then what is
measured: effect, comparison of proposers, evaluation, drift. Every stage leaves its files in the workdir; killed at any
moment, the same command goes on. Several hosts run the same command, each with --distributed. Ends with results.json,
report.html and the tables on the screen. Any knob can be changed on the command line: --config.rl.updates=100.
"""

import errno
import importlib.metadata
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments import arms, build
from experiments.command_line import define_config, parse
from experiments.diagnose import Interventions, attempts_funnel, compare, drift, effect, losses_of
from experiments.evaluate import across_seeds, evaluate
from experiments.preflight import check_lengths
from experiments.problems import problems
from experiments.progress import show
from experiments.store import WorkdirStore
from int_jax import datasets, domains, hf_format, processes, report, rollout
from int_jax.intervention_training import failures
from int_jax.lab import Lab, NoData, Stopped
from int_jax.lm import LM
from int_jax.rows import AttemptRow, Stage
from int_jax.stages import StageError, Workdir
from int_jax.types import Task

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


CURVES = ("reward", "zero_advantage", "never", "sometimes", "always", "length", "logp_gap")


def run_seed(config: ConfigDict, seed: int, folder: Path, lm: LM, proposer_lm: LM | None) -> dict:
    """All stages with one seed; returns the results that it also writes. `proposer_lm`: None for the policy itself."""
    plain = {**config.to_dict(), "seed": seed}
    work = Workdir(folder, plain, versions())
    domain = domains.load(config.domain.name, lm.tokenizer, **config.domain.knobs.to_dict())
    store = WorkdirStore(config, work, lm.engine, seed)
    train, test = problems(config, work, domain, seed)
    lab = build.lab(config, seed, lm, proposer_lm, domain, train, store)
    check_lengths(config, lab, test)
    check_sound(config, lab, store, (train + test)[:1])
    test = held_out(config, lab, test)
    hard = lab.hard()
    datasets.disjoint(hard, test)  # whatever file the attempts came from

    stopped: dict[str, dict] = {}
    spent: dict[str, dict] = {}
    measured: dict = {}
    found = None
    if hard:
        stopped, spent = train_arms(lab, config.arms, folder)
        if Stage("guided") in lab.rows:
            found = Interventions(lab)
            measured = measure(config, lab, found)
    else:
        said = f"Nothing was trained: of {len(train)} training problems each has a right try in {config.attempts.tries}"
        lab.note(f"{said}. Take harder problems or fewer tries")
        stopped = {name: {"why": "skipped"} for name in arms.policies(config.arms) if name != "base"}
    for name in {*config.export} & lab.policies.keys():
        params = lab.engine.decode_params(
            lab.policies[name]
        )  # in the dtype in which it is sampled and evaluated
        hf_format.save(folder / "models" / name, lm.model.config, params, lm.tokenizer.path)
    measured |= score(config, lab, test, stopped)
    rows = lab.rows.get(Stage("attempts")) or [AttemptRow(task, 0, 0) for task in train]
    wrong = failures(rows, lab.unsolved)
    funnel = attempts_funnel(rows, wrong, lab.unsolved) | (found.funnel() if found else {})
    spliced = [trace for _, _, trace in found.continued()] if found else []
    results = report.plain(
        {
            "config": plain,
            "seed": seed,
            "versions": versions(),
            "policies": arms.shown(config.arms),
            "funnel": funnel,
            **measured,
            "rl": curves(lab),
            "drift": drift(lab, spliced[: config.drift.guided], wrong[: config.drift.attempts]),
            "notes": lab.notes,
            "stopped": stopped,
            "tokens": tokens(lab),
            "spent": spent,
            "programs": len(lab.engine.programs),
            "wall_s": work.wall_s(),
        }
    )
    if processes.is_main_process():
        report.write_results(folder / "results.json", results)
        report.write_html(folder / "report.html", results, found.examples() if found else [])
    return results


def versions() -> dict[str, str]:
    """What the numbers of a run may depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES} | {
        "python": sys.version.split()[0],
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def check_sound(config: ConfigDict, lab: Lab, store: WorkdirStore, tasks: list[Task]) -> None:
    """Refuse a model that cannot be sampled. Raises: StageError."""
    for task in tasks:
        store.probe = tuple(rollout.open_trace(lab.domain, task).tokens.tolist())
    if part := store.unsound(lab.decoding):
        raise StageError(
            f"{config.model}: the {part} of this model are not finite in config.dtype = {config.dtype}; "
            "set config.dtype = float32, or take other weights"
        )


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


def train_arms(lab: Lab, chosen: tuple[str, ...], folder: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Make the policies of all arms.

    Returns: by policy, why those that are missing were not made, and what those that are an arm's last one took.
    """
    spent: dict[str, dict] = {}
    labels = {name: one.label for name, one in arms.policies(chosen).items()}
    stopped: dict[str, dict] = {}
    for arm in arms.ordered(chosen):
        lab.used.clear()
        try:
            arm.train(lab)
            spent |= dict.fromkeys(list(arm.policies)[-1:], lab.spent())
        except Stopped as error:
            said = error.said
            if isinstance(error, NoData) and Stage("guided") in lab.rows:
                found = Interventions(lab)
                lost = losses_of({"wrong": len(found.wrong), **found.funnel()})
                said = f"{labels[error.policy]} made no training data: {lost}; see proposals and guided in {folder}"
            stopped[error.policy] = {"why": error.why, **error.note}
            lab.note(said)
            for name in (name for name in arm.policies if name not in {*lab.policies, *stopped}):
                stopped[name] = {"why": "skipped"}
                lab.note(
                    f"{labels[name]} was skipped: it starts from {labels[error.policy]}, which was not made"
                )
    return stopped, spent


def measure(config: ConfigDict, lab: Lab, found: Interventions) -> dict:
    """What one step is worth, and who finds the first error."""
    c, p = config.effect, config.proposals
    drawn = build.sampling(config.eval.sampling, lab.domain, lab.seed)
    return {
        "effect": effect(lab, found, c.problems, c.samples, drawn),
        "proposers": compare(lab, found, p.proposer, p.compare, p.compare_attempts),
    }


def score(config: ConfigDict, lab: Lab, test: list[Task], stopped: dict[str, dict]) -> dict:
    """All policies on the held-out problems, and on some of those that they were trained on."""
    c = config.eval
    sets = {"test": test, "train": lab.pool()[: c.train_problems]}
    return evaluate(
        lab,
        {name: tasks for name, tasks in sets.items() if tasks},
        c.samples,
        c.ks,
        build.sampling(c.sampling, lab.domain, lab.seed),
        c.shard,
        [name for name, how in stopped.items() if how["why"] == "diverged"],
        arms.baselines(config.arms),
    )


def curves(lab: Lab) -> dict[str, dict[str, list]]:
    """The metrics of every policy gradient, by policy; of one that went on with another, from that one's beginning."""
    found: dict[str, dict[str, list]] = {}
    for trained in lab.trained.values():
        if trained.section == "rl":
            curve = found.setdefault(trained.policy, {key: [] for key in CURVES})
            before = lab.trained[trained.after] if trained.after else None
            lines = (
                [*before.lines, *trained.lines]
                if before and before.policy != trained.policy
                else trained.lines
            )
            for key, values in curve.items():
                values += [line[key] for line in lines]
    return found


def tokens(lab: Lab) -> dict[str, int]:
    """Tokens drawn, and in fine-tuning and drift read, by stage."""
    spent = dict.fromkeys(("attempts", "attempts_held_out"), 0)
    for stage, count in lab.tokens.items():
        spent[stage.kind] = spent.get(stage.kind, 0) + count
    for trained in lab.trained.values():
        spent[trained.section] = spent.get(trained.section, 0) + trained.tokens
    return spent


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
        lm, proposer_lm = build.models(config)
    except ValueError as error:
        raise StageError(str(error)) from None
    workdir = Path(WORKDIR.value)
    every = []
    for seed in config.seeds:
        folder = workdir if len(config.seeds) == 1 else workdir / f"seed{seed}"
        every.append(run_seed(config, seed, folder, lm, proposer_lm))
        show("\n" + report.tables(every[-1]))
    if len(every) > 1:
        summary = across_seeds(every, config.eval.ks[-1], arms.baselines(config.arms))
        if processes.is_main_process():
            report.write_results(workdir / "seeds.json", summary)
        show("\n" + report.seeds_table(summary, report.policies_of(every[-1])))
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
