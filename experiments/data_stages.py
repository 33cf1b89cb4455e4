"""The stages of a run that draw or score responses: attempts, proposals, guided, effect, eval, drift.

Each leaves shards in the workdir; a shard that exists is not computed again.
"""

import contextlib
import dataclasses
import functools
import itertools

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from int_jax import datasets, processes, proposers, rollout, types
from int_jax import eval as estimates
from int_jax import intervention_training as method
from int_jax.datasets import entry
from int_jax.domains import Domain
from int_jax.engine import Engine
from int_jax.lm import LM
from int_jax.sampler import Request, Sampling
from int_jax.stages import Matching, StageError, Workdir, stage_files
from int_jax.types import Intervention, Task, Trace
from int_jax.verify import MAX_CHARS


@dataclasses.dataclass
class Run:
    """What every stage works with."""

    config: ConfigDict
    seed: int
    work: Workdir
    engine: Engine
    base: dict  # the base model's parameters, as loaded
    decoding: dict  # the same, laid out for decoding
    domain: Domain
    checker: LM | None = None  # the proposer's model; None: the policy itself
    probe: tuple[int, ...] = (0,)  # a prompt from which a policy is seen to draw, or not

    def sampling(self, knobs) -> Sampling:
        return Sampling(**knobs, stop_ids=self.domain.tokenizer.stop_ids, seed=self.seed)


@contextlib.contextmanager
def bar(stage: str, total: int, unit: str = "sample"):
    """A progress bar with stage, rate and time left."""
    with tqdm(
        total=total,
        desc=f"{stage:<22}",
        unit=f" {unit}s",
        dynamic_ncols=True,
        smoothing=0.1,
        disable=not processes.first(),
    ) as shown:
        yield shown


def show(*words, sep: str = " ") -> None:
    """Print, on process 0."""
    if processes.first():
        print(*words, sep=sep)


def chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def sharded(
    run: Run, stage: str, items: list, size: int, per_item: int, work, matching: Matching | None = None
):
    """Run a stage shard by shard behind one progress bar, counting the tokens drawn; see Workdir.rows.

    work(part, progress) -> rows.
    """
    with bar(stage, len(items) * per_item) as shown:
        finished = 0

        def done(part):
            nonlocal finished
            finished += len(part) * per_item
            shown.update(finished - shown.n)

        engines = [run.engine] if run.checker is None else [run.engine, run.checker.engine]

        def counted(part):
            for engine in engines:
                engine.take_drawn()
            rows = work(part, shown.update)
            return rows, {"tokens": sum(engine.take_drawn() for engine in engines)}

        return run.work.rows(stage, chunks(items, size), counted, done, matching)


def unsound(run: Run, params) -> str:
    """What of a policy is not finite: its parameters, in the dtype in which it samples, or the log-probability of what
    it draws (parameters that are finite and huge overflow on the way there); "" for a policy that can be sampled."""
    decoding = run.engine.decode_params(params)
    if not run.engine.finite(decoding):
        return "parameters"
    [response] = run.engine.generate(decoding, [Request(run.probe, "probe", 0)], Sampling(max_new_tokens=1))
    return "" if np.isfinite(response.logp).all() else "log-probabilities"


def problems(run: Run) -> tuple[list[Task], list[Task]]:
    """The problems to train on and the held-out ones, from files or the domain's own; none is in both.

    A run that enters behind given attempts has theirs, and the attempts and interventions become its stages' rows.
    """
    c, p = run.config, run.config.problems
    train_source = (c.enter.source, c.enter.split) if c.enter.source else (p.train_file, p.train_file_split)
    test_source = (p.test_file, p.test_file_split)
    if train_source[0] and test_source[0]:
        datasets.apart(train_source, test_source)
    run.work.pin(outside(run, train_source, test_source))
    needs = ("reference_solution",) if "int_rl" in c.arms else ()
    test = given(run, p.test_split, p.test, p.test_file, p.test_file_split)
    if not c.enter.source:
        train = given(run, "hard_train", p.train, p.train_file, p.train_file_split, needs)
        return datasets.disjoint(train, test, p.skip_bad), test
    read = datasets.read(
        c.enter.source, run.domain.name, c.enter.split, p.skip_bad, ("incorrect_attempt", *needs)
    )
    train = datasets.disjoint(read.tasks, test, p.skip_bad)
    kept = {task.id for task in train}
    stages, counts = entry.stage_rows(
        [row for row in read.rows if row.task.id in kept], run.domain, c.enter.filtered, "train" in p.hard
    )
    for stage in stages:
        if c.inputs.get(stage):
            raise StageError(
                f"config.inputs.{stage} and config.enter.source both give the rows of the stage {stage}; give one"
            )
    folder = run.work.path / "entry"
    if processes.first():
        entry.write_stages(stages, folder)
    processes.together("the entered stages are written")
    run.work.inputs |= {stage: str(folder / f"{stage}.jsonl") for stage in stages}
    show(read.report, ", ".join(f"{count} {name}" for name, count in counts.items() if count), sep="\n")
    return train, test


def outside(run: Run, train_source: tuple, test_source: tuple) -> dict[str, list]:
    """The files of the user's own that this run reads its data from, by the knob that names them."""
    c = run.config
    train_knob = "enter.source" if c.enter.source else "problems.train_file"
    sources = {train_knob: train_source, "problems.test_file": test_source}
    files = {knob: datasets.on_disk(*source) for knob, source in sources.items() if source[0]}
    return files | {f"inputs.{stage}": stage_files(source) for stage, source in c.inputs.items() if source}


def given(run: Run, split: str, count: int, source: str, source_split: str, needs: tuple = ()) -> list[Task]:
    """Up to `count` problems of a source, or of the domain's own split where there is none."""
    if not source:
        return run.domain.tasks(split, run.seed, count)
    read = datasets.read(source, run.domain.name, source_split, run.config.problems.skip_bad, needs)
    show(read.report)
    # Before anything is drawn: the domain refuses a problem that is one of its worked examples.
    for task in read.tasks[:count]:
        run.domain.view(task, [], "solver")
    return read.tasks[:count]


def attempt_id(trace) -> tuple:
    """What names an attempt in a run: its problem, and its random stream (seed, sample)."""
    return trace.task.id, *trace.key


def ids(trace) -> dict:
    """`attempt_id` as a row carries it."""
    return {"task": trace.task.id, "attempt": list(trace.key)}


def _counted(row: dict, *names: str) -> None:
    for name in names:
        if type(row[name]) is not int or row[name] < 0:
            raise ValueError(f"{name} = {row[name]!r} is no count")


def _problem_of(row: dict) -> tuple:
    """The problem that a row of attempts belongs to: its id, and what it must say. Raises as Matching.id_of."""
    task = types.task_from_json(row["task"])
    names = [attempt_id(types.trace_from_json(data)) for data in row["wrong"]]
    if {name[0] for name in names} - {task.id} or len({*names}) < len(names):
        raise ValueError(f"its wrong attempts are of another problem, or two of the same key: {names}")
    _counted(row, "samples", "correct")
    return task.id, task.problem, task.answer


def _proposal_of(steps: dict[tuple, int], row: dict) -> tuple:
    """The attempt that a row of proposals belongs to. `steps`: how many an attempt has. Raises as Matching.id_of."""
    one = row["task"], *row["attempt"]
    if (row["intervention"] is None) != bool(row["drop"]):
        raise ValueError(f"either an intervention or, as drop, one of {', '.join(proposers.DROPS)}")
    step = types.intervention_from_json(row["intervention"]).step if row["intervention"] else 0
    if not 0 <= step < steps.get(one, step + 1):
        raise ValueError(f"step {step} (0-based) of an attempt of {steps[one]} steps")
    return one


def _guided_of(row: dict) -> tuple:
    """The attempt that a row of guided belongs to. Raises as Matching.id_of."""
    one = row["task"], *row["attempt"]
    if attempt_id(types.trace_from_json(row["trace"])) != one:
        raise ValueError(f"its trace continues another attempt than {one}")
    _counted(row, "tries", "successes")
    [(text, passed) for text, passed in row["shown"]]
    return one


def attempt(run: Run, tasks: list[Task], stage: str, hard: bool):
    """Attempts at problems.

    Returns: (rows, counts); a row is {"task", "samples", "correct", "wrong": traces}, with `hard` wrong ones only where
    none is right.
    """
    c = run.config.attempts

    def work(part, progress):
        groups = method.attempts(
            run.engine, run.decoding, run.domain, part, c.tries, run.sampling(c.sampling), progress
        )
        rows = [
            {
                "task": types.to_json(task),
                "samples": len(group),
                "correct": sum(trace.verdict.passed for trace in group),
                "wrong": [types.to_json(trace) for trace in method.failures([group], c.keep, hard)],
            }
            for task, group in zip(part, groups, strict=True)
        ]
        return rows

    matching = Matching([(task.id, task.problem, task.answer) for task in tasks], _problem_of)
    return sharded(run, stage, tasks, run.config.problems.shard, c.tries, work, matching)


def untried(tasks: list[Task]) -> list[dict]:
    """Rows as `attempt` makes them, for problems that are taken as they are."""
    return [{"task": types.to_json(task), "samples": 0, "correct": 0, "wrong": []} for task in tasks]


def propose(run: Run, name: str, wrong: list, stage: str):
    """An intervention for each wrong attempt, by one proposer.

    A row is {"task", "attempt", "intervention", "drop", "candidates"}: the candidates are all that were drawn, also
    where none could be used (proposers.Drops.tried).
    """
    c = run.config.proposals

    engine, params, tokenizer = run.engine, run.decoding, None
    if run.checker is not None:
        engine, params, tokenizer = run.checker.engine, run.checker.params, run.checker.tokenizer

    def work(part, progress):
        found, drops = method.proposals(
            engine,
            params,
            run.domain,
            proposers.load(name),
            part,
            run.seed,
            tokenizer=tokenizer,
            samples=c.samples,
            sampling=run.sampling(c.sampling),
            max_prompt=c.max_prompt,
            progress=progress,
        )
        rows = [
            ids(part[i])
            | {"intervention": one and types.to_json(one), "drop": drops.get(i, "")}
            | {"candidates": drops.tried.get(i, [])}
            for i, one in enumerate(found)
        ]
        return rows

    steps = {attempt_id(trace): len(trace.step_ends) for trace in wrong}
    matching = Matching([*steps], functools.partial(_proposal_of, steps))
    return sharded(run, stage, wrong, c.shard, c.samples, work, matching)


def guide(run: Run, traces: list, fits: list[bool]):
    """Continue the guided attempts that fit. A row is {"task", "attempt", "trace", "tries", "successes", "shown"}.

    Args:
      traces: all guided attempts. fits: which of them fit into a row of training.
    """
    c = run.config.guided

    def work(part, progress):
        results = method.guided(
            run.engine,
            run.decoding,
            run.domain,
            part,
            c.tries,
            run.sampling(c.sampling),
            c.stop_at_success,
            c.at_once,
            progress,
        )
        rows = [
            ids(r.trace)
            | {"trace": types.to_json(r.trace), "tries": r.tries, "successes": r.successes, "shown": r.shown}
            for r in results
        ]
        return rows

    chosen = list(itertools.compress(traces, fits))
    matching = Matching([*map(attempt_id, chosen)], _guided_of, {*map(attempt_id, traces)})
    return sharded(run, "guided", chosen, c.shard, c.tries, work, matching)


CONDITIONS = ("problem", "prefix", "prefix_error", "prefix_intervention")


def conditions(domain: Domain, trace: Trace, one: Intervention, patched: Trace) -> dict[str, Trace]:
    """The open traces from which the effect of one intervention is measured, by the names of CONDITIONS."""
    # An attempt whose located step is its last one is finished, not open: its stop tokens go.
    spoken = np.flatnonzero([True, *~np.isin(trace.response, domain.tokenizer.stop_ids)])[-1]
    ends = {
        "prefix": rollout.cut_at(trace, one.step),
        "prefix_error": min(trace.step_ends[one.step], trace.prompt_len + spoken),
    }
    cut = {n: rollout.reopened(trace, end, domain.tokenizer, domain.separator) for n, end in ends.items()}
    return {"problem": rollout.opened(domain, trace.task), **cut, "prefix_intervention": patched}


def effect(run: Run, wrong: list, interventions: list, guided_traces: list) -> dict:
    """The four-condition table (Table 1): fresh samples from the problem, the prefix, the prefix with the attempt's own
    wrong step, and the prefix with the intervention; one attempt a problem, all before any filter."""
    c = run.config.effect
    room = run.engine.max_len
    chosen: dict[str, dict[str, Trace]] = {}
    for trace, one, patched in zip(wrong, interventions, guided_traces, strict=True):
        found = conditions(run.domain, trace, one, patched)
        if max(len(each.tokens) for each in found.values()) < room:
            chosen.setdefault(trace.task.id, found)
    chosen_rows = list(chosen.values())[: c.problems]
    items = [(name, i) for name in CONDITIONS for i in range(len(chosen_rows))]

    def work(part, progress):
        groups = rollout.continued(
            run.engine,
            run.decoding,
            run.domain,
            [chosen_rows[i][name] for name, i in part],
            c.samples,
            run.sampling(run.config.eval.sampling),
            "/effect",
            progress=progress,
        )
        rows = [
            {"condition": name, "samples": len(g), "correct": sum(t.verdict.passed for t in g)}
            for (name, _), g in zip(part, groups, strict=True)
        ]
        return rows

    rows, counts = sharded(run, "effect", items, max(1, len(chosen_rows)), c.samples, work)
    table = {
        name: estimates.effect_row([(r["samples"], r["correct"]) for r in rows if r["condition"] == name])
        for name in CONDITIONS
        if chosen_rows
    }
    return {"table": table, "tokens": int(counts.get("tokens", 0))}


def evaluate(run: Run, name: str, params, tasks: dict[str, list]):
    """One policy on sets of problems.

    Returns: (counts, votes, differ, tokens): of each problem of each set the (samples, correct) and the votes for its
    answers (eval.Vote); the responses on which the domain's two graders differ, where it has two.
    """
    c = run.config.eval
    items = [(part, task) for part, some in tasks.items() for task in some]
    decoding = run.engine.decode_params(params)

    def work(part, progress):
        prompts = [rollout.opened(run.domain, task) for _, task in part]
        groups = rollout.continued(
            run.engine,
            decoding,
            run.domain,
            prompts,
            c.samples,
            run.sampling(c.sampling),
            "/eval",
            progress=progress,
        )
        rows = [
            {"set": which, "task": task.id, "samples": len(g), "correct": sum(t.verdict.passed for t in g)}
            | {"votes": votes(run.domain, g)}
            | ({"differ": differing(run.domain, g)} if run.domain.graders else {})
            for (which, task), g in zip(part, groups, strict=True)
        ]
        return rows

    rows, counts = sharded(run, f"eval_{name}", items, c.shard * len(tasks), c.samples, work)
    by_set = {which: [row for row in rows if row["set"] == which] for which in tasks}
    found = {which: [(r["samples"], r["correct"]) for r in some] for which, some in by_set.items()}
    voted = {which: [r["votes"] for r in some] for which, some in by_set.items()}
    differ = [one for row in rows for one in row.get("differ", ())]
    return found, voted, differ, int(counts.get("tokens", 0))


def votes(domain: Domain, traces: list) -> list[estimates.Vote]:
    """How many of a problem's responses give each answer, and whether it is right. What is too long to be graded is no
    answer."""
    found: dict[str, list] = {}
    for trace in traces:
        answer = domain.answer(trace)
        if answer and answer.strip() and len(answer) <= MAX_CHARS:
            vote = found.setdefault(" ".join(answer.split()), [0, trace.verdict.passed])
            vote[0] += 1
    return [(answer, count, right) for answer, (count, right) in found.items()]


def differing(domain: Domain, traces: list) -> list[dict[str, str]]:
    """The responses on which the domain's graders differ, and what each says."""
    return [
        {"answer": d.answer, "gold": d.gold, "strict": d.strict.reason, "tolerant": d.tolerant.reason}
        for d in domain.disagreements(traces)[1]
    ]


def drift(run: Run, policies: dict, guided_traces: list, wrong: list) -> tuple[dict, int]:
    """NLL under the base model of prefix, intervention and reference tokens; each policy's NLL of the interventions and
    its next-token entropy along the same attempts of the base model. Nats per token.

    Returns: ({"nll", "entropy", "intervention_nll"}, tokens scored).
    """
    some, fixed = guided_traces[:256], wrong[:128]
    prompts = [rollout.opened(run.domain, t.task).tokens for t in some]
    references = [
        np.concatenate([p, run.domain.tokenizer.encode(t.task.reference)])
        for p, t in zip(prompts, some, strict=True)
    ]
    spliced, attempts = [t.tokens for t in some], [t.tokens for t in fixed]

    def under_base(logps, told) -> dict:
        spans = {
            "prefix": [lp[t.prompt_len : t.spliced] for lp, t in zip(logps, some, strict=True)],
            "intervention": [lp[t.spliced :] for lp, t in zip(logps, some, strict=True)],
            "reference": [lp[len(p) :] for lp, p in zip(told, prompts, strict=True)],
        }
        return {name: -mean for name, found in spans.items() if (mean := mean_of(found)) is not None}

    def of_policy(logps, entropies) -> dict:
        entropy = mean_of([e[t.prompt_len :] for e, t in zip(entropies, fixed, strict=True)])
        logp = mean_of([lp[t.spliced :] for lp, t in zip(logps, some, strict=True)])
        return {"entropy": entropy, "intervention_nll": None if logp is None else -logp}

    parts = [("", run.decoding, (spliced, references))]
    parts += [(name, params, (spliced, attempts)) for name, params in policies.items()]
    with bar("drift", sum(len(texts) for *_, groups in parts for texts in groups), "text") as shown:
        finished = 0

        def done(part):
            nonlocal finished
            finished += sum(map(len, part[2]))
            shown.update(finished - shown.n)

        def work(part):
            name, params, texts = part
            decoding = run.engine.decode_params(params)
            (logps, _), (others, entropies) = (
                run.engine.score(decoding, group, progress=shown.update) for group in texts
            )
            row = of_policy(logps, entropies) if name else under_base(logps, others)
            return [row], {"tokens": sum(len(text) for group in texts for text in group)}

        (nll, *rows), counts = run.work.rows("drift", parts, work, done)
    table = {
        key: {name: row[key] for name, row in zip(policies, rows, strict=True) if row[key] is not None}
        for key in ("entropy", "intervention_nll")
    }
    return {"nll": nll, **table}, int(counts["tokens"])


def mean_of(spans: list[np.ndarray]) -> float | None:
    """The mean over all tokens of all spans; None where there is none."""
    return float(np.concatenate(spans).mean()) if sum(map(len, spans)) else None
