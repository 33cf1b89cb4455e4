"""The memory plan: the bytes that each device holds, counted stage by stage before anything is allocated.

Parameters, optimizer and cache are counted exactly, from the shapes and the sharding tables. Activations are those of
the stage's largest program, counted by the arrays that live at its worst moment; a compiler may fuse some of them away
(tests/test_memory.py compares).
"""

import dataclasses
import functools
import math
from collections import Counter
from typing import Any

import jax
import numpy as np

from int_jax import dims, lora
from int_jax.engine import Engine
from int_jax.lora import Lora
from int_jax.models import Config, build, kernels
from int_jax.models.transformer import DEEP, LONG, SPAN
from int_jax.session import bucket, known_pages, prefix_pages, seen_rows
from int_jax.sharding import RULES, RULES_DECODE, RULES_KEPT, spec

GIB = 1 << 30
GPU_SHARE = 0.92  # of a GPU's memory, where jax takes 75% unless it is told otherwise


@dataclasses.dataclass(frozen=True)
class Item:
    """What takes the memory, bytes on each device, and the knob that makes it smaller."""

    name: str
    bytes: int
    knob: str


@dataclasses.dataclass(frozen=True)
class Pages:
    """What a stage draws onto: `bytes` of its items are pages, of `token` bytes a token on each device; the longest row
    has `longest` tokens."""

    bytes: int
    token: float
    longest: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is in memory at a stage's worst moment."""

    name: str
    items: tuple[Item, ...]
    pages: Pages | None = None

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)


@functools.cache
def _params(config: Config) -> Counter[tuple[str, tuple[int, ...]]]:
    """How many parameters there are of each name's letters and shape."""
    return _leaves(jax.eval_shape(build(config).init, jax.random.key(0)))


@functools.cache
def _adapters(config: Config, adapters: Lora) -> Counter[tuple[str, tuple[int, ...]]]:
    """The same of the adapters alone."""
    return _leaves(lora.shapes(jax.eval_shape(build(config).init, jax.random.key(0)), adapters))


def _leaves(tree) -> Counter[tuple[str, tuple[int, ...]]]:
    return Counter(
        (dims.suffix(path[-1].key), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A model on a mesh, in bytes a device.

    Attributes:
      config: of the model: `param_dtype` is stored and trained, `dtype` computed and sampled with.
      mesh: anything with `shape["data"]` and `shape["model"]`; a jax.sharding.AbstractMesh needs no devices.
    """

    config: Config
    mesh: Any

    def held(self, letters: str, shape, item: int, rules=RULES_DECODE) -> int:
        """Bytes of an array of `item` bytes an element; an axis that its mesh axis does not divide is whole."""
        # [B, N, S, K] of 8 rows and 4 heads over data 2 and model 4: an eighth of it on each device.
        axes = [axis for axis in spec(letters, shape, self.mesh, rules) if axis is not None]
        return math.prod(shape) * item // math.prod(self.mesh.shape[axis] for axis in axes)

    def params(self, dtype: str, rules) -> int:
        """All parameters, laid out by `rules`."""
        return self._held(_params(self.config), dtype, rules)

    def trained(self, dtype: str, adapters: Lora | None = None) -> int:
        """What is trained: adapters, or all parameters, laid out for it."""
        if adapters is None:
            return self.params(dtype, RULES)
        return self._held(_adapters(self.config, adapters), dtype, RULES)

    def _held(self, leaves: Counter[tuple[str, tuple[int, ...]]], dtype: str, rules) -> int:
        size = np.dtype(dtype).itemsize
        return sum(n * self.held(letters, shape, size, rules) for (letters, shape), n in leaves.items())

    def cache(self, rows: int, size: int) -> int:
        """Keys and values of every layer."""
        c = self.config
        # Keys and values have the same number of elements.
        return 2 * c.layers * self.held("BNSK", (rows, c.kv_heads, size, c.head_dim), self.width)

    def scores(self, rows: int, length: int) -> int:
        """Attention scores of one layer, float32, and their mask: of the whole square of tokens, or, in a long row, of
        a span of its queries."""
        span = SPAN if length > LONG else length
        mask = self.held("BTS", (rows, span, length), 1)
        return self.held("BHTS", (rows, self.config.heads, span, length), 4) + mask

    def layer(self, rows: int, length: int) -> int:
        """One layer's forward pass besides its scores: queries, keys, values, heads, three of F, four of D."""
        c = self.config
        heads = 2 * self.held("BTHK", (rows, length, c.heads, c.head_dim), self.width)
        heads += 2 * self.held("BTNK", (rows, length, c.kv_heads, c.head_dim), self.width)
        wide = 3 * self.held("BTF", (rows, length, c.ffw), self.width)
        return heads + wide + 4 * self.held("BTD", (rows, length, c.dim), self.width)

    def in_use(self) -> int:
        """What an update holds of the weights besides its copies of all: the head in float32, the float32 gradients of
        embedding and head, and, cut up along "data", what is gathered of them there: embedding, head, two layers."""
        ends = [
            self.held(letters, shape, 4)
            for letters, shape in _params(self.config).elements()
            if "V" in letters
        ]
        once = sum(ends) + max(ends)
        if self.mesh.shape["data"] == 1:
            return once
        two = Sizes(dataclasses.replace(self.config, layers=2), self.mesh)
        return once + two.params(self.config.dtype, RULES_DECODE)

    def logits(self, rows: int, tokens: int) -> int:
        """float32 over the vocabulary."""
        return self.held("BTV", (rows, tokens, self.config.vocab), 4)

    @property
    def width(self) -> int:
        return np.dtype(self.config.dtype).itemsize


def sampling(
    name: str,
    sizes: Sizes,
    slots: int,
    decode_steps: int,
    prompt: int,
    new_tokens: int,
    kept: tuple[Item, ...],
    attention: str = "xla",
    cache_gib: float = 0.0,
) -> Stage:
    """Drawing up to `new_tokens` after prompts of up to `prompt` tokens.

    Args:
      slots, decode_steps, attention, cache_gib: the engine's. kept: what else is in memory meanwhile.
    """
    # As `session.EngineSession` rounds.
    c, data = sizes.config, sizes.mesh.shape["data"]
    longest, page = prompt + new_tokens, kernels.tokens_of_page(attention, c)
    size = page * known_pages(-(-longest // page)) + decode_steps
    width = min(16 << max(0, (max(prompt - 2, 1) // 16).bit_length()), Engine.prefill_width)
    known = width + page * prefix_pages(-(-max(prompt - width, 0) // page))
    together = max(1, min(slots // data, Engine.prefill_tokens // width))
    if attention != "tpu":
        together = min(together, seen_rows(Engine.prefill_seen, known))
    part = data * together
    # A pool takes what is left, or `cache_gib` of it; one row must go in.
    page_bytes = kernels.page_bytes(attention, c, page, sizes.mesh.shape["model"])
    pool = max((-(-longest // page) + 2) * page_bytes, int(cache_gib * GIB))
    # The kernels take the pages where they are, but for a prefill on GPU, which puts one layer's side by side.
    scores = 0 if attention == "tpu" else 2 * sizes.held("BHTS", (part, c.heads, width, known), 4)
    beside = {"xla": 1.0, "tpu": 0.0, "gpu": 2 / c.layers}[attention] * sizes.cache(part, known)
    items = (
        Item("parameters to sample from", sizes.params(c.dtype, RULES_DECODE), "mesh.model, dtype"),
        Item(
            "pages" if cache_gib else "pages of one row",
            pool,
            "max_new_tokens, mesh.model" + (", cache_gib" if cache_gib else ""),
        ),
        Item(
            "rows side by side",
            sizes.cache(slots, size) if attention == "xla" else 0,
            "slots, max_new_tokens, mesh.model, attention",
        ),
        Item("prefill: attention scores", scores, "mesh.model, slots"),
        Item("prefill: activations", sizes.layer(part, width) + int(beside), "slots"),
        # Their weights, and with filters the keys and weights of top-k and top-p, and what is kept.
        Item("decode: logits", 5 * sizes.held("BV", (slots, c.vocab), 4), "slots, mesh.data"),
    )
    return Stage(name, kept + items, Pages(pool, page_bytes / page, longest))


def scoring(name: str, sizes: Sizes, length: int, kept: tuple[Item, ...]) -> Stage:
    """Log-probabilities of sequences of up to `length` tokens."""
    c, width, data = sizes.config, bucket(length), sizes.mesh.shape["data"]
    # As `Engine._score_groups`: whole rows of the mesh, about score_tokens in all, and one row each at least.
    rows = max(data, Engine.score_tokens // width // data * data)
    items = (
        Item("parameters to score with", sizes.params(c.dtype, RULES_DECODE), "mesh.model, dtype"),
        Item("attention scores", 2 * sizes.scores(rows, width), "max_new_tokens, mesh.model"),
        Item(
            "activations", sizes.layer(rows, width) + sizes.cache(rows, width), "max_new_tokens, mesh.model"
        ),
        Item("logits", 2 * sizes.logits(rows, min(128, width)), "mesh.model"),
    )
    return Stage(name, kept + items)


def training(
    name: str,
    sizes: Sizes,
    rows: int,
    row_length: int,
    logits: int,
    remat: bool,
    kept: tuple[Item, ...],
    adapters: Lora | None = None,
    kernel: str = "xla",
) -> Stage:
    """One update with AdamW from micro-batches of rows x row_length tokens.

    Args:
      logits: tokens of a row whose logits exist at one time. remat: recompute each layer in the backward pass.
      adapters: what is trained in place of all parameters; these are in the compute dtype then, and in `kept`.
      kernel: what attends within long rows (`flash.chosen`).
    """
    c = sizes.config
    trained = sizes.trained(c.param_dtype, adapters)
    # The copy in the compute dtype, where the trained parameters have another.
    # Of many layers it is one of each array, and there always; and so are their gradients, before they are parted.
    deep = c.layers >= DEEP
    low = sizes.trained(c.dtype, adapters)
    lower = low if deep or c.dtype != c.param_dtype else 0
    # Frozen parameters are whole along "data" as they are kept.
    in_use = sizes.in_use() if adapters is None else 0
    layer, scores = sizes.layer(rows, row_length), sizes.scores(rows, row_length)
    if kernel != "xla" and row_length > LONG:
        scores = 0
    heads = sizes.held("BTHK", (rows, row_length, c.heads, c.head_dim), sizes.width)
    residual = sizes.held("BTD", (rows, row_length, c.dim), sizes.width, RULES_KEPT)
    shard = "mesh.data, mesh.model"
    items = (
        Item("parameters trained", trained, shard),
        Item("Adam's two moments", 2 * trained, shard),
        Item("gradients, float32", sizes.trained("float32", adapters), shard),
        Item("gradients of a micro-batch", trained + (low if deep else 0), shard),
        Item("parameters to compute with", lower, shard),
        Item("embedding and head, gathered and in float32", in_use, shard),
        Item(
            "attention scores",
            # Each layer keeps its scores and the weights made of them for the backward pass; recomputed, or in
            # spans, those of one layer exist at a time.
            (4 if remat or row_length > LONG else 3 + 2 * c.layers) * scores,
            "train.row_length, train.rows, mesh.model" + ("" if remat else ", train.remat"),
        ),
        Item(
            "activations",
            # Recomputed: each layer's input and attention, and all that one layer makes on the way forward and back.
            # Queries are normed and rotated in float32, and so are their gradients.
            2 * sizes.held("BTHK", (rows, row_length, c.heads, c.head_dim), 4)
            + ((c.layers * (residual + heads) + 3 * layer) if remat else (c.layers + 2) * layer),
            "train.rows, train.row_length" + ("" if remat else ", train.remat"),
        ),
        Item(
            "logits",
            3 * sizes.logits(rows, min(logits, row_length)),
            "train.logit_chunk, train.rows, mesh.model",
        ),
    )
    return Stage(name, kept + items)


def table(stages: list[Stage], limit: int | None = None) -> str:
    """The plan as text: GiB a device, a line for each stage with its largest items."""
    lines = ["memory plan, GiB a device" + (f" of {limit / GIB:.1f}" if limit else "")]
    for stage in stages:
        largest = sorted(stage.items, key=lambda item: -item.bytes)[:4]
        parts = ", ".join(f"{item.name} {item.bytes / GIB:.2f}" for item in largest if item.bytes)
        lines.append(f"  {stage.name:<20}{stage.bytes / GIB:>9.2f}   {parts}")
    return "\n".join(lines)


def refuse(stages: list[Stage], limit: int | None, platform: str = "") -> None:
    """Raise ValueError for the first stage that does not fit into `limit` bytes a device, if the limit is known."""
    share = f"\nOf a GPU jax has the share XLA_CLIENT_MEM_FRACTION, {GPU_SHARE} where it is not set"
    for stage in stages:
        if limit is not None and stage.bytes > limit:
            largest = max(stage.items, key=lambda item: item.bytes)
            raise ValueError(
                f"{stage.name} needs {stage.bytes / GIB:.1f} GiB a device, and there are {limit / GIB:.1f}: the "
                f"largest item is {largest.name}, {largest.bytes / GIB:.1f} GiB; turn {largest.knob}"
                f"{share if platform == 'gpu' else ''}\n{table(stages, limit)}"
            )


def device_bytes(device) -> int | None:
    """What a device may hold, where it says so."""
    stats = device.memory_stats()
    return None if stats is None else stats.get("bytes_limit")
