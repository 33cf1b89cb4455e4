"""Intervention Training from rollouts to policy gradient, as one resumable run.

    python experiments/run.py --config experiments/configs/int.py:tiny --workdir runs/demo

Problems, then the arms (each draws attempts, proposals and continuations and trains, as its module says), then what is
measured: effect, comparison of proposers, evaluation, drift. Every stage leaves its files in the workdir; killed at any
moment, the same command goes on; on SIGTERM a run saves what it has and ends with the code 75. Several hosts run the
same command, each with --distributed. Ends with the tables on the screen; results.json and report.html are there from
the first stage on, rewritten as it goes. Any knob is changed on the command line: --config.rl.updates=100.

Before it, jobs that know nothing of one another may draw the data of the same workdir, each with --share=I/N: each
makes its shards of every stage, and ends with the code 75 where it waits for those of others, else with 0.
"""

import errno
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its old name, which jax takes, too, but not both
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.92")  # of a GPU, in place of jax's 75%

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments import arms, build, shares
from experiments.command_line import define_config, parse
from experiments.diagnose import accuracy, compared, drift, effect, intervention_gains, losses_of
from experiments.evaluate import across_seeds, evaluate, held_out, sets, validation
from experiments.preflight import check_lengths
from experiments.problems import Problems, problems
from experiments.progress import show
from experiments.results import Run
from experiments.store import WorkdirStore
from int_jax import datasets, disk, domains, hf_format, peft_format, preemption, processes, report, rollout
from int_jax.intervention_training import failures
from int_jax.lab import Lab, NoData, Stopped
from int_jax.lm import LM
from int_jax.preemption import EXIT_CODE, Preempted
from int_jax.rows import Stage
from int_jax.sampler import Sampling
from int_jax.stages import Awaited, Share, StageError, refuse_differing_hosts, told_if_full
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
SHARE = flags.DEFINE_string("share", None, "I/N: draw the data's share I of 0 to N - 1, and train nothing")


def opened(
    config: ConfigDict, seed: int, folder: Path, lm: LM, proposer_lm: LM | None, share: Share | None = None
) -> tuple[Lab, WorkdirStore, Problems]:
    """The lab of one seed and its problems, once it has been seen that the model can draw at them."""
    work = build.workdir(config, seed, folder, share)
    domain = domains.load(config.domain.name, lm.tokenizer, **config.domain.knobs.to_dict())
    store = WorkdirStore(config, work, lm.engine, seed)
    found = problems(config, work, domain, seed)
    lab = build.lab(config, seed, lm, proposer_lm, domain, found.train, store)
    check_lengths(config, lab, found.test + found.validation)
    for task in (found.train + found.test)[:1]:
        store.check_sound(lab.decoding(), rollout.open_trace(domain, task).tokens.tolist())
    return lab, store, found


def share_seed(
    config: ConfigDict, seed: int, folder: Path, lm: LM, proposer_lm: LM | None, share: Share
) -> list[str]:
    """One job's share of the data of one seed; returns what the rest of it waits for (`shares.make`)."""
    lab, _, found = opened(config, seed, folder, lm, proposer_lm, share)
    drawn = build.sampling(config.eval.sampling, lab.domain, seed)
    return shares.make(config, lab, found.test, drawn)


def run_seed(config: ConfigDict, seed: int, folder: Path, lm: LM, proposer_lm: LM | None) -> dict:
    """All stages with one seed; returns the results that it also writes. `proposer_lm`: None for the policy itself."""
    lab, store, (train, test, validated) = opened(config, seed, folder, lm, proposer_lm)
    run = Run(config, seed, folder, lab, store)
    store.changed = run.write
    drawn = build.sampling(config.eval.sampling, lab.domain, seed)
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
        params = lab.decoding(lab.policies[name])  # in the dtype in which it is sampled and evaluated
        hf_format.save(folder / "models" / name, lm.model.config, params, lm.tokenizer.path)
        if config.lora.rank:
            peft_format.save(folder / "adapters" / name, lm.model.config, lab.policies[name], config.model)
    run.measured |= score(config, lab, test, run.stopped, drawn)
    wrong = failures(lab.rows.get(Stage("attempts"), []), lab.unsolved)
    spliced = [trace for _, _, trace in run.found.continued()] if run.intervenes else []
    c = config.drift
    run.measured["drift"] = drift(lab, spliced[: c.guided], wrong[: c.attempts])
    return run.write(finished=True)


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
                funnel = {"wrong": len(run.found.wrong), **run.found.funnel()}
                lost = losses_of(funnel, lab.filter == "gain")
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
    others = {name: build.proposer(run.config, name) for name in p.compare}
    rows = compared(run.lab, run.found, p.proposer, others, p.compare_attempts)
    run.measured["proposers"] = accuracy(run.lab, run.found, rows)
    rows.pop("likelihood_ratio", None)  # what it writes is the model's, as the run's own proposer's is
    run.measured["intervention_gain"] = intervention_gains(run.lab, run.found, rows, run.config.gain.attempts)


def score(config: ConfigDict, lab: Lab, test: list[Task], stopped: dict[str, dict], drawn: Sampling) -> dict:
    """All policies on the held-out problems, and on some of those that they were trained on."""
    c = config.eval
    return evaluate(
        lab,
        sets(config, lab, test),
        c.samples,
        c.ks,
        drawn,
        c.shard,
        [name for name, how in stopped.items() if how["why"] == "diverged"],
        arms.baselines(config.arms),
    )


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    share = None if SHARE.value is None else Share.parse(SHARE.value)
    try:
        config = CONFIG.value
    except OSError as error:
        raise StageError(str(error)) from None
    if config is None or WORKDIR.value is None:
        raise StageError("give --config experiments/configs/int.py:tiny and --workdir runs/demo")
    workdir = disk.place(WORKDIR.value)
    if DISTRIBUTED.value:
        processes.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        refuse_differing_hosts(config.to_dict(), build.versions(), share)
    start = time.perf_counter()
    try:
        config = build.fitted(config)
        lm, proposer_lm = build.models(config)
    except ValueError as error:
        raise StageError(str(error)) from None
    folders = {seed: workdir if len(config.seeds) == 1 else workdir / f"seed{seed}" for seed in config.seeds}
    if share:
        models = lm, proposer_lm
        with told_if_full(workdir):
            every_awaited = {
                folder: share_seed(config, seed, folder, *models, share) for seed, folder in folders.items()
            }
        if said := [f"{folder}/{text}" for folder, texts in every_awaited.items() for text in texts]:
            raise Awaited(
                f"share {share} waits for other shares:\n  " + "\n  ".join(said) + "\n"
                "Run the same command again when they are there: it goes on from them"
            )
        return show(f"\nshare {share} is made; a run without --share trains on all of them")
    every = []
    for seed, folder in folders.items():
        with told_if_full(folder):
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
    preemption.listen()
    try:
        app.run(main, flags_parser=parse)
    except (StageError, FileNotFoundError) as error:
        sys.exit(f"\nint_jax: {error}")
    except (Preempted, Awaited) as error:
        show(f"\nint_jax: {error}")
        sys.exit(EXIT_CODE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"\nint_jax: {error}")
