"""Which problems a run has, to train on and held out."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import arms
from experiments.progress import show
from int_jax import datasets, processes
from int_jax.datasets import entry
from int_jax.domains import Domain
from int_jax.stages import StageError, Workdir, stage_files
from int_jax.types import Task

VALIDATION = 3  # what a stream of random numbers of a seed is for


class Problems(NamedTuple):
    """What a run trains on, what it reports, and what it looks at while it trains; no problem is in two of them."""

    train: list[Task]
    test: list[Task]
    validation: list[Task]


def problems(config: ConfigDict, work: Workdir, domain: Domain, seed: int) -> Problems:
    """The problems of a run, from files or the domain's own.

    A run that enters behind given attempts has theirs, and the attempts and interventions become its stages' rows.
    """
    c, p, v = config, config.problems, config.validation
    train_source = (c.enter.source, c.enter.split) if c.enter.source else (p.train_file, p.train_file_split)
    test_source, validation_source = (p.test_file, p.test_file_split), (v.file, v.file_split)
    datasets.apart(train_source, test_source)
    datasets.apart(train_source, validation_source)
    datasets.apart(validation_source, test_source)
    work.pin(outside(c, train_source, test_source, validation_source))
    needs = ("reference_solution",) if "proposals" in arms.stages(c.arms) else ()
    test = given(c, domain, seed, p.test_split, p.test, p.test_file, p.test_file_split)
    if not c.enter.source:
        train = given(c, domain, seed, "hard_train", p.train, p.train_file, p.train_file_split, needs)
        return divided(c, domain, seed, train, test)
    read = datasets.read(
        c.enter.source, domain.name, c.enter.split, p.skip_bad, ("incorrect_attempt", *needs), domain.faults
    )
    found = divided(c, domain, seed, read.tasks, test)
    kept = {task.id for task in found.train}
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
    return found


def divided(c: ConfigDict, domain: Domain, seed: int, train: list[Task], test: list[Task]) -> Problems:
    """Candidates to train on without those that are held out, and the validation problems: from where they are asked
    for, else of the domain's own or, beside a file to train on, some of its problems. Raises: StageError."""
    skip_bad, v = c.problems.skip_bad, c.validation
    train = datasets.disjoint(train, test, skip_bad)
    if not v.every:
        return Problems(train, test, [])
    if not v.file and (c.problems.train_file or c.enter.source):
        if len(train) <= v.problems:
            raise StageError(
                f"config.validation.problems = {v.problems} of {len(train)} problems leave none to train on: take "
                "fewer, or give config.validation.file"
            )
        order = np.random.default_rng([seed, VALIDATION]).permutation(len(train))
        chosen = {*order[: v.problems].tolist()}
        parts = [
            [task for i, task in enumerate(train) if (i in chosen) == wanted] for wanted in (False, True)
        ]
        return Problems(parts[0], test, parts[1])
    found = given(c, domain, seed, "hard_validation", v.problems, v.file, v.file_split)
    found = datasets.disjoint(found, test, skip_bad, ("validation", "test"))
    if not found:
        raise StageError(f"config.validation.file = {v.file}: every problem of it is in the test set, too")
    return Problems(datasets.disjoint(train, found, skip_bad, ("training", "validation")), test, found)


def outside(
    c: ConfigDict, train_source: tuple, test_source: tuple, validation_source: tuple
) -> dict[str, list]:
    """The files of the user's own that this run reads its data from, by the knob that names them."""
    train_knob = "enter.source" if c.enter.source else "problems.train_file"
    sources = {train_knob: train_source, "problems.test_file": test_source}
    sources["validation.file"] = validation_source
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
    read = datasets.read(source, domain.name, source_split, c.problems.skip_bad, needs, domain.faults)
    show(read.report)
    # Before anything is drawn: the domain refuses a problem that is one of its worked examples.
    for task in read.tasks[:count]:
        domain.view(task, [], "solver")
    return read.tasks[:count]
