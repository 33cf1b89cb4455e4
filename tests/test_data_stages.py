"""Where a run's problems come from, and what it finds in the stages that it does not have to compute."""

import json

import numpy as np
import pytest

from experiments import data_stages
from experiments.configs import default
from int_jax import datasets, types
from int_jax.datasets import entry
from int_jax.domains import arithmetic
from int_jax.stages import StageError, Workdir
from int_jax.tokenizer import Tokenizer


@pytest.fixture
def run(tmp_path, tiny_dir):
    """A run over the arithmetic domain, without a model: nothing here draws."""
    config = default.get_config()
    config.problems.update(train=5, test=4)
    domain = arithmetic.Arithmetic(Tokenizer(tiny_dir))
    work = Workdir(tmp_path / "run", config.to_dict(), {})
    return data_stages.Run(config, 0, work, None, {}, {}, domain)


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
    train, test = data_stages.problems(run)
    assert [task.id for task in train] == [task.id for task in run.domain.tasks("hard_train", 0, 5)]
    assert len(test) == 4 and not {t.problem for t in train} & {t.problem for t in test}


def test_problems_of_files(run, tmp_path, capsys):
    made = chains(6)
    run.config.problems.train_file = write(tmp_path / "train.jsonl", map(row, made))
    train, _ = data_stages.problems(run)
    assert [task.problem for task in train] == [one.problem for one in made[:5]]  # train=5
    assert "6 rows, 6 problems; no bad rows" in capsys.readouterr().out


def test_held_out_problems_stay_held_out(run, tmp_path):
    made = chains(6)
    run.config.problems.update(
        train_file=write(tmp_path / "train.jsonl", map(row, made[:4])),
        test_file=write(tmp_path / "test.jsonl", map(row, made[3:])),
    )
    with pytest.raises(StageError, match="1 of 4 training problems"):
        data_stages.problems(run)
    run.config.problems.skip_bad = True
    train, test = data_stages.problems(run)
    assert len(train) == len(test) == 3 and made[3].problem in {task.problem for task in test}


def test_interventions_need_references(run, tmp_path):
    rows = [row(one, reference_solution="") for one in chains(2)]
    run.config.problems.train_file = write(tmp_path / "train.jsonl", rows)
    with pytest.raises(StageError, match="reference_solution"):
        data_stages.problems(run)
    run.config.arms = ("rl",)
    assert len(data_stages.problems(run)[0]) == 2


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
    assert data_stages.votes(run.domain, traces) == [("98", 2, False), (task.answer, 1, True)]


def test_problems_that_are_hard_already_lend_every_wrong_attempt(run, tmp_path):
    one = chains(1)[0]
    step = {"location": 1, "content": one.steps[0]}
    texts = [f"\\boxed{{{number}}}" for number in (98, one.values[-1], 99)]
    rows = [row(one, incorrect_attempt=text, intervention=step) for text in texts]
    read = datasets.read(write(tmp_path / "x.jsonl", rows), "arithmetic").rows
    for hard, used in ((True, 0), (False, 2)):
        stages, counts = entry.stage_rows(read, run.domain, hard=hard)
        assert len(stages["proposals"]) == used and counts["passed"] == 1
        assert len(stages["attempts"][0]["wrong"]) == 2


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
    train, _ = data_stages.problems(run)
    assert len(train) == 3  # the held-out one stays out of the stages' rows, too

    def never(part):
        raise AssertionError("this stage is given")

    attempts, _ = run.work.rows("attempts", [train], never)
    assert [task["problem"] for task in (r["task"] for r in attempts)] == [t.problem for t in train]
    assert all(r["correct"] == 0 and len(r["wrong"]) == 1 for r in attempts)
    wrong = types.trace_from_json(attempts[0]["wrong"][0])
    assert run.domain.first_error(wrong) == 1
    proposals, _ = run.work.rows("proposals", [train], never)
    kept = [r["intervention"] for r in proposals if not r["drop"]]
    assert kept and all(one["step"] == 1 for one in kept)
    if filtered:
        assert len(run.work.rows("guided", [train], never)[0]) == len(kept)
    else:
        with pytest.raises(AssertionError, match="given"):
            run.work.rows("guided", [train], never)
