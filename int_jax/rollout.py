"""Host side of sampling: tasks to traces, traces to longer traces, each judged by its domain."""

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from int_jax import privileged, processes
from int_jax.domains import Domain
from int_jax.engine import Engine
from int_jax.sampler import Progress, Request, Response, Sampler, Sampling, silent
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Task, Trace, Verdict


@dataclasses.dataclass(frozen=True)
class Stream:
    """What names a stage's random numbers, besides the seed, the problem's id and the number of the sample.

    Attributes:
      stage: two stages draw different samples for one problem. round: how often it was drawn from before.
      by_attempt: whether each attempt at a problem has a stream of its own, named by its sample number.
    """

    stage: str
    round: int = 0
    by_attempt: bool = False

    def name(self, trace: Trace) -> str:
        """ "train/7/attempts", "train/7/3/guided", "train/7/attempts/round1"."""
        attempt = [f"{trace.key[1]}"] * self.by_attempt
        return "/".join([trace.task.id, *attempt, self.stage, *[f"round{self.round}"] * bool(self.round)])


def open_trace(domain: Domain, task: Task, role: str = "solver", steps: Sequence[str] = ()) -> Trace:
    """A trace that holds only the role's prompt, ready to be continued.

    steps: of an attempt, for the roles that are shown one.
    """
    prompt = np.asarray(domain.tokenizer.render(domain.view(task, [*steps], role)), np.int32)
    none, zeros = np.zeros(len(prompt), bool), np.zeros(len(prompt), np.float32)
    return Trace(task, prompt, len(prompt), none, zeros, privileged=privileged.shown(role))


def continue_traces(
    engine: Sampler,
    params: Any,
    domain: Domain,
    traces: list[Trace],
    samples: int,
    sampling: Sampling,
    stream: Stream = Stream("samples"),
    first_sample: int = 0,
    policy_update: int = 0,
    progress: Progress = silent,
) -> list[list[Trace]]:
    """Continue each open trace `samples` times until the policy stops and its partner is silent, and judge the results.

    Args:
      params: laid out by `engine.decode_params`. first_sample: index of the first sample.

    Returns: for each trace its continuations; `sampled` marks what the policy drew, `verdict` what the domain says.
    """
    running = [
        [dataclasses.replace(t, key=(sampling.seed, first_sample + g)) for g in range(samples)]
        for t in traces
    ]
    # Two traces of three samples: 0 1 2 | 3 4 5. waiting: those whose turn it is, all of them at first, then those to
    # whom a partner has replied.
    flat = [trace for group in running for trace in group]
    streams = [stream.name(trace) for trace in traces for _ in range(samples)]
    waiting = list(range(len(flat)))
    while waiting:
        requests = [
            Request(tuple(flat[i].tokens.tolist()), streams[i], flat[i].key[1], flat[i].begin)
            for i in waiting
        ]
        responses = engine.generate(params, requests, sampling, progress, domain.tokenizer)
        for i, response in zip(waiting, responses, strict=True):
            flat[i] = append_response(domain, flat[i], response, sampling.temperature, policy_update)
        replies = [domain.reply(flat[i]) for i in waiting]
        for i, reply in zip(waiting, replies, strict=True):
            if len(reply):
                flat[i] = append_partner_turn(flat[i], reply)
        waiting = [i for i, reply in zip(waiting, replies, strict=True) if len(reply)]
    judged = [t.replace(verdict=v) for t, v in zip(flat, verdicts(domain, flat), strict=True)]
    return [judged[i * samples : (i + 1) * samples] for i in range(len(traces))]


def verdicts(domain: Domain, traces: list[Trace]) -> list[Verdict]:
    """What the domain says of each trace."""
    # A time-out on one host alone would part the runs.
    judged = domain.verify_many(traces) if processes.is_main_process() else None
    return [Verdict(*verdict) for verdict in processes.from_main_process(judged)]


def append_response(
    domain: Domain, trace: Trace, response: Response, temperature: float, policy_update: int
) -> Trace:
    """The trace with what the policy drew after it."""
    return trace.extend(
        response.tokens,
        response.logp,
        temperature=temperature,
        step_ends=domain.steps(response.tokens, trace.prompt_len),
        stop=response.stop,
        policy_update=policy_update,
    )


def append_partner_turn(trace: Trace, reply: Sequence[int]) -> Trace:
    """The trace with a partner's turn after it: in view, but not drawn by the policy. It is open again."""
    return trace.replace(
        tokens=np.concatenate([trace.tokens, np.asarray(reply, np.int32)]),
        sampled=np.concatenate([trace.sampled, np.zeros(len(reply), bool)]),
        logp=np.concatenate([trace.logp, np.zeros(len(reply), np.float32)]),
        stop="",
    )


def cut_at(trace: Trace, step: int) -> int:
    """The token offset where a step starts; IndexError, naming both, where the trace has no such step."""
    if not 0 <= step < len(trace.step_ends):
        raise IndexError(
            f"task {trace.task.id}: step {step} of an attempt of {len(trace.step_ends)} steps (0-based)"
        )
    return trace.step_starts()[step]


def truncate(trace: Trace, end: int) -> Trace:
    """The first `end` tokens of a trace, open again."""
    return trace.replace(
        tokens=trace.tokens[:end],
        sampled=trace.sampled[:end],
        logp=trace.logp[:end],
        step_ends=tuple(e for e in trace.step_ends if e <= end),
        stop="",
        verdict=None,
        begin="",
    )


def reopen(trace: Trace, end: int, tokenizer: Tokenizer, separator: str = "\n\n") -> Trace:
    """The first `end` tokens of a trace, ready to be continued by any step: a separator at their end is left to the
    policy (`Tokenizer.reopen`), since the one that stands was spelled for the step that came next."""
    end, begin = tokenizer.reopen(trace.tokens[:end], trace.prompt_len, separator)
    ends = (*(e for e in trace.step_ends if e < end), end) if end > trace.prompt_len else ()
    return truncate(trace, end).replace(begin=begin, step_ends=ends)


@overload
def splice(
    traces: Trace, interventions: Intervention, tokenizer: Tokenizer, separator: str = "\n\n"
) -> Trace: ...
@overload
def splice(
    traces: list[Trace], interventions: list[Intervention], tokenizer: Tokenizer, separator: str = "\n\n"
) -> list[Trace]: ...
def splice(traces, interventions, tokenizer, separator="\n\n"):
    """The guided attempts: steps before the located one, then the intervention; open, ready to be continued.

    The prefix keeps its ids, but for a separator at its end that is spelled another way before the intervention. The
    intervention is encoded, unless its own ids are known, and is marked as not drawn by the policy; the separator
    behind it is left to the policy. Everything after the located step is dropped.

    Args:
      traces, interventions: one of each, or lists of the same length.

    Raises: IndexError for a step that the attempt does not have, ValueError for an empty intervention.
    """
    if isinstance(traces, Trace):
        return splice([traces], [interventions], tokenizer, separator)[0]
    cuts, ids, begins, ends = [], [], [], []
    for trace, one in zip(traces, interventions, strict=True):
        # The separator before the step is taken off the prefix and encoded with the intervention: how it is spelled
        # depends on what follows. That behind the intervention is taken off, too, and left to the policy.
        whole = trace.tokens[: cut_at(trace, one.step)]
        cut, begin = tokenizer.reopen(whole, trace.prompt_len, separator)
        text = one.text.rstrip("\n")
        new = list(one.ids) or (tokenizer.encode(begin + text + separator) if text.strip() else [])
        end, after = tokenizer.reopen(new, 0, separator)
        # The step before ends where the intervention's own text begins: behind the separator, wherever its tokens are.
        before = (*trace.step_ends[: one.step - 1], cut + tokenizer.covering(new, len(begin)))
        ends.append(before if one.step else ())
        while cut < len(whole) and end and whole[cut] == new[0]:  # spelled as it was drawn: it stays so
            cut, new, end = cut + 1, new[1:], end - 1
        cuts.append(cut)
        ids.append(new[:end])
        begins.append(after)
    rows = Engine.splice([t.tokens for t in traces], [t.prompt_len for t in traces], cuts, ids)
    out = []
    for i, tokens in enumerate(rows):
        prefix = truncate(traces[i], cuts[i])
        out.append(
            prefix.replace(
                tokens=tokens,
                sampled=np.concatenate([prefix.sampled, np.zeros(len(ids[i]), bool)]),
                logp=np.concatenate([prefix.logp, np.zeros(len(ids[i]), np.float32)]),
                step_ends=(*ends[i], len(tokens)),
                spliced=cuts[i],
                privileged=privileged.joined(prefix.privileged, privileged.INTERVENTION),
                begin=begins[i],
            )
        )
    return out
