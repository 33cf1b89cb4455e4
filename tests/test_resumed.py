"""Killed in the middle of a stage or of a batch, a run draws only what is missing, and ends as one that was not killed.

The runs are those of test_knobs.py: whole ones, over an engine without a model, whose responses end a few at a time.
"""

import json
import re
from collections import Counter

import jax
import pytest
from sessions import NewestFirst, Scattered
from test_knobs import RL, Story, Toy, configured, watch  # noqa: F401 (watch is a fixture)
from test_rollouts import Chance
from test_while_it_trains import reinforced
from trees import assert_same

from experiments import run as runs
from experiments.store import LOG
from int_jax import checkpoint
from int_jax.domains.arithmetic import Arithmetic


class Killed(BaseException):
    """As a signal would: nothing catches it."""


class Draws:
    """What is drawn, by kind and request, over however many starts; killed once, after so many of a kind."""

    def __init__(self, patch, kind: str = "", left: int = 0):
        self.seen: Counter = Counter()
        self.kind, self.left = kind, left
        patch.setattr(Toy, "session", lambda *arguments, **named: Scattered(*arguments, **named))
        patch.setattr(Toy, "generate", self.generate(Toy.generate))

    def generate(self, really):
        def generate(toy, params, requests, sampling, *rest, **named):
            for request in requests:
                kind = re.sub(r"\d", "", request.task.rpartition("/")[2])
                if kind == self.kind:
                    self.left -= 1
                    if not self.left:
                        raise Killed
            found = really(toy, params, requests, sampling, *rest, **named)
            # The probe is asked of each policy by each start, outside of all stages.
            self.seen.update(
                (request, params["score_V"].tobytes()) for request in requests if request.task != "probe"
            )
            return found

        return generate


def outcome(workdir) -> dict:
    """All that a run leaves, but for its times: rows as they stand in their files, results, scalars."""
    found = {path.name: json.loads(path.read_text()) for path in workdir.glob("results.json")}
    for timed in ("wall_s", "versions"):
        found["results.json"].pop(timed)
    for path in workdir.glob("*/**/*"):
        if path.suffix == ".jsonl":
            found[str(path.relative_to(workdir))] = path.read_bytes()
    return found


def again(workdir):
    def main(_):
        runs.WORKDIR.value = str(workdir)
        runs.main([])

    return main


CONTEXTS = {"all": {"rl.keep_rollouts": 0}, "rl": RL | {"rl.updates": 4, "validation.every": 1}}
KILLS = [
    # Of the attempts 6 are at held-out problems, and the first: a stage of their own.
    *(("all", kind, nth) for kind in ("check", "guided", "effect", "eval") for nth in (4, 7)),
    *(("all", "attempts", nth) for nth in (4, 10)),
    *(("all", "update", nth) for nth in (5, 21)),
    *(("rl", kind, nth) for kind in ("update", "validation") for nth in (4, 17)),
]
_whole: dict = {}


def whole(watch, context):  # noqa: F811
    """What a run that is not killed leaves and draws; run once."""
    if context not in _whole:
        with pytest.MonkeyPatch.context() as patch:
            draws = Draws(patch)
            workdir = watch.run(configured(CONTEXTS[context]), Story(), reports=True)
            _whole[context] = outcome(workdir), draws.seen
    return _whole[context]


@pytest.mark.parametrize(("context", "kind", "nth"), KILLS)
def test_what_was_drawn_is_not_drawn_again_and_nothing_else_differs(watch, monkeypatch, context, kind, nth):  # noqa: F811
    expected, seen = whole(watch, context)
    draws, config, saved = Draws(monkeypatch, kind, nth), configured(CONTEXTS[context]), {}
    with pytest.raises(Killed):
        watch.run(config, Story(), reports=True, saved=saved)
    workdir = watch.folder / str(watch.count)
    logs = [path for path in workdir.rglob("*.log") if path.stat().st_size]
    before = draws.seen.copy()
    watch.run(config, Story(), reports=True, main=again(workdir), saved=saved)
    # What is asked twice (the start of two conditions of the effect) may be drawn once.
    assert draws.seen.keys() == seen.keys() and draws.seen <= seen
    assert logs and before != seen
    found = outcome(workdir)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name
    assert not [*workdir.rglob(LOG)] and not [*workdir.rglob("counts.json")]


class Mortal:
    """An engine whose responses end one at a time; killed after so many. drawn: what it was asked, and ended."""

    def __init__(self, engine, left: int = 10**9):
        self.engine, self.left, self.drawn = engine, left, Counter()

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def session(self, *arguments, **named):
        return NewestFirst(self, *arguments, **named)

    def generate(self, params, requests, *rest, **named):
        self.left -= len(requests)
        if self.left < 0:
            raise Killed
        self.drawn.update(requests)
        return self.engine.generate(params, requests, *rest, **named)


@pytest.mark.parametrize(
    "left", [4, pytest.param(20, marks=pytest.mark.slow), 27, pytest.param(50, marks=pytest.mark.slow)]
)
def test_batches_since_the_last_checkpoint_are_not_drawn_again(engine, tokenizer, tmp_path, left):
    """A batch is 6 responses; after every second there is a score, of 12 responses, and then a checkpoint."""
    params = jax.jit(engine.model.init)(jax.random.key(4))
    tasks, knobs = Arithmetic(tokenizer).tasks("train", 3, 6), {"rl.checkpoint_every": 2}
    whole = Mortal(engine)
    expected, lines, _ = reinforced(whole, Chance(tokenizer), tasks, params, tmp_path / "plain", **knobs)

    first, second, run = Mortal(engine, left), Mortal(engine), tmp_path / "run"
    with pytest.raises(Killed):
        reinforced(first, Chance(tokenizer), tasks, params, run, **knobs)
    logs = {int(path.name) for path in (run / "rl" / LOG).iterdir()}
    newest = max(checkpoint.saved(run / "rl" / "state"), default=0)
    update = {4: 0, 20: 2, 27: 2, 50: 4}[left]  # at which it was killed, in a batch or in its score
    assert newest == {4: 0, 20: 0, 27: 2, 50: 4}[left]
    # Those before a checkpoint go as soon as it is there, which another thread sees to.
    assert {*range(newest, update + 1)} <= logs <= {*range(max(0, newest - 2), update + 1)}
    found, again, _ = reinforced(second, Chance(tokenizer), tasks, params, run, **knobs)
    assert_same(found, expected)
    assert again == lines
    assert first.drawn + second.drawn == whole.drawn and first.drawn and second.drawn
    assert not (run / "rl" / LOG).exists()
