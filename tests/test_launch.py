"""The recipes of experiments/launch, as far as they go without a cluster: what they ask for, and of what codes again.

Slurm's and Google's commands are small programs that note what they were called with; the runs are such programs too.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from absl import flags

from experiments import run as runs  # defines the flags
from int_jax.preemption import EXIT_CODE
from int_jax.stages import Share

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "experiments" / "launch"
NOTE = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys
name, folder = pathlib.Path(sys.argv[0]).name, pathlib.Path(os.environ["NOTED"])
with (folder / "calls").open("a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
"""
# What each program does besides.
PROGRAMS = {
    "sbatch": "print('77;cluster' if '--parsable' in sys.argv else 'Submitted batch job 78')",
    "scontrol": "",
    "srun": "sys.exit(int(os.environ['CODE']))",
    # A shell on the machine: its python ends with the codes of a file, one each time.
    "gcloud": """sys.exit(subprocess.run(["bash", "-c", sys.argv[-1].removeprefix("--command=")]).returncode)""",
    ".venv/bin/python": """
codes = (folder / "codes").read_text().split()
(folder / "codes").write_text(" ".join(codes[1:]))
sys.exit(int(codes[0]))""",
}


@pytest.fixture
def launch(tmp_path):
    """Runs a script with these programs; returns its exit code and the calls."""
    folder = tmp_path / "bin"
    for name, does in PROGRAMS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(NOTE + does + "\n")
        path.chmod(0o755)

    def started(script: str, *arguments: str, **environment: str) -> tuple[int, list[list[str]]]:
        (tmp_path / "calls").write_text("")
        paths = f"{folder}{os.pathsep}{os.environ['PATH']}"
        told = {"PATH": paths, "NOTED": str(tmp_path), "FOLDER": str(folder), "PAUSE": "0", **environment}
        done = subprocess.run(["bash", str(LAUNCH / script), *arguments], env=os.environ | told, timeout=60)
        return done.returncode, [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return started


def flags_of(command: list[str]) -> dict[str, str | None]:
    """The flags of a command of experiments/run.py, which must all be there."""
    assert command[1] == "experiments/run.py" and command[0].endswith("python")
    words = (
        " ".join(command[2:]).replace("--config ", "--config=").replace("--workdir ", "--workdir=").split()
    )
    found = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    assert all(name in flags.FLAGS or name.startswith("config.") for name in found)
    return found


def test_slurm_is_asked_for_shares_and_then_for_the_run(launch):
    code, calls = launch("slurm.sh", "--config.rl.updates=7", SHARES="5", NODES="3", WORKDIR="runs/a b")
    data, train = calls
    assert code == 0 and data[0] == train[0] == "sbatch"
    assert "--array=0-4%8" in data and "--nodes=1" in data and data[-2:] == ["share", "--config.rl.updates=7"]
    assert "--dependency=afterok:77" in train and "--nodes=3" in train
    assert train[-2:] == ["train", "--config.rl.updates=7"]
    asked = re.findall("^#SBATCH (--[a-z-]+)", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    assert {"--requeue", "--signal", "--time"} <= {*asked}


@pytest.mark.parametrize("ends", [0, 1, EXIT_CODE])
def test_a_job_of_slurm_is_queued_again_where_its_run_asks_for_it(launch, ends):
    array = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "4", "SLURM_JOB_ID": "81"}
    for what, job, flag in (("share", "77_4", ("share", "4/5")), ("train", "81", ("distributed", ""))):
        told = {**array, "CODE": str(ends), "SHARES": "5", "WORKDIR": "runs/x", "CONFIG": "c.py:v"}
        code, calls = launch("slurm.sh", what, "--config.rl.updates=7", **told)
        assert code == ends and calls[0][0] == "srun"
        found = flags_of(calls[0][1:])
        assert found == {"config": "c.py:v", "workdir": "runs/x", flag[0]: flag[1], "config.rl.updates": "7"}
        assert calls[1:] == ([["scontrol", "requeue", job]] if ends == EXIT_CODE else [])
        if what == "share":
            assert Share.parse(found["share"]) == Share(4, 5)


@pytest.mark.parametrize(("codes", "ends"), [("0", 0), ("75 75 0", 0), ("75 1", 1)])
def test_on_a_tpu_vm_a_run_begins_again_while_it_asks_for_it(launch, tmp_path, codes, ends):
    (tmp_path / "codes").write_text(codes)
    told = {"TPU": "int", "ZONE": "z", "CONFIG": "c.py:v", "WORKDIR": "/runs/x y"}
    code, calls = launch("tpu_vm.sh", "train", "--config.arms=('rl',)", **told)
    assert code == ends
    gcloud, *ran = calls
    assert gcloud[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "int", "--zone=z"]
    assert "--worker=all" in gcloud and len(ran) == len(codes.split())
    there = ["experiments/run.py", "--config", "c.py:v", "--workdir", "/runs/x y", "--distributed"]
    assert ran == [["python", *there, "--config.arms=('rl',)"]] * len(ran)


def test_single_tpu_vms_draw_the_shares(launch, tmp_path):
    (tmp_path / "codes").write_text("0 " * 9)
    code, calls = launch("tpu_vm.sh", "share", TPU="int", ZONE="z", SHARES="1")
    assert code == 0 and calls[0][5] == "int-0" and "--worker=0" in calls[0]
    assert flags_of(calls[1])["share"] == "0/1"
    (tmp_path / "codes").write_text("1")
    assert launch("tpu_vm.sh", "share", TPU="int", ZONE="z", SHARES="1")[0] == 1
    assert launch("tpu_vm.sh", "else", TPU="int", ZONE="z")[0] == 2


def test_the_pods_of_kubernetes_are_made_again_where_a_run_asks_for_it():
    data, train = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    slices = train["spec"]["replicatedJobs"][0]["template"]
    for job, action in ((data, "Ignore"), (slices, "FailJob")):
        spec = job["spec"]
        pod = spec["template"]["spec"]
        [container] = pod["containers"]
        first = spec["podFailurePolicy"]["rules"][0]
        assert first["action"] == action and pod["restartPolicy"] == "Never"
        assert first["onExitCodes"] == {
            "containerName": container["name"],
            "operator": "In",
            "values": [EXIT_CODE],
        }
        assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    # A failed job of these codes restarts the set, whatever maxRestarts says.
    [rule] = train["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"] and slices["spec"]["backoffLimit"] == 0
    shares = flags_of(data["spec"]["template"]["spec"]["containers"][0]["command"])
    found = flags_of(slices["spec"]["template"]["spec"]["containers"][0]["command"])
    count = data["spec"]["completions"]
    assert shares.pop("share") == f"$(JOB_COMPLETION_INDEX)/{count}"
    assert found.pop("distributed") == "" and shares == found
    assert runs.SHARE.name == "share"
