"""Host side of sampling: tasks to traces, traces to longer traces, each judged by its domain."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, overload

import numpy as np

from int_jax import privileged, processes
from int_jax.domains import Domain
from int_jax.engine import Engine
from int_jax.sampler import Progress, Request, Response, Sampler, Sampling, independent, silent
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, PartnerTurn, Reply, Task, Trace, Verdict


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


def advance(
    engine: Sampler,
    params: Any,
    domain: Domain,
    groups: list[tuple[Trace, ...]],
    starts: list[int],
    streams: list[Stream],
    first: int,
    sampling: Sampling,
    policy_update: int = 0,
) -> list[tuple[Trace, ...]]:
    """Go on with groups of traces, each of one prompt, until those of the first `first` groups are judged: these, and
    the others as far as they came meanwhile, in the places that the first leave free (`Judging.take_until`).

    Processes that draw by themselves each have a share of the groups, and end when theirs of the first ones have.

    Args:
      groups: traces that are open, or judged already. starts, streams: of each group, the tokens of its prompt and
        what names its random numbers.
    """

    def go_on(items: list[tuple]) -> list[tuple[Trace, ...]]:
        some = [[*traces] for _, *traces in items]
        # The places of those that are not over: (item, sample).
        places = [(i, k) for i, group in enumerate(some) for k, t in enumerate(group) if t.verdict is None]
        with Judging(engine, params, domain, sampling, policy_update) as running:
            left = [some[i][k] for i, k in places]
            whose = [items[i][0] for i, _ in places]
            names = [streams[index].name(trace) for index, trace in zip(whose, left, strict=True)]
            running.add(left, names, [starts[index] for index in whose])
            for number, trace in running.take_until(n for n, index in enumerate(whose) if index < first):
                i, k = places[number]
                some[i][k] = trace
        return [*map(tuple, some)]

    items = [(index, *group) for index, group in enumerate(groups)]
    return processes.deal(items, go_on, tuple[Trace, ...], independent(engine))


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
        self.engine = engine
        self.session = engine.session(params, sampling, domain.tokenizer)
        self.independent = independent(engine)
        self.thread = ThreadPoolExecutor(1, "grader")
        self.partner = ThreadPoolExecutor(1, "partner")
        self.traces: dict[int, Trace] = {}  # all that are not given out yet, by their numbers
        self.streams: dict[int, str] = {}  # of those that are drawn
        self.starts: dict[int, int] = {}  # the tokens that each of these had when it was opened,
        self.ends: dict[int, int] = {}  # and those that it may have
        self.asking: list[tuple[list[int], Future]] = []  # traces whose partner thinks, and what it will say
        self.continued: dict[int, int] = {}  # the trace of each request that is not answered yet
        self.count = self.requests = 0  # of traces and of requests so far
        self.ended: list[int] = []  # traces that wait for the grader
        self.graded: list[int] = []  # those that it has,
        self.verdicts: Future | None = None  # and what it says of them

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.thread.shutdown(cancel_futures=True)
        self.partner.shutdown(cancel_futures=True)

    def __bool__(self) -> bool:
        """Whether any trace is not given out yet."""
        return bool(self.traces)

    def add(self, traces: list[Trace], streams: list[str], starts: Sequence[int] = ()) -> None:
        """Queue open traces; they are numbered in the order in which they are added, from 0.

        Args:
          streams: the name of each one's random stream, which its key, (seed, sample), tells from those of other
            samples. starts: the tokens that each had when it was opened, where some of its response is drawn already.
        """
        numbers = range(self.count, self.count + len(traces))
        self.count += len(traces)
        self.traces.update(zip(numbers, traces, strict=True))
        self.streams.update(zip(numbers, streams, strict=True))
        self.starts.update(zip(numbers, starts or [len(trace.tokens) for trace in traces], strict=True))
        self.ends.update((number, self.starts[number] + self.sampling.max_new_tokens) for number in numbers)
        said = {number for number in numbers if self._partner_is_next(self.traces[number])}
        self._ask(number for number in numbers if number not in said)
        self._to_partner(sorted(said))

    def take(self) -> list[tuple[int, Trace]]:
        """Go on until at least one trace is judged: those that are, with their numbers. Each is given once; [] where
        there is none."""
        found: list[tuple[int, Trace]] = []
        while self.traces and not found:
            if self.session:
                self._draw()
            self._hear(wait=not self.session)
            found = self._grade(wait=not (self.session or self.asking))
        return found

    def take_until(self, numbers: Iterable[int]) -> list[tuple[int, Trace]]:
        """Go on until all of these traces have ended, and no further: all that were not given out yet. Of the others
        those that have ended are judged, too, and the rest are as far as they came, ready to be added to another
        `Judging`; of a conversation up to the last whole turn. Partners are waited for, so that what is drawn does not
        depend on how fast they are."""
        numbers, found = [*numbers], []
        while any(number in self.streams for number in numbers):
            if self.session:
                self._draw()
            while self.asking:
                self._hear(wait=True)
            found += self._grade(wait=False)
        ended = []
        for request, response in self.session.leave():
            number = self.continued.pop(request)
            trace = self.traces[number]
            # A turn that is not whole would be taken for one to which the partner replies.
            if response.stop or (self.domain.separator and len(response.tokens) > len(trace.tokens)):
                self.traces[number] = self._with(trace, response)
            if response.stop and self.domain.separator:
                ended.append(number)
        self._to_partner(ended)  # a silent one; that of a conversation is asked when it goes on
        while self.ended or self.verdicts is not None:
            found += self._grade(wait=True)
        return [*found, *self.traces.items()]

    def _with(self, trace: Trace, response: Response) -> Trace:
        return append_response(self.domain, trace, response, self.sampling.temperature, self.policy_update)

    def _partner_is_next(self, trace: Trace) -> bool:
        """Whether an open trace of a conversation ends in an own turn."""
        heard = trace.partner[-1].end if trace.partner else trace.prompt_len
        return not self.domain.separator and len(trace.tokens) > heard

    def _ask(self, numbers: Iterable[int]) -> None:
        """Queue the next turn of each of these traces."""
        prompts: dict[int, tuple[int, ...]] = {}  # by its array: samples of one prompt share it
        requests: list[Request] = []
        for number in numbers:
            trace = self.traces[number]
            if id(trace.tokens) not in prompts:
                prompts[id(trace.tokens)] = tuple(trace.tokens.tolist())
            self.continued[self.requests + len(requests)] = number
            # A turn of a conversation is a response of its own.
            drawn = len(trace.tokens) - self.starts[number] if self.domain.separator else 0
            left = self.ends[number] - len(trace.tokens) + drawn
            most = left if self.domain.turn_tokens is None else min(left, self.domain.turn_tokens)
            limit = most if most < self.sampling.max_new_tokens else None
            prompt, stream = prompts[id(trace.tokens)], self.streams[number]
            requests.append(Request(prompt, stream, trace.key[1], trace.begin, limit, drawn))
        self.requests += len(requests)
        self.session.add(requests)

    def _draw(self) -> None:
        """Draw until some turns have ended."""
        numbers = []
        for request, response in self.session.take():
            number = self.continued.pop(request)
            self.traces[number] = self._with(self.traces[number], response)
            numbers.append(number)
        self._to_partner(numbers)

    def _to_partner(self, numbers: list[int]) -> None:
        """Ask the partner for a reply to each of these traces, all together."""
        if not numbers:
            return
        traces = [self.traces[number] for number in numbers]
        if self.independent and self.domain.slow_partner:
            self.asking.append((numbers, self.partner.submit(self.domain.replies, traces)))
        elif self.independent:
            self._answered(numbers, self.domain.replies(traces))
        else:
            said = processes.by_main_process(lambda: self.domain.replies(traces))
            self._answered(numbers, [Reply(text, tuple(tags), stop) for text, tags, stop in said])

    def _hear(self, wait: bool) -> None:
        """Go on with the traces whose partner has replied; wait for one where nothing else is left to do."""
        while self.asking and (wait or self.asking[0][1].done()):
            numbers, replies = self.asking.pop(0)
            self._answered(numbers, replies.result())
            wait = False

    def _answered(self, numbers: list[int], replies: Sequence[Reply]) -> None:
        """Traces whose partner replied go on, the others wait for the grader."""
        again: list[int] = []
        ended: list[int] = []
        for number, reply in zip(numbers, replies, strict=True):
            trace = append_reply(self.domain, self.traces[number], reply)
            # A trace that goes on needs a place for its next token. A reply without room stays unsaid: rows of training
            # hold a prompt and `max_new_tokens`, and no more.
            if len(trace.tokens) + (not trace.stop) > min(self.ends[number], self.engine.max_len):
                trace = self.traces[number].replace(stop=reply.stop or "length")
            self.traces[number] = trace
            (ended if trace.stop else again).append(number)
        for number in ended:
            del self.streams[number], self.starts[number], self.ends[number]
        self.progress(len(ended))
        self.ended += ended
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
    drawn_by = trace.drawn_by
    if not drawn_by or drawn_by[-1][1] != policy_update:
        drawn_by = (*drawn_by, (len(trace.tokens), policy_update))
    return trace.extend(
        response.tokens,
        response.logp,
        temperature=temperature,
        step_ends=step_ends(domain, trace, response.tokens),
        stop=response.stop,
        drawn_by=drawn_by,
    )


def step_ends(domain: Domain, trace: Trace, tokens: np.ndarray) -> tuple[int, ...]:
    """The ends of the steps of tokens that go on from a trace; of a conversation what was added is one turn."""
    return domain.steps(tokens, trace.prompt_len) if domain.separator else (*trace.step_ends, len(tokens))


def append_reply(domain: Domain, trace: Trace, reply: Reply) -> Trace:
    """The trace with what the partner said to its last turn: in view, but not drawn by the policy. It is open again,
    unless it ends with that."""
    if not reply.text:
        return trace.replace(stop=reply.stop or trace.stop or "stop")
    ids = domain.tokenizer.reply(reply.text, last=bool(reply.stop))
    start, end = len(trace.tokens), len(trace.tokens) + len(ids)
    return append(trace, ids).replace(
        # A step of a conversation is a turn and the reply to it.
        step_ends=(*trace.step_ends[:-1], end),
        partner=(*trace.partner, PartnerTurn(start, end, reply.text, reply.tags)),
        stop=reply.stop,
    )


def append(trace: Trace, ids: Sequence[int]) -> Trace:
    """The trace with tokens after it that the policy did not draw."""
    return trace.replace(
        tokens=np.concatenate([trace.tokens, np.asarray(ids, np.int32)]),
        sampled=np.concatenate([trace.sampled, np.zeros(len(ids), bool)]),
        logp=np.concatenate([trace.logp, np.zeros(len(ids), np.float32)]),
    )


def play(domain: Domain, task: Task, speak: Callable[[Trace], str]) -> Trace:
    """A response that is given, not drawn: what `speak` says to an open trace, turn by turn until it is over; judged.
    None of it is `sampled`."""
    trace = open_trace(domain, task)
    while not trace.stop:
        said = append(trace, [*domain.tokenizer.encode(speak(trace)), domain.tokenizer.end_of_turn])
        said = said.replace(step_ends=step_ends(domain, trace, said.tokens))
        trace = append_reply(domain, said, domain.replies([said])[0])
    return trace.replace(verdict=domain.verify(trace))


def text_from(domain: Domain, trace: Trace, start: int) -> str:
    """What stands in a trace from a token offset on, to be read; of a conversation turn by turn, each on lines of its
    own: those of the partner's begin with "> ", and no others do."""
    if domain.separator:
        return domain.tokenizer.text(trace.tokens[start:])
    lines = []
    for turn in trace.partner:
        if turn.end > start:
            lines += [_own_lines(domain, trace.tokens[start : turn.start])]
            lines += [f"> {line}" for line in turn.text.split("\n")]
            start = turn.end
    lines.append(_own_lines(domain, trace.tokens[start:]))
    return "\n".join(line for line in lines if line)


def _own_lines(domain: Domain, ids: np.ndarray) -> str:
    """The words of an own turn; a line that begins as a partner's is moved by a space."""
    return re.sub("^>", " >", domain.tokenizer.text(ids).strip(), flags=re.MULTILINE)


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
        partner=tuple(turn for turn in trace.partner if turn.end <= end),
        drawn_by=tuple((start, update) for start, update in trace.drawn_by if start < end),
        stop="",
        verdict=None,
        begin="",
    )


def reopen(trace: Trace, end: int, tokenizer: Tokenizer, separator: str = "\n\n") -> Trace:
    """The first `end` tokens of a trace, ready to be continued by any step: a separator at their end is left to the
    policy (`Tokenizer.reopen`), since the one that stands was spelled for the step that came next."""
    if not separator:
        if trace.stop and trace.partner and trace.partner[-1].end == end:
            end = trace.partner[-1].start  # the last word of a conversation opens no turn: it is said again
        begin = ""
    else:
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
    behind it is left to the policy. Everything after the located step is dropped. Of a conversation (no separator) the
    intervention is a whole turn, to which the partner replies next.

    Args:
      traces, interventions: one of each, or lists of the same length.

    Raises: IndexError for a step that the attempt does not have, ValueError for an empty intervention.
    """
    if isinstance(traces, Trace):
        return splice([traces], [interventions], tokenizer, separator)[0]
    one_cut = functools.partial(_cut_step, separator=separator) if separator else _cut_turn
    found = [one_cut(trace, one, tokenizer) for trace, one in zip(traces, interventions, strict=True)]
    cuts, ids, ends, begins = zip(*found, strict=True) if found else ((),) * 4
    rows = Engine.splice([t.tokens for t in traces], [t.prompt_len for t in traces], cuts, ids)
    out = []
    for i, tokens in enumerate(rows):
        prefix = truncate(traces[i], cuts[i])
        out.append(
            append(prefix, ids[i]).replace(
                tokens=tokens,
                step_ends=(*ends[i], len(tokens)),
                spliced=cuts[i],
                privileged=privileged.joined(prefix.privileged, privileged.INTERVENTION),
                begin=begins[i],
            )
        )
    return out


def _cut_step(
    trace: Trace, one: Intervention, tokenizer: Tokenizer, separator: str
) -> tuple[int, list[int], tuple[int, ...], str]:
    """Where a trace is cut, the ids that follow there, the ends of the steps before, and what has to come next."""
    # The separator before the step is taken off the prefix and encoded with the intervention: how it is spelled
    # depends on what follows. That behind the intervention is taken off, too, and left to the policy.
    whole = trace.tokens[: cut_at(trace, one.step)]
    cut, begin = tokenizer.reopen(whole, trace.prompt_len, separator)
    text = one.text.rstrip("\n")
    new = list(one.ids) or (tokenizer.encode(begin + text + separator) if text.strip() else [])
    end, after = tokenizer.reopen(new, 0, separator)
    # The step before ends where the intervention's own text begins: behind the separator, wherever its tokens are.
    before = (*trace.step_ends[: one.step - 1], cut + tokenizer.covering(new, len(begin)))
    while cut < len(whole) and end and whole[cut] == new[0]:  # spelled as it was drawn: it stays so
        cut, new, end = cut + 1, new[1:], end - 1
    return cut, new[:end], before if one.step else (), after


def _cut_turn(
    trace: Trace, one: Intervention, tokenizer: Tokenizer
) -> tuple[int, list[int], tuple[int, ...], str]:
    """The same where steps are turns: each ends in the template's token, and nothing is shared between two."""
    new = tokenizer.encode(one.text.strip()) if one.text.strip() else []
    ids = [*new, tokenizer.end_of_turn] if new else []
    return cut_at(trace, one.step), ids, trace.step_ends[: one.step], ""
