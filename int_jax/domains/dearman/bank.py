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

from int_jax.domains import authored
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


def load(file: str | Path = FILE) -> list[Pair]:
    """The pairs of a file. Raises: ValueError, a line a fault."""
    return authored.load(_pairs, Path(file))


def add(file: str | Path, pair: Pair) -> None:
    """Appends a pair to a user's file, which is made if it is not there. Raises: ValueError for a faulty pair."""
    row = dataclasses.asdict(pair)
    authored.load(lambda faults: _pair(authored.Place(row, f"{file}: the pair to add", "", faults)))
    with Path(file).open("a", encoding="utf-8") as out:
        out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _pairs(path: Path, faults: list[str]) -> list[Pair]:
    return [_pair(row) for row in authored.rows(path, faults, least=0)]


def _pair(row: authored.Place) -> Pair:
    fields = row.fields(field.name for field in dataclasses.fields(Pair))
    weak, better, situation = (fields[field].text() for field in ("weak", "better", "situation"))
    if weak and weak.split() == better.split():
        fields["better"].fault("weak and better are the same", "what changes")
    gain = fields["gain"].value
    if type(gain) not in (int, float) or not math.isfinite(gain):
        fields["gain"].wrong("is no number", "one that is finite")
    skill, reply = fields["skill"].one_of(SKILLS), fields["reply"].one_of(("", *TYPES))
    return Pair(weak, better, skill, situation, reply, gain)


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
