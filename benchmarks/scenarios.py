"""What the contenders are asked, the same of each, and the ratio ours / theirs that is aimed at."""

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import random_model

ALL = ("int_jax", "tunix", "pytorch", "floor", "floor_cdf")
# The embedded model has a tokenizer and stop ids of its own; its size is all that counts here.
EMBEDDED = Path(__file__).resolve().parents[1] / "int_jax" / "assets" / "tiny_arithmetic"
EMBEDDED_VOCAB = 134


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Attributes:
      prompts: how many, length: of how many ids each, samples: responses to each, new: tokens of each at most.
      early: the share of prompts whose responses end within some 16 tokens; the others go on to `new`.
      model: "random" (random_model.py), "embedded", or "chat" (SmolLM2-135M-Instruct). filters: as `lm.generate` has
        them.
      slots: rows that int_jax's engine is told, 0 for its default. cache: positions of Tunix's cache, 0: as needed.
      targets: ratio of tokens a second, ours / theirs. rounds: how often each contender has its turn.
    """

    name: str
    prompts: int
    length: int
    samples: int
    new: int
    early: float = 0.0
    model: str = "random"
    dtype: str = "float32"
    filters: tuple = ()
    slots: int = 0
    cache: int = 0
    contenders: tuple[str, ...] = ALL
    targets: tuple = ()
    rounds: int = 5

    def task(self, models: dict[str, str], chat_prompts: list[list[int]]) -> dict:
        """As worker.py takes it. models: directories by name. chat_prompts: ids for the chat model."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        if self.model == "chat":
            prompts = chat_prompts[: self.prompts]
        elif self.model == "embedded":
            prompts = rng.integers(10, EMBEDDED_VOCAB, (self.prompts, self.length)).tolist()
        else:
            few = round(self.early * self.prompts)
            prompts = [random_model.prompt(rng, self.length, i < few) for i in range(self.prompts)]
            prompts = [prompts[i] for i in rng.permutation(self.prompts)]
        return {
            "model": models[self.model],
            "dtype": self.dtype,
            "prompts": prompts,
            "samples": self.samples,
            "new": self.new,
            "stops": [random_model.STOP] if self.early else [],
            "filters": dict(self.filters),
            "slots": self.slots,
            "cache": self.cache,
        }


FLOORS = (("floor", 0.85), ("floor_cdf", 0.85))
PEERS = (("tunix", 3.0), ("pytorch", 2.5), *FLOORS)
PREFIXES = (("tunix", 6.0), ("pytorch", 4.0), *FLOORS)
LONG_PREFIX = (("tunix", 8.0), ("pytorch", 5.0), *FLOORS)
SKEWED = (("tunix", 4.0), ("pytorch", 4.0), *FLOORS)
FILTERS = (("temperature", 0.7), ("top_k", 20), ("top_p", 0.8))
NO_TUNIX = ("int_jax", "pytorch", "floor", "floor_cdf")  # it has no model of this family under this name

TABLE = (
    Scenario("uniform 16", 16, 16, 1, 128, slots=16, targets=PEERS),
    Scenario("uniform 64", 64, 16, 1, 128, slots=64, targets=PEERS),
    Scenario("uniform 256", 256, 16, 1, 128, slots=256, targets=PEERS),
    Scenario("16 rows, default engine", 16, 16, 1, 128, targets=PEERS),
    Scenario("2 prompts of 500 x 8", 2, 500, 8, 32, slots=16, targets=PREFIXES),
    Scenario("prefix of 500 x 32", 1, 500, 32, 64, slots=32, targets=LONG_PREFIX),
    Scenario("skewed 256", 256, 16, 1, 128, early=0.9, targets=SKEWED),
    Scenario(
        "cache limit 1,024", 16, 16, 1, 32, slots=16, cache=1024,
        contenders=("int_jax", "tunix"), targets=(("tunix", 6.0),),
    ),
    Scenario("bfloat16, 64 rows", 64, 16, 1, 64, dtype="bfloat16", slots=64),
    Scenario("chat model 135M, 2 x 8", 2, 0, 8, 64, model="chat", slots=16, contenders=NO_TUNIX),
    Scenario("embedded, filters", 32, 40, 16, 96, model="embedded", filters=FILTERS, contenders=("int_jax", "pytorch")),
    Scenario("first token of 1 x 500", 1, 500, 1, 1),
)  # fmt: skip

# Prompts against the time of 128, on the embedded model with the default engine.
SMALL = tuple(
    Scenario(f"small call, {n}", n, 40, 1, 128, model="embedded", contenders=("int_jax",))
    for n in (1, 16, 128)
)
SMALL_TARGETS = {1: 0.2, 16: 0.35}

# Eight calls unlike one another, from a cold process: (prompts, ids of each, samples, new tokens).
RAGGED = tuple(
    Scenario(f"ragged {i}", *sizes)
    for i, sizes in enumerate(
        [
            (5, 20, 4, 40),
            (1, 70, 8, 100),
            (17, 33, 1, 64),
            (3, 300, 4, 90),
            (40, 12, 1, 24),
            (2, 150, 16, 130),
            (9, 48, 3, 75),
            (30, 90, 1, 60),
        ]
    )
)
# The working tree against its parent, in two minutes.
QUICK = (
    Scenario("64 rows", 64, 16, 1, 64, slots=64),
    Scenario("16 rows, default engine", 16, 16, 1, 48),
    Scenario("prefix of 500 x 16", 1, 500, 16, 32, slots=16),
    Scenario("skewed 64", 64, 16, 1, 96, early=0.9, slots=64),
)
QUICK_ROUNDS = 7
# What a process holds at its most: one fresh process a contender.
MEMORY = Scenario("memory, 64 x 512", 64, 16, 1, 512, slots=64)
