"""Intervention Training of a speaker in hard conversations, with the skills of DEAR MAN (IMBUE, arXiv 2402.12556).

    python experiments/run.py --config experiments/configs/dearman.py:tiny --workdir runs/dearman

The variants are those of therapy.py, on the domain `dearman`. What is exact here (first errors, best turns) is so with
respect to the scripted counterpart, and says nothing of how people fare.

`tiny` took 7.5 minutes a seed on two CPU cores: InT + RL scored 43% and 35% on held-out tasks of seeds 0 and 1, RL 25%
and 23% (experiments/LOG.md, 2026-11-28). `chat` was NOT run.
"""

from ml_collections import ConfigDict

from experiments.configs import therapy


def get_config(variant: str = "tiny") -> ConfigDict:
    """ "tiny@3" is `tiny` with three seeds."""
    return therapy.config_of("dearman", variant)
