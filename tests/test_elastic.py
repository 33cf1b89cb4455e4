"""A run goes on elsewhere: on other devices, in other pieces, after SIGTERM, and with no more memory than at first."""

import dataclasses
import gc
import types

import jax
import numpy as np
import pytest
from test_knobs import configured
from test_method import SAMPLING, guided_attempts  # noqa: F401 (a fixture)
from test_rollouts import Chance
from trees import assert_same

from experiments import store as stores
from experiments.configs import default
from experiments.store import WorkdirStore
from int_jax import checkpoint, preemption
from int_jax.batching import intervention_weights
from int_jax.domains.arithmetic import Arithmetic
from int_jax.engine import Engine
from int_jax.lab import Lab
from int_jax.models import build
from int_jax.policy_gradient import PolicyGradient
from int_jax.preemption import Preempted
from int_jax.sharding import RULES, make_mesh, shardings
from int_jax.stages import Workdir

UPDATES = 5
POLICY = {"sft": "int", "rl": "rl"}


class Killed(BaseException):
    """As a signal would: nothing catches it."""


def killed():
    raise Killed


@pytest.fixture
def sigterm(monkeypatch):
    """What a SIGTERM does to a process that listens; it is forgotten with the test."""
    monkeypatch.setattr(preemption, "_asked", False)
    return lambda: preemption._note()


@pytest.fixture(scope="module")
def params(engine):
    """On the host: each mesh takes them as it needs them."""
    return jax.device_get(jax.jit(engine.model.init)(jax.random.key(4)))


class Ends:
    """An engine on so many devices, to which something happens before its nth update, or its nth round of drawing.

    Attributes:
      updates: that were made. most: copies of the embedding (parameters, moments) that were there at one of
        them, at most.
    """

    def __init__(self, engine, data: int = 1, model: int = 1, left: int = 0, happens=killed, drawing=False):
        mesh = make_mesh(data, model, jax.devices()[: data * model])
        self.engine = Engine(engine.model, mesh, slots=8, decode_steps=4, score_tokens=1024)
        self.left, self.happens, self.drawing, self.most = left, happens, drawing, 0
        self.updates = 0
        gc.collect()
        self.others = self.copies()

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def session(self, *arguments):
        session = self.engine.session(*arguments)
        take, session.take = session.take, lambda: (self.count(self.drawing), take())[1]
        return session

    def update(self, *arguments):
        self.count(not self.drawing)
        self.updates += 1
        self.most = max(self.most, self.copies() - self.others)
        return self.engine.update(*arguments)

    def copies(self) -> int:
        shape = (self.engine.model.config.vocab, self.engine.model.config.dim)
        return sum(array.shape == shape for array in jax.live_arrays())

    def count(self, counts: bool) -> None:
        self.left -= counts
        if counts and self.left == 0:
            self.happens()


class Run:
    """Five updates of fine-tuning ("sft") or of the policy gradient ("rl"), as a run's lab makes them."""

    def __init__(self, how: str, params, tokenizer, traces):
        self.how, self.params, self.tokenizer, self.traces = how, params, tokenizer, traces

    def __call__(self, engine: Ends, folder, rows: int = 2, before=lambda lab: None, **changes):
        """The parameters on the host, and the lines. before: what is done with the lab before it trains."""
        config = configured({f"{self.how}.checkpoint_every": 2, "train.rows": rows, **changes})
        config.mesh.update(engine.mesh.shape)
        work = Workdir(folder, config.to_dict(), {}, default.machine_knobs("arithmetic"))
        pack = {"row_length": 128, "rows": rows, "learning_rate": 1e-3, "weight_decay": 0.0, "clip_norm": 1.0}
        group = PolicyGradient(problems=2, group=3, lag=config.rl.lag)
        knobs = {
            "rl": pack | {"knobs": group, "sampling": SAMPLING, "updates": UPDATES, "tasks": "hard"},
            "sft": pack | {"epochs": UPDATES, "batch_size": 8, "warmup": 0.1, "end_of_turn": None},
        }
        knobs["sft"]["weigh"] = intervention_weights
        placed = jax.device_put(self.params, shardings(self.params, engine.mesh, RULES))
        tasks, store = Arithmetic(self.tokenizer).tasks("train", 3, 6), WorkdirStore(config, work, engine)
        lab = Lab(engine, placed, Chance(self.tokenizer), tasks, knobs, unsolved=False, store=store)
        before(lab)
        if self.how == "rl":
            found = lab.reinforce("rl", placed, tasks)
        else:
            found = lab.fine_tune("int", self.traces)
        return jax.device_get(found), lab.trained[POLICY[self.how]].lines

    def saved(self, folder) -> list[int]:
        return checkpoint.saved(folder / POLICY[self.how] / "state")


@pytest.fixture(scope="module", params=["sft", "rl"])
def run(request, params, tokenizer, guided_attempts):  # noqa: F811
    return Run(request.param, params, tokenizer, guided_attempts)


@pytest.fixture(scope="module")
def whole(run, engine, tmp_path_factory):
    """What is made without an interruption: the parameters, the lines, and the most copies of the embedding."""
    ends = Ends(engine)
    return *run(ends, tmp_path_factory.mktemp("whole")), ends.most


# --- other devices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "there", "here"),
    [
        ("rl", (1, 1), (4, 2)),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in [
                ("sft", (1, 1), (4, 2)),
                *((how, *move) for how in ("sft", "rl") for move in [((4, 2), (1, 1)), ((2, 2), (8, 1))]),
            ]
        ),
    ],
    indirect=["run"],
    ids=str,
)
def test_a_training_goes_on_on_other_devices_with_other_rows(run, whole, engine, tmp_path, there, here):
    """From a checkpoint that those wrote: what is drawn is the same, what is trained up to rounding."""
    expected, lines, _ = whole
    with pytest.raises(Killed):
        run(Ends(engine, *there, left=4), tmp_path / "run", rows=8)
    assert run.saved(tmp_path / "run") == [2]
    found, again = run(Ends(engine, *here), tmp_path / "run", rows=8 if here[0] == 8 else 4)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(again, lines, strict=True):
        assert one["tokens"] == other["tokens"] and one.get("reward") == other.get("reward")
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_a_training_that_goes_on_needs_no_more_memory_than_from_its_beginning(run, whole, engine, tmp_path):
    with pytest.raises(Killed):
        run(Ends(engine, left=4), tmp_path / "run")
    again = Ends(engine)
    run(again, tmp_path / "run")
    assert 4 <= again.most <= whole[-1]  # the base model's, and a state's


@pytest.mark.parametrize("how", [pytest.param("sft", marks=pytest.mark.slow), "rl"])
def test_what_draws_is_laid_out_once_at_a_time_and_not_in_an_update(
    how,
    engine,
    params,
    tokenizer,
    guided_attempts,  # noqa: F811
    tmp_path,
):
    """Parameters are float32, what is sampled from is bfloat16: neither the base model's nor a policy's is held."""
    config = engine.model.config
    held = []

    class Counting(Ends):
        def copies(self):
            shape = config.vocab, config.dim
            return sum(array.shape == shape and array.dtype == "bfloat16" for array in jax.live_arrays())

        def session(self, *arguments):
            """Without a cycle, which would hold it until garbage is searched."""
            return self.engine.session(*arguments)

        def update(self, *arguments):
            """Counts once the engine has let go of its pages."""
            call = self.engine._call
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(self.engine, "_call", lambda *a: (held.append(self.copies()), call(*a))[1])
                return super().update(*arguments)

    other = types.SimpleNamespace(model=build(dataclasses.replace(config, dtype="bfloat16")))
    ends = Counting(other)
    lab = Lab(ends, jax.device_put(params), Chance(tokenizer), [], {})
    assert ends.others == 0 and lab.decoding() is lab.decoding() and ends.copies() == 1
    lab.decoding(jax.tree.map(lambda leaf: leaf * 2, params))
    assert ends.copies() == 1
    Run(how, params, tokenizer, guided_attempts)(ends, tmp_path, before=lambda lab: lab.decoding())
    assert held == [1] * UPDATES  # this lab's, of before


# --- checkpoints by time --------------------------------------------------------------------------------------------


def test_a_training_is_saved_when_the_minutes_are_over(run, whole, engine, tmp_path, monkeypatch):
    """By a clock that says four minutes more at each look; what is trained does not depend on it."""
    expected, lines, _ = whole
    steps: list[int] = []
    really = checkpoint.Checkpoints.save

    def save(self, state, *score):
        steps.append(int(state.step))
        really(self, state, *score)

    monkeypatch.setattr(stores.Checkpoints, "save", save)
    for minutes, wanted in ((1e9, [5]), (1e-9, [1, 2, 3, 4, 5])):
        steps.clear()
        folder = tmp_path / str(minutes)
        changes = {f"{run.how}.checkpoint_every": 50, "checkpoint_minutes": minutes}
        found, again = run(Ends(engine), folder, **changes)
        assert steps == wanted and again == lines
        assert_same(found, expected)


# --- SIGTERM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [1, 3, 5])
def test_asked_to_end_in_an_update_a_training_saves_it_and_goes_on(
    run, whole, engine, tmp_path, sigterm, left
):
    expected, lines, _ = whole
    never = {f"{run.how}.checkpoint_every": 50}
    with pytest.raises(Preempted):
        run(Ends(engine, left=left, happens=sigterm), tmp_path / "run", **never)
    # The last one has no line before the policy is seen to draw: it is made again.
    assert run.saved(tmp_path / "run") == ([left] if left < UPDATES else [])
    preemption._asked = False
    found, again = run(Ends(engine), tmp_path / "run", **never)
    assert again == lines
    assert_same(found, expected)


@pytest.mark.parametrize("run", ["rl"], indirect=True)
@pytest.mark.usefixtures("optimized")
def test_asked_to_end_while_it_draws_a_training_saves_what_came_before(run, engine, tmp_path, sigterm):
    expected, lines = run(Ends(engine), tmp_path / "whole")
    for left in (1, 5, 9):
        never, folder = {"rl.checkpoint_every": 50}, tmp_path / str(left)
        ends = Ends(engine, left=left, happens=sigterm, drawing=True)
        with pytest.raises(Preempted):
            run(ends, folder, **never)
        assert ends.updates < UPDATES and run.saved(folder) == [step for step in [ends.updates] if step]
        preemption._asked = False
        found, again = run(Ends(engine), folder, **never)
        assert again == lines, left
        assert_same(found, expected)
