"""The jitted functions over a mesh: generate, score, splice, update. The only file that says `jax.jit`."""

import contextlib
import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from int_jax import losses, sample, splicing
from int_jax.models import Model
from int_jax.processes import to_host
from int_jax.request_queue import RequestQueue, Start
from int_jax.sampler import Progress, Request, Response, Sampling, silent
from int_jax.sharding import RULES, RULES_DECODE, make_mesh, shardings
from int_jax.tokenizer import Tokenizer
from int_jax.types import Batch, State


def bucket(size: int, least: int = 64) -> int:
    """The smallest of least, 1.5 least, 2 least, 3 least, 4 least ... that holds `size`."""
    # 64, 96, 128, 192, 256 ...: two sizes an octave, so that few programs are compiled, and from the second size on at
    # most a third is padding.
    while least < size:
        if least * 3 // 2 >= size:
            return least * 3 // 2
        least *= 2
    return least


def row_bucket(count: int, least: int, most: int) -> int:
    """One of least, 4 least, 16 least ... most rows: the smallest that holds `count`, or the one before it where that
    would leave more than half of the rows empty."""
    # 5 rows, of 1, 4 or 16: 4, since 16 would be two thirds empty. The fifth goes into the next call.
    rows = least
    while rows < count and rows < most and min(4 * rows, most) <= 2 * count:
        rows = min(4 * rows, most)
    return rows


def task_word(task: str) -> int:
    """32 bits of a task's id for its random stream."""
    # hash() differs from process to process, and a resumed run must draw the same.
    return int.from_bytes(hashlib.blake2b(task.encode(), digest_size=4).digest(), "little")


def spell(
    begins: set[str], tokenizer: Tokenizer | None, vocab: int
) -> tuple[dict[str, int], sample.Spellings]:
    """The state in which each text to begin with starts ("" is 0, which is free), and the table of all states.

    Raises: ValueError where there is such a text and no tokenizer, or no token of the model can begin with it.
    """
    allowed: dict[str, dict[int, str]] = {}
    for text in sorted(begins - {""}):
        if tokenizer is None:
            raise ValueError(f"generate: a request begins with {text!r}: pass the model's tokenizer")
        allowed |= tokenizer.spellings(text)
    # {"": 0, "\n\n": 1, "\n": 2}. Unused places of the table hold the id `vocab`, which is no token's.
    states = {"": 0} | {rest: state for state, rest in enumerate(allowed, 1)}
    shape = bucket(len(states), 8), bucket(max(map(len, allowed.values()), default=0), 8)
    ids_AY, next_AY = np.full(shape, vocab, np.int32), np.zeros(shape, np.int32)
    for rest, tokens in allowed.items():
        # The tokenizer may know tokens beyond the model's embedding.
        inside = {token: after for token, after in tokens.items() if token < vocab}
        if not inside:
            raise ValueError(f"generate: no token of the model can begin with {rest!r}")
        ids_AY[states[rest], : len(inside)] = list(inside)
        next_AY[states[rest], : len(inside)] = [states[after] for after in inside.values()]
    return states, sample.Spellings(ids_AY, next_AY)


@dataclasses.dataclass
class Engine:
    """A model on a mesh: a `sampler.ScoringSampler` that also trains.

    Attributes:
      slots: rows of the sampler, kept full while samples wait. decode_steps: tokens drawn a row between two
        synchronisations with the host.
      programs: the names and shapes of the programs compiled so far. drawn: tokens drawn by `generate` so far.
    """

    model: Model
    mesh: Any = None
    slots: int = 128
    decode_steps: int = 16
    score_tokens: int = 8192
    programs: set = dataclasses.field(default_factory=set)
    drawn: int = 0

    def __post_init__(self):
        self.mesh = make_mesh() if self.mesh is None else self.mesh
        data = self.mesh.shape["data"]
        if self.slots % data:
            raise ValueError(f"slots={self.slots} is not a multiple of the mesh's data axis, {data}")

    def _call(self, function, *args, **kwargs):
        """Run a jitted function on the mesh and remember its shapes."""
        # What a jitted function is compiled anew for: static values, and the shapes of the rest.
        statics = [a for a in jax.tree.leaves((args, kwargs)) if isinstance(a, (int, str))]
        shapes = [getattr(a, "shape", ()) for a in jax.tree.leaves((args, kwargs))]
        self.programs.add((function.__name__, str(statics), str(shapes)))
        # By default accelerators multiply float32 as bfloat16 (TPU) or TF32 (GPU): float32 means float32 here.
        exact = self.model.config.dtype == "float32"
        precision = jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
        with jax.sharding.set_mesh(self.mesh), precision:
            return function(*args, **kwargs)

    def _put(self, tree, rules=RULES_DECODE):
        return jax.device_put(tree, shardings(tree, self.mesh, rules))

    # Sampling -----------------------------------------------------------------------------------------------------

    @property
    def max_len(self) -> int:
        """Positions of the model: tokens of prompt and response together, at most."""
        return self.model.config.max_len

    @property
    def spans_processes(self) -> bool:
        """See `sampler.Sampler`."""
        return len({device.process_index for device in self.mesh.devices.flat}) > 1

    def decode_params(self, params):
        """The parameters laid out for decoding: in the compute dtype, whole along the data axis."""
        dtype, where = self.model.config.dtype, shardings(params, self.mesh, RULES_DECODE)

        def there(leaf, place) -> bool:
            return (
                isinstance(leaf, jax.Array)
                and leaf.dtype == dtype
                and leaf.sharding.is_equivalent_to(place, leaf.ndim)
            )

        # They are so already, as after `load`: no copy is made.
        if all(jax.tree.leaves(jax.tree.map(there, params, where))):
            return params
        places, structure = jax.tree.flatten(where)
        return self._call(_cast(dtype, structure, tuple(places)), params)

    def session(self, params, sampling: Sampling, tokenizer: Tokenizer | None = None):
        """See `sampler.Sampler`."""
        return _Batches(self, params, sampling, tokenizer)

    def generate(
        self,
        params,
        requests: list[Request],
        sampling: Sampling,
        progress: Progress = silent,
        tokenizer: Tokenizer | None = None,
    ) -> list[Response]:
        """Draw one response a request, keeping the slots full.

        A response depends on (params, prompt, seed, task, sample) alone: not on the other requests, the slot, the
        order of refilling, the padding or the mesh. Each distinct prompt is prefilled once and shared by its samples.

        A response ends with a stop id, behind a stop text, after `max_new_tokens`, or where the model's positions
        (`max_len`) end. The tokens of a text that it must begin with are drawn among those that spell it; their
        log-probabilities are the model's over the whole vocabulary, like all others.

        Args:
          params: laid out by `decode_params`. requests: prompts of at least one token.
          progress: called with the number of responses finished since the last call.
          tokenizer: the model's, where a request has a text to begin with or `sampling` has one to stop at.

        Returns: a Response for each request, in order.
        Raises: ValueError for a prompt that is empty, leaves no position for a response, or has an id outside the
          vocabulary.
        """
        queue = RequestQueue([tuple(request.prompt) for request in requests], self.slots)
        for prompt, (index, *_) in queue.samples.items():
            self._check_prompt(prompt, f"request {index} (task {requests[index].task!r})")
        if sampling.stop and tokenizer is None:
            raise ValueError(f"generate: responses stop at {sampling.stop}: pass the model's tokenizer")
        states, spellings = spell({request.begin for request in requests}, tokenizer, self.model.config.vocab)
        stops = bucket(len(sampling.stop_ids), 8)  # a model has up to three; a separator adds many
        responses: dict[int, Response] = {}
        slots: Any = None
        block, prefilled = -1, None

        # Each round: put waiting requests into the free slots, let all rows decode, take the responses that ended.
        # The queue gives out samples of a block of prompts together, so a block is prefilled when its first sample
        # starts, and that prefill is copied into the slot of each of its samples. The cache grows before it is short:
        # a row needs room for its prompt, then for the tokens of the next decode. Decode returns after `decode_steps`
        # tokens, or as soon as few enough rows run that a block's worth of slots can be filled (`least_running`).
        while queue:
            for start in queue.fill():
                if start.block != block:
                    block, prefilled = start.block, self._prefill(params, start.prompts, queue.size)
                slots = self._start(slots, prefilled, start, requests, sampling, states, stops, queue.size)
            rows = queue.running()
            known = to_host(slots.length_B)[rows]
            slots = self._sized(slots, bucket(int(known.max()) + self.decode_steps), stops)
            arguments = queue.owner_B >= 0, spellings, np.int32(queue.least_running()), self.decode_steps
            slots = self._call(_decode, self.model, params, slots, *arguments)
            ended = self._ended(
                slots, rows, known, [requests[i] for i in queue.owner_B[rows]], sampling, tokenizer
            )
            for row, response in ended.items():
                responses[queue.owner_B[row]] = response
            if ended:
                queue.release(np.array([*ended]))
                progress(len(ended))
        self.drawn += sum(len(response.tokens) - len(requests[i].prompt) for i, response in responses.items())
        return [responses[i] for i in range(len(requests))]

    def _ended(self, slots, rows, known, requests, sampling: Sampling, tokenizer) -> dict[int, Response]:
        """The responses that ended in the last decode, by slot.

        Args:
          rows: [n] the slots in use. known: [n] their lengths before it. requests: [n] what runs there.
        """
        lengths, running = to_host(slots.length_B), to_host(slots.running_B)
        found: dict[int, Response] = {}
        if running[rows].all() and not sampling.stop:
            return found
        tokens, logps, unfinished = (to_host(a) for a in (slots.tokens_BS, slots.logp_BS, slots.begin_B))
        for row, seen, request in zip(rows, known, requests, strict=True):
            length, start = lengths[row], len(request.prompt)
            end = None
            if sampling.stop:
                drawn, skip = tokens[row, start:length], len(request.begin)
                end = tokenizer.stop_length(drawn, sampling.stop, seen - start, skip)
            if end is None and running[row]:
                continue
            length = length if end is None else start + end
            ids = tokens[row, :length].astype(np.int32)
            by_id = ids[-1] in sampling.stop_ids and not unfinished[row]
            stop = "stop" if end is not None or by_id else "length"
            found[row] = Response(ids, logps[row, :length].astype(np.float32), stop)
        return found

    def _check_prompt(self, prompt, where: str) -> None:
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

    def _prefill(self, params, prompts, part: int):
        # Without the last token of each: it is the first that decoding reads (sample.py).
        width = bucket(max(max(map(len, prompts)) - 1, 1), 32)
        tokens_UP = np.zeros((part, width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_UP[row, : len(prompt) - 1] = prompt[:-1]
        return self._call(_prefill, self.model, params, tokens_UP)

    def _sized(self, slots, size: int, stops: int):
        """Slots of at least `size` cache positions."""
        if slots is None:
            return _empty_slots(self.model, self.slots, size, stops, self.mesh)()
        return slots if slots.tokens_BS.shape[1] >= size else self._call(_grow, slots, size)

    def _start(
        self, slots, prefilled, start: Start, requests, sampling: Sampling, states, stops: int, size: int
    ):
        """The slots with the requests of `start` in them; arrays are padded to `size` entries."""
        prompts = [start.prompts[which] for which in start.which]
        begun = [requests[i] for i in start.requests]
        lengths = np.array([len(prompt) for prompt in prompts])
        width = prefilled.values_BNSK[0].shape[2]
        slots = self._sized(slots, max(bucket(int(lengths.max()) + 1), bucket(width)), stops)

        def column(values, dtype, fill=0):
            # Entries beyond the requests are padding: their slot is one past the last, so that they are dropped.
            out = np.full(size, fill, dtype)
            out[: len(prompts)] = values
            return out

        tokens_BP = np.zeros((size, width + 1), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BP[row, : len(prompt)] = prompt
        stop_BE = np.full((size, stops), -1, np.int32)
        # -1 fills up: no token has that id.
        stop_BE[:, : len(sampling.stop_ids)] = sampling.stop_ids
        draw = sample.Draw(
            column(sampling.temperature, np.float32),
            column(sampling.top_k, np.int32),
            column(sampling.top_p, np.float32, 1),
            column(sampling.min_p, np.float32),
            stop_BE,
            column(sampling.seed, np.uint32),
            column([task_word(request.task) for request in begun], np.uint32),
            column([request.sample for request in begun], np.uint32),
        )
        arguments = (
            column(start.rows, np.int32, self.slots),
            column(start.which, np.int32),
            tokens_BP,
            column(lengths, np.int32, 1),
            column(np.minimum(lengths + sampling.max_new_tokens, self.max_len), np.int32, 1),
            column([states[request.begin] for request in begun], np.int32),
            draw,
        )
        return self._call(_insert, slots, prefilled, *arguments)

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
        logps: list = [None] * len(sequences)
        entropies: list = [None] * len(sequences)
        for width, rows, group in self._score_groups([len(s) for s in sequences]):
            tokens_BT = np.zeros((rows, width), np.int32)
            for row, i in enumerate(group):
                tokens_BT[row, : len(sequences[i])] = sequences[i]
            logp_BT, entropy_BT = map(
                to_host,
                self._call(_score, self.model, params, self._put_rows(tokens_BT), np.float32(temperature)),
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
        """A training state at step 0 around given parameters (copied, since updates donate them)."""
        where = shardings(jax.eval_shape(functools.partial(_first, tx), params), self.mesh, RULES)
        places, structure = jax.tree.flatten(where)
        return _start(tx, structure, tuple(places))(params)

    def update(self, state: State, batch: Batch, tx, config: losses.LossConfig = losses.LossConfig()):
        """One optimizer step on a global batch; SFT and policy gradient alike. `state` is donated.

        Returns: (State, metrics), metrics a dict of float32 scalars.
        """
        return self._call(_update, state, self._put(batch, RULES), self.model, tx, config)

    def finite(self, tree) -> bool:
        """Whether every number of a tree of arrays (parameters, or a State with its moments) is finite."""
        return bool(to_host(self._call(_finite, tree)))


class _Batches:
    """A session that draws what waits in one batch."""

    def __init__(self, engine, params, sampling, tokenizer):
        self.arguments = engine, params, sampling, tokenizer
        self.waiting: list[Request] = []
        self.count = 0

    def add(self, requests):
        self.waiting += requests

    def __bool__(self):
        return bool(self.waiting)

    def take(self):
        engine, params, sampling, tokenizer = self.arguments
        first, requests, self.waiting = self.count, self.waiting, []
        self.count += len(requests)
        return [*enumerate(engine.generate(params, requests, sampling, tokenizer=tokenizer), first)]


@functools.lru_cache
def _cast(dtype: str, structure, places: tuple):
    """The program that lays parameters out anew, all in one: hundreds of transfers at a time, each with collectives of
    its own, may meet in another order on another host."""

    def cast(params):
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    return jax.jit(cast, out_shardings=jax.tree.unflatten(structure, places))


def _first(tx: optax.GradientTransformation, params) -> State:
    # Without the copy the first update would delete the caller's parameters.
    return State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), tx.init(params))


@functools.lru_cache
def _start(tx: optax.GradientTransformation, structure, places: tuple):
    """The program that makes a training state where it lives, one for all trainings with the same optimizer."""
    return jax.jit(functools.partial(_first, tx), out_shardings=jax.tree.unflatten(structure, places))


@functools.lru_cache
def _empty_slots(model: Model, rows: int, size: int, stops: int, mesh):
    """The program that makes empty slots where they live; its shardings are its own, hence one program a shape."""
    make = functools.partial(sample.empty_slots, model, rows, size, stops)
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh, RULES_DECODE))


_prefill = jax.jit(sample.prefill, static_argnums=0)
_insert = jax.jit(sample.insert, donate_argnums=0)
_grow = jax.jit(sample.grow, static_argnums=1)
_decode = jax.jit(sample.decode, static_argnums=(0, 6), donate_argnums=2)
_splice = jax.jit(splicing.splice)


@functools.partial(jax.jit, static_argnums=0)
def _score(model: Model, params, tokens_BT, temperature):
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    hidden_BTD, _ = model.apply(params, tokens_BT, positions_BT)
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
def _finite(tree):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


@functools.partial(jax.jit, static_argnums=(2, 3, 4), donate_argnums=0)
def _update(state: State, batch: Batch, model: Model, tx, config: losses.LossConfig):
    def loss_fn(params, micro: Batch):
        hidden_BTD, _ = model.apply(
            params, micro.tokens_MBT, micro.positions_MBT, micro.segments_MBT, remat=config.remat
        )
        logp_BT, entropy_BT = losses.token_logp(
            hidden_BTD,
            model.head_DV(params),
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
