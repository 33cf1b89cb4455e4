"""results.json and the scalars of training: written whole or not at all, equal numbers as equal bytes."""

import dataclasses
import json
import math
import pathlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from int_jax import disk
from int_jax.stages import told_if_full, write_atomically

# Every known key, in the order in which it is written and shown; unknown keys follow, by name.
ORDER = (
    *("config", "seed", "versions", "policies", "conversations", "finished", "wall_s", "notes", "stopped"),
    "tokens",
    *("funnel", "effect"),
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
        "scores",
        "gain",
        "measures",
        "intervention_gain",
        "proposers",
        "graders",
        "validation",
        "drift",
        "nll",
        "entropy",
    ),
    *("solved", "exact", "located", "traces", "mean", "accuracy", "ci95", "samples"),
    *("reward", "zero_advantage", "never", "sometimes", "always", "length", "logp_gap"),
)


def rank(key: str) -> tuple:
    """Known keys in ORDER, then the others by name, numbers in them by size (pass@8 before pass@16)."""
    # "pass@16" -> [(1, 0, "pass@"), (0, 16, ""), (1, 0, "")]: numbers compare as numbers, texts as texts.
    natural = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", key)]
    return (ORDER.index(key) if key in ORDER else len(ORDER), natural)


def plain(value: Any, path: str = "") -> Any:
    """`value` as JSON types with keys in order. NaN and infinity are None (shown as "diverged"); foreign types raise,
    naming the key path."""
    if isinstance(value, (np.generic, np.ndarray)):
        # Of an array lists, of a scalar the number of Python.
        value = value.tolist()
    if isinstance(value, Mapping):
        # json would write the key 1 as "1", and it would come back as another.
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
        disk.place(path),
        json.dumps(plain(results), indent=1, allow_nan=False, ensure_ascii=False) + "\n",
    )


class Writer(Protocol):
    """Where the scalars of a training go."""

    def write(self, step: int, mapping: Mapping[str, float]) -> None:
        """Log some at a step of the training, an update's number from 0. They need not be finite."""

    def close(self) -> None:
        """All is written: nothing is lost once this returns."""


@dataclasses.dataclass(frozen=True)
class Series:
    """What a writer is told of the training whose scalars it takes.

    Attributes:
      folder: where it may keep files of its own. name, group: the training's, and its run's. config: the run's.
      id: names the training and no other, the same at every start.
      resume_step: the first step that is still to come: what an interrupted run wrote there and later will be written
        again, with the same numbers, but for times; None: nothing is.
      written: the last step that any start before this one wrote; -1: none.
    """

    folder: pathlib.Path
    name: str = ""
    group: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    id: str = ""
    resume_step: int | None = None
    written: int = -1


class Scalars:
    """The scalars of one training (one step axis): lines in `folder/scalars.jsonl`, from which a run resumes, and what
    further writers make of them.

    `resume_step=k` forgets what an interrupted run wrote at step k and later; which step that had come to, the note
    `folder/series.json` keeps. A last line torn by a kill is always dropped. A value that is not finite is null in the
    JSONL, whose lines hold no times: a resumed run ends with the bytes of an uninterrupted one.
    """

    def __init__(
        self,
        folder,
        resume_step: int | None = None,
        builds: Sequence[Callable[[Series], Writer]] = (),
        name: str = "",
        group: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        """builds: make the further writers, at the first line: a training that is over has none."""
        folder = disk.place(folder)
        self.path, note = folder / "scalars.jsonl", folder / "series.json"
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        known: dict[str, Any] = {"id": secrets.token_hex(6), "written": -1}
        if note.exists():
            known = json.loads(note.read_text())
        # Before the lines from resume_step on are dropped: a writer elsewhere may have them already.
        steps = [json.loads(line)["step"] for line in _whole_lines(text)]
        known["written"] = max([known["written"], *steps])
        write_atomically(note, json.dumps(known) + "\n")
        write_atomically(self.path, _kept_lines(text, resume_step))
        self._series = Series(folder, name, group, config or {}, resume_step=resume_step, **known)
        self._builds, self._writers = builds, list[Writer]()

    def write(
        self, step: int, mapping: Mapping[str, float], watched: Mapping[str, float] | None = None
    ) -> None:
        """Log `mapping` at `step`. What was watched meanwhile, such as times, goes to the further writers alone."""
        values = {name: float(value) for name, value in mapping.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with told_if_full(self.path):
            disk.append(self.path, json.dumps({"step": int(step), **finite}) + "\n")
        if not self._writers:
            self._writers = [build(self._series) for build in self._builds]
        for writer in self._writers:
            writer.write(int(step), {**values, **(watched or {})})

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _whole_lines(text: str) -> list[str]:
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _kept_lines(text: str, resume_step: int | None) -> str:
    """The whole lines of a JSONL whose step is before `resume_step` (None: all of them)."""
    whole = _whole_lines(text)
    return "".join(line for line in whole if resume_step is None or json.loads(line)["step"] < resume_step)
