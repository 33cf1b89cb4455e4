"""Location without generation: the first step that the reference in view makes unlikelier; then one sampled step.

The trace is scored twice, with and without the reference (`engine.locate`). The replacement is drawn from the model
with the reference in view, after the steps before the location.
"""

import dataclasses

from int_jax.engine import Engine, Request, Sampling
from int_jax.proposers import room, screen
from int_jax.proposers.self_verify import stream
from int_jax.rollout import cut_at, opened, reopened
from int_jax.types import Intervention, Trace

THRESHOLD = 2.0  # nats by which the reference must lower a step's log-likelihood


def locations(engine: Engine, params, domain, traces: list[Trace]) -> list[int | None]:
    """The index of each trace's first step whose log-likelihood ratio falls below -THRESHOLD."""
    plain = [trace.tokens[: trace.prompt_len] for trace in traces]
    informed = [opened(domain, trace.task, "teacher").tokens for trace in traces]
    ends = [[end - trace.prompt_len for end in trace.step_ends] for trace in traces]
    return engine.locate(params, plain, informed, [t.response for t in traces], ends, THRESHOLD)[1]


def propose(
    engine: Engine,
    params,
    domain,
    traces: list[Trace],
    key: int,
    *,
    samples: int,
    sampling: Sampling,
    max_prompt: int,
    drops: dict[int, str],
    progress=lambda done: None,
    tokenizer=None,
) -> list[Intervention | None]:
    """See `proposers`. A trace in which no step falls away is noted as "unparsed": it cannot tell.

    Raises: ValueError for a proposer with another tokenizer: what is scored are the trace's own ids.
    """
    if tokenizer is not None and tokenizer.path != domain.tokenizer.path:
        raise ValueError(
            f"likelihood_ratio scores the attempt's own ids: the proposer's tokenizer, {tokenizer.path}, must be the "
            f"policy's, {domain.tokenizer.path}; choose a model that shares it, or the proposer self_verify"
        )
    sampling = dataclasses.replace(sampling, seed=key, stop=(domain.separator,))
    steps = locations(engine, params, domain, traces)
    prompts, begins = [], []
    for trace, step in zip(traces, steps, strict=True):
        informed = opened(domain, trace.task, "teacher").tokens.tolist()
        end = trace.prompt_len if step is None else cut_at(trace, step)
        prefix = reopened(trace, end, domain.tokenizer, domain.separator)
        prompts.append((*informed, *prefix.response.tolist()))
        begins.append(prefix.begin)
    told = [i for i, step in enumerate(steps) if step is not None]
    fits = [i for i in told if len(prompts[i]) <= room(engine, sampling, max_prompt)]
    drops.update({i: "unparsed" for i, step in enumerate(steps) if step is None})
    drops.update({i: "too_long" for i in told if i not in fits})
    requests = [
        Request(prompts[i], stream(traces[i], "replace"), k, begins[i]) for i in fits for k in range(samples)
    ]
    responses = engine.generate(params, requests, sampling, progress, domain.tokenizer)
    out: list[Intervention | None] = [None] * len(traces)
    for j, i in enumerate(fits):
        candidates = [
            None
            if r.stop == "length"
            else drawn_step(domain, steps[i], r.tokens[len(prompts[i]) :], begins[i])
            for r in responses[j * samples : (j + 1) * samples]
        ]
        out[i] = screen(domain, i, traces[i], candidates, drops)
    return out


def drawn_step(domain, step: int, ids, begin: str) -> Intervention:
    """What was drawn up to a separator. It keeps its ids if it ends in one, not in a stop token."""
    text = domain.tokenizer.text(ids)[len(begin) :].strip("\n")
    as_drawn = bool(text) and domain.tokenizer.decode(ids) == begin + text + domain.separator
    return Intervention(step, text, tuple(map(int, ids)) if as_drawn else (), "likelihood_ratio")
