"""The sampler's array functions: prefill, insert, decode. Pure; `engine.py` jits them and runs the slots.

Slots are B rows of one cache. A row's last token is known but not yet in the cache: decoding reads it, writes its keys
and values, and draws the next one. So prefill takes the prompt without its last token, draws nothing, and its result
serves every sample of that prompt. Everything that shapes a draw is an array with one entry a row, so changing it
compiles nothing; a row's draws depend on its key and its own position alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from int_jax.dims import check
from int_jax.losses import scaled_logits
from int_jax.models import Cache, Model, empty_cache, empty_recent_tokens, flush


class Draw(NamedTuple):
    """How each row is drawn; arrays [B].

    Attributes:
      temperature_B: float32, 0 is greedy. top_k_B: int32, 0 keeps all. top_p_B: float32, 1 keeps all. min_p_B: float32,
        0 keeps all. stop_BE: int32 stop ids, -1 where there are fewer.
      seed_B, task_B, sample_B: uint32; the row's random stream.
    """

    temperature_B: Any
    top_k_B: Any
    top_p_B: Any
    min_p_B: Any
    stop_BE: Any
    seed_B: Any
    task_B: Any
    sample_B: Any


class Spellings(NamedTuple):
    """Which tokens may come next where a response must begin with a given text, and where each leads.

    Attributes:
      ids_AY: int32, the ids allowed in state a, the vocabulary's size (no token) where there are fewer than Y.
      next_AY: int32, the state behind each, 0 once the text is complete. State 0 is free: it allows every token.
    """

    ids_AY: Any
    next_AY: Any


class Slots(NamedTuple):
    """The sampler's state.

    Attributes:
      tokens_BS: int32 prompt and response. logp_BS: float32 of each drawn token, zero elsewhere.
      length_B: known tokens. limit_B: the length at which a row ends. running_B: bool.
      begin_B: int32, the state of Spellings from which the row's next token is drawn, 0 where it is free.
      cache: keys and values of the first length - 1 tokens. draw: Draw.
    """

    tokens_BS: Any
    logp_BS: Any
    length_B: Any
    limit_B: Any
    running_B: Any
    begin_B: Any
    cache: Cache
    draw: Draw


def empty_slots(model: Model, rows: int, size: int, stops: int) -> Slots:
    """Slots with nothing running; `size` cache positions, `stops` stop ids a row."""

    def ints(*shape):
        return jnp.zeros((rows, *shape), jnp.int32)

    def floats(*shape):
        return jnp.zeros((rows, *shape), jnp.float32)

    def words():
        return jnp.zeros(rows, jnp.uint32)

    # Top-p 1 keeps all, -1 is no token's id. Length 1, so that an idle row has a last token that can be read.
    draw = Draw(floats(), ints(), floats() + 1, floats(), ints(stops) - 1, words(), words(), words())
    cache = empty_cache(model.config, rows, size)
    running_B = jnp.zeros(rows, bool)
    return Slots(ints(size), floats(size), ints() + 1, ints() + 1, running_B, ints(), cache, draw)


def grow(slots: Slots, size: int) -> Slots:
    """The same slots with `size` cache positions; every row keeps what it has."""

    more = size - slots.tokens_BS.shape[1]

    def pad(array, axis):
        return jnp.pad(array, [(0, more if a == axis else 0) for a in range(array.ndim)])

    keys = tuple(pad(array, 3) for array in slots.cache.keys_BNKS)
    values = tuple(pad(array, 2) for array in slots.cache.values_BNSK)
    tokens_BS, logp_BS = pad(slots.tokens_BS, 1), pad(slots.logp_BS, 1)
    return slots._replace(tokens_BS=tokens_BS, logp_BS=logp_BS, cache=Cache(keys, values))


def prefill(model: Model, params, tokens_UP) -> Cache:
    """Keys and values of U distinct prompts, right-padded; the padding is never attended to."""
    positions = jnp.broadcast_to(jnp.arange(tokens_UP.shape[1])[None], tokens_UP.shape)
    return model.apply(params, tokens_UP, positions)[1]


def insert(
    slots: Slots, prefilled: Cache, rows_B, prompts_B, tokens_BP, length_B, limit_B, begin_B, draw: Draw
) -> Slots:
    """Start samples in free slots.

    Args:
      prefilled: of U prompts. rows_B: the slot of each new sample; one past the last slot drops the entry (padding).
      prompts_B: which of the U prompts it continues. tokens_BP: its prompt, whole. The rest: as Slots.
    """
    # Both sizes are rounded up, and either may be the larger: what is cut off is padding.
    width = min(prefilled.values_BNSK[0].shape[2], slots.tokens_BS.shape[1])
    tokens_BP = tokens_BP[:, : slots.tokens_BS.shape[1]]

    # rows_B = [2, 0, 4] in 4 slots: two samples start, in slots 2 and 0, and the third entry is padding.
    def put(old, new):
        return old.at[rows_B].set(new, mode="drop")

    keys = [
        old.at[rows_B, :, :, :width].set(new[prompts_B, :, :, :width], mode="drop")
        for old, new in zip(slots.cache.keys_BNKS, prefilled.keys_BNKS, strict=True)
    ]
    # A prompt's keys and values are copied to each of its samples: prompts_B = [0, 0, 1].
    values = [
        old.at[rows_B, :, :width].set(new[prompts_B, :, :width], mode="drop")
        for old, new in zip(slots.cache.values_BNSK, prefilled.values_BNSK, strict=True)
    ]
    return Slots(
        tokens_BS=slots.tokens_BS.at[rows_B, : tokens_BP.shape[1]].set(tokens_BP, mode="drop"),
        logp_BS=put(slots.logp_BS, jnp.zeros((), jnp.float32)),
        length_B=put(slots.length_B, length_B),
        limit_B=put(slots.limit_B, limit_B),
        # A prompt that fills its limit is over before it starts.
        running_B=put(slots.running_B, length_B < limit_B),
        begin_B=put(slots.begin_B, begin_B),
        cache=Cache(tuple(keys), tuple(values)),
        draw=jax.tree.map(put, slots.draw, draw),
    )


def ordered(values):
    """Unsigned integers in the order of the floats: for a float32, bits that compare as the numbers do."""
    # As integers negative floats compare the wrong way round, and above the positive ones (the sign is the top bit).
    # So a negative one has all its bits flipped, a positive one the top bit set: -1.0 is 0xbf800000 -> 0x407fffff,
    # and 1.0 is 0x3f800000 -> 0xbf800000.
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def largest(holds, rows: int):
    """For each row the largest 32-bit key at which `holds(key_B)`, true below some key and false above, is true; 0
    where it never is. One bit a pass: among 151,936 logits 13 to 18 times as fast as sorting them (CPU)."""

    # Before each pass the bits tried are the answer's, those below are 0. In 4 bits, for "at most 1010": 1000 holds,
    # 1100 does not, 1010 does, 1011 does not.
    def bit(index, key_B):
        tried_B = key_B | (jnp.uint32(1 << 31) >> index.astype(jnp.uint32))
        return jnp.where(holds(tried_B), tried_B, key_B)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros(rows, jnp.uint32))


@check
def keep(logits_BV, top_k_B, top_p_B, min_p_B):
    """True for the tokens that may be drawn; filters in the order top-k, top-p, min-p, as `transformers` applies them.

    top-p keeps the smallest set of the likeliest tokens, among those that top-k kept, whose probability reaches top_p
    (Holtzman et al. 2020); min-p keeps p >= min_p x the largest p. The likeliest token always stays, and tokens of
    equal logits stay or go together. Logits are already divided by the temperature.
    """
    rows, vocab = logits_BV.shape
    key_BV = ordered(logits_BV)
    none_B = jnp.zeros(rows, jnp.uint32)

    def kth():
        """The key of each row's k-th largest logit."""
        # Logits 3, 2, 2, 1 and k = 2: the largest key that two logits reach is that of 2, and both 2s stay. Rows
        # without top-k ask for all V, whose key is the smallest logit's.
        count_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, vocab), vocab)
        return largest(lambda key_B: jnp.sum(key_BV >= key_B[:, None], axis=-1) >= count_B, rows)

    # The settings are traced: cond runs a filter only where a row asks for it.
    kept_BV = key_BV >= jax.lax.cond(jnp.any(top_k_B > 0), kth, lambda: none_B)[:, None]
    # Probabilities up to one factor a row, which top_p is multiplied with in turn: exp(logit - largest) <= 1.
    top_BV = jnp.max(logits_BV, axis=-1, keepdims=True)
    weight_BV = jnp.where(kept_BV, jnp.exp(logits_BV - top_BV), 0.0)
    # The sum may round to 1 before the end: top_p 1 is asked for by name.
    need_B = jnp.where(top_p_B < 1.0, top_p_B * jnp.sum(weight_BV, axis=-1), jnp.inf)

    def nucleus():
        """The smallest key above which there is less than top_p of the probability."""

        def enough(key_B):
            return jnp.sum(jnp.where(key_BV > key_B[:, None], weight_BV, 0.0), axis=-1) >= need_B

        # Weights .5 .3 .2 and top_p .6: above the key of .2 there is .8, enough; above that of .3 there is .5, too
        # little. The largest key with enough is one below that of .3: .5 and .3 stay.
        key_B = largest(enough, rows)
        return jnp.where(enough(key_B), key_B + 1, none_B)

    kept_BV = kept_BV & (key_BV >= jax.lax.cond(jnp.any(top_p_B < 1.0), nucleus, lambda: none_B)[:, None])
    # p >= min_p x largest p, as logits; min_p 0 is log 0 = -inf, which keeps all.
    return kept_BV & (logits_BV >= top_BV + jnp.log(min_p_B)[:, None])


def row_keys(draw: Draw):
    """One key a row from (seed, task, sample)."""

    def one(seed, task, sample):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), task), sample)

    return jax.vmap(one)(draw.seed_B, draw.task_B, draw.sample_B)


def choose(logits_BV, keys, draw: Draw):
    """Draw one token a row (Gumbel-max), greedily where the temperature is 0. Returns token_B, int32."""
    plain = jnp.all((draw.top_k_B <= 0) & (draw.top_p_B >= 1.0) & (draw.min_p_B <= 0.0))
    kept_BV = jax.lax.cond(
        plain,
        lambda: jnp.ones(logits_BV.shape, bool),
        lambda: keep(logits_BV, draw.top_k_B, draw.top_p_B, draw.min_p_B),
    )
    # argmax(logits + Gumbel noise) is a draw from softmax(logits). Each row has a key of its own: one key for [B, V]
    # would make a row's noise depend on B.
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:], jnp.float32))(keys)
    noise_BV = jnp.where(draw.temperature_B[:, None] > 0, noise_BV, 0.0)
    return jnp.argmax(jnp.where(kept_BV, logits_BV + noise_BV, -jnp.inf), axis=-1).astype(jnp.int32)


def restrict(logits_BV, begin_B, spellings: Spellings):
    """Logits with -inf for the tokens that a row's state does not allow; those of free rows as they are."""

    def restricted():
        rows = jnp.arange(logits_BV.shape[0])[:, None]
        # Unused places of a state hold the id V, outside the array: they are dropped.
        allowed_BV = (
            jnp.zeros(logits_BV.shape, bool).at[rows, spellings.ids_AY[begin_B]].set(True, mode="drop")
        )
        return jnp.where(allowed_BV | (begin_B == 0)[:, None], logits_BV, -jnp.inf)

    return jax.lax.cond(jnp.any(begin_B > 0), restricted, lambda: logits_BV)


def advance(token_B, begin_B, spellings: Spellings):
    """The state behind each row's token."""
    # A state lists an id once, so that one entry of Y is taken at most, and max picks its state. A free row stays at 0.
    taken_BY = (spellings.ids_AY[begin_B] == token_B[:, None]) & (begin_B > 0)[:, None]
    return jnp.max(jnp.where(taken_BY, spellings.next_AY[begin_B], 0), axis=-1)


def decode(model: Model, params, slots: Slots, owned_B, spellings: Spellings, wanted, steps: int) -> Slots:
    """Draw up to `steps` tokens a row; stops early once fewer than `wanted` rows are running.

    Running rows need `steps` free cache positions. A row that is not `owned_B` any more (the host has ended it) stands
    still. A row in a state of `spellings` draws among what that allows, and no stop id ends it before the text that it
    has to begin with is complete.

    The log-probability returned is that of the token at the row's temperature over the whole vocabulary, whatever
    top-k, top-p and min-p kept: the same that `losses.token_logp` computes.
    """
    # A row may end on the host alone (a stop text is found by decoding), which this tells the device.
    slots = slots._replace(running_B=slots.running_B & owned_B)
    keys = row_keys(slots.draw)
    rows = jnp.arange(slots.tokens_BS.shape[0])
    head_DV = model.head_DV(params)
    cache = slots.cache

    def step(carry):
        slots, recent = carry
        last_B = slots.length_B - 1
        token_BT = slots.tokens_BS[rows, last_B][:, None]
        hidden_BTD, recent = model.apply(params, token_BT, last_B[:, None], cache=cache, recent=recent)
        logits_BV = scaled_logits(
            hidden_BTD[:, 0], head_DV, slots.draw.temperature_B, model.config.logit_softcap
        )
        # By the position of the token to be drawn: where a decode begins, or which rows are idle, changes no draw.
        position_keys = jax.vmap(jax.random.fold_in)(keys, slots.length_B)
        token_B = choose(restrict(logits_BV, slots.begin_B, spellings), position_keys, slots.draw)
        # Of `logits_BV`, before restriction and filters.
        logp_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
        logp_B = logp_B - jax.nn.logsumexp(logits_BV, axis=-1)
        # Rows that do not run write their last token again: the value that is there already.
        at_B = jnp.where(slots.running_B, slots.length_B, last_B)
        token_now_B = jnp.where(slots.running_B, token_B, slots.tokens_BS[rows, last_B])
        logp_now_B = jnp.where(slots.running_B, logp_B, slots.logp_BS[rows, last_B])
        length_B = slots.length_B + slots.running_B
        ended_B = jnp.any(token_B[:, None] == slots.draw.stop_BE, axis=-1) & (slots.begin_B == 0)
        stopped_B = ended_B | (length_B >= slots.limit_B)
        slots = slots._replace(
            tokens_BS=slots.tokens_BS.at[rows, at_B].set(token_now_B),
            logp_BS=slots.logp_BS.at[rows, at_B].set(logp_now_B),
            length_B=length_B,
            running_B=slots.running_B & ~stopped_B,
            begin_B=jnp.where(slots.running_B, advance(token_B, slots.begin_B, spellings), slots.begin_B),
        )
        return slots, recent

    def going(carry):
        slots, recent = carry
        # At least one row: with none the loop would go through its steps for nothing.
        return (recent.count < steps) & (jnp.sum(slots.running_B) >= jnp.maximum(wanted, 1))

    # From length - 1 on: the last known token is not in the cache. The cache stays out of the loop's state, where it is
    # only read; it is written once, at the end.
    recent = empty_recent_tokens(model.config, slots.tokens_BS.shape[0], steps, slots.length_B - 1)
    # The loop only reads the cache, and would copy what it carries.
    slots, recent = jax.lax.while_loop(going, step, (slots._replace(cache=Cache((), ())), recent))
    return slots._replace(cache=flush(cache, recent))
