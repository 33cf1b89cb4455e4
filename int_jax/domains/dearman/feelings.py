"""What a person says of themselves before and after a rehearsal. It is asked, never inferred from what they write."""

import dataclasses

NAMES = ("fear", "sadness", "anger", "confidence")
LOWEST, HIGHEST = 1, 7
QUESTION = "How much {name} do you feel now, from 1 (none) to 7 (very much)?"


@dataclasses.dataclass(frozen=True)
class Feelings:
    """Answers from 1, none, to 7, very much. Raises: ValueError, naming the answer, for any other."""

    fear: int
    sadness: int
    anger: int
    confidence: int

    def __post_init__(self) -> None:
        for name in NAMES:
            value = getattr(self, name)
            if type(value) is not int or not LOWEST <= value <= HIGHEST:
                raise ValueError(
                    f"{name} is {value!r}: answer with a whole number from {LOWEST} to {HIGHEST}"
                )


def change(before: Feelings, after: Feelings) -> dict[str, int]:
    """By name, after minus before: from -6 to 6."""
    return {name: getattr(after, name) - getattr(before, name) for name in NAMES}
