"""Cut a trace before a step and append an intervention there: pure array functions on token ids."""

import jax.numpy as jnp

from int_jax.dims import check

PROMPT, PREFIX, INTERVENTION, PADDING = 0, 1, 2, -1


@check
def splice(tokens_BT, prompt_B, cut_B, inserted_BI, inserted_length_B):
    """tokens[:cut] + inserted, right-padded with zeros, and the span of each token.

    Args:
      tokens_BT: int32 traces. prompt_B: where each response starts. cut_B: the offset at which the wrong step starts.
      inserted_BI: int32 ids of the interventions. inserted_length_B: how many of them count.

    Returns: (tokens [B, T + I], length_B, span [B, T + I]); a span is PROMPT, PREFIX, INTERVENTION or PADDING.
    """
    rows, width = tokens_BT.shape
    columns = jnp.arange(width + inserted_BI.shape[1])[None]
    length_B = cut_B + inserted_length_B
    from_trace = jnp.take_along_axis(
        tokens_BT, jnp.broadcast_to(jnp.minimum(columns, width - 1), (rows, columns.size)), 1
    )
    offset = jnp.clip(columns - cut_B[:, None], 0, inserted_BI.shape[1] - 1)
    inserted = jnp.take_along_axis(inserted_BI, offset, axis=1)
    span = jnp.where(columns < prompt_B[:, None], PROMPT, PREFIX)
    span = jnp.where(columns >= cut_B[:, None], INTERVENTION, span)
    span = jnp.where(columns >= length_B[:, None], PADDING, span)
    tokens = jnp.where(span == INTERVENTION, inserted, jnp.where(span == PADDING, 0, from_trace))
    return tokens, length_B, span
