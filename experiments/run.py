"""Intervention Training from rollouts to policy gradient, as one resumable run.

    python experiments/run.py --config experiments/configs/int.py:tiny --workdir runs/demo

Problems, then the arms (each draws attempts, proposals and continuations and trains, as its module says), then what is
measured: effect, comparison of proposers, evaluation, drift. Every stage leaves its files in the workdir; killed at any
moment, the same command goes on. Several hosts run the same command, each with --distributed. Ends with the tables on
the screen; results.json and report.html are there from the first stage on, rewritten as it goes. Any knob is
changed on the command line: --config.rl.updates=100.
"""

import dataclasses
import errno
import functools
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
from experiments.diagnose import INTERVENED, Interventions, attempts_funnel, compare, drift, effect, losses_of
from experiments.evaluate import across_seeds, evaluate, held_out, validation
from experiments.preflight import check_lengths
from experiments.problems import problems
from experiments.progress import show
from experiments.store import VALIDATED, WorkdirStore
from int_jax import datasets, domains, hf_format, processes, report, rollout
from int_jax.intervention_training import failures
from int_jax.lab import Lab, NoData, Stopped, Trained
from int_jax.lm import LM
from int_jax.rows import AttemptRow, Stage
from int_jax.sampler import Sampling
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
CURVES = ("reward", "zero_advantage", "never", "sometimes", "always", "length", "logp_gap")


@dataclasses.dataclass
class Run:
    """What the run of one seed has come to; `joined` makes its results of it.

    Attributes:
      config, seed, folder: its own. measured: results that are made as a whole, by their keys.
      stopped, spent: by policy, why it was not made, and what it took.
    """

    config: ConfigDict
    seed: int
    folder: Path
    lab: Lab
    store: WorkdirStore
    measured: dict = dataclasses.field(default_factory=dict)
    stopped: dict[str, dict] = dataclasses.field(default_factory=dict)
    spent: dict[str, dict] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def found(self) -> Interventions:
        """Of a run that has made some."""
        return Interventions(self.lab)

    @functools.cached_property
    def examples(self) -> list[report.Example]:
        return self.found.examples()

    @property
    def intervenes(self) -> bool:
        return {*INTERVENED} <= self.lab.rows.keys()

    def write(self, finished: bool = False) -> dict:
        """Write results.json and report.html with all that there is; returns the results."""
        results = joined(self, finished)
        if processes.is_main_process():
            report.write_results(self.folder / "results.json", results)
            report.write_html(self.folder / "report.html", results, self.examples if self.intervenes else [])
        return results


def run_seed(config: ConfigDict, seed: int, folder: Path, lm: LM, proposer_lm: LM | None) -> dict:
    """All stages with one seed; returns the results that it also writes. `proposer_lm`: None for the policy itself."""
    work = Workdir(folder, {**config.to_dict(), "seed": seed}, build.versions())
    domain = domains.load(config.domain.name, lm.tokenizer, **config.domain.knobs.to_dict())
    store = WorkdirStore(config, work, lm.engine, seed)
    train, test, validated = problems(config, work, domain, seed)
    lab = build.lab(config, seed, lm, proposer_lm, domain, train, store)
    check_lengths(config, lab, test + validated)
    check_sound(config, lab, store, (train + test)[:1])
    run = Run(config, seed, folder, lab, store)
    store.changed = run.write
    drawn = build.sampling(config.eval.sampling, domain, seed)
    if validated:
        store.validate = validation(lab, validated, config.validation.samples, drawn)
    test = held_out(config, lab, test)
    hard = lab.hard()
    datasets.disjoint(hard, test + validated)  # whatever file the attempts came from

    if hard:
        train_arms(run)
        if run.intervenes:
            measure(run, drawn)
    else:
        said = f"Nothing was trained: of {len(train)} training problems each has a right try in {config.attempts.tries}"
        lab.note(f"{said}. Take harder problems or fewer tries")
        run.stopped |= {name: {"why": "skipped"} for name in arms.policies(config.arms) if name != "base"}
    for name in {*config.export} & lab.policies.keys():
        params = lab.engine.decode_params(
            lab.policies[name]
        )  # in the dtype in which it is sampled and evaluated
        hf_format.save(folder / "models" / name, lm.model.config, params, lm.tokenizer.path)
    run.measured |= score(config, lab, test, run.stopped, drawn)
    wrong = failures(lab.rows.get(Stage("attempts"), []), lab.unsolved)
    spliced = [trace for _, _, trace in run.found.continued()] if run.intervenes else []
    c = config.drift
    run.measured["drift"] = drift(lab, spliced[: c.guided], wrong[: c.attempts])
    return run.write(finished=True)


def joined(run: Run, finished: bool) -> dict:
    """The results of a run, finished or as far as it came: what was not made yet is not in them. Nothing is drawn,
    scored or trained for them."""
    lab, running = run.lab, run.store.running
    trained = [*lab.trained.values(), *([running] if running else [])]
    return report.plain(
        {
            "config": {**run.config.to_dict(), "seed": run.seed},
            "seed": run.seed,
            "versions": build.versions(),
            "policies": arms.shown(run.config.arms),
            "finished": finished,
            "funnel": funnel(run, finished),
            **run.measured,
            "rl": curves(lab, [one for one in trained if one.section == "rl"], CURVES),
            "validation": validated_curves(lab, trained),
            "notes": lab.notes,
            "stopped": run.stopped,
            "tokens": tokens(lab, trained),
            "spent": run.spent,
            "programs": len(lab.engine.programs),
            "wall_s": run.store.work.wall_s(),
        }
    )


def funnel(run: Run, finished: bool) -> dict[str, int]:
    """Counts from problems to what the filter kept; of a run without attempts, its problems."""
    lab = run.lab
    unattempted = [AttemptRow(task, 0, 0) for task in lab.tasks] if finished else []
    rows = lab.rows.get(Stage("attempts"), unattempted)
    counts = attempts_funnel(rows, failures(rows, lab.unsolved), lab.unsolved) if rows else {}
    return counts | (run.found.funnel() if run.intervenes else {})


def check_sound(config: ConfigDict, lab: Lab, store: WorkdirStore, tasks: list[Task]) -> None:
    """Refuse a model that cannot be sampled. Raises: StageError."""
    for task in tasks:
        store.probe = tuple(rollout.open_trace(lab.domain, task).tokens.tolist())
    if part := store.unsound(lab.decoding):
        raise StageError(
            f"{config.model}: the {part} of this model are not finite in config.dtype = {config.dtype}; "
            "set config.dtype = float32, or take other weights"
        )


def train_arms(run: Run) -> None:
    """Make the policies of all arms, and note why those that are missing were not made, and what an arm's last took."""
    lab, chosen = run.lab, run.config.arms
    labels = {name: one.label for name, one in arms.policies(chosen).items()}
    for arm in arms.ordered(chosen):
        lab.used.clear()
        try:
            arm.train(lab)
            run.spent |= dict.fromkeys(list(arm.policies)[-1:], lab.spent())
        except Stopped as error:
            said = error.said
            if isinstance(error, NoData) and run.intervenes:
                lost = losses_of({"wrong": len(run.found.wrong), **run.found.funnel()})
                said = f"{labels[error.policy]} made no training data: {lost}; see proposals and guided in {run.folder}"
            run.stopped[error.policy] = {"why": error.why, **error.note}
            lab.note(said)
            for name in (name for name in arm.policies if name not in {*lab.policies, *run.stopped}):
                run.stopped[name] = {"why": "skipped"}
                lab.note(
                    f"{labels[name]} was skipped: it starts from {labels[error.policy]}, which was not made"
                )


def measure(run: Run, drawn: Sampling) -> None:
    """What one step is worth, and who finds the first error."""
    c, p = run.config.effect, run.config.proposals
    run.measured["effect"] = effect(run.lab, run.found, c.problems, c.samples, drawn)
    run.measured["proposers"] = compare(run.lab, run.found, p.proposer, p.compare, p.compare_attempts)


def score(config: ConfigDict, lab: Lab, test: list[Task], stopped: dict[str, dict], drawn: Sampling) -> dict:
    """All policies on the held-out problems, and on some of those that they were trained on."""
    c = config.eval
    sets = {"test": test, "train": lab.pool()[: c.train_problems]}
    return evaluate(
        lab,
        {name: tasks for name, tasks in sets.items() if tasks},
        c.samples,
        c.ks,
        drawn,
        c.shard,
        [name for name, how in stopped.items() if how["why"] == "diverged"],
        arms.baselines(config.arms),
    )


def lines_of(lab: Lab, trained: Trained) -> list[dict]:
    """The metrics of a training's batches; of one that went on with another policy's, from that one's beginning."""
    before = lab.trained[trained.after] if trained.after else None
    return [*(before.lines if before and before.policy != trained.policy else ()), *trained.lines]


def curves(lab: Lab, trained: list[Trained], keys: tuple[str, ...]) -> dict[str, dict[str, list]]:
    """Metrics of trainings by policy, a value a batch."""
    found: dict[str, dict[str, list]] = {}
    for one in trained:
        curve = found.setdefault(one.policy, {key: [] for key in keys})
        for key, values in curve.items():
            values += [line[key] for line in lines_of(lab, one)]
    return found


def validated_curves(lab: Lab, trained: list[Trained]) -> dict[str, dict[str, list]]:
    """pass@1 on the validation problems by policy, with its interval, and after how many batches: "batch"."""
    found: dict[str, dict[str, list]] = {}
    for policy in {one.policy: None for one in trained}:
        every = [line for one in trained if one.policy == policy for line in lines_of(lab, one)]
        at = {batch: line for batch, line in enumerate(every, 1) if VALIDATED in line}
        if at:
            keys = ("pass_at_1", "pass_at_1_low", "pass_at_1_high")
            curve = {key: [line[f"validation/{key}"] for line in at.values()] for key in keys}
            found[policy] = {"batch": [*at], **curve}
    return found


def tokens(lab: Lab, trained: list[Trained]) -> dict[str, int]:
    """Tokens drawn, and in fine-tuning and drift read, by stage."""
    spent = dict.fromkeys(("attempts", "attempts_held_out"), 0)
    for stage, count in lab.tokens.items():
        spent[stage.kind] = spent.get(stage.kind, 0) + count
    for one in trained:
        spent[one.section] = spent.get(one.section, 0) + one.tokens
        if drawn := int(sum(line.get("validation/tokens", 0) for line in one.lines)):
            spent["validation"] = spent.get("validation", 0) + drawn
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
