"""A model scored alone has the numbers that a run has for it: the same problems, random numbers and estimates.

The runs are those of test_knobs.py: whole ones, over an engine without a model.
"""

import json
import shutil

import pytest
from test_knobs import RL, Story, configured, watch  # noqa: F401 (watch is a fixture)

from experiments import evaluate
from int_jax.stages import StageError

SEEDS = {"problems.hard": ("test",), "problems.test": 6, "attempts.tries": 2}
CONTEXTS = {"benchmarks as they are": RL, "hard problems": RL | SEEDS, "two seeds": RL | {"seeds": (0, 3)}}


def alone(watch, config, model, name="", folder=None):  # noqa: F811
    """The results of each seed, and the kinds of what was done for them. Raises: StageError, as `evaluate.alone`."""
    story, found, raised = Story(), [], []

    def main(workdir):
        try:
            found.extend(evaluate.alone(config, str(model), name, folder or workdir))
        except StageError as error:
            raised.append(error)

    watch.run(config, story, True, main)
    if raised:
        raise raised[0]
    return found, [kind for kind, _ in story.items]


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_model_alone_has_the_numbers_of_a_run(watch, tiny_dir, name):  # noqa: F811
    config = configured(CONTEXTS[name])
    workdir = watch.run(config, Story(), True)
    folders = [workdir] if len(config.seeds) == 1 else [workdir / f"seed{seed}" for seed in config.seeds]
    found, _ = alone(watch, config, tiny_dir, "mine")
    for folder, one in zip(folders, found, strict=True):
        run = json.loads((folder / "results.json").read_text())
        assert one["eval"]["mine"] == run["eval"]["base"]
        assert one["counts"]["mine"]["test"] == run["counts"]["base"]["test"]
        assert one["config"] == run["config"] and one["seed"] == run["seed"]


def test_in_a_runs_workdir_its_attempts_serve_again_and_its_results_stay(watch, tiny_dir):  # noqa: F811
    config = configured(RL | SEEDS)
    workdir = watch.run(config, Story(), True)
    before = (workdir / "results.json").read_bytes()
    _, kinds = alone(watch, config, tiny_dir, "mine", workdir)
    assert "draws: eval" in kinds and "draws: attempts" not in kinds
    assert (workdir / "results.json").read_bytes() == before
    written = json.loads((workdir / "evaluation_mine.json").read_text())
    assert written["eval"]["mine"] and written["model"] == str(tiny_dir)
    _, again = alone(watch, config, tiny_dir, "mine", workdir)  # goes on from what is there: nothing is drawn
    assert not any(kind.startswith("draws") for kind in again)


def test_a_name_is_of_one_model(watch, tiny_dir, tmp_path):  # noqa: F811
    config = configured(RL)
    found, _ = alone(watch, config, tiny_dir, folder=tmp_path / "work")
    assert [*found[0]["eval"]] == ["model_tiny_arithmetic"]
    other = shutil.copytree(tiny_dir, tmp_path / "tiny_arithmetic")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    for model, name, words in (
        (other, "", "is of another model"),
        (tiny_dir, "rl", "makes a policy of this name"),
    ):
        with pytest.raises(StageError, match=words):
            alone(watch, config, model, name, tmp_path / "work")
