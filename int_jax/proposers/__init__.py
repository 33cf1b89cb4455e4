"""Proposers: who finds the first error of a failed attempt and writes the corrective step.

A proposer is a module with `propose`, a function that keeps the protocol `Proposer`. A config names it by one text
(modules.py): "self_verify", "mylab.teacher" or "lab/teacher.py". `python -m int_jax.check proposer lab/teacher.py` says
what is missing or wrong.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from int_jax import modules
from int_jax.domains import Domain
from int_jax.sampler import Progress, Sampler, Sampling, ScoringSampler, silent
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Trace

DROPS = ("unparsed", "not_located", "out_of_range", "empty", "leaked", "too_long")


class Drops(dict[int, str]):
    """Why traces got no intervention, one of DROPS, by the trace's index.

    Attributes:
      tried: by the trace's index, every candidate that was drawn for it, used or not: {"raw": the proposer's whole
        output, "fault": one of DROPS or "", "step": zero-based or None, "text"}.
    """

    def __init__(self):
        super().__init__()
        self.tried: dict[int, list[dict]] = {}


class Proposer(Protocol):
    """What the package asks of a proposer."""

    def __call__(
        self,
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
        """An intervention for each failed attempt, or None where it cannot tell.

        What a trace gets does not depend on the others. A prompt is never cut: one that is longer than `room` is noted
        as "too_long" and not asked.

        Args:
          engine, params, tokenizer: the proposer's model, which may be another than the policy's; with a tokenizer of
            None it is the policy's. domain, traces: the policy's.
          key: the seed of its random stream. samples: candidates for each trace, of which the first one that survives
            `screen` is taken: they exist as retries. sampling: how they are drawn.
          drops: why a trace got none, by its index, is noted here; what each candidate said and lacked is noted by
            `screen`. progress: told how many candidates were finished since the last call.
        """


KIND = modules.Kind("proposer", __name__, ("propose",), apart=("parse",))
names = KIND.names


def load(name: str) -> Proposer:
    """The `propose` of the proposer that a text names. Raises: see `modules.Kind.load`."""
    return KIND.load(name).propose


def room(engine: Sampler, sampling: Sampling, max_prompt: int) -> int:
    """The most tokens of a prompt: `max_prompt`, or what the response leaves of the model's positions."""
    # Prompt and response share the model's positions: 4,096 less a response of 1,024 leave 3,072.
    return min(max_prompt, engine.max_len - sampling.max_new_tokens)


def stream(trace: Trace, role: str) -> str:
    """The name of a random stream of one attempt, apart from the one the attempt was drawn from."""
    return f"{trace.task.id}/attempt{trace.key[1]}/{role}"


def fault(domain: Domain, trace: Trace, candidate: Intervention | str | None) -> str | None:
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
    domain: Domain, index: int, trace: Trace, candidates: Sequence[Intervention | str | None], drops: Drops
) -> Intervention | None:
    """The first usable candidate; where there is none, the first one's fault is noted at drops[index]. All of them are
    kept at drops.tried[index]."""
    faults = [fault(domain, trace, candidate) for candidate in candidates]
    drops.tried[index] = [_told(*pair) for pair in zip(candidates, faults, strict=True)]
    for candidate, lacks in zip(candidates, faults, strict=True):
        if isinstance(candidate, Intervention) and lacks is None:
            return candidate
    # Candidates are retries of one question: the first one's fault stands for all.
    drops[index] = faults[0] or ""
    return None


def _told(candidate: Intervention | str | None, lacks: str | None) -> dict:
    if isinstance(candidate, Intervention):
        raw, step, text = candidate.raw or candidate.text, candidate.step, candidate.text
    else:
        raw, step, text = candidate or "", None, ""
    return {"raw": raw, "fault": lacks or "", "step": step, "text": text}
