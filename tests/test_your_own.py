"""The files to copy in docs/your_own.md, from a folder outside of the repository: as they stand, they run."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import optax
import pytest
from test_knobs import Story, Watch, configured

from int_jax import hf_format, report
from int_jax.check import byte_tokenizer
from int_jax.check.__main__ import main
from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.report import writers
from int_jax.sharding import make_mesh
from int_jax.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "your_own.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (lab/\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
DOMAIN, PROPOSER, WRITER = "lab/days.py", "lab/first_step.py", "lab/table.py"
METHOD, TALK = "lab/easy_first.py", "lab/lamp.py"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with the page's files, in which commands are started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab").mkdir()
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [["domain", DOMAIN], ["domain", TALK], pytest.param(["proposer", PROPOSER], marks=pytest.mark.slow)],
    ids=lambda a: a[1],
)
def test_the_files_to_copy_pass_their_check(lab, capsys, arguments):
    assert main(arguments) == 0, capsys.readouterr().out
    assert "none of" in capsys.readouterr().out


def test_the_writer_to_copy_writes_each_step_once(lab):
    for resume_step, steps in ((None, range(4)), (2, range(2, 6))):
        with report.Scalars("log", resume_step, [writers.load(WRITER)], "rl") as scalars:
            for step in steps:
                scalars.write(step, {"loss": step / 8})
    text = (lab / "log" / "rl.txt").read_text()
    assert text == "".join(f"{step} loss={step / 8:.4g}\n" for step in range(6))


def test_the_method_to_copy_runs_beside_the_others(lab, tiny_dir, monkeypatch):
    config = configured(
        {
            "arms": ("int_rl", METHOD),
            "guided.tries": 8,
            "rl.updates": 4,
            "problems.train": 12,
            "model": str(tiny_dir),
        }
    )
    workdir = Watch(monkeypatch, tiny_dir, lab / "runs").run(config, story := Story())
    assert [kind for kind, _ in story.items][-1] == "results"
    made = {path.parent.name for path in workdir.glob("*/scalars")}
    assert {"easy_first", "easy_first_round1", "easy_first_round2", "int_rl"} <= made


def test_a_fault_is_said_in_words_and_ends_in_status_1(lab, capsys):
    text = (lab / DOMAIN).read_text()
    (lab / "lab" / "leaky.py").write_text(
        text.replace('f"{task.problem} Reason', 'f"{task.problem} {task.answer}? Reason')
    )
    assert main(["domain", "lab/leaky.py"]) == 1
    out = capsys.readouterr().out
    assert "FAULT view(task, steps, role) renders every role" in out and "1 of" in out
    assert "[], 'solver') changes with reference or answer, which are not for the policy" in out


def test_the_page_names_its_files_and_the_commands_use_them():
    assert BLOCKS.keys() == {DOMAIN, PROPOSER, WRITER, METHOD, TALK}
    for name in BLOCKS:
        assert PAGE.count(name) >= 2


def run(lab, *flags: str):
    command = [
        sys.executable,
        str(ROOT / "experiments" / "run.py"),
        "--config",
        str(ROOT / "experiments/configs/int.py:smoke"),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([*command, *flags], cwd=lab, env=env, capture_output=True, text=True)


def test_a_knob_that_the_domain_has_not_is_refused_before_anything_is_loaded(lab):
    flags = [f"--config.domain.name={DOMAIN}", "--config.domain.knobs.shortest=3", "--config.model=nowhere"]
    done = run(lab, *flags, "--workdir=w")
    expected = (
        f"int_jax: --config.domain.knobs.shortest=3: the domain {DOMAIN} has no such knob; it has longest"
    )
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1] == expected


def random_model(folder: pathlib.Path) -> pathlib.Path:
    """A model that has learned nothing, of bytes."""
    tokenizer = Tokenizer(byte_tokenizer.save(folder / "tokenizer"))
    config = Config("qwen3", tokenizer.vocab, 32, 2, 4, 2, 8, 64, 2_048, qk_norm=True, tied=True)
    engine = Engine(build(config), make_mesh(1, 1, jax.devices()[:1]), slots=8)
    hf_format.save(folder / "model", config, engine.init(0, optax.identity()).params, tokenizer.path)
    return folder / "model"


@pytest.mark.slow
def test_a_run_with_a_domain_and_a_proposer_from_outside(lab):
    """Every stage; what is kept is nothing, so SFT is on what was not filtered."""
    flags = {"model": random_model(lab), "domain.name": DOMAIN, "domain.knobs.longest": 400}
    flags |= {
        "proposals.proposer": "lab.first_step",
        "proposals.compare": "()",
        "proposals.max_prompt": 1_900,
    }
    flags |= {
        "train.row_length": 512,
        "sft.filter": "none",
        "sft.epochs": 1,
        "rl.updates": 1,
        "arms": "('int_rl','rl')",
    }
    flags |= {"rl.pool": "hard"}
    done = run(lab, *(f"--config.{name}={value}" for name, value in flags.items()), "--workdir=runs/days")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((lab / "runs" / "days" / "results.json").read_text())
    assert found["config"]["domain"] == {"name": DOMAIN, "knobs": {"longest": 400}}
    assert found["funnel"]["spliced"] > 0 and found["eval"].keys() == {"base", "int", "int_rl", "rl"}
