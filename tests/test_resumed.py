"""Killed in the middle of a stage or of a batch, a run draws only what is missing, and ends as one that was not killed.

The runs are those of test_knobs.py: whole ones, over an engine without a model, whose responses end a few at a time.
"""

import json
import re
from collections import Counter

import pytest
from sessions import Scattered
from test_knobs import RL, Story, Toy, configured, watch  # noqa: F401 (watch is a fixture)

from experiments import run as runs


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
    *(("all", kind, nth) for kind in ("attempts", "check", "guided", "effect", "eval") for nth in (4, 9)),
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
    assert draws.seen == seen  # each as often as in the run that was not killed
    assert logs and before != seen
    found = outcome(workdir)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name
    assert not [*workdir.rglob("responses")] and not [*workdir.rglob("counts.json")]
