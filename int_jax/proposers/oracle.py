"""The exact proposer, where the domain knows the first error and its correction: an upper bound, never the method."""

from int_jax.proposers import Drops, screen
from int_jax.types import Intervention, Trace


def propose(
    engine,
    params,
    domain,
    traces: list[Trace],
    key: int,
    *,
    samples: int,
    sampling,
    max_prompt: int,
    drops: Drops,
    progress=lambda done: None,
    tokenizer=None,
) -> list[Intervention | None]:
    """See `proposers`. An attempt in which the domain sees no wrong step is noted as "not_located"."""
    out: list[Intervention | None] = []
    for i, trace in enumerate(traces):
        step = domain.first_error(trace)
        if step is None:
            drops[i] = "not_located"
            out.append(None)
        else:
            one = Intervention(step, domain.correction(trace, step), source="oracle")
            out.append(screen(domain, i, trace, [one], drops))
        progress(samples)
    return out
