"""The floor with the cheapest draw that is known here: one uniform number a row, and the cumulative distribution.

In blocks, so that the running sums are over sqrt(V) numbers twice and not over V: the block in which the number falls,
then the token within it.
"""

import jax
import jax.numpy as jnp

from contenders import floor

BLOCK = 64


def by_sums(key, logits_BV):
    rows, vocab = logits_BV.shape
    top_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
    weight_BV = jnp.pad(jnp.exp(logits_BV - top_B1), [(0, 0), (0, -vocab % BLOCK)])
    weight = weight_BV.reshape(rows, -1, BLOCK)
    sums = jnp.cumsum(jnp.sum(weight, axis=2), axis=1)
    number_B1 = jax.random.uniform(key, (rows, 1)) * sums[:, -1:]
    # The last block that holds anything where rounding leaves the number at the very end.
    block_B = jnp.minimum(jnp.sum(sums <= number_B1, axis=1), sums.shape[1] - 1)
    before = jnp.pad(sums, [(0, 0), (1, 0)])
    rest_B1 = number_B1 - jnp.take_along_axis(before, block_B[:, None], axis=1)
    within = jnp.cumsum(jnp.take_along_axis(weight, block_B[:, None, None], axis=1)[:, 0], axis=1)
    token_B = block_B * BLOCK + jnp.minimum(jnp.sum(within <= rest_B1, axis=1), BLOCK - 1)
    return jnp.minimum(token_B, vocab - 1)


def prepare(task: dict):
    """See worker.py."""
    return floor.prepare(task, by_sums)
