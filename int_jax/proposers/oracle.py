"""The exact proposer, where the domain knows the first error and its correction: an upper bound, never the method."""

from collections.abc import Sequence
from typing import Any

from int_jax.domains import Domain
from int_jax.proposers import Drops, screen
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
    """See `proposers.Proposer`. An attempt in which the domain sees no wrong step is noted as "not_located"."""
    steps = [domain.first_error(trace) for trace in traces]
    return corrected(domain, traces, steps, "oracle", samples, drops, progress)


def corrected(
    domain: Domain,
    traces: list[Trace],
    steps: Sequence[int | None],
    source: str,
    samples: int,
    drops: Drops,
    progress: Progress,
) -> list[Intervention | None]:
    """Interventions at these steps, as the domain has them right; None for a step that is None, or was not usable."""
    out: list[Intervention | None] = []
    for i, (trace, step) in enumerate(zip(traces, steps, strict=True)):
        if step is None:
            drops[i] = "not_located"
            out.append(None)
        else:
            one = Intervention(step, domain.correction(trace, step), source=source)
            out.append(screen(domain, i, trace, [one], drops))
        progress(samples)
    return out
