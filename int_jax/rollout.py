"""Host side of sampling: tasks to traces, traces to longer traces, each judged by its domain."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, overload

import numpy as np

from int_jax import privileged, processes
from int_jax.domains import Domain
from int_jax.engine import Engine
from int_jax.sampler import Progress, Request, Response, Sampler, Sampling, independent, silent
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
    fold: Callable[[int, list[Trace]], Any] = lambda index, group: group,
) -> list[Any]:
    """Continue each open trace `samples` times until the policy stops and its partner is silent, and judge the results.

    Args:
      params: laid out by `engine.decode_params`. first_sample: index of the first sample.
      fold(index, group): what is kept of the continuations of traces[index], as soon as all of them are judged.

    Returns: for each trace its continuations, or what `fold` made of them; `sampled` marks what the policy drew,
      `verdict` what the domain says.
    """
    # Two traces of three samples: 0 1 2 | 3 4 5.
    opened = [
        trace.replace(key=(sampling.seed, first_sample + sample))
        for trace in traces
        for sample in range(samples)
    ]
    names = [stream.name(trace) for trace in traces for _ in range(samples)]
    groups: dict[int, list[Trace]] = {}
    out: list[Any] = [None] * len(traces)
    with Judging(engine, params, domain, sampling, policy_update, progress) as running:
        running.add(opened, names)
        while running:
            for number, trace in running.take():
                index = number // samples
                group = groups.setdefault(index, [])
                group.append(trace)
                if len(group) == samples:
                    out[index] = fold(index, by_sample(groups.pop(index)))
    return out


def by_sample(group: list[Trace]) -> list[Trace]:
    """Continuations of one trace in the order of their samples' numbers, whichever ended first."""
    return sorted(group, key=lambda trace: trace.key[1])


class Judging:
    """Open traces that are continued side by side until the policy stops and its partner is silent, each then judged
    while others are drawn. What a `sampler.Session` is to responses this is to traces: others may join them.

    The domain judges in a thread of its own, in batches of what has ended since the last one; what it raises is raised
    by `take`. Processes that draw together must ask for the same at the same time: they are judged where nothing is
    left to draw, by process 0, whose grader may be the only one that was late.
    """

    def __init__(
        self,
        engine: Sampler,
        params: Any,
        domain: Domain,
        sampling: Sampling,
        policy_update: int = 0,
        progress: Progress = silent,
    ):
        self.domain, self.sampling = domain, sampling
        self.policy_update, self.progress = policy_update, progress
        self.session = engine.session(params, sampling, domain.tokenizer)
        self.independent = independent(engine)
        self.thread = ThreadPoolExecutor(1, "grader")
        self.traces: dict[int, Trace] = {}  # all that are not given out yet, by their numbers
        self.streams: dict[int, str] = {}  # of those that are drawn
        self.continued: dict[int, int] = {}  # the trace of each request that is not answered yet
        self.count = self.requests = 0  # of traces and of requests so far
        self.ended: list[int] = []  # traces that wait for the grader
        self.graded: list[int] = []  # those that it has,
        self.verdicts: Future | None = None  # and what it says of them

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.thread.shutdown(cancel_futures=True)

    def __bool__(self) -> bool:
        """Whether any trace is not given out yet."""
        return bool(self.traces)

    def add(self, traces: list[Trace], streams: list[str]) -> None:
        """Queue open traces; they are numbered in the order in which they are added, from 0.

        streams: the name of each one's random stream, which its key, (seed, sample), tells from those of other samples.
        """
        numbers = range(self.count, self.count + len(traces))
        self.count += len(traces)
        self.traces.update(zip(numbers, traces, strict=True))
        self.streams.update(zip(numbers, streams, strict=True))
        self._ask(numbers)

    def take(self) -> list[tuple[int, Trace]]:
        """Go on until at least one trace is judged: those that are, with their numbers. Each is given once; [] where
        there is none."""
        found: list[tuple[int, Trace]] = []
        while self.traces and not found:
            if self.session:
                self._draw()
            found = self._grade(wait=not self.session)
        return found

    def _ask(self, numbers: Iterable[int]) -> None:
        """Queue the next turn of each of these traces."""
        prompts: dict[int, tuple[int, ...]] = {}  # by its array: samples of one prompt share it
        requests: list[Request] = []
        for number in numbers:
            trace = self.traces[number]
            if id(trace.tokens) not in prompts:
                prompts[id(trace.tokens)] = tuple(trace.tokens.tolist())
            self.continued[self.requests + len(requests)] = number
            requests.append(
                Request(prompts[id(trace.tokens)], self.streams[number], trace.key[1], trace.begin)
            )
        self.requests += len(requests)
        self.session.add(requests)

    def _draw(self) -> None:
        """Draw until some turns have ended. Traces that a partner replies to go on, the others wait for the grader."""
        responses = self.session.take()
        self.progress(len(responses))
        again = []
        for request, response in responses:
            number = self.continued.pop(request)
            trace = append_response(
                self.domain, self.traces[number], response, self.sampling.temperature, self.policy_update
            )
            if len(reply := self.domain.reply(trace)):
                trace = append_partner_turn(trace, reply)
                again.append(number)
            else:
                del self.streams[number]
                self.ended.append(number)
            self.traces[number] = trace
        self._ask(again)

    def _grade(self, wait: bool) -> list[tuple[int, Trace]]:
        """The traces that the grader is done with, if it is; it then has those that have ended since."""
        if not (self.independent or wait):
            return []
        if self.verdicts is None:
            self._hand_over()
        if self.verdicts is None or not (wait or self.verdicts.done()):
            return []
        said = zip(self.graded, self.verdicts.result(), strict=True)
        judged = [(number, self.traces.pop(number).replace(verdict=Verdict(*v))) for number, v in said]
        self._hand_over()
        return judged

    def _hand_over(self) -> None:
        """Give the grader, which has nothing to do, what has ended."""
        self.graded, self.ended = self.ended, []
        traces = [self.traces[number] for number in self.graded]
        if self.independent:
            self.verdicts = self.thread.submit(self.domain.verify_many, traces) if traces else None
        else:
            self.verdicts = self.thread.submit(verdicts, self.domain, traces) if traces else None


def verdicts(domain: Domain, traces: list[Trace]) -> list[Verdict]:
    """What the domain says of each trace, on process 0: a time-out on one host alone would part a run."""
    return [Verdict(*verdict) for verdict in processes.by_main_process(lambda: domain.verify_many(traces))]


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
