"""Proposers: who finds the first error of a failed attempt and writes the corrective step.

A proposer is a module here with

    propose(engine, params, domain, traces, key, *, samples, sampling, max_prompt, drops, progress, tokenizer)
        -> list[Intervention | None]

None means that it cannot tell. `key` is the seed of its random stream; `samples` candidates are drawn for each trace
and the first one that survives `screen` is taken: they exist as retries. Why a trace got none is noted in `drops`
(`Drops`), by the trace's index; what each candidate said and lacked is kept there by `screen`.

The proposer may be another model than the policy: `engine` and `params` are its own, `tokenizer` too (None: the
policy's), while `domain` and `traces` are the policy's. A prompt is never cut: one that is longer than `room` is noted
as "too_long" and not asked.
"""

import importlib
import pkgutil
from collections.abc import Sequence

from int_jax.types import Intervention, Trace

DROPS = ("unparsed", "not_located", "out_of_range", "empty", "leaked", "too_long")


def names() -> list[str]:
    """The proposers there are."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "parse"]


class Drops(dict[int, str]):
    """Why traces got no intervention, one of DROPS, by the trace's index.

    Attributes:
      tried: by the trace's index, every candidate that was drawn for it, used or not: {"raw": the proposer's whole
        output, "fault": one of DROPS or "", "step": zero-based or None, "text"}.
    """

    def __init__(self):
        super().__init__()
        self.tried: dict[int, list[dict]] = {}


def load(name: str):
    """The `propose` function of int_jax/proposers/<name>.py."""
    if name not in names():
        raise ValueError(f"no proposer {name!r} in int_jax/proposers: choose one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").propose


def room(engine, sampling, max_prompt: int) -> int:
    """The most tokens of a prompt: `max_prompt`, or what the response leaves of the model's positions."""
    return min(max_prompt, engine.model.config.max_len - sampling.max_new_tokens)


def fault(domain, trace: Trace, candidate: Intervention | str | None) -> str | None:
    """Why a candidate cannot be used, one of DROPS; None if it can. What holds no intervention is given as its text, or
    None where there is none."""
    if not isinstance(candidate, Intervention):
        return "unparsed"
    if not candidate.text.strip():
        return "empty"
    if not 0 <= candidate.step < len(trace.step_ends):
        return "out_of_range"
    if domain.leaks(trace.task, candidate.text):
        return "leaked"
    return None


def screen(
    domain, index: int, trace: Trace, candidates: Sequence[Intervention | str | None], drops: Drops
) -> Intervention | None:
    """The first usable candidate; where there is none, the first one's fault is noted at drops[index]. All of them are
    kept at drops.tried[index]."""
    faults = [fault(domain, trace, candidate) for candidate in candidates]
    drops.tried[index] = [_told(*pair) for pair in zip(candidates, faults, strict=True)]
    for candidate, lacks in zip(candidates, faults, strict=True):
        if isinstance(candidate, Intervention) and lacks is None:
            return candidate
    drops[index] = faults[0] or ""
    return None


def _told(candidate: Intervention | str | None, lacks: str | None) -> dict:
    if isinstance(candidate, Intervention):
        raw, step, text = candidate.raw or candidate.text, candidate.step, candidate.text
    else:
        raw, step, text = candidate or "", None, ""
    return {"raw": raw, "fault": lacks or "", "step": step, "text": text}
