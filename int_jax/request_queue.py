"""Which request runs in which slot: the host's side of `Engine.generate`. It knows no model and no device."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Start(NamedTuple):
    """Requests that begin together in free slots; their prompts are of one block.

    Attributes:
      block: the block's number; `prompts` are its distinct prompts, to be prefilled once.
      rows: [n] slots. requests: [n] indices of the requests. which: [n] the prompt that each begins with.
    """

    block: int
    prompts: list[tuple[int, ...]]
    rows: np.ndarray
    requests: list[int]
    which: list[int]


class RequestQueue:
    """Requests that wait for a slot, and those that have one.

    Distinct prompts are taken shortest first, in blocks of a quarter of the slots, so that prompts of a block have
    about one length. All samples of a block begin before any of the next: only one block's prefill is held at a time.

    Args:
      prompts: of each request. slots: rows of the sampler.

    Attributes:
      size: prompts of a block, requests of a Start, and free slots for which decoding stops early, at most.
      samples: the requests of each distinct prompt.
      owner_B: the request that runs in each slot, -1 where none does.
    """

    def __init__(self, prompts: Sequence[tuple[int, ...]], slots: int):
        self.size = max(1, slots // 4)
        self.samples: dict[tuple[int, ...], list[int]] = {}
        for request, prompt in enumerate(prompts):
            self.samples.setdefault(prompt, []).append(request)
        # Prompts A A B over 8 slots: blocks of 2, [[A, B]]; waiting, as (block, prompt, request), are (0, 0, 0),
        # (0, 0, 1), (0, 1, 2).
        ordered = sorted(self.samples, key=len)
        self._blocks = [ordered[i : i + self.size] for i in range(0, len(ordered), self.size)]
        self._waiting = collections.deque(
            (block, which, request)
            for block, distinct in enumerate(self._blocks)
            for which, prompt in enumerate(distinct)
            for request in self.samples[prompt]
        )
        self.owner_B = np.full(slots, -1)

    def __bool__(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._waiting) or bool((self.owner_B >= 0).any())

    def running(self) -> np.ndarray:
        """The slots in use, ascending."""
        return np.flatnonzero(self.owner_B >= 0)

    def fill(self) -> list[Start]:
        """Give waiting requests the free slots, until there are no more of either."""
        starts: list[Start] = []
        free = np.flatnonzero(self.owner_B < 0)
        while self._waiting and len(free):
            block = self._waiting[0][0]
            # Of one block, `size` at most (the arrays of one insertion have so many entries), and no more than there
            # are free slots.
            taken: list[tuple[int, int, int]] = []
            while self._waiting and self._waiting[0][0] == block and len(taken) < min(self.size, len(free)):
                taken.append(self._waiting.popleft())
            rows, free = free[: len(taken)], free[len(taken) :]
            requests, which = [request for *_, request in taken], [which for _, which, _ in taken]
            self.owner_B[rows] = requests
            starts.append(Start(block, self._blocks[block], rows, requests, which))
        return starts

    def least_running(self) -> int:
        """Decoding goes on while so many rows run: where requests wait, until `size` slots can be filled at once."""
        # 16 slots, all in use, size 4: on while 13 run, so that it stops when 4 are free.
        return max(1, len(self.running()) - self.size + 1) if self._waiting else 1

    def release(self, rows: np.ndarray) -> None:
        """Free the slots of requests that have ended."""
        self.owner_B[rows] = -1
