"""Several hosts, as processes of this machine: started alike or not at all, stopped together, none left alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_devices import xla_flags
from test_run import command

from experiments.chaos import apart, left
from int_jax import preemption, processes, stages

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "arms": "('int_rl',)",
    "problems.train": 8,
    "problems.test": 4,
    "attempts.tries": 2,
    "proposals.compare": "()",
    "guided.tries": 4,
    "effect.problems": 2,
    "effect.samples": 2,
    "eval.samples": 2,
    "eval.ks": "(1,)",
    "eval.train_problems": 2,
}
# Each host has a replica of its own, and they draw different responses; or half of one, and they draw in step.
MESHES = {"replicas": (2, 1), "in step": (1, 2)}


def address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def started(commands: list[list[str]], devices: int = 1) -> list[subprocess.Popen]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices), "PYTHONPATH": paths}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(one, cwd=ROOT, env=environment, **pipes) for one in commands]


def ended(running: list[subprocess.Popen]) -> list[tuple[int, str]]:
    said = [process.communicate() for process in running]
    return [(process.returncode, out + err) for process, (out, err) in zip(running, said, strict=True)]


def workers(what: str, *told: str) -> list[subprocess.Popen]:
    """Two processes that do what `work` says."""
    at = address()
    return started([[sys.executable, __file__, at, str(number), what, *told] for number in range(2)])


def work(at: str, number: int, what: str, *told: str) -> None:
    processes.join(at, 2, number)
    if what == "differ":
        config = {"rl": {"group": 8 + number}, "seeds": [0]}
        try:
            stages.refuse_differing_hosts(*({}, {"jax": f"0.{number}"}) if told else (config, {}))
        except stages.StageError as error:
            sys.exit(str(error))
    processes.exchange(b"")
    print("ready", flush=True)
    if what == "raises" and number == 1:
        raise RuntimeError("as any fault would")
    processes.exchange(b"") if number == int(told[0]) else time.sleep(1_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "words"),
    [
        ((), "config.rl.group: 8 on process 0, 9 on process 1"),
        (("v",), "versions.jax: '0.0' on process 0, '0.1'"),
    ],
)
def test_hosts_with_other_configs_or_packages_are_refused_on_all_of_them(told, words):
    for code, said in ended(workers("differ", *told)):
        assert code == 1 and words in said and "seeds" not in said


@pytest.mark.slow
def test_a_run_refuses_hosts_with_another_config(tmp_path):
    at = ("--distributed", "--processes=2", f"--coordinator={address()}")
    commands = [command(tmp_path, *at, f"--process={i}", f"--config.rl.group={4 + i}") for i in range(2)]
    for code, said in ended(started(commands)):
        assert code == 1 and "config.rl.group: 4 on process 0, 5 on process 1" in said
        assert "Traceback" not in said and not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "words"),
    [
        (1, ["Task 1 heartbeat timeout"]),
        (0, ["the leader", "slice 0 task 0"]),
        (None, ["as any fault would"]),
    ],
)
def test_a_process_that_dies_ends_the_others_within_a_minute(killed, words):
    """By SIGKILL, of process 1 or of the coordinator; or by an exception."""
    waits = 0 if killed is None else 1 - killed
    running = workers("raises" if killed is None else "waits", str(waits))
    for process in running:
        while process.stdout.readline() not in ("ready\n", ""):  # gloo speaks, too
            pass
    if killed is not None:
        running[killed].send_signal(signal.SIGKILL)
    found = ended(running)  # by themselves: the one that is left would wait for a month
    # What "a minute" rests on; how long it takes here depends on what else the machine does.
    assert processes.SILENCE_S < 60 and processes.LEAVING_S < 60
    assert all(code for code, _ in found)
    said = "".join(text for _, text in found)
    assert any(word in said for word in words), said[-3_000:]


class Hosts:
    """Two of one device each, in one workdir."""

    def __init__(self, workdir: Path, data: int, model: int, lag: int = 0, *more: str):
        knobs = SMALL | {"mesh.data": data, "mesh.model": model}
        if lag:
            knobs |= {"rl.lag": lag, "rl.old": "sampler", "rl.updates": 4}
        small = [f"--config.{name}={value}" for name, value in knobs.items()]
        at = (f"--coordinator={address()}", "--distributed", "--processes=2")
        commands = [command(workdir, *small, *at, *more, f"--process={i}") for i in range(2)]
        self.workdir, self.running = workdir, started(commands)

    def asked_to_end(self, which: int, when: str) -> None:
        """Send SIGTERM to one of them once there is something in such a file, and wait until both have ended."""
        while not any(path.stat().st_size for path in self.workdir.glob(when)):
            assert all(process.poll() is None for process in self.running), ended(self.running)
            time.sleep(0.1)
        self.running[which].send_signal(signal.SIGTERM)
        found = ended(self.running)
        assert [code for code, _ in found] == [preemption.EXIT_CODE] * 2, found
        assert "run the same command again" in found[0][1]


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "lag"), [("replicas", 0), ("in step", 0), ("replicas", 1)])
def test_two_hosts_end_together_when_one_is_asked_to_and_go_on_to_the_same_bits(tmp_path, mesh, lag):
    for code, said in ended(Hosts(tmp_path / "whole", *MESHES[mesh], lag).running):
        assert code == 0, said[-3_000:]
    run = tmp_path / "run"
    for which, when in ((1, "attempts/responses/*.log"), (0, "int_rl/scalars/scalars.jsonl")):
        Hosts(run, *MESHES[mesh], lag).asked_to_end(which, when)
    for code, said in ended(Hosts(run, *MESHES[mesh], lag).running):
        assert code == 0, said[-3_000:]
    assert not [*apart(left(run), left(tmp_path / "whole"))]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_jobs_of_two_hosts_each_that_share_make_the_same_run(tmp_path, mesh):
    """One after the other, each again while it waits for the other; then two hosts train on what they made."""
    shards, ends = "--config.problems.shard=2", dict[int, int]()
    for turn in range(12):
        index = turn % 2
        job = Hosts(tmp_path / "shared", *MESHES[mesh], 0, shards, f"--share={index}/2")
        found = ended(job.running)
        ends[index] = found[0][0]
        assert [code for code, _ in found] == [ends[index]] * 2 and ends[index] in (0, 75), found
        if ends == {0: 0, 1: 0}:
            break
    assert ends == {0: 0, 1: 0} and not (tmp_path / "shared" / "results.json").exists()
    for name in ("shared", "whole"):
        for code, said in ended(Hosts(tmp_path / name, *MESHES[mesh], 0, shards).running):
            assert code == 0, said[-3_000:]
    assert not [*apart(left(tmp_path / "shared"), left(tmp_path / "whole"))]


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
