"""Which problems a run has, to train on and held out."""

from ml_collections import ConfigDict

from experiments import arms
from experiments.progress import show
from int_jax import datasets, processes
from int_jax.datasets import entry
from int_jax.domains import Domain
from int_jax.stages import StageError, Workdir, stage_files
from int_jax.types import Task


def problems(config: ConfigDict, work: Workdir, domain: Domain, seed: int) -> tuple[list[Task], list[Task]]:
    """The problems to train on and the held-out ones, from files or the domain's own; none is in both.

    A run that enters behind given attempts has theirs, and the attempts and interventions become its stages' rows.
    """
    c, p = config, config.problems
    train_source = (c.enter.source, c.enter.split) if c.enter.source else (p.train_file, p.train_file_split)
    test_source = (p.test_file, p.test_file_split)
    if train_source[0] and test_source[0]:
        datasets.apart(train_source, test_source)
    work.pin(outside(c, train_source, test_source))
    needs = ("reference_solution",) if "proposals" in arms.stages(c.arms) else ()
    test = given(c, domain, seed, p.test_split, p.test, p.test_file, p.test_file_split)
    if not c.enter.source:
        train = given(c, domain, seed, "hard_train", p.train, p.train_file, p.train_file_split, needs)
        return datasets.disjoint(train, test, p.skip_bad), test
    read = datasets.read(
        c.enter.source, domain.name, c.enter.split, p.skip_bad, ("incorrect_attempt", *needs)
    )
    train = datasets.disjoint(read.tasks, test, p.skip_bad)
    kept = {task.id for task in train}
    stages, counts = entry.stage_rows(
        [row for row in read.rows if row.task.id in kept], domain, c.enter.filtered, "train" in p.hard
    )
    for stage in stages:
        if c.inputs.get(stage):
            raise StageError(
                f"config.inputs.{stage} and config.enter.source both give the rows of the stage {stage}; give one"
            )
    folder = work.path / "entry"
    if processes.is_main_process():
        entry.write_stages(stages, folder)
    processes.barrier("the entered stages are written")
    work.inputs |= {stage: str(folder / f"{stage}.jsonl") for stage in stages}
    show(read.report, ", ".join(f"{count} {name}" for name, count in counts.items() if count), sep="\n")
    return train, test


def outside(c: ConfigDict, train_source: tuple, test_source: tuple) -> dict[str, list]:
    """The files of the user's own that this run reads its data from, by the knob that names them."""
    train_knob = "enter.source" if c.enter.source else "problems.train_file"
    sources = {train_knob: train_source, "problems.test_file": test_source}
    files = {knob: datasets.on_disk(*source) for knob, source in sources.items() if source[0]}
    return files | {f"inputs.{stage}": stage_files(source) for stage, source in c.inputs.items() if source}


def given(
    c: ConfigDict,
    domain,
    seed: int,
    split: str,
    count: int,
    source: str,
    source_split: str,
    needs: tuple = (),
) -> list[Task]:
    """Up to `count` problems of a source, or of the domain's own split where there is none."""
    if not source:
        return domain.tasks(split, seed, count)
    read = datasets.read(source, domain.name, source_split, c.problems.skip_bad, needs)
    show(read.report)
    # Before anything is drawn: the domain refuses a problem that is one of its worked examples.
    for task in read.tasks[:count]:
        domain.view(task, [], "solver")
    return read.tasks[:count]
