"""Jobs that draw shares of a run's data, at once and killed: the run that then trains ends as one that had no help.

The fast runs are those of test_knobs.py: whole ones, over an engine without a model.
"""

import json
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_knobs import RL, Story, configured, watch  # noqa: F401 (watch is a fixture)
from test_run import ROOT, command, environment, parameters, results, run

from experiments import arms
from experiments import run as runs
from int_jax.stages import Awaited

CONTEXTS = {
    "default": {},
    "a shard an item": dict.fromkeys(
        [f"{stage}.shard" for stage in ("problems", "proposals", "guided", "eval")], 1
    ),
    "filtered by gain": {"sft.filter": "gain", "gain.attempts": 4},
    "all arms": {
        "arms": tuple(arms.names()),
        "attempts.keep_right": 1,
        "guided.keep": True,
        "guided.shard": 1,
        "proposals.shard": 2,
    },
    "two seeds": {"seeds": (0, 3), "arms": ("int_rl",)},
    "no InT": RL,
}
# What one job makes alone, as one shard or with trained policies.
APART = (
    "effect",
    "drift",
    "eval_",
    "attempts_online_int_round",
    "proposals_online_int_round",
    "guided_online_int_round",
)


def rows(workdir: Path) -> dict[str, list[str]]:
    """The rows of all shards and the lines of all scalars, by file; not what was counted over a shard, of which the sum
    over a stage alone does not depend on who made it."""
    found = {}
    for path in sorted(workdir.glob("**/*.jsonl")):
        if (path.parent != workdir and path.parent.parent != workdir) or path.stem.isdigit():
            lines = path.read_text().splitlines()
            found[str(path.relative_to(workdir))] = lines[path.stem.isdigit() :]
    return found


def numbers(workdir: Path) -> list[dict]:
    found = [json.loads(path.read_text()) for path in sorted(workdir.rglob("results.json"))]
    for one in found:
        del one["wall_s"]
    return found


def same(one, other, where: str) -> None:
    """Everything of two rows is equal; log-probabilities up to float32's rounding, which differs with what is computed
    beside them."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}: {key}")
    elif where.endswith(": logp"):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5, err_msg=where)
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for a, b in zip(one, other, strict=True):
            same(a, b, where)
    else:
        assert one == other, where


def main_of(workdir: Path, share: str | None, ends: list):
    """`run.main` over a workdir as one job; how it ends is noted: 0, or what it says that it waits for."""

    def main(_):
        runs.WORKDIR.value, runs.SHARE = str(workdir), SimpleNamespace(value=share)
        try:
            runs.main([])
            ends.append(0)
        except Awaited as error:
            ends.append(str(error))

    return main


# Of the runs in processes of their own.
SHARDS = {"problems": 2, "proposals": 4, "guided": 4, "eval": 2}
SMALL = {"arms": "('int_rl',)", "problems.train": 12, "problems.test": 4, "proposals.compare": "('oracle',)"}
FAST = ("a shard an item", "no InT")


@pytest.mark.parametrize(
    "context", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in CONTEXTS if name not in FAST)]
)
def test_shares_make_the_data_and_the_run_then_ends_as_without_them(watch, context):  # noqa: F811
    config = configured(CONTEXTS[context])
    whole = watch.run(config, Story(), reports=True)
    workdir, ends, saved = watch.folder / f"shared {context}", [], {}
    for _ in range(12):
        ends.clear()
        for index in range(3):
            story = Story()
            watch.run(config, story, True, main_of(workdir, f"{index}/3", ends), saved)
            assert not {kind for kind, _ in story.items} & {
                "checkpoint",
                "update: sft",
                "update: rl",
                "export",
            }
        if ends == [0, 0, 0]:
            break
    assert ends == [0, 0, 0]
    assert not [*workdir.rglob("results.json"), *workdir.rglob("report.html"), *workdir.rglob("*.log")]
    made = {path.relative_to(workdir) for path in workdir.rglob("*/0*.jsonl")}
    wanted = {path.relative_to(whole) for path in whole.rglob("*/0*.jsonl") if "rollouts" not in path.parts}
    assert made <= wanted
    left = {str(path.parent.name) for path in wanted - made}
    assert all(name.startswith(APART) and name != "eval_base" for name in left), left
    watch.run(config, Story(), True, main_of(workdir, None, ends), saved)
    assert rows(workdir) == rows(whole) and rows(workdir)
    assert numbers(workdir) == numbers(whole)


def test_a_share_says_what_it_waits_for(watch):  # noqa: F811
    config, workdir, ends = configured({"problems.shard": 2}), watch.folder / "waits", []
    watch.run(config, Story(), True, main_of(workdir, "1/3", ends))
    [said] = ends
    assert said.splitlines()[0] == "share 1/3 waits for other shares:"
    assert f"{workdir}/attempts: 1 of 3 shards are there" in said and "Run the same command again" in said


@pytest.mark.slow
def test_two_at_the_same_time_and_one_killed_and_then_the_run_has_the_same_bits(tmp_path):
    """Three shares in processes of their own, each started again while it ends with the code 75."""
    knobs = [f"--config.{stage}.shard={size}" for stage, size in SHARDS.items()]
    knobs += [f"--config.{name}={value}" for name, value in SMALL.items()]
    whole, shared = tmp_path / "whole", tmp_path / "shared"

    def started(index: int) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        line = command(shared, f"--share={index}/3", *knobs)
        return subprocess.Popen(line, cwd=ROOT, env=environment(), **pipes)

    first, killed = started(0), started(1)
    while not any(path.stat().st_size for path in shared.glob("attempts/responses/1of3.*.log")):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert first.communicate()[0] and first.returncode == 75
    ended: dict[int, int] = {}
    pairs = [(1, 2), (0, 1), (2, 0)]
    for turn in range(15):
        running = {index: started(index) for index in pairs[turn % 3] if ended.get(index) != 0}
        for index, process in running.items():
            said, _ = process.communicate()
            ended[index] = process.returncode
            waits = "waits for other shares" in said and "shards are there" in said
            assert (process.returncode, waits) in ((0, False), (75, True)), said
        if ended == {0: 0, 1: 0, 2: 0}:
            break
    assert ended == {0: 0, 1: 0, 2: 0}
    assert not (shared / "results.json").exists() and not (shared / "report.html").exists()
    assert not (shared / "rl").exists() and not (shared / "eval_rl").exists()
    made = [path.parent.name for path in shared.glob("*/0*.jsonl")]
    print({name: made.count(name) for name in sorted({*made})})

    for workdir in (whole, shared):
        code, _, err = run(workdir, *knobs)
        assert code == 0, err[-3000:]
    ours, theirs = rows(shared), rows(whole)
    assert (
        ours.keys() == theirs.keys()
        and {"attempts/00003.jsonl", "int_rl/scalars/scalars.jsonl"} <= ours.keys()
    )
    for name in ours:
        for one, other in zip(ours[name], theirs[name], strict=True):
            same(json.loads(one), json.loads(other), name)
    assert results(shared) == results(whole)
    ours, theirs = (parameters(workdir, ("int", "int_rl")) for workdir in (shared, whole))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
