"""Host side of an update: sequences with per-token weights, packed into the rows of a Batch."""

import dataclasses
from typing import Any

import numpy as np

from int_jax.types import Batch, Trace


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One sequence to train on: token ids and, for each token, a weight in each stream (all [length])."""

    tokens: np.ndarray
    ce: np.ndarray
    rl: np.ndarray
    kl: np.ndarray
    advantage: np.ndarray
    sampler_logp: np.ndarray
    reference_logp: np.ndarray
    old_logp: np.ndarray
    temperature: float = 1.0


def supervised(tokens, weights) -> Sequence:
    """A sequence for the ce stream. tokens [length] ids, weights [length] >= 0."""
    none = np.zeros(len(tokens), np.float32)
    weights = np.asarray(weights, np.float32)
    return Sequence(np.asarray(tokens, np.int32), weights, none, none, none, none, none, none)


def conversation(tokenizer, messages: list[dict[str, str]], response: str) -> Sequence:
    """Rendered turns, then a response and its end-of-turn token; only these last two are trained."""
    prompt = tokenizer.render(messages)
    # Weights of a prompt of 3 and a response of 2: 0 0 0 1 1.
    ids = prompt + tokenizer.encode(response) + [tokenizer.end_of_turn]
    return supervised(ids, np.arange(len(ids)) >= len(prompt))


def intervention_weights(trace: Trace, prefix: float = 1.0, intervention: float = 1.0, suffix: float = 0.0):
    """ce weights of a guided attempt, one for each span: steps before the splice, the spliced step, what follows it.

    InT trains prefix and intervention, no suffix and no end-of-turn token (Table 2). Neither the prompt nor a partner's
    turn is ever trained. The intervention reaches from the splice to the next token that the policy drew, or to the
    end.

    Raises: ValueError for a trace into which nothing was spliced.
    """
    if trace.spliced < 0:
        raise ValueError(f"task {trace.task.id}: no intervention was spliced into this trace")
    # Drawn from the splice on, F F F T T: the intervention is the first three of these tokens.
    weights = np.zeros(len(trace.tokens), np.float32)
    drawn_after = np.flatnonzero(trace.sampled[trace.spliced :])
    end = trace.spliced + int(drawn_after[0]) if len(drawn_after) else len(trace.tokens)
    weights[trace.prompt_len : trace.spliced] = prefix
    weights[trace.spliced : end] = intervention
    weights[end:] = suffix
    return np.where(trace.own, weights, np.float32(0))


def response_weights(trace: Trace) -> np.ndarray:
    """ce weights of a whole response: 1 for each of its tokens, the one that ends it too, 0 for a partner's."""
    return trace.own.astype(np.float32)


def reinforced(
    trace: Trace, advantage, normalise: str = "sequences", reference_logp=None, old_logp=None
) -> Sequence:
    """A sequence for the rl (and, where a reference is given, kl) stream: every token the policy drew.

    Args:
      advantage: of the response, or [length] of each token.
      normalise: "sequences" and "tokens" weigh every token 1 (they differ in the total), "sequence_mean" 1 / length.
      reference_logp, old_logp: [length], of the starting policy, and of the one to which the ratio is taken (None: the
        sampler's).
    """
    drawn = trace.sampled.astype(np.float32)
    # "sequence_mean": a sequence's weights sum to 1, whatever its length.
    weight = drawn / max(drawn.sum(), 1.0) if normalise == "sequence_mean" else drawn
    zeros = np.zeros(len(drawn), np.float32)
    return Sequence(
        trace.tokens,
        zeros,
        weight,
        zeros if reference_logp is None else weight,
        drawn * np.asarray(advantage, np.float32),
        trace.logp,
        zeros if reference_logp is None else np.asarray(reference_logp, np.float32),
        trace.logp if old_logp is None else np.asarray(old_logp, np.float32),
        trace.temperature,
    )


def place(lengths, row_length: int) -> list[list[int]]:
    """First-fit: which sequences go into which row, in the order given."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        # room[r] is what row r has left. Lengths 5, 3, 4 in rows of 8 -> [[0, 1], [2]].
        if length > row_length:
            raise ValueError(
                f"sequence {index} has {length} tokens, a row holds {row_length}: raise the row length"
            )
        row = next((r for r, left in enumerate(room) if left >= length), None)
        if row is None:
            rows.append([])
            room.append(row_length)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= length
    return rows


def pack(sequences, row_length: int, rows: int, totals: dict[str, float] | None = None) -> Batch:
    """Pack sequences into micro-batches of `rows` x `row_length` tokens.

    Args:
      sequences: list of Sequence, none longer than row_length.
      totals: the denominators {"ce", "rl", "kl"}; what is missing is the sum of that stream's weights. Pass the global
        ones where this is a part of a global batch.

    Returns: a Batch of numpy arrays [M, rows, row_length]. Sequences without any weight may be left out beforehand:
    given the totals, loss and gradient are the same.
    """
    placed = place([len(s.tokens) for s in sequences], row_length)
    micro = max(1, -(-len(placed) // rows))
    # Rows rounded up to micro-batches, 9 rows by 2 -> 5, and these to 16: the update goes through `micro` of them.
    # One shape for all but the largest batches, which have a power of two: an update takes minutes to compile at full
    # size, and what is not used costs no more than its transfer, 14 MB for a row of 20,000 tokens.
    padded = 1 << (max(micro, 16) - 1).bit_length()
    shape = (padded * rows, row_length)
    ints = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    names = ("ce", "rl", "kl", "advantage", "sampler_logp", "reference_logp", "old_logp")
    floats = {name: np.zeros(shape, np.float32) for name in names}
    temperature = np.ones(shape, np.float32)
    for row, indices in enumerate(placed):
        start = 0
        # Lengths 3 and 2 in a row of 6: segments 1 1 1 2 2 0, positions 0 1 2 0 1 0. Segment 0 is padding.
        for segment, index in enumerate(indices, 1):
            sequence = sequences[index]
            span = slice(start, start + len(sequence.tokens))
            ints["tokens"][row, span] = sequence.tokens
            ints["positions"][row, span] = np.arange(len(sequence.tokens))
            ints["segments"][row, span] = segment
            for name in names:
                floats[name][row, span] = getattr(sequence, name)
            temperature[row, span] = sequence.temperature
            start = span.stop
    arrays = {**ints, **floats, "temperature": temperature}
    fields: dict[str, Any] = {
        f"{name}_MBT": a.reshape(padded, rows, row_length) for name, a in arrays.items()
    }
    fields["micro"] = np.int32(micro)
    for name in ("ce", "rl", "kl"):
        # In float64, so that the total does not depend on the order of packing. A stream without weights is 0 / 1.
        total = (totals or {}).get(name, float(floats[name].sum(dtype=np.float64)))
        fields[f"{name}_total"] = np.float32(total or 1.0)
    return Batch(**fields)
