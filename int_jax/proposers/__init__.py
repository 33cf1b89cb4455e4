"""Proposers: who finds the first error of a failed attempt and writes the corrective step.

A proposer is a module here with

    propose(engine, params, domain, traces, key, *, samples, sampling, max_prompt, drops, progress, tokenizer)
        -> list[Intervention | None]

None means that it cannot tell. `key` is the seed of its random stream; `samples` candidates are drawn for each trace
and the first one that survives `screen` is taken: they exist as retries. Why a trace got none is noted in `drops`, by
the trace's index.

The proposer may be another model than the policy: `engine` and `params` are its own, `tokenizer` too (None: the
policy's), while `domain` and `traces` are the policy's. A prompt is never cut: one that is longer than `room` is noted
as "too_long" and not asked.
"""

import importlib
import pkgutil

from int_jax.types import Intervention, Trace

DROPS = ("unparsed", "not_located", "out_of_range", "empty", "leaked", "too_long")


def names() -> list[str]:
    """The proposers there are."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "parse"]


def load(name: str):
    """The `propose` function of int_jax/proposers/<name>.py."""
    if name not in names():
        raise ValueError(f"no proposer {name!r} in int_jax/proposers: choose one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").propose


def room(engine, sampling, max_prompt: int) -> int:
    """The most tokens of a prompt: `max_prompt`, or what the response leaves of the model's positions."""
    return min(max_prompt, engine.model.config.max_len - sampling.max_new_tokens)


def fault(domain, trace: Trace, candidate: Intervention | None) -> str | None:
    """Why a candidate cannot be used, one of DROPS; None if it can."""
    if candidate is None:
        return "unparsed"
    if not candidate.text.strip():
        return "empty"
    if not 0 <= candidate.step < len(trace.step_ends):
        return "out_of_range"
    if domain.leaks(trace.task, candidate.text):
        return "leaked"
    return None


def screen(domain, index: int, trace: Trace, candidates, drops: dict[int, str]) -> Intervention | None:
    """The first usable candidate; where there is none, the first one's fault is noted at drops[index]."""
    faults = [fault(domain, trace, candidate) for candidate in candidates]
    if None in faults:
        return candidates[faults.index(None)]
    drops[index] = faults[0]
    return None
