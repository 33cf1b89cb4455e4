"""What the run of one seed has come to, at any moment: its results.json and its report, of whatever there is."""

import dataclasses
import functools
from pathlib import Path

from ml_collections import ConfigDict

from experiments import arms, build
from experiments.diagnose import INTERVENED, Interventions, attempts_funnel
from experiments.store import VALIDATED, WorkdirStore
from int_jax import processes, report
from int_jax.intervention_training import failures
from int_jax.lab import Lab, Trained
from int_jax.rows import AttemptRow, Stage

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
        """Without what is drawn after the interventions; see `shown`."""
        return self.found.examples()

    @property
    def shown(self) -> list[report.Example]:
        """The examples, with as many paired continuations as were drawn."""
        return self.found.paired(self.examples, self.config.proposals.proposer)

    @property
    def intervenes(self) -> bool:
        return {*INTERVENED} <= self.lab.rows.keys()

    def write(self, finished: bool = False) -> dict:
        """Write results.json and report.html with all that there is; returns the results."""
        results = joined(self, finished)
        if processes.is_main_process():
            report.write_results(self.folder / "results.json", results)
            report.write_html(self.folder / "report.html", results, self.shown if self.intervenes else [])
        return results


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
            "conversations": not lab.domain.separator,
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
