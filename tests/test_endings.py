"""How a run ends when a policy diverges or InT yields nothing: with results and a report, always.

The whole runs are as small as they go, use the embedded model, and share one run's data stages.
"""

import dataclasses
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import int_jax
from experiments import arms, build, evaluate
from experiments import run as runs
from experiments.configs import default
from experiments.configs import int as intervention
from experiments.problems import problems
from experiments.store import WorkdirStore
from int_jax import checkpoint, domains, proposers
from int_jax.engine import Engine
from int_jax.intervention_training import intervention_training
from int_jax.lab import Lab, Memory, Training, adamw
from int_jax.rows import Stage
from int_jax.sharding import make_mesh
from int_jax.stages import StageError, Workdir, shard, write_shard
from int_jax.types import State, to_json

# --- one policy's training -----------------------------------------------------------------------------------------

TX = optax.adamw(1e-3)
FINE = {"loss": 1.0, "grad_norm": 1.0, "update_norm": 1.0, "param_norm": 1.0, "trained_tokens": 8.0}


def spoil(state: State, part: str, value: float) -> State:
    """The state with one number of its parameters or moments replaced."""
    tree = state.params if part == "params" else state.opt
    leaves, structure = jax.tree.flatten(tree)
    index = next(i for i, leaf in enumerate(leaves) if leaf.ndim)
    leaves[index] = leaves[index].at[(0,) * leaves[index].ndim].set(value)
    return state._replace(**{part: jax.tree.unflatten(structure, leaves)})


SPOILED = {  # update, metrics, (part of the state, value) -> what is named; None: nothing is wrong
    "NaN loss at update 0": (0, {"loss": math.nan}, None, "loss"),
    "NaN loss at a later update": (3, {"loss": math.nan}, None, "loss"),
    "at the last update": (4, {"loss": math.inf}, None, "loss"),
    "infinite gradient, cut by the clip": (2, {"grad_norm": math.inf}, None, "grad_norm"),
    "NaN gradient, parameters with it": (2, {"grad_norm": math.nan}, ("params", math.nan), "grad_norm"),
    "norm of the update overflows": (1, {"update_norm": math.inf}, None, "update_norm"),
    "norm of the parameters overflows": (1, {"param_norm": math.inf}, None, "param_norm"),
    "one parameter, in no metric": (2, {}, ("params", math.inf), "parameters"),
    "the moments alone": (2, {}, ("opt", math.inf), "moments"),
    "NaN reward": (1, {"reward": math.nan, "loss": math.nan}, None, "reward"),
    "rollouts whose log-probabilities are NaN": (1, {"drawn_logp": math.nan}, None, "drawn_logp"),
    "huge and finite, the last policy draws NaN": (4, {}, ("params", "huge"), "log-probabilities"),
    "huge numbers that are finite": (2, {"loss": 3e38, "grad_norm": 1e30}, None, None),
    "a negative loss": (2, {"loss": -5.0, "reward": -1.0}, None, None),
    "an absent reward": (2, {"loss": 0.0}, None, None),
}


@dataclasses.dataclass
class Small:
    """A store, and the parameters with which its trainings begin."""

    store: WorkdirStore
    base: dict

    @property
    def folder(self):
        return self.store.work.path

    def state(self) -> State:
        return self.store.engine.state(self.base, TX)

    def like(self) -> State:
        return self.store.engine.abstract_state(self.base, TX)


@pytest.fixture(scope="module")
def base(engine):
    return jax.jit(engine.model.init)(jax.random.key(0))


@pytest.fixture
def small_run(tmp_path, engine, base):
    config = default.get_config()
    config.rl.checkpoint_every = 2
    work = Workdir(tmp_path / "run", config.to_dict(), {})
    return Small(WorkdirStore(config, work, engine), base)


def updates(state: State, spoiled_at: int, metrics: dict, fault, seen: list):
    """Updates that change nothing but the step; one of them is spoiled."""
    while True:
        step = int(state.step)
        seen.append(step)
        state = state._replace(step=state.step + 1)
        if step == spoiled_at and fault and fault[1] == "huge":
            state = state._replace(params=jax.tree.map(lambda x: jnp.full_like(x, 1e18), state.params))
        elif step == spoiled_at and fault:
            state = spoil(state, *fault)
        yield state, FINE | (metrics if step == spoiled_at else {})


def training(run: Small, *fault, seen=None, name="rl") -> Training:
    seen = [] if seen is None else seen
    return Training(
        name,
        "sft" if name == "int" else "rl",
        run.state,
        run.like(),
        lambda state: updates(state, *fault, seen),
        lambda state, tokens: int(state.step) >= 5,
        5,
    )


def trained(run: Small, *fault, **knobs):
    return run.store.follow(training(run, *fault, **knobs))


@pytest.mark.parametrize("case", SPOILED)
def test_the_first_number_that_is_not_finite_ends_a_policys_training(small_run, case):
    at, metrics, fault, what = SPOILED[case]
    found = trained(small_run, at, metrics, fault)
    folder = small_run.folder / "rl"
    steps = checkpoint.saved(folder / "state")
    if what is None:
        assert found.diverged is None and int(found.state.step) == 5 and steps == [5]
        return
    assert found.state is None and len(found.lines) == at + 1
    assert found.diverged["update"] == at and found.diverged["what"] == what
    assert steps == [n for n in [at // 2 * 2] if n]  # every second update is saved, the spoiled one never
    assert found.diverged["checkpoint"] == (f"rl/state/{steps[0]}" if steps else None)
    for step in steps:
        assert small_run.store.engine.finite(checkpoint.restore(folder / "state", small_run.state()))
        assert f"state/{step}" in found.diverged["said"]
    said = found.diverged["said"]
    assert f"RL diverged at update {at}: {what} is " in said
    if what == "reward":
        assert "arithmetic" in said and "verify" in said
    elif at == 0:
        assert "Nothing was trained before it" in said
    else:
        assert "config.rl.learning_rate (now 1e-06)" in said and "config.rl.clip_norm" in said
    seen: list[int] = []
    again = trained(small_run, at, metrics, fault, seen=seen)
    assert (
        not seen and again.state is None and again.diverged == found.diverged
    )  # a restart does not train again
    assert [line["step"] for line in again.lines] == list(range(at + 1))


@pytest.mark.parametrize(
    ("each", "every", "kept"),
    [(1, 5, [5, 10, 12]), (4, 5, [8, 12]), (4, 2, [4, 8, 12]), (4, 12, [12]), (6, 50, [12])],
)
def test_checkpoints_stand_at_the_ends_of_batches(small_run, monkeypatch, each, every, kept):
    """Of `each` updates, and as often as every so many updates; the last one always."""
    found: list[int] = []
    monkeypatch.setattr(
        checkpoint.Checkpoints, "save", lambda self, state, score=None: found.append(int(state.step))
    )
    monkeypatch.setattr(small_run.store, "unsound", lambda params: "")
    monkeypatch.setattr(small_run.store.engine, "decode_params", lambda params: params)
    small_run.store.config.rl.checkpoint_every = every

    def batches(state: State):
        while True:
            before = state
            state = state._replace(step=before.step + each)
            before.step.delete()  # as an update does, which is given its state
            yield state, FINE

    small_run.store.follow(
        Training(
            *("rl", "rl", small_run.state, small_run.like(), batches),
            lambda state, tokens: int(state.step) >= 12,
            12,
        )
    )
    assert found == kept


def test_a_kill_before_the_note_ends_alike(small_run):
    case = (3, {"loss": math.nan}, None)
    first = trained(small_run, *case)
    (small_run.folder / "rl" / "diverged.json").unlink()
    seen: list[int] = []
    again = trained(small_run, *case, seen=seen)
    assert seen == [2, 3] and again.diverged == first.diverged  # from checkpoint 2
    assert [line["step"] for line in again.lines] == [0, 1, 2, 3]


@pytest.mark.parametrize("part", ["params", "opt"])
def test_a_checkpoint_that_is_not_finite_is_not_trained_on(small_run, part):
    state = small_run.state()
    with checkpoint.Checkpoints(small_run.folder / "int" / "state") as checkpoints:
        checkpoints.save(spoil(state, part, math.nan)._replace(step=state.step + 5))
    seen: list[int] = []
    found = trained(small_run, 9, {}, None, seen=seen, name="int")
    assert (
        not seen
        and found.state is None
        and "InT diverged at update 4: checkpoint is nan" in found.diverged["said"]
    )


@pytest.mark.parametrize(
    ("dtype", "what", "at", "words"),
    [
        ("bfloat16", "loss", 0, "set config.dtype = float32 (now bfloat16)"),
        ("bfloat16", "loss", 3, "or set config.dtype = float32 (now bfloat16)"),
        ("float32", "loss", 0, "look at the weights of config.model"),
        (
            "float32",
            "update_norm",
            0,
            "Lower config.sft.learning_rate (now 1e-06) or config.sft.clip_norm (now 1)",
        ),
    ],
)
def test_the_knob_that_is_named(small_run, dtype, what, at, words):
    small_run.store.config.dtype = dtype
    assert words in small_run.store.divergence(training(small_run, name="int"), at, what, math.nan)["said"]


# --- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm(tiny_dir):
    loaded = int_jax.load(tiny_dir, make_mesh(1, 1, jax.devices()[:1]))
    return dataclasses.replace(loaded, engine=Engine(loaded.model, loaded.engine.mesh, 32, 16))


def small(**changes):
    c = intervention.smoke()
    c.name = "small"
    c.problems.update(train=8, test=3, shard=24)
    c.problems.hard = ("train",)
    c.attempts.tries, c.guided.tries = 2, 4
    c.proposals.compare = ()
    c.effect.update(problems=2, samples=1)
    c.sft.update(epochs=1, batch=16)
    c.rl.update(updates=2, problems=2, group=2)
    c.arms = ("int_rl", "rl")
    c.eval.update(samples=2, ks=(1, 2), train_problems=2)
    c.update_from_flattened_dict(changes)
    return c


def ended(lm, workdir, config) -> tuple[dict, str]:
    """A run's results and report, after which a restart gives the same ones without training."""
    found = runs.run_seed(config, 0, workdir, lm, None)
    text = (workdir / "report.html").read_text()
    assert json.loads((workdir / "results.json").read_text()) == found
    screen = int_jax.report.tables(found)
    for said in found["notes"]:
        assert " ".join(said.split()) in " ".join(screen.split())
    again = runs.run_seed(config, 0, workdir, lm, None)
    timed = ("wall_s", "programs")
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in found.items() if k not in timed
    }
    return found, text


@pytest.fixture(scope="module")
def stages(lm, tmp_path_factory):
    """The data stages of the small run, for runs that train otherwise."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    found = runs.run_seed(small(arms=("int_rl",), **{"rl.updates": 1}), 0, folder, lm, None)
    assert found["funnel"]["kept"] and not found["notes"] and not found["stopped"]
    return folder


@pytest.fixture
def workdir(stages, tmp_path):
    """A workdir in which the data stages are there already."""
    for stage in ("attempts", "proposals", "guided", "effect"):
        shutil.copytree(stages / stage, tmp_path / "run" / stage)
    return tmp_path / "run"


STEEP = {"learning_rate": 1e30, "clip_norm": 1e30}
DIVERGENCES = {  # the section that is too steep -> why each policy was stopped
    "rl": {"int_rl": "diverged", "rl": "diverged", "rl_matched": "skipped"},
    "sft": {"int": "diverged", "int_rl": "skipped", "rl_matched": "skipped"},
}


@pytest.mark.slow
@pytest.mark.parametrize("section", ["rl", "sft"])
def test_a_diverged_arm_stops_and_the_others_go_on(lm, workdir, section):
    knobs = {f"{section}.{knob}": value for knob, value in STEEP.items()}
    knobs |= {
        "arms": ("int_rl", "rl", "rl_matched"),
        "sft.epochs": 3,
    }  # the first of the three has a learning rate of 0
    found, text = ended(lm, workdir, small(**knobs))
    why = DIVERGENCES[section]
    assert {name: how["why"] for name, how in found["stopped"].items()} == why
    assert not (workdir / "models").exists() or "int_rl" not in why
    policies = {"base", "int", "int_rl", "rl"}
    assert found["counts"].keys() == policies - why.keys()  # what is evaluated
    for name in policies & found["eval"].keys():
        assert (found["eval"][name]["pass@1"]["mean"] is None) == (why.get(name) == "diverged")
    assert found["eval"].keys() == policies - {name for name, how in why.items() if how == "skipped"}
    screen, labels = int_jax.report.tables(found), arms.policies(found["config"]["arms"])
    for name, how in why.items():
        assert re.search(rf"^ {re.escape(labels[name].label)} +{how} +{how}", screen, re.MULTILINE)
        assert bool(checkpoint.saved(workdir / name / "state")) == (
            how == "diverged" and bool(found["stopped"][name]["checkpoint"])
        )
    assert "diverged" in text and f"config.{section}.learning_rate (now 1e+30)" in text


def test_a_score_that_is_not_a_number_stops_rl(lm, workdir, monkeypatch):
    from int_jax.domains.arithmetic import Arithmetic

    verify = Arithmetic.verify
    monkeypatch.setattr(
        Arithmetic, "verify", lambda self, trace: verify(self, trace)._replace(score=math.nan)
    )
    found, _ = ended(lm, workdir, small(arms=("rl",)))
    assert found["stopped"]["rl"]["what"] == "reward" and found["stopped"]["rl"]["update"] == 0
    assert "domain arithmetic" in found["notes"][0]
    assert found["rl"]["rl"]["reward"] == [None] and found["eval"]["base"]["pass@1"]["mean"] is not None


def test_weights_that_are_not_finite_are_never_sampled(lm, tmp_path):
    broken = dataclasses.replace(lm, params=spoil(State(0, lm.params, ()), "params", math.nan).params)
    with pytest.raises(
        StageError, match=r"the parameters of this model are not finite in config.dtype = float32"
    ):
        runs.run_seed(small(), 0, tmp_path / "run", broken, None)
    assert not (tmp_path / "run" / "attempts").exists()


def test_the_method_in_memory_is_that_of_a_run(lm, stages, tmp_path):
    """Rows and parameters, bit for bit: where results are kept changes none of them."""
    config = small(arms=("int_rl",), **{"rl.updates": 1})
    domain = domains.load("arithmetic", lm.tokenizer, **config.domain.knobs.to_dict())
    train = problems(config, Workdir(tmp_path, {}, {}), domain, 0).train
    lab = build.lab(config, 0, lm, None, domain, train, Memory())
    params = intervention_training(lab)
    for stage in ("attempts", "proposals", "guided"):
        lines = (stages / stage / "00000.jsonl").read_text().splitlines()[1:]
        assert json.loads(json.dumps(to_json(lab.rows[Stage(stage)]))) == [json.loads(line) for line in lines]
    c = config.rl
    like = lm.engine.abstract_state(lm.params, adamw(c.learning_rate, c.weight_decay, c.clip_norm))
    saved = checkpoint.restore(stages / "int_rl" / "state", like).params
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [*lab.policies] == ["base", "int", "int_rl"] and lab.spent()["drawn"] > 0


# --- runs in which InT yields nothing -------------------------------------------------------------------------------


def mute(stage: str):
    """A stage's rows as they are when nothing comes of it, made of the small run's."""

    def change(folder):
        path = folder / stage / "00000.jsonl"
        counts, rows = shard(path)
        write_shard(path, [MUTED[stage](row) for row in rows], counts)
        for later in STAGES[STAGES.index(stage) + 1 :]:
            shutil.rmtree(folder / later)

    return change


STAGES = ("attempts", "proposals", "guided", "effect")
SAID = {"raw": "I see no <error> here", "fault": "unparsed", "step": None, "text": ""}
MUTED = {
    "attempts": lambda row: row | {"wrong": []},
    "proposals": lambda row: row | {"intervention": None, "drop": "unparsed", "candidates": [SAID, SAID]},
    "guided": lambda row: row | {"successes": 0, "shown": [["no", False]]},
}
NOTHING = {  # -> (what is changed, knobs, what is said of it)
    "all proposals unparsed": (mute("proposals"), {}, r"of (\d+) proposals were unparsed"),
    "no guided attempt succeeds": (
        mute("guided"),
        {},
        r"no continuation of the \d+ spliced interventions was right",
    ),
    "no wrong attempt is kept": (mute("attempts"), {}, r"no wrong attempt was kept"),
    "all too long": (None, {"arms": ("int_rl",)}, r"proposals were (leaked, \d+ )?too long"),
    "InT alone": (mute("proposals"), {"arms": ("int_rl",)}, r"proposals were unparsed"),
    "all hard problems in the pool": (mute("proposals"), {"rl.pool": "hard"}, r"proposals were unparsed"),
}


@pytest.mark.parametrize(
    "case",
    [case if i < 1 else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(NOTHING)],
)
def test_a_run_in_which_int_yields_nothing_ends_well(lm, workdir, monkeypatch, case):
    change, knobs, said = NOTHING[case]
    if (
        change is None
    ):  # no knob does it to all of them: rows too short for the attempts are refused at the start
        monkeypatch.setattr(Lab, "fits", lambda self, trace: False)
        for stage in ("guided", "effect"):
            shutil.rmtree(workdir / stage)
    else:
        change(workdir)
    found, text = ended(lm, workdir, small(**knobs))
    chosen = knobs.get("arms", ("int_rl", "rl"))
    assert found["stopped"] == {"int": {"why": "skipped"}, "int_rl": {"why": "skipped"}}
    assert re.search(said, found["notes"][0]) and f"proposals and guided in {workdir}" in found["notes"][0]
    assert found["eval"].keys() == {"base", *chosen} - {"int_rl"}
    pool = [note for note in found["notes"] if "config.rl.pool = kept" in note]
    assert len(pool) == (knobs.get("rl.pool") != "hard")
    if case == "all proposals unparsed":
        assert text.count("candidate 2: unparsed") == found["funnel"]["wrong"] == found["funnel"]["unparsed"]
        assert "I see no &lt;error&gt; here" in text


def test_every_candidate_is_kept_whatever_it_lacks(stages):
    rows = [json.loads(line) for line in (stages / "proposals" / "00000.jsonl").read_text().splitlines()[1:]]
    for row in rows:
        assert row["candidates"] and all(
            c["raw"] and c["fault"] in ("", *proposers.DROPS) for c in row["candidates"]
        )
        assert (row["intervention"] is None) == all(c["fault"] for c in row["candidates"])


def test_a_run_without_hard_problems_evaluates_the_base_model(lm, workdir):
    path = workdir / "attempts" / "00000.jsonl"
    counts, rows = shard(path)
    write_shard(path, [row | {"correct": 1, "wrong": []} for row in rows], counts)
    found, text = ended(lm, workdir, small())
    assert found["eval"].keys() == {"base"} and found["eval_train"] == {}
    assert "each has a right try in 2" in found["notes"][0] and "skipped" in text


# --- what scoring costs --------------------------------------------------------------------------------------------


def test_the_drifts_scoring_is_counted_timed_and_not_done_twice(lm, workdir, capsys, monkeypatch):
    config = small(arms=("rl",), **{"rl.updates": 1})
    found = runs.run_seed(config, 0, workdir, lm, None)
    wrong = [
        trace
        for path in workdir.glob("attempts/*.jsonl")
        for row in map(json.loads, path.read_text().splitlines()[1:])
        if not row["correct"]
        for trace in row["wrong"]
    ]
    assert found["tokens"]["drift"] == 2 * sum(
        len(trace["tokens"]) for trace in wrong
    )  # along them: base and RL
    assert found["wall_s"]["drift"] > 0
    assert re.search(rf"^ drift +{found['tokens']['drift']:,} ", int_jax.report.tables(found), re.MULTILINE)
    assert re.search(r"drift .*100%.*texts", capsys.readouterr().err)
    monkeypatch.setattr(Engine, "score", lambda *_, **__: pytest.fail("scored again"))
    again = runs.run_seed(config, 0, workdir, lm, None)
    assert again["drift"] == found["drift"] and again["tokens"]["drift"] == found["tokens"]["drift"]


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_a_seed_without_a_policy_leaves_no_mean_over_the_others():
    def seed(stopped=None, **counts):
        return {"counts": {name: {"test": found} for name, found in counts.items()}, "stopped": stopped or {}}

    every = [seed(base=[(2, 1)], rl=[(2, 1)]), seed({"rl": {"why": "diverged"}}, base=[(2, 0)])]
    rows = evaluate.across_seeds(every, 2, ["rl"])["pass@1"]
    assert rows["base"]["mean"] == 0.25
    assert rows["rl"] == {"mean": None, "ci95": [None, None], "seeds": [0.5, None], "stopped": "diverged"}
    shown = int_jax.report.policies_of({"policies": arms.shown(("rl",))})
    assert re.search(r"RL +diverged +50\.0  –", int_jax.report.seeds_table({"pass@1": rows}, shown))
