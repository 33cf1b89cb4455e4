"""Records: what the host keeps (Task, Verdict, Trace, Intervention) and what the device holds (NamedTuples of arrays).

A trace is token ids first; text is only for display. Masks and positions come from lengths, never from ids, so a pad
id that equals a stop id is harmless. Everything is right-padded.
"""

import dataclasses
import functools
import json
import math
import types
import typing
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Why a trace ended: a stop id was drawn; a limit of tokens was reached; the partner ended the conversation; its turns
# were used up.
STOPS = ("stop", "length", "partner", "turns")
REASONS = ("correct", "wrong", "no_answer", "unparsable", "timeout", "truncated")


class Verdict(NamedTuple):
    """What the verifier says of one response: `reason` is one of REASONS, `passed` is true for "correct" alone."""

    passed: bool
    score: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Task:
    """One problem. The policy sees `problem` only; `reference` and `answer` are for proposers and verifiers."""

    id: str
    domain: str
    problem: str
    reference: str = ""
    answer: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def normalised(problem: str) -> str:
    """What two texts of the same problem have in common: case, kinds of white space and Unicode forms do not count."""
    # NFC: é may be one letter, or an e and an accent.
    return " ".join(unicodedata.normalize("NFC", problem).split()).casefold()


class Reply(NamedTuple):
    """What a partner says to a turn of the policy's.

    Attributes:
      text: "" where it says nothing, which ends the conversation. tags: what the text tells, for verifiers alone.
      stop: why the conversation ends with it, one of STOPS; "" where it goes on, or where a silent partner leaves the
        trace's own.
    """

    text: str = ""
    tags: tuple[str, ...] = ()
    stop: str = ""


@dataclasses.dataclass(frozen=True)
class PartnerTurn:
    """A partner's turn in a trace: tokens[start:end], with what the chat template writes around it."""

    start: int
    end: int
    text: str
    tags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Trace:
    """A prompt and its response, as token ids. In a conversation the response is both sides' turns.

    Attributes:
      tokens: [length] int32, prompt and response; the stop token is kept.
      prompt_len: the response is tokens[prompt_len:].
      sampled: [length] bool, true where the policy itself drew the token (false for the prompt, a spliced
        intervention, a partner's turn).
      logp: [length] float32, log-probability (nats) of each drawn token at `temperature`, over the whole vocabulary;
        zero where `sampled` is false.
      step_ends: token offsets (exclusive) of the response's steps, recorded on the sampled ids. A step of a
        conversation is an own turn and the partner's after it.
      stop: why it ended, one of STOPS; "" where it is open, ready to be continued.
      drawn_by: (start, updates) in order: from that token offset on the policy drew as it was after so many updates.
      key: (seed, sample index); with the task's id it names the random stream.
      spliced: offset of the first token of the last spliced intervention, -1 if there is none.
      privileged: what it was shown or holds besides the problem and what the policy drew: "reference", "hint",
        "intervention" (privileged.py). A policy is trained on such traces, and never measured by one.
      partner: the partner's turns in it, in order.
      begin: of an open trace, the text with which its continuation must begin, "" where it is free. How a separator is
        spelled depends on what follows it, so a separator at the end of an open trace is left to the policy.
    """

    task: Task
    tokens: NDArray[np.int32]
    prompt_len: int
    sampled: NDArray[np.bool_]
    logp: NDArray[np.float32]
    temperature: float = 1.0
    step_ends: tuple[int, ...] = ()
    stop: str = ""
    verdict: Verdict | None = None
    drawn_by: tuple[tuple[int, int], ...] = ()
    key: tuple[int, int] = (0, 0)
    spliced: int = -1
    privileged: tuple[str, ...] = ()
    partner: tuple[PartnerTurn, ...] = ()
    begin: str = ""

    @property
    def response(self) -> np.ndarray:
        return self.tokens[self.prompt_len :]

    @property
    def judged(self) -> Verdict:
        """The verdict. Raises: ValueError where there is none yet."""
        if self.verdict is None:
            raise ValueError(
                f"task {self.task.id}: this trace has no verdict yet; ask rollout.verdicts for it"
            )
        return self.verdict

    def replace(self, **changes) -> "Trace":
        return dataclasses.replace(self, **changes)

    def extend(self, tokens: np.ndarray, logp: np.ndarray, **changes) -> "Trace":
        """The trace with what the policy drew after it; tokens and logp are those of the whole, as the sampler returns
        them, and `changes` go with it."""
        count = len(self.tokens)
        return self.replace(
            tokens=tokens,
            sampled=np.concatenate([self.sampled, np.ones(len(tokens) - count, bool)]),
            # What was drawn before keeps the log-probability with which it was drawn.
            logp=np.concatenate([self.logp, logp[count:]]),
            begin="",
            **changes,
        )

    @property
    def own(self) -> np.ndarray:
        """[length] bool: the tokens of the response that are no partner's."""
        own = np.arange(len(self.tokens)) >= self.prompt_len
        for turn in self.partner:
            own[turn.start : turn.end] = False
        return own

    def step_starts(self) -> tuple[int, ...]:
        """Token offsets where the steps begin: the response's start, then each earlier step's end."""
        return (self.prompt_len, *self.step_ends[:-1]) if self.step_ends else ()


@dataclasses.dataclass(frozen=True)
class Intervention:
    """One corrective step.

    Attributes:
      step: zero-based index of the step it replaces (the paper's location minus one).
      text: the step, without separator. ids: its token ids where they were drawn, with the separators around it as far
        as `Tokenizer.reopen` takes them off an attempt; () otherwise: the text is then encoded.
      source: the proposer's name. raw: the proposer's whole output, for audit.
    """

    step: int
    text: str
    ids: tuple[int, ...] = ()
    source: str = ""
    raw: str = ""


def to_json(value, apart: list[np.ndarray] | None = None):
    """A record, or what it holds, as plain JSON types; `from_json` brings it back bit for bit, float32 included.

    apart: where arrays go that are to stay what they are; their places are then written in their stead.
    """
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name), apart) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray) and apart is not None:
        apart.append(value)
        return len(apart) - 1
    if isinstance(value, np.ndarray):
        return value.astype(int).tolist() if value.dtype == bool else value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_json(item, apart) for item in value]
    return value


def from_json(kind: Any, data: Any, apart: Sequence[np.ndarray] | None = None) -> Any:
    """The record of the dataclass `kind` that `to_json` wrote; also what one of its fields holds, by the field's type.

    apart: the arrays of which `data` holds the places.

    Raises: KeyError, TypeError or ValueError where `data` is no such record.
    """
    record: Any = kind  # what is_dataclass narrows a type to cannot be called
    if dataclasses.is_dataclass(kind):
        hints, fields = _hints(record), dataclasses.fields(record)
        # Neither a default nor what makes one.
        needed = (f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING)
        if missing := [name for name in needed if name not in data]:
            raise KeyError(missing[0])
        if foreign := [name for name in data if name not in hints]:
            raise TypeError(f"{record.__name__} has no field {foreign[0]!r}")
        return record(**{name: from_json(hints[name], value, apart) for name, value in data.items()})
    if kind is Verdict:
        return Verdict(*data)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is np.ndarray:  # NDArray[np.int32] is ndarray[Any, dtype[np.int32]]
        return np.asarray(data if apart is None else apart[data], typing.get_args(args[1])[0])
    # tuple[int, ...], any number of one type; below, tuple[int, str], each its own.
    if origin is tuple and args[-1] is Ellipsis:
        return tuple(from_json(args[0], item, apart) for item in data)
    if origin is tuple:
        return tuple(from_json(each, item, apart) for each, item in zip(args, data, strict=True))
    if origin is types.UnionType:  # X | None
        return None if data is None else from_json(args[0], data, apart)
    return data


def to_bytes(values: list) -> bytes:
    """Records, or what they hold, as `to_json` has them, but for their arrays, whose bytes stand behind the text."""
    arrays: list[np.ndarray] = []
    text = json.dumps(
        [to_json(values, arrays), [(array.dtype.str, array.shape) for array in arrays]]
    ).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in arrays)])


def from_bytes(kind: Any, data: bytes) -> list:
    """The values, each of the type `kind` (`from_json`), that `to_bytes` was given."""
    end = 8 + int.from_bytes(data[:8], "little")
    values, forms = json.loads(data[8:end])
    arrays = []
    for dtype, shape in forms:
        flat = np.frombuffer(data, dtype, math.prod(shape), end)
        end += flat.nbytes
        arrays.append(flat.reshape(shape).copy())  # a view would keep all the bytes in memory
    return [from_json(kind, value, arrays) for value in values]


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


class Batch(NamedTuple):
    """One optimizer step's tokens, cut into micro-batches, with a weight per token for each of the three streams.

    The loss is sum(ce) / ce_total + sum(rl) / rl_total + sum(kl) / kl_total: the totals are over the global batch and
    are computed once, on the host, so that loss and gradient do not depend on how the batch was cut or packed.

    Attributes:
      tokens_MBT, positions_MBT: int32; positions restart with each packed sequence.
      segments_MBT: int32, 0 = padding, 1.. = the packed sequences of a row.
      ce_MBT, rl_MBT, kl_MBT: float32 weights of the token at t (predicted from the tokens before it).
      advantage_MBT: float32. sampler_logp_MBT: float32, as the sampler drew it. reference_logp_MBT: float32.
      old_logp_MBT: float32, of the policy to which the ratio is taken, where it is not the update's own.
      temperature_MBT: float32, the sampling temperature at which the log-probability is taken.
      micro: how many of the M micro-batches are in use; the rest are padding of the shape and cost nothing.
    """

    tokens_MBT: Any
    positions_MBT: Any
    segments_MBT: Any
    ce_MBT: Any
    rl_MBT: Any
    kl_MBT: Any
    advantage_MBT: Any
    sampler_logp_MBT: Any
    reference_logp_MBT: Any
    old_logp_MBT: Any
    temperature_MBT: Any
    micro: Any
    ce_total: Any
    rl_total: Any
    kl_total: Any


class State(NamedTuple):
    """What a checkpoint holds, and nothing else: data order and randomness are functions of (seed, step)."""

    step: Any
    params: Any
    opt: Any
