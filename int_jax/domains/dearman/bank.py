"""Contrasting pairs: a weak utterance and a better one in the same place, found again by how alike situations sound.

The package's pairs are in assets/dearman/bank.jsonl, a line a pair; a user's file beside them grows with every
intervention that is accepted. Texts are compared by hashed n-grams of letters: no model, the same on every machine.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from int_jax.domains.dearman.situations import ASSETS, STATES, STRATEGIES, TYPES

FILE = ASSETS / "bank.jsonl"
SKILLS = STRATEGIES + STATES
SIZE = 1024  # of a vector
NGRAMS = (3, 4)  # letters


@dataclasses.dataclass(frozen=True)
class Pair:
    """A contrasting pair.

    Attributes:
      weak, better: the two utterances. skill: one of SKILLS, which the better one has. situation: its id, or a text.
      reply: the type of the reply that it answers, "" at the beginning. gain: of the expected score, by the script.
    """

    weak: str
    better: str
    skill: str
    situation: str
    reply: str
    gain: float

    def fault(self) -> str:
        """What is wrong with it; "" where nothing is."""
        for name in ("weak", "better", "situation"):
            if not isinstance(value := getattr(self, name), str) or not value.strip():
                return f"{name} is {value!r:.40}: write a text that is not empty"
        if self.weak.split() == self.better.split():
            return "weak and better are the same: say what changes"
        if self.skill not in SKILLS:
            return f"skill is {self.skill!r:.40}: choose one of {', '.join(SKILLS)}"
        if self.reply not in ("", *TYPES):
            return f"reply is {self.reply!r:.40}: choose one of {', '.join(TYPES)}, or an empty text"
        if type(self.gain) not in (int, float) or not math.isfinite(self.gain):
            return f"gain is {self.gain!r:.40}: write a number"
        return ""


def load(file: str | Path = FILE) -> list[Pair]:
    """The pairs of a file. Raises: ValueError, naming file, line and field."""
    found = []
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        place = f"{file}: line {number}"
        try:
            pair = Pair(**json.loads(line))
        except (ValueError, TypeError) as error:
            fields = ", ".join(field.name for field in dataclasses.fields(Pair))
            raise ValueError(f"{place}: write a JSON object with {fields} ({error})") from None
        if fault := pair.fault():
            raise ValueError(f"{place}: {fault}")
        found.append(pair)
    return found


def add(file: str | Path, pair: Pair) -> None:
    """Appends a pair to a user's file, which is made if it is not there. Raises: ValueError for a faulty pair."""
    if fault := pair.fault():
        raise ValueError(f"this pair is not added to {file}: {fault}")
    with Path(file).open("a", encoding="utf-8") as out:
        out.write(json.dumps(dataclasses.asdict(pair), ensure_ascii=False) + "\n")


def vector(text: str) -> np.ndarray:
    """[SIZE] float32 of length 1, or zero where there is no text: signed counts of the text's n-grams by their hash."""
    found = np.zeros(SIZE, np.float32)
    spelled = f" {' '.join(text.casefold().split())} "
    for n in NGRAMS:
        for i in range(len(spelled) - n + 1):
            # hash() differs from process to process.
            digest = hashlib.blake2b(spelled[i : i + n].encode(), digest_size=4).digest()
            number = int.from_bytes(digest, "little")
            found[number % SIZE] += 1 if number & 2**31 else -1
    length = float(np.linalg.norm(found))
    return found / length if length else found


class Bank:
    """Pairs, ready to be looked up."""

    def __init__(self, pairs: Sequence[Pair]):
        self.pairs = list(pairs)
        rows = [vector(f"{pair.situation} {pair.weak}") for pair in self.pairs]
        self.vectors_ND = np.stack(rows) if rows else np.zeros((0, SIZE), np.float32)

    def nearest(
        self, text: str, count: int = 3, reply: str | None = None, skill: str | None = None
    ) -> list[tuple[float, Pair]]:
        """The pairs whose situation and weak utterance are most like a text, with their cosine; of
        those that are equally near the earlier one. reply, skill: those of that reply or skill alone."""
        near_N = self.vectors_ND @ vector(text)
        fits = [
            i
            for i, pair in enumerate(self.pairs)
            if reply in (None, pair.reply) and skill in (None, pair.skill)
        ]
        fits.sort(key=lambda i: (-float(near_N[i]), i))
        return [(float(near_N[i]), self.pairs[i]) for i in fits[:count]]
