"""results.json and the scalars of training: written whole or not at all, equal numbers as equal bytes."""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tensorboardX

from int_jax.stages import write_atomically

# Every known key, in the order in which it is written and shown; unknown keys follow, by name.
ORDER = (
    *("config", "seed", "versions", "policies", "wall_s", "notes", "stopped", "tokens", "funnel", "effect"),
    *(
        "problems",
        "hard",
        "attempts",
        "wrong",
        "proposals",
        "proposed",
        "unparsed",
        "not_located",
        "out_of_range",
        "empty",
    ),
    *("leaked", "too_long", "spliced", "guided", "kept", "kept_right", "problems_kept"),
    *("problem", "prefix", "prefix_error", "prefix_intervention", "intervention", "reference"),
    *(
        "base",
        "sft",
        "rl",
        "rl_matched",
        "int",
        "int_rl",
        "eval",
        "eval_train",
        "gain",
        "proposers",
        "graders",
        "drift",
        "nll",
        "entropy",
    ),
    *("solved", "exact", "located", "traces", "mean", "accuracy", "ci95", "samples"),
    *("reward", "zero_advantage", "never", "sometimes", "always", "length", "logp_gap"),
)


def rank(key: str) -> tuple:
    """Known keys in ORDER, then the others by name, numbers in them by size (pass@8 before pass@16)."""
    natural = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", key)]
    return (ORDER.index(key) if key in ORDER else len(ORDER), natural)


def plain(value: Any, path: str = "") -> Any:
    """`value` as JSON types with keys in order. NaN and infinity are None (shown as "diverged"); foreign types raise,
    naming the key path."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Mapping):
        if foreign := [key for key in value if not isinstance(key, str)]:
            raise TypeError(
                f"results: {path or 'the top level'} has the key {foreign[0]!r}; keys must be strings"
            )
        return {key: plain(value[key], f"{path}.{key}" if path else key) for key in sorted(value, key=rank)}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"results: {path} is a {type(value).__name__}; use numbers, strings, lists and dicts")
    return value


def write_results(path, results: Mapping) -> None:
    """Write results.json atomically, keys in a fixed order, so that equal results are equal bytes."""
    write_atomically(
        pathlib.Path(path),
        json.dumps(plain(results), indent=1, allow_nan=False, ensure_ascii=False) + "\n",
    )


class Writer(Protocol):
    """Where the scalars of training go."""

    def write(self, step: int, mapping: Mapping[str, float]) -> None:
        """Log some at a step of the stage, an update's number from 0."""

    def close(self) -> None:
        """All is written: nothing is lost once this returns."""


class Scalars:
    """A `Writer` of one stage (one step axis): TensorBoard events, and the same lines in `logdir/scalars.jsonl`.

    `resume_step=k` forgets what an interrupted run wrote at step k and later, in both. A last line torn by a kill is
    always dropped. A value that is not finite is null in the JSONL, whose lines hold no times: a resumed run ends
    with the bytes of an uninterrupted one.
    """

    def __init__(self, logdir, resume_step: int | None = None):
        self.path = pathlib.Path(logdir) / "scalars.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            write_atomically(self.path, _kept_lines(self.path.read_text(encoding="utf-8"), resume_step))
        self._lines = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._events = tensorboardX.SummaryWriter(str(logdir), purge_step=resume_step, flush_secs=10)

    def write(self, step: int, mapping: Mapping[str, float], prefix: str = "") -> None:
        """Log `mapping` at `step`; `prefix` ("rl") groups the tags ("rl/reward")."""
        values = {f"{prefix}/{name}" if prefix else name: float(value) for name, value in mapping.items()}
        for tag, value in values.items():
            self._events.add_scalar(tag, value, int(step))
        finite = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        self._lines.write(json.dumps({"step": int(step), **finite}) + "\n")
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()
        self._events.close()

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _kept_lines(text: str, resume_step: int | None) -> str:
    """The whole lines of a JSONL whose step is before `resume_step` (None: all of them)."""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return "".join(line for line in whole if resume_step is None or json.loads(line)["step"] < resume_step)
