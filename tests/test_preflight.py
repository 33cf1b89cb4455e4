"""What a run refuses before it computes anything: a bad knob must not wait hours for its stage."""

import pytest

from experiments import preflight
from experiments.configs import grpo
from experiments.configs import int as intervention
from experiments.data_stages import Run
from int_jax.domains import arithmetic
from int_jax.stages import StageError


@pytest.mark.parametrize("variant", ["", *intervention.VARIANTS])
@pytest.mark.parametrize("module", [intervention, grpo])
def test_the_configs_pass(module, variant):
    preflight.check(module.get_config(variant))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": ("int_rl", "dpo")}, r"config\.arms = .*: 'dpo' is none of int_rl, rl"),
        ({"export": ("best",)}, "'best' is none of base, int, int_rl"),
        ({"problems": {"hard": ("train", "tset")}}, r"config\.problems\.hard = .*'tset'"),
        ({"rl": {"pool": "easy"}}, r"config\.rl\.pool = 'easy'"),
        ({"rl": {"normalise": "length"}}, "normalise='length': choose sequences"),
        ({"rl": {"ratio": "word"}}, "ratio='word': choose token or sequence"),
        ({"guided": {"sampling": {"top_p": 1.5}}}, r"top_p = 1\.5: must be a number, above 0, at most 1"),
        ({"proposals": {"proposer": "gpt"}}, "no proposer 'gpt'"),
        ({"proposals": {"compare": ("oracle", "gpt")}}, "no proposer 'gpt'"),
        ({"eval": {"ks": (1, 64)}}, r"ks = \(1, 64\) needs as many samples, and eval\.samples = 16"),
    ],
)
def test_a_bad_knob_is_named_with_its_choices(change, words):
    config = intervention.get_config("tiny")
    config.update(change)
    with pytest.raises(ValueError, match=words):
        preflight.check(config)


def test_rows_that_a_response_cannot_fit_into(tokenizer):
    config = intervention.get_config("tiny")
    domain = arithmetic.Arithmetic(tokenizer)
    run = Run(config, 0, None, None, {}, {}, domain)
    tasks = domain.tasks("hard_train", 0, 20)
    preflight.check_lengths(run, tasks)
    longest = max(len(tokenizer.render(domain.view(task, [], "solver"))) for task in tasks)
    for row_length, passes in ((longest + 96, True), (longest + 95, False)):
        config.train.row_length = row_length
        if passes:
            preflight.check_lengths(run, tasks)
        else:
            with pytest.raises(
                StageError, match=rf"row_length = {row_length} is too short: .* has {longest} tokens"
            ):
                preflight.check_lengths(run, tasks)
