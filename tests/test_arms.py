"""Arms: what a run compares, read from their modules alone."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import arms
from int_jax import intervention_training as method
from int_jax import report
from int_jax.lab import Lab
from int_jax.policy_gradient import PolicyGradient
from int_jax.report.page import styles
from int_jax.rows import GuidedRow, Stage
from int_jax.types import Task, Trace

ALL = arms.names()


@pytest.mark.parametrize("name", ALL)
def test_an_arm_says_what_it_makes(name):
    arm = arms.load(name)
    assert arm.policies and {*arm.stages} <= {*arms.STAGES} and callable(arm.train)
    assert {*arm.needs} <= {policy for other in ALL for policy in arms.load(other).policies}
    shown = report.policies_of({"policies": arms.shown((name,))})
    assert next(iter(shown)) == "base" and {*shown} == {"base", *arm.policies}
    assert all(f".line-{policy} " in styles(shown) for policy in arm.policies)


def test_no_two_arms_make_one_policy():
    made = [policy for name in ALL for policy in arms.load(name).policies]
    assert len({*made}) == len(made)


def test_arms_follow_what_they_go_on_from_in_whatever_order_they_are_given():
    for chosen in itertools.permutations(("int_rl", "rl", "rl_matched")):
        assert [*arms.policies(chosen)] == ["base", "int", "int_rl", "rl", "rl_matched"]
    assert [*arms.policies(("rl",))] == ["base", "rl"]


OWN = '''
"""The base model again: nothing is trained."""

from experiments.arms import Arm, Policy


def train(lab):
    lab.policies["same"] = lab.base
    return lab.base


ARM = Arm({"same": Policy("base again", "violet", "1 1")}, (), train)
'''


def test_an_arm_may_lie_outside(tmp_path):
    (tmp_path / "same.py").write_text(OWN)
    chosen = ("rl", str(tmp_path / "same.py"))
    assert [*arms.policies(chosen)] == ["base", "rl", "same"] and arms.stages(chosen) == {"rl"}
    with pytest.raises(
        ValueError, match="no arm 'dpo' in experiments/arms: choose one of hint_rl, int_end_token"
    ):
        arms.load("dpo")
    (tmp_path / "none.py").write_text("")
    with pytest.raises(ValueError, match=r"none\.py.* has no ARM"):
        arms.load(str(tmp_path / "none.py"))


@pytest.mark.parametrize("name", ["base", "my-arm", "a/b", ""])
def test_a_policy_that_cannot_name_a_folder_is_refused(name):
    with pytest.raises(ValueError, match="it names folders and style classes"):
        arms.Arm({name: arms.Policy("mine")}, (), print)


def test_a_colour_that_the_report_does_not_have_is_refused():
    with pytest.raises(ValueError, match="policy 'x': color 'pink' must be one of blue, orange"):
        styles({"x": {"label": "X", "color": "pink", "dash": ""}})


def test_two_arms_that_make_one_policy_are_refused(tmp_path):
    from experiments.configs import int as intervention
    from experiments.preflight import check

    for name in ("one", "other"):
        (tmp_path / f"{name}.py").write_text(OWN)
    c = intervention.tiny()
    c.arms = ("rl", *(str(tmp_path / f"{name}.py") for name in ("one", "other")))
    with pytest.raises(ValueError, match=r"arms: .*other\.py'? and .*one\.py'? both make 'same'"):
        check(c)


# --- what arms ask of the lab ---


def lab_of(**knobs) -> Lab:
    """A lab whose model has 100 positions, and rows of training 10 tokens."""
    engine = SimpleNamespace(decode_params=lambda params: params, take_drawn=lambda: 0, max_len=100)
    fixed = {"sft": {"row_length": 10, "end_of_turn": None}, "guided": {"tries": 1}}
    return Lab(engine, {}, None, [], fixed | knobs)


def test_the_prompt_of_a_rewrite_needs_no_place_in_a_row_of_training(monkeypatch):
    """It may hold a whole attempt and its reference; a guided attempt is trained itself."""
    monkeypatch.setattr(method, "guided", lambda e, p, d, fit, **rest: [GuidedRow(one, 1, 0) for one in fit])
    task = Task("t", "d", "p")
    traces = [
        Trace(task, np.zeros(n, np.int32), n, np.zeros(n, bool), np.zeros(n, np.float32), key=(0, n))
        for n in (8, 20, 100)
    ]
    assert [len(row.trace.tokens) for row in lab_of().guided(traces)] == [8]
    assert [len(row.trace.tokens) for row in lab_of().guided(traces, Stage("rewrites"))] == [8, 20]


def test_updates_that_are_no_whole_batches_are_refused():
    lab = lab_of(rl={"tasks": "hard", "updates": 8, "knobs": PolicyGradient(passes=2, minibatches=2)})
    with pytest.raises(ValueError, match="mine: 10 updates are no whole number of batches of 4 updates each"):
        lab.reinforce("mine", {}, [], updates=10)


@pytest.mark.parametrize(
    ("counts", "pool"), [((0, 1, 2), ["one", "two"]), ((0, 0, 1), ["two"]), ((0, 0, 0), None)]
)
def test_the_pool_of_kept_problems_has_those_that_the_filter_kept(counts, pool):
    """Without the filter, those with a right continuation; where there is none, all, and it is said."""
    lab, tasks = lab_of(rl={"tasks": "kept"}), [Task(name, "d", "p") for name in ("none", "one", "two")]
    lab.unsolved, lab.tasks = False, tasks
    empty = np.zeros(0)
    lab.rows[Stage("guided")] = [
        GuidedRow(Trace(task, empty, 0, empty, empty), 4, n) for n, task in zip(counts, tasks, strict=True)
    ]
    assert [task.id for task in lab.pool()] == (pool or ["none", "one", "two"])
    assert bool(lab.notes) == (pool is None)
