"""Cut a trace before a step and append an intervention there: a pure array function on token ids."""

import jax.numpy as jnp

from int_jax.dims import check


@check
def splice(tokens_BT, cut_B, inserted_BI, inserted_length_B):
    """tokens[:cut] + inserted, right-padded with zeros.

    Args:
      tokens_BT: int32 traces. cut_B: the offset at which the wrong step starts. inserted_BI: int32 ids of the
        interventions. inserted_length_B: how many of them count.

    Returns: (tokens [B, T + I], length_B).
    """
    rows, width = tokens_BT.shape
    # 7 8 9 4 with cut 2 and 5 6 inserted -> 7 8 5 6 0 0, length 4. Both gathers stay within their arrays: what they
    # read beyond their part is left out by the `where` below.
    columns = jnp.arange(width + inserted_BI.shape[1])[None]
    length_B = cut_B + inserted_length_B
    from_trace = jnp.take_along_axis(
        tokens_BT, jnp.broadcast_to(jnp.minimum(columns, width - 1), (rows, columns.size)), 1
    )
    offset = jnp.clip(columns - cut_B[:, None], 0, inserted_BI.shape[1] - 1)
    inserted = jnp.take_along_axis(inserted_BI, offset, axis=1)
    spliced = jnp.where(columns < cut_B[:, None], from_trace, inserted)
    return jnp.where(columns < length_B[:, None], spliced, 0), length_B
