"""Where a run's problems come from, and what it finds in the stages that it does not have to compute."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import build, diagnose, evaluate
from experiments import problems as sources
from experiments.configs import default
from experiments.store import WorkdirStore
from int_jax import datasets, domains, rollout, types
from int_jax.check import byte_tokenizer
from int_jax.datasets import entry
from int_jax.domains import Domain, arithmetic
from int_jax.intervention_training import failures
from int_jax.lab import Lab
from int_jax.sampler import Sampling
from int_jax.stages import StageError, Workdir
from int_jax.tokenizer import Tokenizer


@dataclasses.dataclass
class Run:
    config: ConfigDict
    work: Workdir
    domain: Domain

    def problems(self):
        found = sources.problems(self.config, self.work, self.domain, 0)
        return found.train, found.test

    def lab(self, tasks, **engine) -> Lab:
        """A lab whose engine draws nothing."""
        engine = {"max_len": 10_000, "decode_params": lambda params: params, "take_drawn": lambda: 0} | engine
        lm = SimpleNamespace(engine=SimpleNamespace(**engine), params={})
        store = WorkdirStore(self.config, self.work, lm.engine)
        self.config.proposals.proposer = "oracle"
        return build.lab(self.config, 0, lm, None, self.domain, tasks, store)


@pytest.fixture
def run(tmp_path, tiny_dir):
    """A run over the arithmetic domain, without a model: nothing here draws."""
    config = default.get_config()
    config.problems.update(train=5, test=4)
    domain = arithmetic.Arithmetic(Tokenizer(tiny_dir))
    return Run(config, Workdir(tmp_path / "run", config.to_dict(), {}), domain)


def chains(count: int, seed: int = 3) -> list[arithmetic.Chain]:
    rng = np.random.default_rng(seed)
    return [arithmetic.chain(rng, 4) for _ in range(count)]


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(one: arithmetic.Chain, **more) -> dict:
    task = arithmetic.task(one, "")
    return {"problem": task.problem, "answer": task.answer, "reference_solution": task.reference, **more}


def test_the_domains_own_problems(run):
    train, test = run.problems()
    assert [task.id for task in train] == [task.id for task in run.domain.tasks("hard_train", 0, 5)]
    assert len(test) == 4 and not {t.problem for t in train} & {t.problem for t in test}


def test_problems_of_files(run, tmp_path, capsys):
    made = chains(6)
    run.config.problems.train_file = write(tmp_path / "train.jsonl", map(row, made))
    train, _ = run.problems()
    assert [task.problem for task in train] == [one.problem for one in made[:5]]  # train=5
    assert "6 rows, 6 problems; no bad rows" in capsys.readouterr().out


def test_held_out_problems_stay_held_out(run, tmp_path):
    made = chains(6)
    run.config.problems.update(
        train_file=write(tmp_path / "train.jsonl", map(row, made[:4])),
        test_file=write(tmp_path / "test.jsonl", map(row, made[3:])),
    )
    with pytest.raises(StageError, match="1 of 4 training problems"):
        run.problems()
    run.config.problems.skip_bad = True
    train, test = run.problems()
    assert len(train) == len(test) == 3 and made[3].problem in {task.problem for task in test}


def test_interventions_need_references(run, tmp_path):
    rows = [row(one, reference_solution="") for one in chains(2)]
    run.config.problems.train_file = write(tmp_path / "train.jsonl", rows)
    with pytest.raises(StageError, match="reference_solution"):
        run.problems()
    run.config.arms = ("rl",)
    assert len(run.problems()[0]) == 2


def test_votes_count_answers_by_their_text(run):
    task = arithmetic.task(chains(1)[0], "t")
    texts = [
        "\\boxed{98}",
        "no box",
        f"\\boxed{{{task.answer}}}",
        "\\boxed{ 98 }",
        "\\boxed{" + "9" * 1_001 + "}",
    ]
    traces = [entry.attempt(run.domain, task, text) for text in texts]
    assert evaluate.votes(run.domain, traces) == (("98", 2, False), (task.answer, 1, True))


def test_problems_that_are_hard_already_lend_every_wrong_attempt(run, tmp_path):
    one = chains(1)[0]
    step = {"location": 1, "content": one.steps[0]}
    texts = [f"\\boxed{{{number}}}" for number in (98, one.values[-1], 99)]
    rows = [row(one, incorrect_attempt=text, intervention=step) for text in texts]
    read = datasets.read(write(tmp_path / "x.jsonl", rows), "arithmetic").rows
    for hard, used in ((True, 0), (False, 2)):
        stages, counts = entry.stage_rows(read, run.domain, hard=hard)
        assert len(stages["proposals"]) == used and counts["passed"] == 1
        assert len(stages["attempts"][0].wrong) == 2


@pytest.mark.parametrize("filtered", [False, True])
def test_a_run_enters_behind_given_attempts(run, tmp_path, filtered):
    rows = []
    for one in chains(3):
        steps = list(one.steps)
        steps[1] = steps[1].rpartition(" ")[0] + " 99"  # the second computation is wrong
        rows.append(
            row(
                one,
                incorrect_attempt="\n\n".join([*steps[:-1], "\\boxed{99}"]),
                intervention={"location": 2, "content": one.steps[1]},
            )
        )
    held_out = row(chains(1, seed=4)[0])
    rows.append({**rows[0], **held_out})
    run.config.problems.update(test_file=write(tmp_path / "test.jsonl", [held_out]), skip_bad=True)
    run.config.enter.update(source=write(tmp_path / "given.jsonl", rows), filtered=filtered)
    train, _ = run.problems()
    assert len(train) == 3  # the held-out one stays out of the stages' rows, too

    lab = run.lab(train)
    attempts = lab.attempts(train)
    assert [row.task.problem for row in attempts] == [t.problem for t in train]
    assert all(row.correct == 0 and len(row.wrong) == 1 for row in attempts)
    wrong = failures(attempts)
    assert run.domain.first_error(wrong[0]) == 1
    proposals = lab.proposals(wrong)
    assert any(row.intervention for row in proposals)
    assert all(row.intervention.step == 1 for row in proposals if row.intervention)
    assert bool(run.work.inputs["guided"]) is filtered
    if filtered:
        spliced = lab.splice(wrong, proposals)
        assert [row.trace.task.id for row in lab.guided(spliced)] == [trace.task.id for trace in spliced]
        lengths = sorted(len(trace.tokens) for trace in spliced)
        run.config.train.row_length = (
            lengths[-1] - 1
        )  # a row may be given for an attempt that is too long to train on
        fewer = run.lab(train).guided(spliced)
        assert len(fewer) == sum(length < lengths[-1] for length in lengths)


# --- rows of the user's own ---


@pytest.fixture
def entered(run, tmp_path):
    """Two attempts at each of three problems: the stages' rows as files of the user's own."""
    rows = [
        row(one, incorrect_attempt="\n\n".join([*one.steps[:-1], f"\\boxed{{{number}}}"]), intervention=step)
        for one in chains(3)
        for number, step in ((98, {"location": 1, "content": one.steps[0]}), (99, None))
    ]
    read = datasets.read(write(tmp_path / "x.jsonl", rows), "arithmetic")
    stages, _ = entry.stage_rows(read.rows, run.domain, filtered=True)
    return read.tasks, stages


def results(run, tasks) -> list:
    """The three stages' rows, each given by a file, as JSON."""
    lab = run.lab(tasks)
    attempts = lab.attempts(tasks)
    wrong = failures(attempts)
    proposals = lab.proposals(wrong)
    return types.to_json([attempts, proposals, lab.guided(lab.splice(wrong, proposals))])


def give(run, folder, stages: dict) -> None:
    for stage, path in entry.write_stages(stages, folder).items():
        run.work.inputs[stage] = str(path)


def test_rows_of_ones_own_in_another_order_give_the_same(run, tmp_path, entered):
    tasks, stages = entered
    give(run, tmp_path / "a", stages)
    expected = results(run, tasks)
    assert [len(rows) for rows in expected] == [3, 6, 3]
    give(run, tmp_path / "b", {stage: [*rows[1:], rows[0]] for stage, rows in stages.items()})
    assert results(run, tasks) == expected
    for path in map(Path, list(run.work.inputs.values())[:3]):
        path.write_text('{"counts": {"tokens": 7}, "rows": 3}\n' + path.read_text())  # a shard of a run's own
    assert results(run, tasks) == expected


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("attempts", lambda rows: rows[1:], "no row for "),
        ("attempts", lambda rows: [*rows, rows[0]], "row 4: belongs to "),
        ("attempts", lambda rows: rows[0]["task"].update(problem="Start."), "not in this run"),
        ("attempts", lambda rows: rows[0]["task"].update(answer="77777"), "not in this run"),
        (
            "attempts",
            lambda rows: rows[0].pop("samples"),
            "no row of the stage attempts (KeyError: 'samples')",
        ),
        ("attempts", lambda rows: rows[0].update(correct="1"), "correct = '1' is no count"),
        ("attempts", lambda rows: rows[0]["wrong"].append(rows[0]["wrong"][0]), "two of the same key"),
        ("attempts", lambda rows: rows[0]["wrong"].append(rows[1]["wrong"][0]), "of another problem"),
        ("proposals", lambda rows: rows[:-1], "no row for "),
        (
            "proposals",
            lambda rows: rows[0].pop("task"),
            "row 1: no row of the stage proposals (KeyError: 'task')",
        ),
        (
            "proposals",
            lambda rows: rows[2].pop("attempt") and None,
            "row 3: no row of the stage proposals (KeyError",
        ),
        ("proposals", lambda rows: rows[0].update(attempt=[0, 5]), "row 1: belongs to "),
        ("proposals", lambda rows: rows[0].update(attempt=rows[1]["attempt"]), "row 1 does"),
        ("proposals", lambda rows: rows[0].update(drop="leaked"), "either an intervention or"),
        (
            "proposals",
            lambda rows: rows[0]["intervention"].update(step=40),
            "step 40 (0-based) of an attempt of ",
        ),
        ("guided", lambda rows: rows[1:], "no row for "),
        (
            "guided",
            lambda rows: rows[0].update(task="x"),
            "row 1: no row of the stage guided (TypeError: GuidedRow has no field 'task')",
        ),
        ("guided", lambda rows: rows[0].update(successes=None), "successes = None is no count"),
        ("guided", lambda rows: rows[0].update(shown=3), "row 1: no row of the stage guided (TypeError"),
    ],
)
def test_rows_of_ones_own_that_do_not_match_are_named(run, tmp_path, entered, stage, change, said):
    tasks, stages = entered
    rows = types.to_json(stages[stage])
    changed = change(rows)
    give(run, tmp_path, stages)
    write(tmp_path / f"{stage}.jsonl", changed if isinstance(changed, list) else rows)
    with pytest.raises(StageError) as error:
        results(run, tasks)
    assert f"{stage}.jsonl" in str(error.value) and said in str(error.value)


def test_a_stage_is_given_once(run, tmp_path):
    one = chains(1)[0]
    given_row = row(
        one, incorrect_attempt="\\boxed{99}", intervention={"location": 1, "content": one.steps[0]}
    )
    run.config.enter.source = write(tmp_path / "given.jsonl", [given_row])
    run.config.inputs.proposals = write(tmp_path / "own.jsonl", [])
    with pytest.raises(StageError, match=r"config\.inputs\.proposals and config\.enter\.source both give"):
        run.problems()


# --- data that changes, data that is not held out ---


@pytest.mark.parametrize(
    "knob", ["problems.train_file", "problems.test_file", "enter.source", "inputs.attempts"]
)
def test_data_that_changes_between_two_starts_is_noticed(run, tmp_path, knob):
    made = chains(6)
    paths = {
        "problems.train_file": write(tmp_path / "train.jsonl", map(row, made[:3])),
        "problems.test_file": write(tmp_path / "test.jsonl", map(row, made[3:])),
        "inputs.attempts": write(tmp_path / "own.jsonl", []),
    }
    if knob == "enter.source":
        attempts = [row(one, incorrect_attempt="\\boxed{99}") for one in made[:3]]
        paths = {
            knob: write(tmp_path / "given.jsonl", attempts),
            "problems.test_file": paths["problems.test_file"],
        }
    run.config.update_from_flattened_dict(paths)
    for _ in range(2):
        run.problems()
    with open(paths[knob], "a") as file:
        file.write("\n")
    with pytest.raises(StageError, match=rf"{paths[knob]}: changed \(config\.{knob}\)"):
        run.problems()


def test_a_source_that_serves_both_sets_is_refused(run, tmp_path):
    (tmp_path / "data").mkdir()
    for name, some in (("a", chains(3)), ("b", chains(3, seed=5))):
        write(tmp_path / "data" / f"{name}.jsonl", map(row, some))
    both = str(tmp_path / "data")
    run.config.problems.update(train_file=both, test_file=both, skip_bad=True)
    with pytest.raises(StageError, match=r"nothing would be held out: .*a\.jsonl, .*b\.jsonl"):
        run.problems()
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / "a_train.jsonl")
    (tmp_path / "data" / "b.jsonl").rename(tmp_path / "data" / "b_test.jsonl")
    train, test = run.problems()
    assert len(train) == len(test) == 3


def test_the_effect_table_continues_nothing_behind_a_stop_token(run):
    """An attempt of two stop tokens, as a file may hold it, located in its last step."""
    stop = run.domain.tokenizer.stop_ids[0]
    task = run.domain.tasks("hard_train", 0, 1)[0]
    trace = entry.attempt(run.domain, task, "1 + 1 = 2\n\n\\boxed{99}")
    trace = trace.replace(
        tokens=np.append(trace.tokens, stop),
        sampled=np.append(trace.sampled, False),
        logp=np.append(trace.logp, 0),
    )
    trace = trace.replace(step_ends=run.domain.steps(trace.tokens, trace.prompt_len))
    one = types.Intervention(len(trace.step_ends) - 1, "2 + 1 = 3")
    guided = rollout.truncate(trace, len(trace.tokens) - 2)
    found = diagnose.conditions(run.domain, trace, one, guided)
    assert tuple(found) == diagnose.CONDITIONS
    assert all(stop not in t.response and t.stop == "" for t in found.values())


def test_the_effect_table_s_separators_are_left_to_the_policy(tmp_path):
    """Where they can be spelled in several ways: behind the prefix, and behind the wrong step."""
    domain = domains.load("math", Tokenizer(byte_tokenizer.save(tmp_path / "bytes")))
    task = types.Task("t", "math", "How many?", "Two.\n\n\\boxed{2}", "2")
    trace = entry.attempt(domain, task, "One.\n\nFour.\n\n\\boxed{3}")
    found = diagnose.conditions(domain, trace, types.Intervention(1, "Two."), trace)
    text = {name: domain.tokenizer.text(t.response) for name, t in found.items()}
    assert (text["prefix"], found["prefix"].begin) == ("One", ".\n\n")
    assert (text["prefix_error"], found["prefix_error"].begin) == ("One.\n\nFour", ".\n\n")
    last = diagnose.conditions(domain, trace, types.Intervention(2, "\\boxed{2}"), trace)["prefix_error"]
    assert domain.tokenizer.text(last.response) == "One.\n\nFour.\n\n\\boxed{3}" and not last.begin


def test_an_attempt_without_a_position_left_is_not_in_the_effect_table(run, monkeypatch):
    task, other = run.domain.tasks("hard_train", 0, 2)
    traces = [
        entry.attempt(run.domain, one, "1 + 1 = 2\n\n2 + 1 = 4\n\n\\boxed{99}") for one in (task, other)
    ]
    long = traces[1].replace(step_ends=(len(traces[1].tokens),))
    ones = [types.Intervention(1, "2 + 1 = 3"), types.Intervention(0, "2 + 1 = 3")]
    continued = []
    monkeypatch.setattr(
        diagnose.rollout,
        "continue_traces",
        lambda *args, **_: continued.extend(args[3]) or [[]] * len(args[3]),
    )
    monkeypatch.setattr(diagnose.estimates, "effect_row", lambda counts: {})
    room = len(traces[1].tokens) - 1
    spliced = [rollout.truncate(trace, trace.prompt_len) for trace in traces]
    every = [*zip([traces[0], long], ones, spliced, strict=True)]
    found = SimpleNamespace(continued=lambda: every)
    diagnose.effect(run.lab([task, other], max_len=room), found, 10, 1, Sampling())
    assert [t.task.id for t in continued] == [task.id] * 4
