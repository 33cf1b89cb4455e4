"""What samplers over HTTP share: threads that ask, the text to begin with, the end of a response, new parameters."""

import abc
import dataclasses
import functools
import hashlib
import threading
import weakref
from collections.abc import Sequence
from concurrent import futures
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from int_jax import hf_format, processes
from int_jax.http_json import Server
from int_jax.models import Config
from int_jax.sampler import BySession, Request, Response, Sampling, Scorer
from int_jax.tokenizer import Tokenizer

GREEDY = Sampling(1, temperature=0.0)
HOT = 2.0  # a temperature at which log-probabilities are unlike those at 1; vLLM allows no higher one
LOOK_S = 1.0  # between two looks at whether the run was asked to end
SAME = 1e-3  # nats; what two programs of a server may differ by


class Drawn(NamedTuple):
    """What a server drew for one request: token ids, and the log-probability that it reports of each."""

    ids: list[int]
    logp: list[float]


class Reports(NamedTuple):
    """Of which distribution a server reports log-probabilities.

    scaled: of the one at the sampling temperature, not at 1. filtered: of what top-k, top-p and min-p kept.
    """

    scaled: bool
    filtered: bool


@dataclasses.dataclass
class HTTPSampler(BySession):
    """A `sampler.Sampler` that asks a server, which holds the model. Token ids go out and come back: nothing is
    tokenised again, and the stop token stays.

    Each request has a seed of its own, from (seed, task, sample, position), so that a request that is sent again draws
    the same; as far as the server's arithmetic is the same, whatever else it draws at that time.

    Log-probabilities are those at the sampling temperature over the whole vocabulary. What a server reports is tried,
    once, before it is believed (`reports`). Where it cannot tell them, a draw is refused; but of one with filters,
    which no policy gradient takes, `scorer` gives them, where there is one.

    Attributes:
      server, weights, config, scorer, at_once: see `samplers.Build`. drawn: tokens drawn so far.
    """

    server: Server
    weights: str = ""
    config: Config | None = None
    scorer: Scorer | None = None
    at_once: int = 64
    drawn: int = 0
    spans_processes: ClassVar[bool] = False  # each process asks for its own

    def __post_init__(self):
        if bool(self.weights) != (self.config is not None):
            raise ValueError(
                f"weights={self.weights!r}, config={self.config}: parameters go to a server through a folder, written "
                "by the model's config; give both, or neither"
            )
        self._lock, self._under_way = threading.Lock(), 0
        # References to the leaves of the parameters that the server holds: what is let go elsewhere is not kept here.
        self._held: list[weakref.ref] = []

    @abc.abstractmethod
    def draw(self, ids: list[int], sampling: Sampling, count: int, seed: int) -> Drawn:
        """Up to `count` tokens after `ids`: fewer where the server meets a stop, which is kept."""

    @abc.abstractmethod
    def logps(self, ids: list[int], tokens: list[int], sampling: Sampling) -> list[float]:
        """What the server reports of each of `tokens` as the next one after `ids`."""

    @abc.abstractmethod
    def load(self, folder: str) -> None:
        """The server takes the weights in a folder of Hugging Face format, and forgets the prefixes that it kept."""

    @functools.cached_property
    def max_len(self) -> int:
        """Positions of the server's model, as it was started."""
        return int(self.server.ask("/v1/models")["data"][0]["max_model_len"])

    @functools.cached_property
    def _pool(self) -> futures.ThreadPoolExecutor:
        return futures.ThreadPoolExecutor(self.at_once)

    def decode_params(self, params):
        """The parameters as they are: a session takes them to the server."""
        return params

    def session(self, params, sampling: Sampling, tokenizer: Tokenizer | None = None) -> "HTTPSession":
        """See `sampler.Sampler`. Parameters that the server does not hold are pushed to it, for which all processes
        call this together; None: those that it holds.

        Raises: ValueError for parameters that it cannot be given; RuntimeError while it draws from others.
        """
        if sampling.stop and tokenizer is None:
            raise ValueError(f"generate: responses stop at {sampling.stop}: pass the model's tokenizer")
        if params is not None:
            self._push(params)
        return HTTPSession(self, params, sampling, tokenizer)

    def take_drawn(self) -> int:
        """Tokens drawn since the last call of this."""
        with self._lock:
            count, self.drawn = self.drawn, 0
        return count

    def _push(self, params) -> None:
        leaves = jax.tree.leaves(params)
        if self._held and all(ref() is leaf for ref, leaf in zip(self._held, leaves, strict=True)):
            return
        if self.config is not None:
            if self._under_way:
                raise RuntimeError(
                    f"{self.server.url} still draws {self._under_way} responses from other parameters: take them first"
                )
            hf_format.save(self.weights, self.config, params)
            if processes.is_main_process():
                self.load(self.weights)
            processes.barrier(f"{self.server.url} holds {self.weights}")
        elif self._held:
            raise ValueError(
                f"{self.server.url} keeps the parameters with which it was started, and is asked to draw from others: "
                "name a folder that it sees, too, through which they reach it (weights)"
            )
        self._held = [weakref.ref(leaf) for leaf in leaves]

    # One response -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _reports(self) -> Reports:
        raise AssertionError("reports() fills it")

    def reports(self, prompt: Sequence[int]) -> Reports:
        """Which log-probabilities the server reports, by three tries of one token each after `prompt`."""
        if "_reports" not in self.__dict__:
            ids = list(prompt)
            token = self.draw(ids, GREEDY, 1, 0).ids  # one that every filter keeps
            hot = dataclasses.replace(GREEDY, temperature=HOT)
            plain, scaled, filtered = (
                self.logps(ids, token, one)[0] for one in (GREEDY, hot, dataclasses.replace(hot, top_k=2))
            )
            self._reports = Reports(abs(scaled - plain) > SAME, abs(filtered - scaled) > SAME)
        return self._reports

    def believed(self, sampling: Sampling, prompt: Sequence[int]) -> bool:
        """Whether the server's log-probabilities are those asked for. Raises: ValueError where nothing tells them."""
        plain = not sampling.top_k and sampling.top_p == 1 and not sampling.min_p
        # A greedy response's are those at temperature 1, here and everywhere.
        if sampling.temperature == 0 or (plain and sampling.temperature == 1):
            return True
        reports = self.reports(prompt)
        if (sampling.temperature == 1 or reports.scaled) and (plain or not reports.filtered):
            return True
        # A process that scores waits for the others, which draw other responses.
        if self.scorer is not None and not plain and jax.process_count() == 1:
            return False
        told = "at the sampling temperature" if reports.scaled else "at temperature 1"
        told += ", of what the filters kept" if reports.filtered else ""
        raise ValueError(
            f"{self.server.url} reports log-probabilities {told}, and responses are drawn with temperature="
            f"{sampling.temperature}, top_k={sampling.top_k}, top_p={sampling.top_p}, min_p={sampling.min_p}, of which "
            "those over the whole vocabulary are wanted: for a temperature other than 1 start vLLM with "
            "--logprobs-mode processed_logprobs; for filters without that, or, in one process, give a scorer"
        )

    def respond(self, request: Request, sampling: Sampling, tokenizer: Tokenizer | None) -> Response:
        """Draw one response, in as many requests as it takes: one for each token of the text to begin with, then one
        for the rest."""
        ids, logp, start = list(request.prompt), [0.0] * len(request.prompt), len(request.prompt)
        limit, rest = min(start + request.limit(sampling), self.max_len), request.begin
        while len(ids) < limit:
            before, begins = len(ids), bool(rest)
            seed = seed_of(sampling.seed, request.task, request.sample, before)
            if begins:
                assert tokenizer is not None, "HTTPSession.add asks for it"
                allowed = tokenizer.spellings(rest)[rest]
                new = self._spell(ids, list(allowed), sampling, seed)
                rest = allowed[new.ids[0]]
            else:
                new = self.draw(ids, sampling, limit - before, seed)
                if not new.ids or len(new.ids) != len(new.logp):
                    raise RuntimeError(
                        f"{self.server.url} drew {len(new.ids)} tokens with {len(new.logp)} log-probabilities for task "
                        f"{request.task!r}, sample {request.sample}: one each was asked for, of at least one token"
                    )
            ids, logp = ids + new.ids, logp + new.logp
            with self._lock:
                self.drawn += len(new.ids)
            # The end is told here, by the ids: a server may also stop at its model's own end, or read a text that
            # tokens share in another way. Then the rest is drawn in a further request.
            skip, seen = len(request.begin), before - start
            if tokenizer and sampling.stop:
                end = tokenizer.stop_length(ids[start:], sampling.stop, seen, skip)
                if end is not None:
                    return response(ids[: start + end], logp[: start + end], "stop")
            if not begins and ids[-1] in sampling.stop_ids:
                return response(ids, logp, "stop")
        return response(ids, logp, "length")

    def _spell(self, ids: list[int], allowed: list[int], sampling: Sampling, seed: int) -> Drawn:
        """One of the tokens that may come next, drawn here: a server that is told to choose among them alone may report
        what it chose among them as its log-probability."""
        reported = self.logps(ids, allowed, dataclasses.replace(sampling, top_k=0, top_p=1.0, min_p=0.0))
        cold = sampling.temperature not in (0, 1) and not self.reports(ids).scaled
        scores = np.array(reported) / (sampling.temperature if cold else 1.0)
        if sampling.temperature > 0:
            noise = np.random.default_rng(seed).gumbel(size=len(allowed))
            scores = np.where(kept(scores, sampling), scores + noise, -np.inf)
        which = int(np.argmax(scores))
        return Drawn([allowed[which]], [reported[which]])


class HTTPSession:
    """See `sampler.Session`. What fails in a thread is raised by `take`, and ends the session."""

    def __init__(self, sampler: HTTPSampler, params, sampling: Sampling, tokenizer: Tokenizer | None):
        self.sampler, self.params, self.sampling, self.tokenizer = sampler, params, sampling, tokenizer
        self.numbers: dict[futures.Future, int] = {}
        self.starts: list[int] = []  # where each request's response begins
        self.prompts: list[tuple[int, ...]] = []
        self.believed = True

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def add(self, requests: Sequence[Request]) -> None:
        """See `sampler.Session`. Raises: ValueError for a prompt that is empty or fills the model's positions, and a
        text to begin with without a tokenizer."""
        for number, request in enumerate(requests, len(self.starts)):
            where = f"request {number} (task {request.task!r})"
            if not 0 < len(request.prompt) < self.sampler.max_len:
                raise ValueError(
                    f"{where} has a prompt of {len(request.prompt)} tokens, and the server's model has "
                    f"{self.sampler.max_len} positions: it needs at least one token, and a position for the response"
                )
            if request.begin and self.tokenizer is None:
                raise ValueError(f"{where} begins with {request.begin!r}: pass the model's tokenizer")
        if requests and not self.starts:
            self.believed = self.sampler.believed(self.sampling, requests[0].prompt)
        self.sampler._under_way += len(requests)
        for request in requests:
            future = self.sampler._pool.submit(self.sampler.respond, request, self.sampling, self.tokenizer)
            self.numbers[future] = len(self.starts)
            self.starts.append(len(request.prompt))
            self.prompts.append(request.prompt)

    def take(self) -> list[tuple[int, Response]]:
        """See `sampler.Session`."""
        done: set[futures.Future] = set()
        try:
            while self.numbers and not done:
                processes.end_if_asked(in_step=False)
                done, _ = futures.wait(self.numbers, LOOK_S, futures.FIRST_COMPLETED)
            found = sorted((self.numbers[future], future.result()) for future in done)
        except BaseException:
            self.close()
            raise
        for future in done:
            del self.numbers[future]
        self.sampler._under_way -= len(done)
        if found and not self.believed:
            found = self._scored(found)
        return found

    def leave(self) -> list[tuple[int, Response]]:
        """See `sampler.Session`. What a server draws already is waited for: nothing is given that has only begun."""
        found = []
        for future in [future for future in self.numbers if future.cancel()]:
            number = self.numbers.pop(future)
            prompt = np.asarray(self.prompts[number], np.int32)
            found.append((number, Response(prompt, np.zeros(len(prompt), np.float32), "")))
        self.sampler._under_way -= len(found)
        while self.numbers:
            found += self.take()
        return found

    def close(self) -> None:
        """Gives up what has not ended."""
        for future in self.numbers:
            future.cancel()
        futures.wait(self.numbers)
        self.sampler._under_way -= len(self.numbers)
        self.numbers.clear()

    def _scored(self, found: list[tuple[int, Response]]) -> list[tuple[int, Response]]:
        scorer = self.sampler.scorer
        assert scorer is not None, "`believed` is false only where there is one"
        logps, _ = scorer.score(self.params, [one.tokens for _, one in found], self.sampling.temperature)
        for (number, one), logp in zip(found, logps, strict=True):
            start = self.starts[number]
            one.logp[start:] = logp[start:]
        return found


def response(ids: list[int], logp: list[float], stop: str) -> Response:
    return Response(np.array(ids, np.int32), np.array(logp, np.float32), stop)


def seed_of(seed: int, task: str, sample: int, position: int) -> int:
    """31 bits for what is drawn from a position on: servers differ in how many they take."""
    named = repr((seed, task, sample, position)).encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=4).digest(), "little") >> 1


def kept(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Which of some tokens top-k, top-p and min-p keep; `scores` are logits at the temperature. As `sample.keep`."""
    order = np.sort(scores)[::-1]
    least = order[min(sampling.top_k or len(order), len(order)) - 1]
    weights = np.exp(order - order[0]) * (order >= least)
    # The likeliest tokens, up to the one with which their probability reaches top_p.
    if sampling.top_p < 1:
        enough = np.cumsum(weights) >= sampling.top_p * weights.sum()
        least = order[np.argmax(enough)]
    if sampling.min_p:
        least = max(least, order[0] + np.log(sampling.min_p))
    return scores >= least
