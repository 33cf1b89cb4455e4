"""Programs with unit tests: the domain's own small problems, or HumanEval, MBPP and their like by their columns.

    python experiments/run.py --config experiments/configs/code.py --config.model=DIRECTORY --workdir runs/code \\
        --config.problems.train_file=mbpp.jsonl --config.problems.test_file=humaneval.jsonl

The paper's settings; a file's tests become the answer, its canonical solution the reference, and a row whose reference
fails its own tests is refused by name. `smoke` is RL on the shortest of the own problems with the embedded model, to
see every stage at work: it solves none of them, as its vocabulary is that of another domain.
"""

from ml_collections import ConfigDict

from experiments.configs import default, grpo
from experiments.configs import int as intervention


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "smoke"):
        raise ValueError(f"code.py has no variant {variant!r}: choose smoke, or none")
    c = grpo.alone(intervention.smoke()) if variant else default.get_config()
    c.domain = default.domain("code")
    if variant:
        c.proposals.compare = ()  # with an oracle, which there is not
        c.domain.knobs.update(changes=(1, 1), instruction="")
        c.train.row_length = 512
    c.name = f"code:{variant}" if variant else "code"
    return c
