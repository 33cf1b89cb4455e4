"""A control: the last step of an attempt, in place of its first error, is written as it should be by the oracle."""

from typing import Any

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
    """See `proposers.Proposer`."""
    steps = [len(trace.step_ends) - 1 for trace in traces]
    return corrected(domain, traces, steps, "last_step", samples, drops, progress)
