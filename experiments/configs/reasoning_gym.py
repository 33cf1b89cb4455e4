"""Problems and scorers of the package reasoning-gym (`pip install reasoning-gym`).

    python experiments/run.py --config experiments/configs/reasoning_gym.py:chain_sum --config.model=DIRECTORY \\
        --workdir runs/sums

A variant names data sets of the package, joined by "+": `gsm_symbolic` (the default), `chain_sum+countdown`. Where each
of them has a worked answer InT and RL are trained, else RL alone. Their own settings go on the command line:
--config.domain.knobs.tasks='{"chain_sum": {"max_terms": 3}}'. `smoke` is RL on short sums with the embedded model, to
see every stage at work: it solves next to none, as its vocabulary is that of another domain.
"""

from ml_collections import ConfigDict

from experiments.configs import default, grpo
from experiments.configs import int as intervention
from int_jax.domains.reasoning_gym import REFERENCES


def get_config(variant: str = "") -> ConfigDict:
    """The paper's settings on some data sets; which there are is asked of the package when the run starts."""
    if variant == "smoke":
        c, tasks = intervention.smoke(), {"basic_arithmetic": {"max_terms": 2, "max_digits": 1}}
    else:
        c, tasks = default.get_config(), {name: {} for name in (variant or "gsm_symbolic").split("+")}
    worked = tasks.keys() <= set(REFERENCES)
    c.domain = default.domain("reasoning_gym", tasks=tasks, with_reference=worked)
    if not worked:
        grpo.alone(c)
    c.name = f"reasoning_gym:{variant}" if variant else "reasoning_gym"
    return c
