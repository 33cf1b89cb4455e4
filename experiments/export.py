"""Writes the InT set of a run, and its problems for a policy gradient, in the formats of other trainers.

    python experiments/export.py --workdir runs/demo --to runs/demo/export

The InT set: the guided attempts that the run's filter kept, with the tokens that the run fine-tuned on. The problems:
those that no attempt solved, or all of them, as the run's policy gradient takes them. docs/export.md says what each
file is, and how it is given to its trainer.
"""

import functools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from int_jax import disk, domains, exports
from int_jax.batching import intervention_weights
from int_jax.domains import Domain
from int_jax.exports import Example
from int_jax.intervention_training import kept
from int_jax.lm import directory
from int_jax.rows import AttemptRow, GuidedRow
from int_jax.stages import StageError, read_jsonl, stage_files
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task, from_json


def config_of(workdir: Path) -> dict:
    """The config of a run, from its manifest."""
    path = workdir / "manifest.json"
    if not path.is_file():
        raise StageError(
            f"{path}: missing: --workdir is the folder of a run (of one seed, where it has several)"
        )
    return json.loads(path.read_text(encoding="utf-8"))["config"]


def rows_of(workdir: Path, config: dict, stage: str, kind: type) -> list:
    """The rows of a stage: its shards in the workdir, or the file of the user's own that the run took them from.

    Raises: StageError where there are none.
    """
    entered, given = workdir / "entry" / f"{stage}.jsonl", config.get("inputs", {}).get(stage)
    source = given or (entered if entered.is_file() else workdir / stage)
    if not given and not source.exists():
        raise StageError(f"{source}: missing: the run has not come to the stage {stage}; finish it first")
    rows = [row for path in stage_files(str(source)) for row in read_jsonl(path) if "counts" not in row]
    return [from_json(kind, row) for row in rows]


def examples(config: dict, domain: Domain, rows: list[GuidedRow]) -> list[Example]:
    """The guided attempts that the run fine-tunes on: kept by its filter, and no longer than a row of training."""
    c = config["sft"]
    end = domain.tokenizer.end_of_turn if c["end_of_turn"] else None
    weigh = functools.partial(intervention_weights, prefix=c["prefix"], intervention=c["intervention"])
    made = [
        exports.example(domain, trace, weigh, end)
        for trace in kept(rows, 1 if c["filter"] == "solves" else 0)
    ]
    return [one for one in made if len(one.tokens) <= config["train"]["row_length"]]


def problems(config: dict, rows: list[AttemptRow], guided: list[GuidedRow]) -> list[Task]:
    """The problems of the run's policy gradient: see `Lab.pool`."""
    hard = [row.task for row in rows if not ("train" in config["problems"]["hard"] and row.correct)]
    ids = {trace.task.id for trace in kept(guided)}
    pool = [task for task in hard if task.id in ids] if config["rl"]["pool"] == "kept" else hard
    return pool or hard


def export(workdir: Path, to: Path, formats: list[str], tokens: bool = True) -> str:
    """Write the run's InT set and problems to a subfolder of `to` for each format; returns what to say of it.

    Raises: StageError for an unknown format, for what is no run's folder, and where no guided attempt was kept.
    """
    if unknown := [name for name in formats if name not in exports.FORMATS]:
        raise StageError(f"--formats: {unknown[0]!r} is none of {', '.join(exports.FORMATS)}")
    config = config_of(workdir)
    tokenizer = Tokenizer(directory(config["model"]), config["chat"])
    domain = domains.load(config["domain"]["name"], tokenizer, **config["domain"]["knobs"])
    guided = rows_of(workdir, config, "guided", GuidedRow)
    some = examples(config, domain, guided)
    if not some:
        raise StageError(f"{workdir}: none of {len(guided)} guided attempts was kept: there is no InT set")
    pool = problems(config, rows_of(workdir, config, "attempts", AttemptRow), guided)
    for name in formats:
        exports.FORMATS[name](exports.Export(domain, some, pool, tokens), to / name)
    alike = sum(exports.tokenised_alike(tokenizer, one) for one in some)
    return (
        f"{len(some)} guided attempts and {len(pool)} problems in {to}: {', '.join(formats)}. "
        f"Tokenised from its text, {alike} of the {len(some)} have the ids on which the run was fine-tuned; "
        "the others are exact by their token columns alone"
    )


def main(_):
    logging.set_verbosity(logging.WARNING)
    print(export(disk.place(WORKDIR.value), disk.place(TO.value), FORMATS.value, TOKENS.value))


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string(
        "workdir", None, "of a run; of one seed, where it has several", required=True
    )
    TO = flags.DEFINE_string("to", None, "folder to write to, a subfolder a format", required=True)
    FORMATS = flags.DEFINE_list("formats", [*exports.FORMATS], f"some of {', '.join(exports.FORMATS)}")
    TOKENS = flags.DEFINE_bool(
        "tokens", True, "exact ids beside the texts, where the format has room for them"
    )
    try:
        app.run(main)
    except (StageError, FileNotFoundError, ValueError) as error:
        sys.exit(f"int_jax: {error}")
