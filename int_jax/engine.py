"""The jitted functions over a mesh: generate, score, splice, update. The only file that says `jax.jit`."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from int_jax import lora, losses, sample, splicing
from int_jax.models import Model, flash, kernels, pages
from int_jax.processes import end_if_asked, exchange, to_host
from int_jax.sampler import Progress, Request, Response, Sampling, Session, in_order, silent
from int_jax.schedule import Pool, Schedule
from int_jax.session import EngineSession, bucket, known_pages, row_bucket
from int_jax.sharding import RULES, RULES_DECODE, constrain, constrain_tree, make_mesh, shardings, submesh
from int_jax.tokenizer import Tokenizer
from int_jax.types import Batch, State
from int_jax.watching import Chunk, Split

SHARE = (
    0.9  # of a device's memory that may be in use while tokens are drawn; prefill and logits need the rest
)


@dataclasses.dataclass
class Engine:
    """A model on a mesh: a `sampler.ScoringSampler` that also trains.

    Attributes:
      slots: rows that are decoded together, at most. decode_steps: tokens drawn a row between two looks at it.
      attention: what attends over pages, "xla", "tpu" or "gpu"; "": the device's kernel where it can serve the model.
        row_attention: the same of long rows in training and scoring.
      page: tokens of a page of keys and values; 0: what suits that. cache_gib: GiB of each device for them; 0: what is
        left.
      prefill_width, prefill_tokens: tokens of a row that are prefilled together, and of all rows between two decodes.
      prefill_seen: tokens that the rows of one prefill attend to, all together, where pages are put side by side.
      ahead: the next decode is dispatched before the last one is read; by default where the device is not the host.
      programs: the names and shapes of the programs compiled so far. drawn: tokens drawn by `generate` so far.
      watch: told of each decode; split: of each update (watching.py).
    """

    model: Model
    mesh: Any = None
    slots: int = 128
    decode_steps: int = 16
    attention: str = ""
    row_attention: str = dataclasses.field(init=False)
    page: int = 0
    cache_gib: float = 0.0
    prefill_width: int = 512
    prefill_tokens: int = 8192
    prefill_seen: int = 2**17 + 2**13  # four rows that have 32,768 tokens already, and 512 each
    ahead: bool | None = None
    score_tokens: int = 8192
    programs: set = dataclasses.field(default_factory=set)
    drawn: int = 0
    watch: Callable[[Chunk], object] | None = None
    split: Split = dataclasses.field(default_factory=Split)

    def __post_init__(self):
        self.mesh = make_mesh() if self.mesh is None else self.mesh
        data = self.mesh.shape["data"]
        if self.slots % data:
            raise ValueError(f"slots={self.slots} is not a multiple of the mesh's data axis, {data}")
        # The rows of the mesh, along "data", that lie within this process: sampling needs no others, unless they span
        # processes.
        mine = [
            all(device.process_index == jax.process_index() for device in row) for row in self.mesh.devices
        ]
        self.spans_processes = not any(mine)
        self.local = self.mesh if all(mine) or not any(mine) else submesh(self.mesh, mine)
        self.replicas = self.local.shape["data"]
        self._kept: tuple[Any, list[Pool], Any] | None = None
        self._wanted = 0  # pages, at most, of the pools so far
        platform, config = self.mesh.devices.flat[0].platform, self.model.config
        self.row_attention = flash.chosen(self.attention, platform, config)
        self.attention = kernels.chosen(self.attention, platform, config, self.mesh.shape["model"])
        self.page = self.page or kernels.tokens_of_page(self.attention, config)
        if self.ahead is None:
            self.ahead = platform != "cpu"

    def _call(self, function, *args, mesh=None, **kwargs):
        """Run a jitted function on the mesh and remember its shapes."""
        # What a jitted function is compiled anew for: static values, and the shapes of the rest.
        statics = [a for a in jax.tree.leaves((args, kwargs)) if isinstance(a, (int, str))]
        shapes = [getattr(a, "shape", ()) for a in jax.tree.leaves((args, kwargs))]
        self.programs.add((function.__name__, str(statics), str(shapes)))
        # By default accelerators multiply float32 as bfloat16 (TPU) or TF32 (GPU): float32 means float32 here.
        exact = self.model.config.dtype == "float32"
        precision = jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
        with jax.sharding.set_mesh(mesh or self.mesh), precision:
            return function(*args, **kwargs)

    def _put(self, tree, rules=RULES_DECODE):
        return jax.device_put(tree, shardings(tree, self.mesh, rules))

    # Sampling -----------------------------------------------------------------------------------------------------

    @property
    def max_len(self) -> int:
        """Positions of the model: tokens of prompt and response together, at most."""
        return self.model.config.max_len

    def decode_params(self, params):
        """The parameters laid out for decoding: in the compute dtype, whole along the data axis, adapters merged."""
        dtype = self.model.config.dtype
        where = shardings(jax.eval_shape(lora.merge, params), self.mesh, RULES_DECODE)

        def there(leaf, place) -> bool:
            return (
                isinstance(leaf, jax.Array)
                and leaf.dtype == dtype
                and leaf.sharding.is_equivalent_to(place, leaf.ndim)
            )

        # They are so already, as after `load`: no copy is made.
        if lora.split(params)[1] is None and all(jax.tree.leaves(jax.tree.map(there, params, where))):
            return params
        places, structure = jax.tree.flatten(where)
        self._kept = None  # the memory of the pages, and of what they were drawn with
        return self._call(_cast(dtype, structure, tuple(places)), params)

    def session(self, params, sampling: Sampling, tokenizer: Tokenizer | None = None) -> Session:
        """See `sampler.Sampler`. params: laid out by `decode_params`. tokenizer: the model's, where a request has a
        text to begin with or `sampling` has one to stop at."""
        return EngineSession(self, params, sampling, tokenizer)

    def generate(
        self,
        params,
        requests: list[Request],
        sampling: Sampling,
        progress: Progress = silent,
        tokenizer: Tokenizer | None = None,
    ) -> list[Response]:
        """Draw one response a request.

        A response depends on (params, prompt, seed, task, sample) alone: not on the other requests, the row, the pages,
        the order of refilling, the padding, the replica or the mesh. What requests share at their beginning is
        prefilled once on each replica.

        A response ends with a stop id, behind a stop text, after `max_new_tokens`, or where the model's positions
        (`max_len`) end. The tokens of a text that it must begin with are drawn among those that spell it; their
        log-probabilities are the model's over the whole vocabulary, like all others.

        Args:
          params, tokenizer: see `session`. requests: prompts of at least one token.
          progress: called with the number of responses finished since the last call.

        Returns: a Response for each request, in order.
        Raises: ValueError for a prompt that is empty, leaves no position for a response, or has an id outside the
          vocabulary.
        """
        return in_order(self.session(params, sampling, tokenizer), requests, progress)

    def check_prompt(self, prompt, where: str) -> None:
        vocab, positions = self.model.config.vocab, self.max_len
        if not prompt:
            raise ValueError(f"{where} has an empty prompt")
        if len(prompt) >= positions:
            raise ValueError(
                f"{where} has a prompt of {len(prompt)} tokens: no room is left in the model's {positions} positions"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            outside = next(token for token in prompt if not 0 <= token < vocab)
            raise ValueError(
                f"{where} has token id {outside}, outside the model's vocabulary, 0..{vocab - 1}"
            )

    def take_drawn(self) -> int:
        """Tokens drawn since the last call of this."""
        count, self.drawn = self.drawn, 0
        return count

    # What a session asks for ---------------------------------------------------------------------------------------

    def take_pool(self, params) -> tuple[Schedule, Any]:
        """The pages that the last session with these parameters left, or none."""
        kept, self._kept = self._kept, None
        rows = self.slots // self.mesh.shape["data"]
        if kept is not None and kept[0] is params:
            return Schedule(kept[1], rows), kept[2]
        return Schedule([Pool(0, self.page)] * self.replicas, rows), None

    def keep_pool(self, params, pools: list[Pool], pool) -> None:
        """Keep a session's pages for the next one, until the memory is needed."""
        self._kept = params, pools, pool

    def pages_for(self, rows: int, longest: int) -> int:
        """Pages of a replica for so many rows of up to `longest` tokens: of 4,096 tokens or 64 MiB, of four times as
        many ..., as far as memory goes; never fewer than before, since programs are compiled for a number of pages.
        Where 256 MiB hold whatever may come, they are taken at once: those of a small model are compiled once."""
        each = -(-longest // self.page)
        most = self.slots // self.mesh.shape["data"]
        rows = min(-(-rows // self.replicas), most)
        whole = most * -(-self.max_len // self.page) + 1
        least = max(1, 4096 // self.page, 2**26 // self._page_bytes)
        wanted = self._wanted or (max(least, whole) if whole * self._page_bytes <= 2**28 else least)
        while wanted <= rows * each:  # one more is needed: page 0
            wanted *= 4
        self._wanted = wanted
        # Without a kernel all rows are also put side by side.
        beside = rows * known_pages(each) if self.attention == "xla" else 0
        return max(min(wanted, self._most_pages(beside)), each + 2)

    @property
    def device(self) -> jax.Device:
        """The first of this process: of others nothing is known."""
        return next(one for one in self.local.devices.flat if one.process_index == jax.process_index())

    @property
    def _page_bytes(self) -> int:
        """Of each device."""
        return kernels.page_bytes(self.attention, self.model.config, self.page, self.mesh.shape["model"])

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token, in all layers and heads."""
        c = self.model.config
        return 2 * c.layers * c.kv_heads * c.head_dim * jnp.dtype(c.dtype).itemsize

    def weight_bytes(self, params) -> int:
        """Bytes of the weights that one step of decoding reads: of an embedding that is not the head, next to none."""
        leaves = (
            params.values() if self.model.config.tied else (v for k, v in params.items() if k != "embed_VD")
        )
        return sum(leaf.nbytes for leaf in jax.tree.leaves([*leaves]))

    def _most_pages(self, beside: int) -> int:
        """Pages of a replica that its devices have room for, besides so many."""
        if self.cache_gib:
            return int(self.cache_gib * 2**30) // self._page_bytes
        stats = self.device.memory_stats()
        if stats is None or "bytes_limit" not in stats:
            return 2**31 // self._page_bytes  # a host: what it has left is not ours to take
        left = int(SHARE * stats["bytes_limit"] - stats["bytes_in_use"])
        if self.spans_processes:  # what they draw together has one size
            left = min(map(int, exchange(str(left).encode())))
        return left // self._page_bytes - beside

    def new_pool(self, count: int) -> tuple[Schedule, Any]:
        """Pages with nothing on them, `count` for each replica."""
        pools = [Pool(count, self.page) for _ in range(self.replicas)]
        made = _empty_pages(self.model, self.attention, self.replicas * count, self.page, self.local)()
        return Schedule(pools, self.slots // self.mesh.shape["data"]), made

    def prefill(self, params, pool, tokens_BT, start_B, count_B, table_BP, known: int):
        """See `sample.prefill`."""
        arguments = self.model, params, pool, tokens_BT, start_B, count_B, table_BP, known
        return self._call(_prefill, *arguments, mesh=self.local)

    def copy(self, pool, from_B, to_B):
        """See `pages.copy`; each replica has an equal part of the pairs."""
        return self._call(_copy, pool, from_B, to_B, mesh=self.local)

    def decode(self, params, pool, *arguments):
        """See `sample.decode`; `known` is last of the arguments."""
        *arrays, known = arguments
        return self._call(
            _decode, self.model, params, pool, *arrays, known, self.decode_steps, mesh=self.local
        )

    # Scoring ------------------------------------------------------------------------------------------------------

    def score(
        self,
        params,
        sequences,
        temperature: float = 1.0,
        progress: Progress = silent,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """log p(token t | tokens before t) at `temperature`, and the entropy of each prediction, nats.

        Args:
          sequences: lists of token ids. progress: called with the number of sequences scored since the last call.

        Returns: (logps, entropies), float32 arrays as long as the sequences; element 0 of each is 0.
        """
        self._kept = None  # the memory of the pages
        logps: list = [None] * len(sequences)
        entropies: list = [None] * len(sequences)
        for width, rows, group in self._score_groups([len(s) for s in sequences]):
            end_if_asked(in_step=True)
            tokens_BT = np.zeros((rows, width), np.int32)
            for row, i in enumerate(group):
                tokens_BT[row, : len(sequences[i])] = sequences[i]
            logp_BT, entropy_BT = map(
                to_host,
                self._call(
                    _score,
                    self.model,
                    params,
                    self._put_rows(tokens_BT),
                    np.float32(temperature),
                    self.row_attention,
                ),
            )
            for row, i in enumerate(group):
                logps[i] = logp_BT[row, : len(sequences[i])]
                entropies[i] = entropy_BT[row, : len(sequences[i])]
            progress(len(group))
        return logps, entropies

    def _score_groups(self, lengths: list[int]):
        """(width, rows, indices) of each call, the longest sequences first, about `score_tokens` at a time at most.

        At least half of a call's rows are longer than half its width (or than half of 64), or they are as few as the
        mesh allows: one sequence of 20 tokens costs 64, twelve of up to 90 cost 16 x 96. Rows that are left over go to
        shorter sequences.
        """
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        data = self.mesh.shape["data"]
        while order:
            width = bucket(lengths[order[0]])
            most = max(data, self.score_tokens // width // data * data)
            # 33: the narrowest width is 64, and what is shorter than half of it cannot be grouped better.
            alike = sum(max(lengths[i], 33) > width // 2 for i in order[:most])
            rows = row_bucket(alike, data, most)
            yield width, rows, order[:rows]
            # Where there are more rows than `alike`, the next shorter sequences filled them, and are done, too.
            order = order[rows:]

    def _put_rows(self, array):
        return jax.device_put(array, shardings({"rows_BT": array}, self.mesh, RULES_DECODE)["rows_BT"])

    # Splicing -----------------------------------------------------------------------------------------------------

    @staticmethod
    def splice(tokens, prompt_lens, cuts, inserted):
        """Cut each trace at `cuts` and append `inserted`; lists of id arrays. Returns the new ids (splicing.py).

        Refuses, with the row, a cut outside the response and an empty intervention: nothing is ever clipped.
        """
        for row, (ids, start, cut, new) in enumerate(zip(tokens, prompt_lens, cuts, inserted, strict=True)):
            if not start <= cut < max(len(ids), start + 1):
                raise ValueError(
                    f"splice, row {row}: cut {cut} is outside the response, tokens {start}..{len(ids) - 1}"
                )
            if not len(new):
                raise ValueError(f"splice, row {row}: the intervention is empty")
        if not len(tokens):
            return []
        rows = bucket(len(tokens), 8)

        def padded(lists):
            out = np.zeros((rows, bucket(max(map(len, lists)), 32)), np.int32)
            for row, ids in enumerate(lists):
                out[row, : len(ids)] = ids
            return out

        def column(values):
            return np.pad(np.asarray(values, np.int32), (0, rows - len(values)))

        spliced = _splice(padded(tokens), column(cuts), padded(inserted), column([len(i) for i in inserted]))
        out, lengths = map(np.asarray, spliced)
        return [out[i, : lengths[i]] for i in range(len(tokens))]

    # Training -----------------------------------------------------------------------------------------------------

    def init(self, seed: int, tx: optax.GradientTransformation) -> State:
        """A fresh training state, each array made where it lives."""

        def make(key):
            params = self.model.init(key)
            return State(jnp.zeros((), jnp.int32), params, tx.init(params))

        key = jax.random.key(seed)
        return jax.jit(make, out_shardings=shardings(jax.eval_shape(make, key), self.mesh, RULES))(key)

    def state(self, params, tx: optax.GradientTransformation) -> State:
        """A training state at step 0 around given parameters, those to be trained (copied, since updates donate
        them)."""
        where = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state(params, tx))
        places, structure = jax.tree.flatten(where)
        return _start(tx, structure, tuple(places))(params)

    def abstract_state(self, params, tx: optax.GradientTransformation) -> State:
        """What `state` makes, without its numbers: shapes, dtypes and shardings, as `checkpoint.restore` wants them."""
        made = jax.eval_shape(functools.partial(_first, tx), params)
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            made,
            shardings(made, self.mesh, RULES),
        )

    def update(
        self,
        state: State,
        batch: Batch,
        tx,
        config: losses.LossConfig = losses.LossConfig(),
        frozen=None,
    ):
        """One optimizer step on a global batch; SFT and policy gradient alike. `state` is donated.

        Args:
          frozen: the other parameters, where those of `state` are adapters alone (`lora.split`). They are not donated.

        Returns: (State, metrics), metrics a dict of float32 scalars.
        """
        self._kept = None  # the memory of the pages
        self.split.begin(batch)
        knobs = tx, config, self.row_attention
        updated = self._call(_update, state, self._put(batch, RULES), self.model, *knobs, frozen)
        self.split.lap("update")
        return updated

    def finite(self, tree) -> bool:
        """Whether every number of a tree of arrays (parameters, or a State with its moments) is finite."""
        # Without the counts, of which optimizers have different numbers: one program for all their states.
        numbers = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return bool(to_host(self._call(_finite, numbers)))


@functools.lru_cache
def _cast(dtype: str, structure, places: tuple):
    """The program that lays parameters out anew, all in one: hundreds of transfers at a time, each with collectives of
    its own, may meet in another order on another host."""

    def cast(params):
        return jax.tree.map(lambda leaf: leaf.astype(dtype), lora.merge(params))

    return jax.jit(cast, out_shardings=jax.tree.unflatten(structure, places))


def _first(tx: optax.GradientTransformation, params) -> State:
    # Without the copy the first update would delete the caller's parameters.
    return State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), tx.init(params))


@functools.lru_cache
def _start(tx: optax.GradientTransformation, structure, places: tuple):
    """The program that makes a training state where it lives, one for all trainings with the same optimizer."""
    return jax.jit(functools.partial(_first, tx), out_shardings=jax.tree.unflatten(structure, places))


@functools.lru_cache
def _empty_pages(model: Model, attention: str, count: int, size: int, mesh):
    """The program that makes pages where they live; its shardings are its own, hence one program a shape."""
    cut, sizes = mesh.shape["model"], (model.config, count, size)

    def make() -> Any:
        if attention == "xla":
            return pages.empty_pages(*sizes)
        return kernels.tpu_pool(*sizes, cut) if attention == "tpu" else kernels.gpu_pool(*sizes, cut)

    # By heads, not by the size of U: of 2 heads that is 4, which 4 devices could cut, and must not.
    rules = {"W": "data"}
    if kernels.divides(attention, model.config, cut):
        rules |= {"N": "model", "U": "model"}
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh, rules))


def _by_replica(function, params, arrays: dict, whole: dict):
    """function(params, **arrays, **whole) of each replica by itself, with its own rows (B) and pages (W) of `arrays`:
    (pool, what has its rows first). So nothing is exchanged along "data"; "model" is left to the compiler."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = jax.tree.map(
        lambda where: PartitionSpec(*(axis if axis == "data" else None for axis in where.spec)),
        shardings(arrays, mesh, RULES_DECODE),
    )
    # What is returned beside the pool has its rows first.
    returned = (parts["pool"], PartitionSpec("data"))
    return jax.shard_map(
        lambda params, arrays, whole: function(params, **arrays, **whole),
        in_specs=(PartitionSpec(), parts, PartitionSpec()),
        out_specs=returned,
        axis_names={"data"},
        check_vma=False,
    )(params, arrays, whole)


@functools.partial(jax.jit, static_argnums=(0, 7), donate_argnums=2)
def _prefill(model: Model, params, pool, tokens_BT, start_B, count_B, table_BP, known: int):
    def one(params, **arrays):
        return sample.prefill(model, params, known=known, **arrays), ()

    arrays = {
        "pool": pool,
        "tokens_BT": tokens_BT,
        "start_B": start_B,
        "count_B": count_B,
        "table_BP": table_BP,
    }
    return _by_replica(one, params, arrays, {})[0]


@functools.partial(jax.jit, donate_argnums=0)
def _copy(pool, from_B, to_B):
    def one(params, **arrays):
        return pages.copy(**arrays), ()

    return _by_replica(one, (), {"pool": pool, "from_B": from_B, "to_B": to_B}, {})[0]


@functools.partial(jax.jit, static_argnums=(0, 11, 12), donate_argnums=2)
def _decode(
    model, params, pool, before, now, fresh_B, limit_B, draw, table_BP, spellings, least_B, known, steps
):
    def one(params, **arrays):
        made, *drawn = sample.decode(model, params, known=known, steps=steps, **arrays)
        return made, drawn

    arrays = {"pool": pool, "before": before, "now": now, "fresh_B": fresh_B, "limit_B": limit_B}
    arrays |= {"draw": draw, "table_BP": table_BP, "least_B": least_B}
    made, drawn = _by_replica(one, params, arrays, {"spellings": spellings})
    return made, *drawn


_splice = jax.jit(splicing.splice)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _score(model: Model, params, tokens_BT, temperature, kernel: str = "xla"):
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    # Without a gradient a layer compiles fast, and a second copy of all weights has no use.
    hidden_BTD, _ = model.apply(params, tokens_BT, positions_BT, kernel=kernel, scan=False)
    temperature_BT = jnp.full(tokens_BT.shape, temperature)
    return losses.token_logp(
        hidden_BTD,
        model.head_DV(params),
        tokens_BT,
        positions_BT,
        temperature_BT,
        cap=model.config.logit_softcap,
    )


@jax.jit
def _finite(leaves: list):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), donate_argnums=0)
def _update(
    state: State,
    batch: Batch,
    model: Model,
    tx,
    config: losses.LossConfig,
    kernel: str = "xla",
    frozen=None,
):
    def loss_fn(trained, micro: Batch):
        # And, in the backward pass, their gradients: each device sums its own part.
        params = lora.join(frozen, constrain_tree(trained, RULES))
        hidden_BTD, _ = model.apply(
            params,
            micro.tokens_MBT,
            micro.positions_MBT,
            micro.segments_MBT,
            remat=config.remat,
            kernel=kernel,
        )
        logp_BT, entropy_BT = losses.token_logp(
            hidden_BTD,
            # Gathered once, and its gradient summed over devices once, not for each chunk of logits.
            constrain(model.head_DV(params), "DV"),
            micro.tokens_MBT,
            micro.positions_MBT,
            micro.temperature_MBT,
            config.logit_chunk,
            model.config.logit_softcap,
        )
        return losses.streams(logp_BT, entropy_BT, micro, config)

    def one(index, carry):
        (grads, sums), gap = carry
        # Micro-batch `index`: [B, T] under names that still say MBT. Totals stay those of the whole batch.
        micro = batch._replace(**{name: array[index] for name, array in arrays.items()})
        (_, (new_sums, new_gap)), new = jax.value_and_grad(loss_fn, has_aux=True)(state.params, micro)
        return jax.tree.map(jnp.add, (grads, sums), (new, new_sums)), jnp.maximum(gap, new_gap)

    arrays = {name: getattr(batch, name) for name in batch._fields if name.endswith("_MBT")}
    # Gradients add up in float32: in bfloat16 a sum of many small ones stops growing.
    wide = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
    zeros = (wide, dict.fromkeys(losses.SUMS, jnp.zeros(())))
    # `micro` is traced: batches with another number of micro-batches in use run the same program.
    (grads, sums), gap = jax.lax.fori_loop(0, batch.micro, one, (zeros, jnp.zeros(())))
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = losses.means(sums) | {
        "logp_gap_max": gap,
        "grad_norm": optax.tree.norm(grads),
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(params),
    }
    return State(state.step + 1, params, opt), metrics
