"""While policies train: what is scored, kept and reported, none of which changes what is trained.

The runs are those of test_knobs.py: whole ones, over an engine without a model.
"""

import json

import jax
import pytest
from test_knobs import RL, VALIDATED, Story, Watch, configured, watch  # noqa: F401 (watch is a fixture)
from test_method import ROW, SAMPLING
from test_rollouts import Chance
from trees import assert_same

from experiments import evaluate, problems
from experiments import run as runs
from experiments.store import WorkdirStore, passes
from int_jax import checkpoint
from int_jax.domains.arithmetic import Arithmetic
from int_jax.lab import Lab
from int_jax.policy_gradient import PolicyGradient
from int_jax.report.page import UNFINISHED
from int_jax.stages import StageError, Workdir
from int_jax.types import normalised


class Killed(BaseException):
    """As a signal would: nothing catches it."""


class Dies(Story):
    """A run that is killed at its nth item of a kind."""

    def __init__(self, kind: str, nth: int = 1):
        super().__init__()
        self.kind, self.left = kind, nth

    def tell(self, kind, *what):
        self.left -= kind == self.kind
        if not self.left:
            raise Killed
        super().tell(kind, *what)


def results(workdir) -> dict:
    return json.loads((workdir / "results.json").read_text())


# --- validation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [{}, RL | {"rl.updates": 5}], ids=["all arms", "rl"])
def test_what_is_trained_is_the_same_with_and_without(watch, context):  # noqa: F811
    plain, _ = watch.base(context)
    scored, _ = watch.base(context | {"validation.every": 2})
    apart = (
        "draws: validation",
        "checkpoint",
        "results",
    )  # what a checkpoint is told, and results, have the scores
    assert [item for item in scored if item[0] not in apart] == [
        item for item in plain if item[0] not in apart
    ]
    if context:
        places = [kind for kind, _ in scored if kind in ("update: rl", "draws: validation")]
        assert (
            "".join("v" if kind.startswith("draws") else "u" for kind in places) == "uuvuuvuv"
        )  # and at the end


def reinforced(engine, domain, tasks, params, folder, **changes):
    """Five updates of the policy gradient, kept in a workdir; the state, and the lines of its batches."""
    config = configured(RL | {"rl.checkpoint_every": 1, "validation.every": 2, **changes})
    store = WorkdirStore(config, Workdir(folder, {}, {}), engine)
    knobs = PolicyGradient(problems=2, group=3)
    rl = {"knobs": knobs, "sampling": SAMPLING, "updates": 5, "tasks": "hard", **ROW}
    rl |= {"learning_rate": 0.1, "weight_decay": 0.0, "clip_norm": 1.0}
    lab = Lab(engine, params, domain, tasks, {"rl": rl}, unsolved=False, store=store)
    if config.validation.every:
        held_out = Arithmetic(domain.tokenizer).tasks("hard_validation", 0, 4)
        store.validate = evaluate.validation(lab, held_out, 3, SAMPLING)
    trained = lab.reinforce("rl", params, tasks)
    return trained, lab.trained["rl"].lines, store


def test_scores_of_a_real_engine_change_no_bit_and_tell_the_best(engine, tokenizer, tmp_path):
    """The first scores differ from the last ones, so that the random numbers of both are used up differently."""
    params = jax.jit(engine.model.init)(jax.random.key(4))
    tasks = Arithmetic(tokenizer).tasks("train", 3, 6)
    plain, lines, _ = reinforced(
        engine, Chance(tokenizer), tasks, params, tmp_path / "plain", **{"validation.every": 0}
    )
    scored, validated, _ = reinforced(
        engine,
        Chance(tokenizer),
        tasks,
        params,
        tmp_path / "scored",
        **{"rl.keep_best": 1, "validation.every": 1},
    )
    assert_same(scored, plain)
    for one, other in zip(lines, validated, strict=True):
        assert one == {key: value for key, value in other.items() if not key.startswith("validation/")}
    scores = [line["validation/pass_at_1"] for line in validated]
    for line in validated:
        assert (
            line["validation/pass_at_1_low"]
            <= line["validation/pass_at_1"]
            <= line["validation/pass_at_1_high"]
        )
    best = max(range(5), key=lambda i: (scores[i], i)) + 1
    assert checkpoint.saved(tmp_path / "scored" / "rl" / "state") == sorted({best, 5})


@pytest.mark.parametrize(
    ("before", "step", "every", "wanted"),
    [(0, 1, 1, True), (1, 2, 3, False), (2, 3, 3, True), (2, 5, 3, True), (3, 5, 3, False), (0, 8, 3, True)],
)
def test_a_batch_of_several_updates_passes_a_multiple(before, step, every, wanted):
    assert passes(before, step, every) == wanted


def parts(tmp_path, domain, **changes):
    config = configured({"validation.every": 1, **changes})
    return problems.problems(config, Workdir(tmp_path / "work", {}, {}), domain, 0)


def texts(tasks) -> set[str]:
    return {normalised(task.problem) for task in tasks}


def rows(path, tasks):
    lines = [{"problem": t.problem, "answer": t.answer, "reference_solution": t.reference} for t in tasks]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_the_problems_to_choose_by_are_neither_trained_on_nor_reported(domain, tmp_path):
    found = parts(tmp_path, domain)
    assert len(found.validation) == 3 and len(found.train) == 6
    assert found.validation == domain.tasks("hard_validation", 0, 3)
    sets = [texts(part) for part in found]
    assert len(set.union(*sets)) == sum(map(len, found))
    assert parts(tmp_path, domain, **{"validation.every": 0}).validation == []


def test_of_a_file_some_problems_are_left_out_of_training(domain, tmp_path):
    path = rows(tmp_path / "mine.jsonl", domain.tasks("hard_train", 5, 6))
    found = parts(tmp_path, domain, **{"problems.train_file": path, "validation.problems": 2})
    assert len(found.train) == 4 and len(found.validation) == 2
    assert texts(found.train) | texts(found.validation) == texts(domain.tasks("hard_train", 5, 6))
    assert parts(tmp_path, domain, **{"problems.train_file": path, "validation.problems": 2}) == found
    with pytest.raises(StageError, match=r"validation\.problems = 6 of 6 problems leave none to train on"):
        parts(tmp_path, domain, **{"problems.train_file": path, "validation.problems": 6})


@pytest.mark.parametrize(
    ("split", "words"),
    [("hard_train", "training problems are in the validation set"), ("hard_test", "in the test set")],
)
def test_problems_in_two_sets_are_refused(domain, tmp_path, split, words):
    path = rows(tmp_path / "validation.jsonl", domain.tasks(split, 0, 3))
    with pytest.raises(StageError, match=words):
        parts(tmp_path, domain, **{"validation.file": path})


def test_one_file_is_not_read_for_two_sets(domain, tmp_path):
    path = rows(tmp_path / "mine.jsonl", domain.tasks("hard_train", 5, 6))
    with pytest.raises(StageError, match="are read from the same files"):
        parts(tmp_path, domain, **{"problems.train_file": path, "validation.file": path})


# --- results and report while a run goes on -------------------------------------------------------------------------

STAGES = {  # where a run is killed -> what its results have by then, and have not
    ("draws: check", 1): ({"funnel"}, {"effect", "eval", "drift"}),
    ("update: sft", 2): ({"funnel"}, {"eval", "effect"}),
    ("update: rl", 3): ({"funnel", "rl", "validation"}, {"eval", "effect"}),
    ("draws: eval", 1): ({"funnel", "rl", "validation", "effect"}, {"eval", "drift"}),
}


@pytest.mark.parametrize("kind", STAGES)
def test_a_run_that_is_killed_has_results_and_a_report(watch, kind):  # noqa: F811
    there, missing = STAGES[kind]
    config = configured({"rl.updates": 3, "report_every": 1, "validation.every": 1, "rl.keep_rollouts": 0})
    with pytest.raises(Killed):
        watch.run(config, Dies(*kind), reports=True)
    workdir = watch.folder / str(watch.count)
    found, page = results(workdir), (workdir / "report.html").read_text()
    assert not found["finished"] and UNFINISHED in page
    assert all(found[key] for key in there) and not any(found.get(key) for key in missing)
    if kind[0] == "update: rl":
        assert len(found["rl"]["int_rl"]["reward"]) == 2  # both batches before the kill
        assert found["validation"]["int_rl"]["batch"] == [1, 2]


def test_a_finished_run_says_so_and_has_all_of_it(watch):  # noqa: F811
    workdir = watch.run(configured({"validation.every": 1}), Story(), reports=True)
    found, page = results(workdir), (workdir / "report.html").read_text()
    assert found["finished"] and UNFINISHED not in page
    assert {"funnel", "effect", "eval", "eval_train", "gain", "rl", "validation", "drift"} <= found.keys()
    assert "pass@1 on the validation problems" in page and "Shaded: 95% intervals" in page
    curve = found["validation"]["rl"]
    assert (
        curve["batch"] == [*range(1, len(found["rl"]["rl"]["reward"]) + 1)]
        and found["tokens"]["validation"] > 0
    )


def test_a_restart_leaves_the_results_until_it_has_made_something(watch):  # noqa: F811
    """A finished run that is started again by mistake, and stopped, stays finished."""
    config = configured({})
    workdir = watch.run(config, Story(), reports=True)
    before = (workdir / "results.json").read_bytes(), (workdir / "report.html").read_bytes()

    def again(_):
        runs.WORKDIR.value = str(workdir)
        runs.main([])

    with pytest.raises(Killed):
        watch.run(config, Dies("update: sft"), reports=True, main=again)  # its data stages are there
    assert ((workdir / "results.json").read_bytes(), (workdir / "report.html").read_bytes()) == before
