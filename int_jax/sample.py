"""The sampler's array functions: prefill and decode, over rows whose keys and values lie on pages. Pure; `engine.py`
jits them, one replica at a time.

A row's last token is known but not yet on its pages: decoding reads it, writes its keys and values, and draws the next
one. So prefill leaves out the last token, draws nothing, and its result serves every sample of a prompt. Everything
that shapes a draw is an array with one entry a row, so changing it compiles nothing; a row's draws depend on its key
and its own position alone.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from int_jax.dims import check
from int_jax.losses import scaled_logits
from int_jax.models import Model, pages
from int_jax.sharding import constrain


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


class Rows(NamedTuple):
    """Where each row stands; arrays [B].

    Attributes:
      token_B: int32, the last known token. length_B: known tokens. running_B: bool.
      begin_B: int32, the state of Spellings from which the row's next token is drawn, 0 where it is free.
    """

    token_B: Any
    length_B: Any
    running_B: Any
    begin_B: Any


def prefill(model: Model, params, pool, tokens_BT, start_B, count_B, table_BP, known: int):
    """The pool with the keys and values of further tokens of some rows.

    Args:
      tokens_BT: right-padded. start_B: what the rows have on their pages. count_B: how many of the T tokens are real.
      table_BP: pages for all T of them. known: pages of each row, at most, that hold anything already.
    """
    rows = pages.rows_of(pool, table_BP, known, start_B, tokens_BT.shape[1])
    positions_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
    _, rows = model.apply(params, tokens_BT, positions_BT, cache=rows.taking(count_B))
    return pages.filed(pool, rows, table_BP, count_B)


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


BIN = 128  # weights that are summed up before one of them is looked for


def pick(weight_BV, keys):
    """Draw an index of each row by its weights, of which one is positive at least. int32.

    By the inverse of the cumulative distribution, with a uniform number a row and level: first a bin of up to 128
    weights by the bins' sums (of more than 128 bins: a bin of bins before that), then one of the bin. Noise on each
    weight (Gumbel-max) costs a random number an entry: 256 rows of 4,096 took 22 ms of CPU, and take 0.6.
    """
    rows, vocab = weight_BV.shape
    # No bin reaches over a part, so that a device of "model" sums up its own weights. 4,096 entries are 128 bins of 32;
    # 151,936 are 128 parts of 1,187, each 10 bins of 119.
    parts = math.gcd(vocab, BIN)
    binned = _bins(weight_BV.reshape(rows, parts, -1))
    sums_BX = constrain(jnp.sum(binned, axis=-1).reshape(rows, -1), "BX")
    above = []
    while sums_BX.shape[1] > BIN:
        above.append(_bins(sums_BX[:, None])[:, 0])
        sums_BX = jnp.sum(above[-1], axis=-1)
    uniform_BJ = jax.vmap(lambda key: jax.random.uniform(key, (len(above) + 2,)))(keys)
    found_B = _pick_few(sums_BX, uniform_BJ[:, 0])
    for level, bins in enumerate(reversed(above), 1):
        found_B = found_B * bins.shape[2] + _pick_few(_row(bins, found_B), uniform_BJ[:, level])
    of_part = binned.shape[2]
    within_B = _pick_few(_row(binned.reshape(rows, -1, binned.shape[3]), found_B), uniform_BJ[:, -1])
    return (found_B // of_part) * (vocab // parts) + (found_B % of_part) * binned.shape[3] + within_B


def _bins(weights):
    """The last axis as bins of equal size, at most BIN; zeros fill up the last one."""
    size = weights.shape[-1]
    count = -(-size // BIN)
    each = -(-size // count)
    padded = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, count * each - size)])
    return padded.reshape(*weights.shape[:-1], count, each)


def _row(bins, found_B):
    """The bin that was found in each row."""
    return jnp.take_along_axis(bins, found_B[:, None, None], axis=1)[:, 0]


def _pick_few(weight_BZ, uniform_B):
    # A product with a triangle: cumsum takes seven steps on CPU. The sums never fall along Z, as rounding keeps order.
    size = weight_BZ.shape[1]
    sum_BZ = jnp.matmul(weight_BZ, jnp.triu(jnp.ones((size, size))), precision=jax.lax.Precision.HIGHEST)
    total_B = sum_BZ[:, -1]
    # Weights 0 2 0 1 sum up to 0 2 2 3. With u = .5 the first sum above 1.5 is picked, the second: it has a weight.
    # If u x total rounds to the total, it is the first sum that reaches it.
    passed_BZ = (sum_BZ <= (uniform_B * total_B)[:, None]) & (sum_BZ < total_B[:, None])
    return jnp.sum(passed_BZ, axis=-1, dtype=jnp.int32)


def choose(logits_BV, keys, draw: Draw, begin_B, spellings: Spellings):
    """Draw one token a row, the likeliest one where the temperature is 0.

    Returns: (token_B, its log-probability over the whole vocabulary, whatever may be drawn), int32 and float32.
    """
    top_B = jnp.max(logits_BV, axis=-1)
    weight_BV = jnp.exp(logits_BV - top_B[:, None])
    filtered = jnp.any((draw.top_k_B > 0) | (draw.top_p_B < 1.0) | (draw.min_p_B > 0.0))
    greedy = jnp.any(draw.temperature_B <= 0)

    def some():
        allowed_BV = restrict(logits_BV, begin_B, spellings)
        # Whole on each device of "model": each of the 32 passes for a threshold would be a collective.
        allowed_BV = constrain(allowed_BV, "BV", {"B": "data"})
        kept_BV = keep(allowed_BV, draw.top_k_B, draw.top_p_B, draw.min_p_B)
        kept_BV = jnp.where(kept_BV, allowed_BV, -jnp.inf)
        # Of what is left: where all of it is unlikely, its weights would be 0.
        drawn_B = pick(jnp.exp(kept_BV - jnp.max(kept_BV, axis=-1, keepdims=True)), keys)
        return jnp.where(draw.temperature_B > 0, drawn_B, jnp.argmax(kept_BV, axis=-1).astype(jnp.int32))

    # The settings are traced: cond does what a row asks for.
    token_B = jax.lax.cond(filtered | greedy | jnp.any(begin_B > 0), some, lambda: pick(weight_BV, keys))
    logit_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B, logit_B - top_B - jnp.log(jnp.sum(weight_BV, axis=-1))


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


def decode(
    model: Model,
    params,
    pool,
    before: Rows,
    now: Rows,
    fresh_B,
    limit_B,
    draw: Draw,
    table_BP,
    spellings: Spellings,
    least_B,
    known: int,
    steps: int,
):
    """Draw up to `steps` tokens a row; stops early once fewer than `least_B[0]` rows are running.

    A row in a state of `spellings` draws among what that allows, and no stop id ends it before the text that it has to
    begin with is complete.

    Args:
      before: where the rows stood after the last call. now, fresh_B: where those stand that are `fresh`.
      limit_B: the length at which a row ends. table_BP, known: as of `prefill`, for `steps` more tokens.

    Returns: (pool, Rows, tokens_BC, logp_BC): what was drawn, of each row so many as its length has grown by.
    """
    rows = jax.tree.map(lambda old, new: jnp.where(fresh_B, new, old), before, now)
    first_B, count = rows.length_B, len(fresh_B)
    keys = row_keys(draw)
    head_DV = model.head_DV(params)
    seen = pages.rows_of(pool, table_BP, known, first_B - 1, steps)

    def step(carry):
        rows, seen, at, tokens_BC, logp_BC = carry
        last_B = rows.length_B - 1
        # An idle row's pages may be another's by now, or shared.
        seen = seen.taking(rows.running_B)
        hidden_BTD, seen = model.apply(params, rows.token_B[:, None], last_B[:, None], cache=seen)
        logits_BV = scaled_logits(hidden_BTD[:, 0], head_DV, draw.temperature_B, model.config.logit_softcap)
        # By the position of the token to be drawn: where a decode begins, or which rows are idle, changes no draw.
        position_keys = jax.vmap(jax.random.fold_in)(keys, rows.length_B)
        token_B, logp_B = choose(logits_BV, position_keys, draw, rows.begin_B, spellings)
        ended_B = jnp.any(token_B[:, None] == draw.stop_BE, axis=-1) & (rows.begin_B == 0)
        length_B = rows.length_B + rows.running_B
        rows = Rows(
            jnp.where(rows.running_B, token_B, rows.token_B),
            length_B,
            rows.running_B & ~ended_B & (length_B < limit_B),
            jnp.where(rows.running_B, advance(token_B, rows.begin_B, spellings), rows.begin_B),
        )
        # What idle rows have here is beyond their length.
        tokens_BC = jax.lax.dynamic_update_slice_in_dim(tokens_BC, token_B[:, None], at, axis=1)
        logp_BC = jax.lax.dynamic_update_slice_in_dim(logp_BC, logp_B[:, None], at, axis=1)
        return rows, seen, at + 1, tokens_BC, logp_BC

    def going(carry):
        rows, _, at, *_ = carry
        # At least one row: with none the loop would go through its steps for nothing.
        return (at < steps) & (jnp.sum(rows.running_B) >= jnp.maximum(least_B[0], 1))

    empty = jnp.zeros((count, steps), jnp.int32), jnp.zeros((count, steps), jnp.float32)
    rows, seen, _, tokens_BC, logp_BC = jax.lax.while_loop(going, step, (rows, seen, jnp.int32(0), *empty))
    return pages.filed(pool, seen, table_BP, rows.length_B - first_B), rows, tokens_BC, logp_BC
