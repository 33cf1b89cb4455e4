"""Intervention Training of a speaker in hard conversations, with the skills of DEAR MAN (IMBUE, arXiv 2402.12556).

    python experiments/run.py --config experiments/configs/dearman.py:tiny --workdir runs/dearman

The variants are those of therapy.py, on the domain `dearman`. What is exact here (first errors, best turns) is so with
respect to the scripted counterpart, and says nothing of how people fare.

`tiny` took 403 to 412 s a seed on two CPU cores: over three seeds InT + RL scored 30% on held-out tasks, RL 31%
(experiments/LOG.md, 2026-11-29). `chat` was NOT run.
"""

from ml_collections import ConfigDict

from experiments.configs import therapy


def get_config(variant: str = "tiny") -> ConfigDict:
    """ "tiny@3" is `tiny` with three seeds."""
    return therapy.config_of("dearman", variant)
