"""What draws responses, and what scores them: protocols that `engine.Engine` keeps and that others may, too.

Whoever only draws (rollouts, proposers) names these and not the engine, so that a server of another make can take its
place. What is asked and what comes back are records of the host.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from int_jax import knobs
from int_jax.knobs import SAMPLING
from int_jax.tokenizer import Tokenizer

Progress = Callable[[int], None]  # told how many were finished since the last call


def silent(done: int) -> None:
    """The progress of callers that show none."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are drawn. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 keep every token.

    A response ends with any of `stop_ids`, which is kept, and with the token that completes any of the texts `stop`.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        # The knobs' own ranges: a caller of `generate` is told what a config is told.
        knobs.check(SAMPLING, {name: getattr(self, name) for name in SAMPLING}, "sampling")
        if not isinstance(self.stop, tuple) or not all(isinstance(one, str) and one for one in self.stop):
            raise ValueError(f"sampling: stop={self.stop!r}: give a tuple of texts of at least one character")


class Request(NamedTuple):
    """One response to draw: prompt ids, the names of its random stream besides the seed, the text that it must begin
    with (`Trace.begin`), the most tokens of it where that is less than the sampling's `max_new_tokens`, and how many of
    the prompt's last tokens are the response's first, drawn before (`Session.leave`)."""

    prompt: tuple[int, ...]
    task: str
    sample: int
    begin: str = ""
    most: int | None = None
    drawn: int = 0

    def limit(self, sampling: Sampling) -> int:
        """The most tokens of the response."""
        most = sampling.max_new_tokens
        return most if self.most is None else min(most, self.most)


class Response(NamedTuple):
    """tokens [length] int32 prompt and response, logp [length] float32, stop "stop" or "length"."""

    tokens: np.ndarray
    logp: np.ndarray
    stop: str


class Session(Protocol):
    """One queue of requests that are drawn side by side. Others may join it while those before them are drawn."""

    def add(self, requests: Sequence[Request]) -> None:
        """Queue requests; they are numbered in the order in which they are added, from 0."""

    def __bool__(self) -> bool:
        """Whether anything waits or is being drawn."""

    def take(self) -> list[tuple[int, Response]]:
        """Draw until at least one response has ended: those that have, with their requests' numbers. Each is given
        once; [] where nothing waits or is being drawn."""

    def leave(self) -> list[tuple[int, Response]]:
        """Draw no more: what was not given out yet, as far as it came, with `stop` "" where it has not ended. A request
        with what it has drawn behind its prompt (`Request.drawn`) goes on from there, in another session; where the
        text to begin with is not complete, nothing of it was drawn."""


def in_order(session: Session, requests: Sequence[Request], progress: Progress = silent) -> list[Response]:
    """The responses to requests that are all known beforehand, in their order; `session` is a new one."""
    session.add(requests)
    found: dict[int, Response] = {}
    while session:
        ended = session.take()
        found.update(ended)
        progress(len(ended))
    return [found[number] for number in range(len(requests))]


class BySession(abc.ABC):
    """What draws by sessions alone: `Sampler.generate` is one of them."""

    @abc.abstractmethod
    def session(self, params: Any, sampling: Sampling, tokenizer: Tokenizer | None = None) -> Session:
        """See `Sampler`."""

    def generate(
        self,
        params: Any,
        requests: list[Request],
        sampling: Sampling,
        progress: Progress = silent,
        tokenizer: Tokenizer | None = None,
    ) -> list[Response]:
        """See `Sampler`."""
        return in_order(self.session(params, sampling, tokenizer), requests, progress)


class Sampler(Protocol):
    """What draws responses from parameters that it is given, or that it holds itself."""

    @property
    def max_len(self) -> int:
        """Positions of the model: tokens of prompt and response together, at most."""

    @property
    def spans_processes(self) -> bool:
        """Whether the processes of a run draw together, each response on devices of several: they must then ask for
        the same, in the same order. Else each draws what it is asked for, whatever the others are asked."""

    def decode_params(self, params: Any) -> Any:
        """The parameters as `generate` wants them."""

    def session(self, params: Any, sampling: Sampling, tokenizer: Tokenizer | None = None) -> Session:
        """A queue without requests, all of which are drawn from `params` and as `sampling` says. A response is a
        function of (params, prompt, sampling, task, sample) alone."""

    def generate(
        self,
        params: Any,
        requests: list[Request],
        sampling: Sampling,
        progress: Progress = silent,
        tokenizer: Tokenizer | None = None,
    ) -> list[Response]:
        """A response for each request, in order: a function of (params, prompt, sampling, task, sample) alone."""

    def take_drawn(self) -> int:
        """Tokens drawn since the last call of this."""


def independent(*samplers: Sampler) -> bool:
    """Whether this process draws from these without the others: its work may then differ from theirs."""
    return jax.process_count() == 1 or not any(sampler.spans_processes for sampler in samplers)


class Scorer(Protocol):
    """What says how likely given tokens are."""

    def score(
        self,
        params: Any,
        sequences: Sequence[Any],
        temperature: float = 1.0,
        progress: Progress = silent,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(log p(token t | tokens before t), entropy of each prediction) of each sequence, float32 nats; element 0 is
        0."""


class ScoringSampler(Sampler, Scorer, Protocol):
    """Both: what a proposer is given."""
