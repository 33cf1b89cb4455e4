"""The benchmarks measure what they say: the floor computes the same model, ratios pair rounds, quick compares with the
parent. Nothing is timed here."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import int_jax
from experiments import work
from experiments.configs import default
from int_jax.engine import Engine
from int_jax.sampler import Request, Sampling
from int_jax.sharding import make_mesh

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import answers  # noqa: E402
import quick  # noqa: E402
import random_model  # noqa: E402
import replay  # noqa: E402
import scenarios  # noqa: E402
import tpu_compile  # noqa: E402
import training  # noqa: E402
from contenders import floor, floor_cdf, train_floor, train_int_jax, train_pytorch  # noqa: E402
from turns import ratios  # noqa: E402

RATES = st.lists(st.floats(1, 1e6), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model.write(tmp_path_factory.mktemp("random"))


def drawn(model, prompts, samples=1, new=24, stops=(), draw=floor.by_noise):
    """(prompt, ids, log-probabilities) of each response of the floor."""
    asked = {"model": str(model), "dtype": "float32", "prompts": prompts, "samples": samples, "new": new}
    found = floor.prepare(asked | {"stops": list(stops)}, draw)(0, True)
    of_row = [prompt for prompt in prompts for _ in range(samples)]
    return [(prompt, *row) for prompt, row in zip(of_row, found, strict=True)]


# The suite broadcasts nothing between ranks; the floor is written as one would write it alone.
@pytest.fixture
def broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("draw", [floor.by_noise, floor_cdf.by_sums])
def test_the_floor_and_the_scorer_agree_on_prompts_of_any_length(model, broadcasting, draw):
    rng = np.random.default_rng(0)
    prompts = [random_model.prompt(rng, length) for length in (1, 5, 12)]
    rows = drawn(model, prompts, samples=2, draw=draw)
    lm = int_jax.load(model, mesh=make_mesh(devices=jax.devices()[:1]))
    scored = lm.score([[*prompt, *ids] for prompt, ids, _ in rows])
    for (prompt, ids, logp), found in zip(rows, scored, strict=True):
        assert len(ids) == 24
        np.testing.assert_allclose(logp, found[len(prompt) :], atol=1e-4)


@pytest.mark.slow
def test_whoever_trains_has_the_same_losses(model, broadcasting):
    """Of sequences of unlike lengths, over three updates: the same loss, gradient and optimizer."""
    task = training.Scenario("few", (5, 9, 12)).task(str(model)) | {"rate": 1e-2}
    ours, *theirs = (
        [once(seed, True) for seed in range(3)]
        for once in (one.prepare(task) for one in (train_int_jax, train_floor, train_pytorch))
    )
    assert ours[2] < ours[1] < ours[0]
    for losses in theirs:
        np.testing.assert_allclose(losses, ours, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [train_int_jax, train_floor, train_pytorch])
def test_an_iteration_draws_and_trains_all_that_was_asked(model, broadcasting, trainer):
    task = training.Scenario("few", prompts=2, samples=2).task(str(model)) | {"new": 6, "length": 22}
    assert trainer.prepare(task)(0) == [6] * 4


def test_which_responses_end_early_is_the_prompts_to_say(model, broadcasting):
    rng = np.random.default_rng(1)
    prompts = [random_model.prompt(rng, 8, early=i < 64) for i in range(80)]
    lengths = np.array([len(ids) for _, ids, _ in drawn(model, prompts, new=48, stops=[random_model.STOP])])
    assert (lengths[:64] <= 16).mean() >= 0.85
    assert (lengths[64:] == 48).all()


def test_the_cheap_draw_is_a_draw_from_the_softmax(broadcasting):
    logits = jnp.log(jnp.array([0.0, 0.5, 0.2, 0.0, 0.3] + [0.0] * 95))
    logits = jnp.roll(jnp.tile(logits, (4000, 1)), 62, axis=1)  # over the border of a block
    tokens = np.asarray(floor_cdf.by_sums(jax.random.key(0), logits)) - 62
    shares = np.bincount(tokens, minlength=5) / len(tokens)
    np.testing.assert_allclose(shares, [0, 0.5, 0.2, 0, 0.3], atol=0.03)


@given(RATES, st.floats(0.2, 5.0), st.data())
def test_a_ratio_is_of_what_ran_side_by_side(rates, factor, data):
    slowed = data.draw(st.lists(st.floats(0.01, 1.0), min_size=len(rates), max_size=len(rates)))
    new = [rate * factor * slow for rate, slow in zip(rates, slowed, strict=True)]
    old = [rate * slow for rate, slow in zip(rates, slowed, strict=True)]
    found = ratios(new, old)
    assert found.least == pytest.approx(factor) and found.most == pytest.approx(factor)
    # Away from the border itself, where rounding decides.
    if abs(factor - 0.85) > 1e-6:
        assert quick.lost(new, old) == (factor < 0.85)


def test_one_bad_round_loses_nothing():
    assert not quick.lost([100, 10, 100, 100, 100], [100] * 5)
    assert quick.lost([80, 800, 80, 80, 80], [100] * 5)


def test_the_parent_is_head_where_the_tree_was_changed(tmp_path):
    def git(*words):
        return quick.git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", *words)

    git("init", "--quiet")
    file = tmp_path / "int_jax" / "a.py"
    file.parent.mkdir()
    for text in ("1", "2"):
        file.write_text(text)
        git("add", ".")
        git("commit", "--quiet", "-m", text)
    first, second = git("rev-parse", "HEAD~1").strip(), git("rev-parse", "HEAD").strip()
    assert quick.parent(tmp_path) == first
    (tmp_path / "notes").write_text("not of the package")
    assert quick.parent(tmp_path) == first
    (file.parent / "new.py").write_text("a new module")
    assert quick.parent(tmp_path) == second
    with quick.checkout(tmp_path, first) as there:
        assert (there / "int_jax" / "a.py").read_text() == "1"
    assert not there.exists() and git("worktree", "list").count("\n") == 1


def test_a_scenario_asks_all_the_same_each_time():
    for scenario in (*scenarios.TABLE, *scenarios.QUICK, *scenarios.RAGGED, scenarios.MEMORY):
        models = {"random": "r", "embedded": "e", "chat": "c"}
        once, again = (scenario.task(models, [[3, 4]] * 9) for _ in range(2))
        assert once == again and len(once["prompts"]) == scenario.prompts
        assert scenario.length == 0 or {len(prompt) for prompt in once["prompts"]} == {scenario.length}
        early = [prompt[-1] < random_model.HALF for prompt in once["prompts"]]
        assert scenario.model != "random" or sum(early) == round(scenario.early * scenario.prompts)
        assert {name for name, _ in scenario.targets} <= set(scenario.contenders)


@pytest.mark.parametrize("kind", ["number", "latex"])
def test_half_of_the_answers_are_right(kind):
    given = answers.pairs(kind, 12, 8, seed=0)
    assert len({gold for _, gold in given}) > 6
    verdicts = [int_jax.verify(response, gold, "tolerant") for response, gold in given]
    assert 0.35 < np.mean([verdict.passed for verdict in verdicts]) < 0.75
    assert {verdict.reason for verdict in verdicts} <= {"correct", "wrong"}


class Given(replay.Stage):
    """Responses of given lengths, an item each, to prompts of its own; those of a pair have one prompt."""

    def __init__(self, *lengths, prompt=5):
        super().__init__(0)
        self.lengths, self.prompt = lengths, prompt

    def first(self, item):
        return [replay.Ask(item, self.prompt, new) for new in np.atleast_1d(self.lengths[item]).tolist()]


def replayed(stage, items, replicas=1, pages=200, **sizes):
    small = {"rows": 4, "page": 8, "decode_steps": 4, "new": 40, "unit": 1, "ahead": False}
    session = replay.Session(stage, range(items), replicas, pages, replay.Sizes(**small | sizes))
    return session, dict(zip(replay.FIELDS, session.run().T, strict=True))


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
    st.integers(12, 40),
)
def test_a_replay_draws_every_token_once(lengths, replicas, unit, ahead, pages):
    """Also where pages run out and rows are put back."""
    stage = Given(*lengths)
    session, chunks = replayed(stage, len(lengths), replicas, pages, unit=unit, ahead=ahead)
    assert session.ended == len(lengths) and not any(session.left)
    assert chunks["drawn"].sum() == sum(lengths)
    assert (chunks["drawn"] <= chunks["steps"] * 4 * replicas).all()
    assert (chunks["live"] <= chunks["read"]).all()


def test_a_follow_up_and_a_further_round_are_drawn_where_their_first_has_ended():
    stage = replay.Proposals(0)
    session, chunks = replayed(stage, 2, unit=128, page=128, pages=2000, new=16_384)
    assert len(session.asks) == session.ended == 2 * 5
    assert chunks["drawn"].sum() == sum(ask.new for ask in session.asks)
    guided = replay.Guided(3)
    session, _ = replayed(guided, 6, unit=128, page=128, pages=2000, new=16_384)
    tries = np.bincount([ask.item for ask in session.asks])
    assert set(tries) <= {8, 16, 24, 32} and len(set(tries)) > 1


def test_the_rows_in_use_are_counted_by_steps():
    # Two rows, and responses of 8, 3 and 4 tokens: the third waits, so the first chunk ends after 3 steps, when one row
    # is free; then 4 steps of both, and 1 of the first.
    _, chunks = replayed(Given(8, 3, 4), 3, rows=2)
    steps, drawn = chunks["steps"], chunks["drawn"]
    assert steps[steps > 0].tolist() == [3, 4, 1] and drawn[steps > 0].tolist() == [6, 8, 1]
    part = replay.Part("given", lambda seed: Given(8, 3, 4), 3, 1)
    sizes = replay.Sizes(2, 8, 4, ahead=False, new=8, unit=1)
    found = replay.replay(part, replay.H200, sizes, enough=10)
    assert found.occupancy == 15 / 16 and found.full == 6 / 6 and found.drawn == 15 and found.replayed == 1


def test_samples_of_a_prompt_prefill_it_once():
    session, _ = replayed(Given([9] * 64, [9] * 64, prompt=33), 2, rows=16)
    # All but the last token of the prompt, which decoding reads.
    assert session.schedule.prefilled == 2 * 32 and session.schedule.shared == 2 * 63 * 32


def test_a_part_of_a_stage_stands_for_all_of_its_tokens():
    part = replay.Part("given", lambda seed: Given(*[20, 5, 11, 4] * 40), 160, 1)
    sizes = replay.Sizes(4, 8, 4, ahead=False, new=20, unit=1)
    whole, half = (replay.replay(part, replay.H200, sizes, enough) for enough in (40, 20))
    assert (whole.replayed, half.replayed) == (1, 0.5)
    assert whole.drawn == half.drawn == 1600
    assert half.hours == pytest.approx(whole.hours, rel=0.03)
    assert half.occupancy == pytest.approx(whole.occupancy, abs=0.03)


@pytest.mark.parametrize(
    "machine", [replay.NODE, replay.NODES, replay.HOST, replay.HOSTS], ids=lambda m: m.name
)
def test_the_plans_hours_are_near_those_of_the_schedule(machine):
    """The closed form of experiments/work.py, of which nothing is replayed, and the last replay of the whole recipe: it
    knows nothing of rows that wait for prefill or for the host, nor of how evenly the replicas are filled."""
    lines = map(json.loads, (ROOT / "benchmarks" / "results" / "replay.jsonl").read_text().splitlines())
    replayed = {one["stage"]: one for one in lines if one["machine"] == machine.name}
    c = default.get_config()
    c.update(problems={"hard": ("train",), "test": 500}, guided={"stop_at_success": False}, arms=("int_rl",))
    c.domain = default.domain("math")
    names = {
        "attempts": "attempts",
        "proposals": "proposals",
        "guided": "guided, all tries",
        "effect": "effect table",
    }
    names |= {"rl: rollouts": "RL"}
    pool = machine.pages(replay.QWEN3_4B, 128) * 128
    hours, tokens = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for part in work.stages(c, work.Assumed()):
        if part.stage in names:
            replicas = machine.processes * machine.replicas
            hours[part.stage] += work.draw_hours(
                part, machine.device, replay.QWEN3_4B, replicas, 1, machine.rows, pool
            )
            tokens[part.stage] += part.tokens
    for name, other in names.items():
        assert tokens[name] == pytest.approx(replayed[other]["drawn"], rel=0.03), name
        assert 0.75 < hours[name] / replayed[other]["hours"] < 1.1, name
    whole = sum(replayed[other]["hours"] for other in names.values())
    assert 0.85 < sum(hours.values()) / whole < 1.05


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
def test_a_replay_does_what_a_session_does(model, monkeypatch, ahead):
    """As many decodes, and the same tokens computed and shared, for the lengths that came out."""
    lm = int_jax.load(model, mesh=make_mesh(devices=jax.devices()[:1]))
    rng = np.random.default_rng(3)
    prompts = [tuple(random_model.prompt(rng, 21, early=i % 3 > 0)) for i in range(9)]
    engine = Engine(lm.model, lm.engine.mesh, 8, decode_steps=4, page=8, prefill_width=32, ahead=ahead)
    decode, decodes = Engine.decode, itertools.count()
    monkeypatch.setattr(Engine, "decode", lambda *args: (next(decodes), decode(*args))[1])
    session = engine.session(lm.params, Sampling(24, stop_ids=(random_model.STOP,)))
    session.add([Request(prompt, f"t{i}", k) for i, prompt in enumerate(prompts) for k in range(4)])
    news = {}
    while session:
        news |= {number: len(response.tokens) - 21 for number, response in session.take()}
    given = Given(*[[news[4 * i + k] for k in range(4)] for i in range(9)], prompt=21)
    sizes = {"rows": 8, "prefill_width": 32, "new": 24, "ahead": ahead}
    again, _ = replayed(given, 9, pages=session.schedule.pages, **sizes)
    assert again.decodes == next(decodes)
    for name in ("prefilled", "shared", "put_back"):
        assert getattr(again.schedule, name) == getattr(session.schedule, name)


@pytest.mark.slow
def test_a_worker_draws_what_it_is_asked(model):
    from turns import Worker

    task = scenarios.Scenario("t", 3, 6, 2, 5).task({"random": str(model)}, [])
    for name in ("int_jax", "floor", "pytorch"):
        worker = Worker(name, sys.executable, threads=1)
        assert worker.hello["threads"] == 1
        assert worker.ask(task=task)["tokens"] == worker.ask(seed=1)["tokens"] == 30
        worker.close()
        with pytest.raises(RuntimeError, match="no-such"):
            Worker("no-such", sys.executable)


def test_git_says_what_is_wrong(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        quick.parent(tmp_path)


PROGRAM = """
HloModule jit__update

%condition (p: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(9)
  ROOT %lt = pred[] compare(%index, %limit), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %whole = bf16[8,1000]{1,0} all-gather(%part), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}
  %both = (f32[10]{0}, f32[30]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %cut = f32[500]{0} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
}

%all-reduce-scatter.1 (p: f32[1000]) -> f32[500] {
  %sum = f32[1000]{0} all-reduce(%p), replica_groups=[4,2]<=[8]
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]) while(%start), condition=%condition, body=%body
  %norm = f32[]{:T(128)} all-reduce(%part), replica_groups=mesh['a'=2,'b'=4] {'a','b'}
}
"""


def test_what_a_program_exchanges_is_counted_in_bytes():
    """Of rings: an all-gather sends all parts but one, an all-reduce twice as much, and a loop of nine nine times."""
    assert tpu_compile.devices_of(PROGRAM[PROGRAM.index("%whole") :].splitlines()[0]) == [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
    ]
    data = 9 * 16_000 * 3 / 4 + 2 * 4 * 7 / 8
    model = 9 * (160 + 4_000 / 2)
    expected = f"data: 1 in loops, 1 outside, {data / 1e9:.3g} GB sent; "
    expected += f"model: 2 in loops, 0 outside, {model / 1e9:.3g} GB sent"
    assert tpu_compile.exchanged(PROGRAM, 2) == expected
