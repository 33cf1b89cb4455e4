"""The whole run: resumed after SIGKILL, on several devices, and the errors that a user meets first.

The slow tests run `int.py:smoke` in processes of their own, as a user does.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_devices import xla_flags
from safetensors.numpy import load_file

from int_jax import checkpoint, proposers

ROOT = Path(__file__).resolve().parents[1]
SMOKE = "experiments/configs/int.py:smoke"


def command(workdir, *overrides, config=SMOKE):
    return [sys.executable, "experiments/run.py", "--config", config, "--workdir", str(workdir), *overrides]


def environment(devices=1):
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)}


def run(workdir, *overrides, devices=1, config=SMOKE):
    done = subprocess.run(
        command(workdir, *overrides, config=config),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def results(workdir) -> dict:
    found = json.loads((Path(workdir) / "results.json").read_text())
    for timed in ("wall_s", "versions", "programs"):
        found.pop(timed)
    return found


def parameters(workdir, policies=("int", "int_rl", "rl", "rl_matched")) -> dict:
    """Every parameter and moment of every policy's last checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    out = {}
    for name in policies:
        folder = Path(workdir).absolute() / name / "state"
        (step,) = [path for path in folder.iterdir() if path.name.isdigit()]
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(step / "default")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            out[f"{name}/{step.name}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on one device."""
    workdir = tmp_path_factory.mktemp("whole")
    code, out, err = run(workdir)
    assert code == 0, err[-3000:]
    return workdir, out


@pytest.mark.slow
def test_the_whole_run_in_small(tmp_path):
    """Every stage once, as small as it goes; the slow tests look closer."""
    smaller = {"compare": "()", "compare_attempts": 4}
    knobs = {f"proposals.{name}": value for name, value in smaller.items()}
    knobs |= {"arms": "('int_rl','rl')", "rl.updates": 1, "sft.epochs": 1, "eval.train_problems": 4}
    code, out, err = run(tmp_path, *(f"--config.{name}={value}" for name, value in knobs.items()))
    assert code == 0, err[-3000:]
    found = results(tmp_path)
    assert found["eval"].keys() == found["eval_train"].keys() == {"base", "int", "int_rl", "rl"}
    assert found["gain"].keys() == {"int_rl - rl"}
    for name, row in found["eval"].items():
        assert row.keys() == {"pass@1", "pass@8", "maj@8"} and row["pass@1"]["mean"] <= row["pass@8"]["mean"]
        assert row["pass@8"]["problems"] == len(found["counts"][name]["test"])
    assert "WHAT INT ADDS TO RL" in out and (tmp_path / "report.html").exists()
    assert (tmp_path / "models" / "int_rl" / "model.safetensors").exists()


def test_the_comparison_over_seeds_pairs_problems_within_a_seed():
    from experiments.evaluate import across_seeds

    def seed(base, int_rl, rl):
        counts = {"base": base, "int_rl": int_rl, "rl": rl}
        return {"counts": {name: {"test": [(8, c) for c in found]} for name, found in counts.items()}}

    every = [seed([0, 0], [8, 4], [4, 0]), seed([1, 0, 0], [5, 4, 6], [1, 0, 2])]
    summary = across_seeds(every, 8, ["rl", "rl_matched"])
    assert summary.keys() == {"pass@1", "pass@8"}
    assert summary["pass@1"].keys() == {"base", "int_rl", "rl", "int_rl - rl"}
    gain = summary["pass@1"]["int_rl - rl"]
    assert [*gain["seeds"], *gain["ci95"]] == pytest.approx([0.5] * 4)  # every problem gains as much
    assert summary["pass@8"]["rl"]["seeds"] == [0.5, pytest.approx(2 / 3)]


@pytest.mark.slow
def test_a_run_ends_in_tables_and_a_report(whole):
    workdir, out = whole
    for line in ("prefix + intervention", "InT + RL", "RL matched", "self_verify", "compiled programs"):
        assert line in out
    found = results(workdir)
    funnel = found["funnel"]
    lost = sum(funnel[name] for name in proposers.DROPS)
    assert funnel["wrong"] == lost + funnel["spliced"]
    assert found["effect"]["prefix_intervention"]["accuracy"] > found["effect"]["prefix_error"]["accuracy"]
    assert (workdir / "report.html").stat().st_size > 50_000


@pytest.mark.slow
def test_a_policy_scored_alone_has_the_runs_numbers(whole, tmp_path):
    """Its exported directory, in a process of its own, with hard problems found anew."""
    workdir, _ = whole
    done = subprocess.run(
        [
            *(sys.executable, "experiments/evaluate.py", "--config", SMOKE, "--workdir", str(tmp_path)),
            *("--model", str(workdir / "models" / "int_rl"), "--policy", "again"),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "evaluation_again.json").read_text())
    run = results(workdir)
    assert found["eval"]["again"] == run["eval"]["int_rl"]
    assert found["counts"]["again"]["test"] == run["counts"]["int_rl"]["test"]
    assert "HELD-OUT AND TRAINING PROBLEMS" in done.stdout and "again" in done.stdout


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(whole, tmp_path):
    """SIGKILL after each of several new files; the same command then goes on."""
    process, kills, seen = None, 0, set()
    rng = np.random.default_rng(0)
    while kills < 6:
        process = subprocess.Popen(
            command(tmp_path),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wanted = int(rng.integers(2, 7))
        while process.poll() is None:
            files = {p for p in tmp_path.rglob("*") if p.is_file()}
            if len(files - seen) >= wanted:
                time.sleep(float(rng.uniform(0, 1.5)))
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                seen = files
                break
            time.sleep(0.02)
        if process.returncode == 0:
            break
    assert kills >= 3
    code, _, err = run(tmp_path)
    assert code == 0, err[-3000:]
    assert results(tmp_path) == results(whole[0])
    ours, theirs = parameters(tmp_path), parameters(whole[0])
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.slow
def test_asked_to_end_it_ends_at_once_with_a_code_of_its_own_and_goes_on_to_the_same_bits(whole, tmp_path):
    """SIGTERM while responses are drawn, and in a training that would not have been saved soon."""
    later = "--config.rl.checkpoint_every=1000"
    for when in ("attempts/responses/*.log", "guided/responses/*.log", "rl/scalars/scalars.jsonl"):
        process = subprocess.Popen(
            command(tmp_path, later),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        while not any(path.stat().st_size for path in tmp_path.glob(when)):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        there = {*tmp_path.iterdir()}
        out, _ = process.communicate()
        assert process.returncode == 75 and "run the same command again" in out
        assert len({*tmp_path.iterdir()} - there) <= 1  # it went through no further stages
    assert checkpoint.saved(tmp_path / "rl" / "state")
    code, _, err = run(tmp_path, later)
    assert code == 0, err[-3000:]
    ours, theirs = results(tmp_path), results(whole[0])
    assert ours.pop("config")["rl"].pop("checkpoint_every") == 1000
    theirs.pop("config")
    assert ours == theirs
    ours, theirs = parameters(tmp_path), parameters(whole[0])
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    same_draws(whole[0], tmp_path)


@pytest.mark.slow
def test_eight_devices_give_the_same_tokens(whole, tmp_path):
    code, _, err = run(tmp_path, "--config.mesh.data=4", "--config.mesh.model=2", devices=8)
    assert code == 0, err[-3000:]
    same_draws(whole[0], tmp_path)


@pytest.mark.slow
def test_two_processes_are_one_run(whole, tmp_path):
    """Two hosts of four devices: the same tokens as one device alone, one workdir, and it goes on after a kill."""

    def start() -> list[subprocess.Popen]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        mesh = ("--config.mesh.data=4", "--config.mesh.model=2", "--distributed", "--processes=2")
        return [
            subprocess.Popen(
                command(tmp_path, *mesh, f"--coordinator={address}", f"--process={index}"),
                cwd=ROOT,
                env=environment(4),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for index in range(2)
        ]

    running = start()
    while not (tmp_path / "proposals" / "00000.jsonl").exists():
        assert all(process.poll() is None for process in running)
        time.sleep(0.2)
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.communicate()  # closes its pipe
    running = start()
    outs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert "WHAT ONE STEP IS WORTH" in outs[0] and "WHAT ONE STEP IS WORTH" not in outs[1]
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "models" / "int_rl" / "model.safetensors").exists()
    same_draws(whole[0], tmp_path)


def same_draws(one_workdir, other_workdir) -> None:
    """Equal tokens in the attempts, and equal first steps of fine-tuning, up to rounding."""

    def rows(workdir, stage):
        return [
            line
            for path in sorted((Path(workdir) / stage).glob("*.jsonl"))
            for line in path.read_text().splitlines()
        ]

    for stage in ("attempts", "attempts_held_out"):
        for one, other in zip(rows(one_workdir, stage), rows(other_workdir, stage), strict=True):
            one, other = json.loads(one), json.loads(other)
            assert one.get("correct") == other.get("correct")
            for a, b in zip(one.get("wrong", []), other.get("wrong", []), strict=True):
                assert a["tokens"] == b["tokens"]
                np.testing.assert_allclose(a["logp"], b["logp"], atol=5e-5)
    scalars = [w / "int" / "scalars" / "scalars.jsonl" for w in (one_workdir, other_workdir)]
    first = [json.loads(path.read_text().splitlines()[0]) for path in scalars]
    for name in ("loss", "grad_norm", "entropy"):
        np.testing.assert_allclose(first[0][name], first[1][name], rtol=1e-4)


@pytest.mark.slow
def test_a_full_disk_ends_in_one_message(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(mount)], capture_output=True
    )
    if made.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        code, _, err = run(mount / "run")
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    assert code == 1
    assert "no space left" in err and "run the same command again" in err
    assert "Traceback" not in err


# A process for each command would import the same packages anew.
TOGETHER = """
import gc, json, os, runpy, sys
import experiments.results, experiments.shares, experiments.store
gc.freeze()  # else each one's end visits all that was imported
for number, line in enumerate(json.loads(sys.argv[1])):
    if not os.fork():
        with open(f"{sys.argv[2]}/{number}.txt", "w") as said:
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
        sys.argv = line
        runpy.run_path(line[0], run_name="__main__")
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_what_a_user_gets_wrong_is_named(tmp_path):
    rows = [{"problem": "Start with 2, add 3.", "answer": "5"}, {"problem": "Start with 2, add 4."}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = [
        (SMOKE, "--config.rl.foo=1", ["--config.rl.foo=1", "docs/knobs.md"]),
        (SMOKE, "--seed=1", ["Unknown command line flag 'seed'"]),
        (SMOKE.replace("smoke", "huge"), "--config.seeds=(1,)", ["no variant 'huge'", "tiny_seeds"]),
        (SMOKE, "--config.rl.pool=easy", ["config.rl.pool = 'easy'", "kept, hard"]),
        (SMOKE, "--config.model=/no/such/model", ["/no/such/model"]),
        (SMOKE, f"--config.problems.train_file={tmp_path / 'mine.jsonl'}", ["mine.jsonl, row 2", "answer"]),
    ]
    lines = [command(tmp_path / "w", override, config=config)[1:] for config, override, _ in wrong]
    told = [sys.executable, "-c", TOGETHER, json.dumps(lines), str(tmp_path)]
    done = subprocess.run(told, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.split() == ["1"] * len(wrong), done.stderr[-3000:]
    for number, (_, override, words) in enumerate(wrong):
        err = (tmp_path / f"{number}.txt").read_text()
        assert all(word in err for word in words) and "Traceback" not in err, (override, err)


def test_the_embedded_model_is_small_and_described(tiny_dir):
    weights = load_file(tiny_dir / "model.safetensors")
    assert sum(array.size for array in weights.values()) < 1_000_000
    assert sum(path.stat().st_size for path in tiny_dir.iterdir()) < 5_000_000
    card = (tiny_dir / "README.md").read_text()
    for word in ("pretrain.py", "seed", "location", "solved"):
        assert word in card
