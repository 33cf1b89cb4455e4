"""Writers: each gets every step of a training once, whatever was killed, and says so where its package is missing.

Weights & Biases and trackio are modules of this file's, which write down what is called by their documented signatures;
`test_the_real_package_takes_it` uses the real ones where they are installed.
"""

import importlib
import inspect
import json
import math
import sys
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import preflight
from experiments.configs import int as intervention
from int_jax import report
from int_jax.report import writers

PACKAGES = ("wandb", "trackio")


class Run:
    """A run of theirs: a log to which lines are added, found again by its name."""

    def __init__(self, lines: list, told: dict):
        self.lines, self.told, self.open = lines, told, True

    def log(self, data, step=None):
        assert self.open and isinstance(step, int)
        self.lines.append((step, data))

    def finish(self):
        self.open = False


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for the packages; each keeps the runs that it was asked for, and their lines by the runs' names."""
    found = {}
    for name in PACKAGES:
        found[name] = fake = ModuleType(name)
        fake.logs, fake.runs = {}, []
        fake.init = starts(fake)
        monkeypatch.setitem(sys.modules, name, fake)
        monkeypatch.delitem(sys.modules, f"int_jax.report.writers.{name}", raising=False)
    return found


def starts(fake):
    def wandb(project=None, dir=None, id=None, name=None, config=None, group=None, resume=None):
        return kept(id, locals())

    def trackio(project, name=None, group=None, config=None, resume="never", embed=True):
        return kept(name, locals())

    def kept(key, told):
        assert told["resume"] == "allow" and key and json.dumps(told["config"])
        fake.runs.append(Run(fake.logs.setdefault(key, []), told))
        return fake.runs[-1]

    return {"wandb": wandb, "trackio": trackio}[fake.__name__]


CONFIG = {"rl": {"updates": 3}, "seed": 0}


def scalars(folder, resume_step, *names):
    return report.Scalars(
        folder, resume_step, [*map(writers.load, names)], "int_rl", "int:tiny, seed 0", CONFIG
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=5))
@pytest.mark.parametrize("name", PACKAGES)
def test_each_step_is_written_once_whatever_is_killed(packages, tmp_path_factory, name, lived):
    """Starts that are killed: where each resumes, of what there is by then, and how many steps it lives."""
    folder, there, log = tmp_path_factory.mktemp("log"), 0, packages[name].logs
    log.clear()
    for back, lives in lived:
        begin = max(0, there - back)
        with scalars(folder, begin, name) as writer:
            for step in range(begin, begin + lives):
                writer.write(step, {"loss": 1 / (step + 1)})
        there = begin + lives
    with scalars(folder, there, name) as writer:
        writer.write(there, {"loss": math.nan})
    [lines] = log.values()
    steps = [step for step, _ in lines]
    assert steps == sorted({*steps}) and {*range(there)} <= {*steps}
    last = max(begin + lives for begin, lives in [(0, 0), *spans(lived)])
    assert steps == [*range(max(last, there + 1))]
    assert all(data == {"loss": 1 / (step + 1)} for step, data in lines if step < min(there, last))


def spans(lived):
    there = 0
    for back, lives in lived:
        begin = max(0, there - back)
        there = begin + lives
        yield begin, lives


@pytest.mark.parametrize("name", PACKAGES)
def test_a_run_is_named_after_its_training_and_closed(packages, tmp_path, name):
    with scalars(tmp_path, 0, name) as writer:
        writer.write(0, {"loss": 1.0})
    [run] = packages[name].runs
    assert not run.open
    assert run.told["group"] == "int:tiny, seed 0" and run.told["config"] == CONFIG
    assert run.told["name"].startswith("int_rl") and run.told["project"] == "int_jax"
    with scalars(tmp_path, 1, name):  # over: nothing is opened for a training that does not go on
        pass
    assert len(packages[name].runs) == 1


def test_writers_stand_beside_one_another_and_the_lines_always_do(packages, tmp_path):
    with scalars(tmp_path, 0, *writers.names()) as writer:
        writer.write(0, {"loss": math.inf})
    assert json.loads((tmp_path / "scalars.jsonl").read_text()) == {"step": 0, "loss": None}
    assert [fake.runs[0].lines for fake in packages.values()] == [[(0, {"loss": math.inf})]] * 2
    assert [*tmp_path.glob("events.*")]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_before_the_run(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"int_jax.report.writers.{name}", raising=False)
    config = intervention.get_config("tiny")
    config.writers = ("tensorboard", name)
    with pytest.raises(
        ValueError, match=rf"config\.writers = .*'{name}' .* not installed: pip install -e '.\[writers\]'"
    ):
        preflight.check(config)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_real_package_takes_it(monkeypatch, tmp_path, name):
    """Their own log on disk, without a network."""
    package = pytest.importorskip(name)
    wanted = inspect.signature(starts(ModuleType(name))).parameters
    assert wanted.keys() <= inspect.signature(package.init).parameters.keys()
    if name == "trackio":
        pytest.skip("its folder is set before it is imported: see its signature above")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    importlib.reload(importlib.import_module(f"int_jax.report.writers.{name}"))
    for resume_step, steps in ((0, range(4)), (2, range(2, 6))):
        with scalars(tmp_path, resume_step, name) as writer:
            for step in steps:
                writer.write(step, {"loss": step / 8})
    assert len([*tmp_path.glob("wandb/offline-run-*/*.wandb")]) == 2
