"""Rows with attempts and interventions as the output of a run's stages, so that a run may enter at any of them.

An imported attempt is text. Its ids are this tokenizer's reading of the text, which need not be the ids that were
drawn, and their log-probabilities are unknown: `sampled` is false and `logp` zero throughout, so no policy gradient
ever takes it for the policy's own sample. Fine-tuning weighs tokens by their place (prefix, intervention) alone.
"""

import dataclasses
import json
from pathlib import Path

from int_jax import proposers, rollout, rows
from int_jax.datasets import Row
from int_jax.datasets.columns import END_OF_TURN, response_text
from int_jax.domains import Domain
from int_jax.rows import AttemptRow, GuidedRow, ProposalRow
from int_jax.stages import StageError, write_atomically
from int_jax.types import Intervention, Task, Trace, to_json

COUNTS = ("attempts", "problems", "passed", "spliced", *proposers.DROPS, "differ")


def attempt(domain: Domain, task: Task, text: str, sample: int = 0) -> Trace:
    """An attempt from its text (see `columns.response_text`), judged by the domain.

    It ends in one stop token: whether the attempt stopped by itself or was cut is not in the file. `key` is
    (0, sample).
    """
    tokens = domain.tokenizer
    # The model's own stop tokens, too, as their texts.
    text = response_text(text, (*END_OF_TURN, *(tokens.decode([one]) for one in tokens.stop_ids)))
    opened = rollout.open_trace(domain, task)
    trace = rollout.append(opened, [*tokens.encode(text), *tokens.stop_ids[:1]])
    ends = domain.steps(trace.tokens, trace.prompt_len)
    trace = trace.replace(step_ends=ends, stop="stop", key=(0, sample))
    return trace.replace(verdict=domain.verify(trace))


def located(domain: Domain, trace: Trace, one: Intervention) -> Intervention:
    """The intervention with `step` counted in this trace's steps.

    The files count the pieces between separators, empty ones included ("a\\n\\n\\n\\nb" has three); here a longer run
    of newlines separates two steps, and an empty piece stands for the step after it. A location outside the attempt
    stays outside.
    """
    text = domain.tokenizer.decode(trace.response)
    pieces = text.split(domain.separator)
    if not 0 <= one.step < len(pieces):
        outside = -1 if one.step < 0 else len(trace.step_ends)
        return dataclasses.replace(one, step=outside)
    # "a\n\n\n\nb" has the pieces a, "", b: piece 1 begins at character 3, piece 2 at 5, and behind the newlines both at
    # 5, which is step 1.
    start = sum(map(len, pieces[: one.step])) + one.step * len(domain.separator)
    start = len(text) - len(text[start:].lstrip("\n"))
    ends = [len(domain.tokenizer.decode(trace.tokens[trace.prompt_len : end])) for end in trace.step_ends]
    return dataclasses.replace(one, step=sum(end <= start for end in ends))


def stage_rows(
    read: list[Row], domain: Domain, filtered: bool = False, hard: bool = True
) -> tuple[dict[str, list[rows.Row]], dict[str, int]]:
    """The rows of the stages attempts, proposals and guided, as `experiments/run.py` keeps them, in one order.

    An attempt that the domain's verifier passes is counted as correct, not as wrong. A guided attempt is spliced anew
    from attempt and intervention.

    Args:
      read: all with an attempt; see `datasets.read(needs=("incorrect_attempt",))`.
      filtered: the rows are those whose guided attempts had a success (InT's SFT set): "successes" is 1, of tries that
        are not known (0). Otherwise the stage guided is left to the run.
      hard: a problem with a right attempt is not a hard one, and its other attempts are not used.

    Returns: (stages, counts). stages: {"attempts", "proposals"} and, if filtered, "guided"; no "proposals" where no row
      has an intervention. counts: attempts, problems, passed (attempts that the verifier passes), spliced, each of
      proposers.DROPS, and differ (rows whose own guided attempt is not, up to white space, what was spliced).
    Raises: StageError for a row without an attempt.
    """
    by_task: dict[str, list[Row]] = {}
    for row in read:
        by_task.setdefault(row.task.id, []).append(row)
    counts = dict.fromkeys(COUNTS, 0)
    stages: dict[str, list[rows.Row]] = {"attempts": [], "proposals": [], "guided": []}
    for group in by_task.values():
        traces = _attempts(domain, group)
        made = AttemptRow.of(group[0].task, traces, keep=len(traces))
        counts["problems"] += 1
        counts["attempts"] += made.samples
        counts["passed"] += made.correct
        stages["attempts"].append(made)
        for row, trace in zip(group, traces, strict=True):
            if not trace.judged.passed and not (hard and made.correct):
                _propose(domain, row, trace, stages, counts)
    if not any(row.intervention for row in read):
        del stages["proposals"]
    if not filtered:
        del stages["guided"]
    return stages, counts


def _attempts(domain: Domain, group: list[Row]) -> list[Trace]:
    for row in group:
        if not row.attempt:
            raise StageError(f"{row.place}: no 'incorrect_attempt' to enter a run with")
    return [attempt(domain, row.task, row.attempt, sample) for sample, row in enumerate(group)]


def _propose(domain: Domain, row: Row, trace: Trace, stages: dict, counts: dict) -> None:
    """Add a wrong attempt's intervention, or why there is none, and its guided attempt."""
    one = row.intervention and located(domain, trace, row.intervention)
    drop = proposers.fault(domain, trace, one)
    stages["proposals"].append(ProposalRow(trace.task.id, trace.key, None if drop else one, drop or ""))
    counts[drop or "spliced"] += 1
    if drop or one is None:
        return
    patched = rollout.splice([trace], [one], domain.tokenizer, domain.separator)[0]
    text = domain.tokenizer.text(patched.response) + patched.begin
    # split(): up to white space.
    counts["differ"] += bool(row.guided) and row.guided.split() != text.split()
    stages["guided"].append(GuidedRow(patched, 0, 1))


def write_stages(stages: dict[str, list[rows.Row]], folder: str | Path) -> dict[str, Path]:
    """Write each stage's rows to folder/STAGE.jsonl: what a run takes as --config.inputs.STAGE."""
    paths = {stage: Path(folder) / f"{stage}.jsonl" for stage in stages}
    for stage, path in paths.items():
        write_atomically(path, "".join(json.dumps(to_json(row)) + "\n" for row in stages[stage]))
    return paths
