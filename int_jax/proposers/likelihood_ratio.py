"""Location without generation: the first step that the reference in view makes unlikelier; then one sampled step.

The trace is scored twice, with and without the reference. The gain of token t of a response y is

    g_t = log p(y_t | informed prompt, y_<t) - log p(y_t | plain prompt, y_<t)    [nats]

A reference may raise a whole attempt, its wrong step too (a chat model that is shown the form of an answer), so a gain
is measured from the median of the attempt's own tokens; and what is wrong with a step stands in one or two tokens of it
(a number), whatever the others gain. So a step falls as its lowest token does: f_s = median of g - min of g_t, t in s.
After a wrong step the steps that build on it fall too, often deeper: the location is the first step whose fall is at
least SHARE of the attempt's deepest one and more than MARGIN.

The replacement is drawn from the model with the reference in view, after the steps before the location.
"""

import dataclasses
from typing import Any

import numpy as np

from int_jax.domains import Domain
from int_jax.proposers import Drops, room, screen, stream
from int_jax.rollout import cut_at, open_trace, reopen
from int_jax.sampler import Progress, Request, Sampling, Scorer, ScoringSampler, silent
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Trace

# Chosen on 1,280 failed attempts at the arithmetic domain's hard_validation problems (experiments/LOG.md).
SHARE = 0.25
MARGIN = 0.5  # nats
MARGINS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # nats, of the curve


def gains(engine: Scorer, params: Any, domain: Domain, traces: list[Trace]) -> list[np.ndarray]:
    """What seeing the reference adds to the log-probability of each token of each response, nats."""
    count, plain = len(traces), [trace.tokens[: trace.prompt_len] for trace in traces]
    informed = [open_trace(domain, trace.task, "teacher").tokens for trace in traces]
    responses = [trace.response for trace in traces] * 2
    sequences = [np.concatenate(pair) for pair in zip(plain + informed, responses, strict=True)]
    logps, _ = engine.score(params, sequences)
    found = []
    for i, trace in enumerate(traces):
        # The plain ones stand first, the informed ones behind them; of both only the response, token by token.
        gain = logps[count + i][len(informed[i]) :] - logps[i][len(plain[i]) :]
        own = trace.own[trace.prompt_len :]
        # What a partner said is no fault of the policy's: it neither falls nor counts.
        found.append(gain if own.all() else np.where(own, gain, np.median(gain[own])))
    return found


def falls(gain, ends) -> np.ndarray:
    """How deep each step's lowest token lies below the attempt's median token, nats.

    Args:
      gain: [tokens] of a response. ends: offsets into it where its steps end; tokens after the last one do not count.
    """
    if not len(ends):
        return np.zeros(0)
    # Gains 1 0 | -3 1 2 0 with ends 2 and 6: median 0.5, lowest 0 and -3, falls 0.5 and 3.5.
    whole = np.asarray(gain[: ends[-1]], np.float64)
    return np.median(whole) - np.minimum.reduceat(whole, [0, *ends[:-1]])


def location(fall, margin: float = MARGIN) -> int | None:
    """The index of the first step that falls as a wrong one does; None where none falls by more than `margin` nats."""
    # Falls 0.2, 1.0, 4.0: a quarter of the deepest is 1.0, so the location is step 1.
    deep = np.flatnonzero((fall > margin) & (fall >= SHARE * np.max(fall, initial=0.0)))
    return int(deep[0]) if len(deep) else None


def all_falls(engine: Scorer, params: Any, domain: Domain, traces: list[Trace]) -> list[np.ndarray]:
    """`falls` of each trace."""
    return [
        falls(gain, [end - trace.prompt_len for end in trace.step_ends])
        for gain, trace in zip(gains(engine, params, domain, traces), traces, strict=True)
    ]


def curve(every: list[np.ndarray], truths: list[int | None], margins=MARGINS) -> list[dict]:
    """What another margin would give: of attempts with these falls, how many get a location and how many the true one.

    Returns: {"margin": nats, "located", "exact"} for each margin.
    """
    rows = []
    for margin in margins:
        found = [location(fall, margin) for fall in every]
        exact = sum(step is not None and step == truth for step, truth in zip(found, truths, strict=True))
        rows.append({"margin": margin, "located": sum(step is not None for step in found), "exact": exact})
    return rows


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
    """See `proposers.Proposer`. A trace in which no step falls away is noted as "not_located".

    Raises: ValueError for a proposer with another tokenizer: what is scored are the trace's own ids.
    """
    if tokenizer is not None and tokenizer.path != domain.tokenizer.path:
        raise ValueError(
            f"likelihood_ratio scores the attempt's own ids: the proposer's tokenizer, {tokenizer.path}, must be the "
            f"policy's, {domain.tokenizer.path}; choose a model that shares it, or the proposer self_verify"
        )
    sampling = dataclasses.replace(sampling, seed=key, stop=(domain.separator,) if domain.separator else ())
    steps = [location(fall) for fall in all_falls(engine, params, domain, traces)]
    prompts, begins = [], []
    for trace, step in zip(traces, steps, strict=True):
        informed = open_trace(domain, trace.task, "teacher").tokens.tolist()
        end = trace.prompt_len if step is None else cut_at(trace, step)
        prefix = reopen(trace, end, domain.tokenizer, domain.separator)
        prompts.append((*informed, *prefix.response.tolist()))
        begins.append(prefix.begin)
    told = {i: step for i, step in enumerate(steps) if step is not None}
    fits = [i for i in told if len(prompts[i]) <= room(engine, sampling, max_prompt)]
    drops.update({i: "not_located" for i, step in enumerate(steps) if step is None})
    drops.update({i: "too_long" for i in told if i not in fits})
    requests = [
        Request(prompts[i], stream(traces[i], "replace"), k, begins[i]) for i in fits for k in range(samples)
    ]
    responses = engine.generate(params, requests, sampling, progress, domain.tokenizer)
    out: list[Intervention | None] = [None] * len(traces)
    # responses: `samples` for each trace that fits, in the order of `fits`.
    for j, i in enumerate(fits):
        candidates = [
            # Cut off before it ended: a text, which `screen` counts as unparsed.
            domain.tokenizer.text(r.tokens[len(prompts[i]) :])
            if r.stop == "length"
            else drawn_step(domain, told[i], r.tokens[len(prompts[i]) :], begins[i])
            for r in responses[j * samples : (j + 1) * samples]
        ]
        out[i] = screen(domain, i, traces[i], candidates, drops)
    return out


def drawn_step(domain: Domain, step: int, ids, begin: str) -> Intervention:
    """What was drawn up to a separator. It keeps its ids if it ends in one, not in a stop token."""
    text = domain.tokenizer.text(ids)[len(begin) :].strip("\n")
    as_drawn = bool(text) and domain.tokenizer.decode(ids) == begin + text + domain.separator
    return Intervention(step, text, tuple(map(int, ids)) if as_drawn else (), "likelihood_ratio")
