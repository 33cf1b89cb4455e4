"""Samplers outside of this process: servers that hold the policy, asked for token ids over HTTP.

A sampler is a module with `build`, which gives a `sampler.Sampler`. A config names it by one text (modules.py): "vllm",
"sglang", "mylab.server" or "lab/server.py".
"""

import dataclasses
from typing import Any, Protocol

from int_jax import modules
from int_jax.engine import Engine
from int_jax.models import Config
from int_jax.sampler import Sampler, Sampling, Scorer, Session
from int_jax.tokenizer import Tokenizer


class Build(Protocol):
    """What makes a sampler of a server."""

    def __call__(
        self,
        url: str,
        *,
        weights: str = "",
        config: Config | None = None,
        scorer: Scorer | None = None,
        at_once: int = 64,
    ) -> Sampler:
        """The sampler at `url`.

        Args:
          weights: a folder that this process and the server both see, through which parameters go to it; "": it keeps
            those with which it was started.
          config: the model's; parameters are written by it. scorer: gives the log-probabilities of draws of which the
            server cannot tell them. at_once: requests under way at a time, at most.
        """


KIND = modules.Kind("sampler", __name__, ("build",), apart=("http",))
names = KIND.names


def load(name: str) -> Build:
    """The `build` of the sampler that a text names. Raises: see `modules.Kind.load`."""
    return KIND.load(name).build


@dataclasses.dataclass
class ServedEngine(Engine):
    """An engine whose responses a server draws: it scores and trains here.

    Attributes:
      sampler: what draws.
    """

    sampler: Any = None  # a Sampler: the fields before it have defaults, and so must it

    def __post_init__(self):
        super().__post_init__()
        self.spans_processes = self.sampler.spans_processes

    @property
    def max_len(self) -> int:
        """Positions of both the model here and the server's."""
        return min(super().max_len, self.sampler.max_len)

    def session(self, params, sampling: Sampling, tokenizer: Tokenizer | None = None) -> Session:
        """See `sampler.Sampler`."""
        return self.sampler.session(params, sampling, tokenizer)

    def take_drawn(self) -> int:
        """Tokens drawn since the last call of this."""
        return self.sampler.take_drawn()
