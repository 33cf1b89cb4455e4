"""A control: a step drawn at random, in place of the first error, is written as it should be by the oracle."""

from typing import Any

import numpy as np

from int_jax.domains import Domain
from int_jax.proposers import Drops
from int_jax.proposers.oracle import corrected
from int_jax.sampler import Progress, Sampling, ScoringSampler, silent
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Trace


def propose(
    engine: ScoringSampler,
    params: Any,
    domain: Domain,
    traces: list[Trace],
    key: int,
    *,
    samples: int,
    sampling: Sampling,
    max_prompt: int,
    drops: Drops,
    progress: Progress = silent,
    tokenizer: Tokenizer | None = None,
) -> list[Intervention | None]:
    """See `proposers.Proposer`. Each step of an attempt is as likely as the others; where it was right, the same or
    another right one stands there afterwards."""
    steps = []
    for trace in traces:
        word = [*trace.task.id.encode(), *(part % 2**32 for part in trace.key)]
        steps.append(int(np.random.default_rng([key, *word]).integers(len(trace.step_ends))))
    return corrected(domain, traces, steps, "random_step", samples, drops, progress)
