"""Replays the sampler's schedule over the recipe of the paper with drawn lengths: what is in use, and the hours.

    python benchmarks/replay.py            # some minutes; --quick: half a minute

No device and no model: `int_jax/schedule.py` itself is driven as `EngineSession` and the rollouts drive it, with
Qwen3-4B's sizes. Lengths are drawn from lognormal distributions; everything that is assumed is printed.
A token of the schedule stands for `--unit` tokens, which are then drawn in one chunk. Where a stage has many more
requests than rows a part of its problems is replayed, and the time up to the last request's admission multiplied: the
tail is counted once. `--out benchmarks/results/replay.jsonl` appends a line for each stage and machine.
"""

import abc
import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiments import work  # noqa: E402
from experiments.work import SPREAD, SQUARE  # noqa: E402
from int_jax import roofline  # noqa: E402
from int_jax.engine import SHARE, Engine  # noqa: E402
from int_jax.processes import shares  # noqa: E402
from int_jax.roofline import NAMES, Device, Shape, told  # noqa: E402
from int_jax.schedule import Pool, Row, Schedule  # noqa: E402
from int_jax.session import known_pages  # noqa: E402

GIB = 1 << 30
NEW = work.LIMIT
# Medians, tokens. A response is cut at NEW, a prefix at 16,384, too. A problem, a reference and an intervention are of
# all alike.
ASSUMED = work.Assumed()
RESPONSE, PREFIX, CONTINUATION, CHECK = (
    int(tokens) for tokens in (ASSUMED.response, ASSUMED.prefix, ASSUMED.continuation, ASSUMED.check)
)
PROBLEM, REFERENCE, INTERVENTION = map(int, (ASSUMED.problem, ASSUMED.reference, ASSUMED.intervention))
# A guided attempt that can be continued to a right answer, and how often a continuation of it is right.
MENDED, RIGHT = 0.5, 0.15


# tests/shapes/qwen3_4b.json: 36 layers, 32 query heads and 8 of keys and values, of 128.
QWEN3_4B = Shape(4.022e9, 36, 2 * 36 * 8 * 128 * 2, 4 * 36 * 32 * 128)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Processes with some replicas each, one device a replica.

    Attributes:
      memory: GiB of a device. rows: of a replica. plain: share of the operations that training reaches without flash
        attention, by the compiler's figures (on GPU half of them); with it that of roofline.SPEEDS.
    """

    name: str
    device: Device
    processes: int
    replicas: int
    memory: float
    rows: int
    plain: float

    def pages(self, shape: Shape, page: int) -> int:
        """Of each replica, as `Engine._most_pages`."""
        return int((SHARE * self.memory * GIB - shape.weights) / (shape.token * page))


H200 = Machine("1 x H200", NAMES["h200"], 1, 1, 131.0, 128, 0.031)
V5P = Machine("v5p, 1 chip", NAMES["v5p"], 1, 1, 95.0, 96, 0.068)
NODE = dataclasses.replace(H200, name="8 x H200", replicas=8)
NODES = dataclasses.replace(H200, name="64 x H200", processes=8, replicas=8)
HOST = dataclasses.replace(V5P, name="v5p-8", replicas=4)
HOSTS = dataclasses.replace(V5P, name="v5p-64", processes=8, replicas=4)
PRESENT = {"8 x H200": 690, "v5p-8": 1_490, "v5p-64": 270}  # hours of the sampler before it had pages


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sampler's own, as `Engine` has them. new: tokens of a response at most. unit: tokens that one of the schedule
    stands for."""

    rows: int
    page: int = 128
    decode_steps: int = Engine.decode_steps
    prefill_width: int = Engine.prefill_width
    prefill_tokens: int = Engine.prefill_tokens
    ahead: bool = True
    new: int = NEW
    unit: int = 32

    def units(self, tokens: int) -> int:
        return -(-tokens // self.unit)


# Requests -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Ask:
    """A request. item: what it is for. prompt, new: tokens given and drawn. turn: requests of one item and turn have
    one prompt, and that of turn 1 goes on from the answer to turn 0."""

    item: int
    prompt: int
    new: int
    turn: int = 0


class Stage(abc.ABC):
    """What is asked for each item first, and after each answer. Lengths are a function of (seed, item)."""

    def __init__(self, seed: int):
        self.seed = seed

    def rng(self, item: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, item])

    def size(self, item: int) -> int:
        """What is known of an item beforehand, for `processes.shares`."""
        return PROBLEM

    @abc.abstractmethod
    def first(self, item: int) -> list[Ask]:
        """What is asked for an item before anything is answered."""

    def then(self, ask: Ask) -> list[Ask]:
        return []


def length(rng: np.random.Generator, median: float, most: int = NEW) -> int:
    return int(np.clip(rng.lognormal(math.log(median), SPREAD), 1, most))


class Samples(Stage):
    """Samples of one prompt each: attempts, evaluation, a batch of the policy gradient, a condition of the table."""

    def __init__(self, seed: int, samples: int, median: int = RESPONSE, prefix: int = 0):
        super().__init__(seed)
        self.samples, self.median, self.prefix = samples, median, prefix

    def size(self, item):
        return PROBLEM + (length(self.rng(item), self.prefix) + INTERVENTION if self.prefix else 0)

    def first(self, item):
        rng = np.random.default_rng([self.seed, item, 1])
        prompt = self.size(item)
        return [Ask(item, prompt, length(rng, self.median)) for _ in range(self.samples)]


class Proposals(Stage):
    """An answer with the reference in view, then candidates of a check of the attempt in the same conversation."""

    def __init__(self, seed: int, samples: int = 4):
        super().__init__(seed)
        self.samples = samples

    def size(self, item):
        return length(self.rng(item), RESPONSE)  # the attempt

    def first(self, item):
        rng = np.random.default_rng([self.seed, item, 1])
        return [Ask(item, PROBLEM + REFERENCE, length(rng, CHECK))]

    def then(self, ask):
        if ask.turn:
            return []
        rng = np.random.default_rng([self.seed, ask.item, 2])
        prompt = min(ask.prompt + ask.new + PROBLEM + self.size(ask.item), 30_000)
        news = [length(rng, CHECK) for _ in range(self.samples)]
        return [Ask(ask.item, prompt, new, 1) for new in news]


class Guided(Samples):
    """Continuations in rounds until one is right."""

    def __init__(self, seed: int, tries: int = 32, at_once: int = 8):
        super().__init__(seed, tries, CONTINUATION, PREFIX)
        self.at_once = at_once
        self.open: dict[int, tuple[int, int]] = {}  # of an item: tries asked for, and of these not answered

    def first(self, item):
        self.open[item] = self.at_once, self.at_once
        return super().first(item)[: self.at_once]

    def then(self, ask):
        asked, missing = self.open[ask.item]
        self.open[ask.item] = asked, missing - 1
        rng = np.random.default_rng([self.seed, ask.item, 2])
        wins = (rng.random(self.samples) < RIGHT) & (rng.random() < MENDED)
        if missing > 1 or wins[:asked].any() or asked == self.samples:
            return []
        self.open[ask.item] = asked + self.at_once, self.at_once
        return super().first(ask.item)[asked : asked + self.at_once]


# The session ----------------------------------------------------------------------------------------------------------

# What a chunk is, of a process; tokens but where another unit stands. Sums over steps and replicas: drawn, live (keys
# and values of rows that run), read (whole pages of all rows that sit), once (these, with what rows share counted once)
# and padded (what the xla layout gathers). steps: of the longest loop; read_most, once_most: of the replica with the
# most. prefilled: in the shapes of the programs, of one replica; seen: tokens before each of these, summed; programs:
# of prefill. waiting, running: requests; held: pages, at the chunk's end.
FIELDS = (
    *("waiting", "steps", "drawn", "live", "read", "read_most", "once", "once_most", "padded"),
    *("prefilled", "seen", "programs", "held", "running"),
)


class Session:
    """`session.EngineSession` without a device: its rounds over a real schedule, and what each chunk costs."""

    def __init__(self, stage: Stage, items: Sequence[int], replicas: int, pages: int, sizes: Sizes):
        self.stage, self.sizes, self.replicas = stage, sizes, replicas
        # Chunks of one unit where a unit is longer than a chunk: with as many tokens to prefill in proportion.
        self.steps = max(1, sizes.decode_steps // sizes.unit)
        self.longer = max(1, sizes.unit // sizes.decode_steps)
        page = sizes.units(sizes.page)
        self.schedule = Schedule([Pool(pages, page) for _ in range(replicas)], sizes.rows)
        self.asks: list[Ask] = []
        self.left: list[int] = []  # tokens of each request that the device has not drawn
        self.ended = self.decodes = 0
        self.flight: list[tuple[Row, int]] | None = None
        self.seats = self.size = 0
        self.chunks: list[tuple] = []
        self.add(itertools.chain(*(stage.first(item) for item in items)))

    def add(self, asks: Iterable[Ask], before: Sequence[int] = ()) -> None:
        """Queue requests; before: what those of a second turn go on from."""
        rows = []
        for ask in asks:
            prompt = self.sizes.units(ask.prompt)
            tokens = [*before[:prompt]] if ask.turn else []
            # No two items have a token in common.
            first = (2 * ask.item + ask.turn) << 20
            tokens += range(first + len(tokens), first + prompt)
            rows.append(Row(len(self.asks), tokens, prompt, prompt + self.sizes.units(self.sizes.new)))
            self.asks.append(ask)
            self.left.append(ask.new)
        if rows:
            self.schedule.add(rows)

    def run(self) -> np.ndarray:
        """The chunks, by FIELDS."""
        while self.schedule:
            self._round()
        self._read(self.flight)
        return np.array(self.chunks, np.float64).reshape(-1, len(FIELDS))

    def _round(self) -> None:
        schedule = self.schedule
        schedule.admit()
        prefill = self._prefill()
        last = self.flight
        if last is not None and (schedule.short(self.steps) or self._size() != self.seats):
            self.flight = None
            self._read(last)
            self._note(prefill, [0] * self.replicas, *[0] * 6)
            return
        rows = schedule.decode(self.steps)
        if any(rows):
            self.flight = self._decode(rows, prefill)
            if last is not None or not self.sizes.ahead:
                self._read(last if self.sizes.ahead else self.flight)
                self.flight = self.flight if self.sizes.ahead else None
            return
        self.flight = None
        self._read(last)
        self._note(prefill, [0] * self.replicas, *[0] * 6)

    def _size(self) -> int:
        most = self._padded(max(sum(row.ready for row in rows) for rows in self.schedule.rows))
        self.size = most if most > self.size or 8 * most <= self.size else self.size
        return self.size

    def _padded(self, count: int) -> int:
        size = 4
        while size < count:
            size *= 4
        return min(size, self.schedule.most)

    def _prefill(self) -> tuple[float, float, int]:
        """As `EngineSession._prefill`: tokens, each one's tokens before it, and programs."""
        sizes, tokens, seen, programs = self.sizes, 0, 0.0, 0
        most = max(1, sizes.prefill_width // sizes.unit)
        budget = max(1, sizes.prefill_tokens * self.longer // sizes.unit)
        while True:
            pairs = self.schedule.copies()
            pieces = self.schedule.prefill(budget, most)
            if not pieces and not pairs:
                return tokens, seen, programs
            budget -= sum(count for _, count in pieces)
            pieces.sort(key=lambda piece: -piece[1])
            while pieces:
                width = 32
                while width < pieces[0][1] * sizes.unit:
                    width *= 2
                replicas: list[list] = [[] for _ in range(self.replicas)]
                for piece in pieces:
                    replicas[piece[0].replica].append(piece)
                alike = max(sum(2 * n * sizes.unit > width for _, n in some) for some in replicas)
                size = self._padded(alike) if alike > 1 else 1
                size = max(1, min(size, sizes.prefill_tokens // width))
                longest = max(row.cached for some in replicas for row, _ in some[:size]) * sizes.unit
                tokens, seen, programs = (
                    tokens + size * width,
                    seen + size * width * (longest - width / 2),
                    programs + 1,
                )
                pieces = sorted((p for some in replicas for p in some[size:]), key=lambda piece: -piece[1])

    def _decode(self, rows: list[list[Row]], prefill) -> list[tuple[Row, int]]:
        """Dispatch a chunk: the rows, and the units that the device draws of each."""
        schedule, unit, page = self.schedule, self.sizes.unit, self.sizes.page
        flight, took = [], []
        drawn = live = read = once = read_most = once_most = 0.0
        longest = 0
        self.seats = self._size()
        self.decodes += 1
        for replica, some in enumerate(rows):
            left = [self.left[row.number] for row in some]
            units = -(-self._until(left, len(some)) // unit)
            steps = min(units * unit, max(left, default=0))
            lived = touched = 0.0
            for row, rest in zip(some, left, strict=True):
                count = min(rest, units * unit)
                # It stands where the device has it, which may be a chunk ahead of what the host knows.
                known = self.asks[row.number].prompt + self.asks[row.number].new - rest
                longest = max(longest, known)
                lived += count * (known + count / 2)
                # Rows that have ended stay until the host knows: they are read, too.
                touched += steps * (-(-int(known + count / 2) // page) * page)
                drawn += count
                self.left[row.number] -= count
                row.ahead += self.steps
                flight.append((row, -(-count // unit)))
            pool = schedule.pools[replica]
            unique = min(touched, steps * (pool.count - 1 - pool.available) * page)
            live, read, once = live + lived, read + touched, once + unique
            read_most, once_most = max(read_most, touched), max(once_most, unique)
            took.append(steps)
        pages = known_pages(-(-longest // page))
        padded = max(took) * self.replicas * self.seats * pages * page
        self._note(prefill, took, drawn, live, read, read_most, once, once_most, padded)
        return flight

    def _until(self, left: list[int], count: int) -> int:
        """Steps of a replica's loop: until it is at its end, or so many rows have ended that others could begin."""
        least = 1
        if self.schedule.waiting:
            least = max(1, count - max(1, self.schedule.most // 4) + 1)
        if count < least or not count:
            return 0
        # It goes on while at least `least` of them run: until the least-th longest has ended.
        return min(self.steps * self.sizes.unit, sorted(left, reverse=True)[least - 1])

    def _note(self, prefill, took, drawn=0, live=0, read=0, read_most=0, once=0, once_most=0, padded=0):
        schedule = self.schedule
        held = sum(pool.count - 1 - pool.available for pool in schedule.pools)
        running = sum(map(len, schedule.rows))
        some = (schedule.waiting, max(took), drawn, live, read, read_most, once, once_most, padded)
        self.chunks.append((*some, *prefill, held, running))

    def _read(self, flight: list[tuple[Row, int]] | None) -> None:
        for row, count in flight or ():
            row.ahead -= self.steps
            if row.replica < 0:
                continue
            ask = self.asks[row.number]
            start = ((row.number + 1) << 40) + len(row.tokens)
            self.schedule.drew(row, [*range(start, start + count)], ())
            if len(row.tokens) - row.prompt == self.sizes.units(ask.new):
                self.schedule.end(row)
                self.ended += 1
                self.add(self.stage.then(ask), row.tokens)


class Overlapping(Session):
    """Batches of a policy gradient with a lag, as `rollout.advance` draws them: some of the next ones in the places
    that one leaves free; behind each all pages are empty, and what was begun is prefilled again.

    Attributes:
      starts: the chunk with which each batch begins. counts: what was prefilled, shared and put back before it.
    """

    def __init__(
        self,
        stage: Stage,
        batches: Sequence[Sequence[int]],
        lag: int,
        replicas: int,
        pages: int,
        sizes: Sizes,
    ):
        super().__init__(stage, [*itertools.chain(*batches[: 1 + lag])], replicas, pages, sizes)
        self.batches, self.lag, self.pages = batches, lag, pages
        self.starts: list[int] = []
        self.counts: list[tuple[int, int, int]] = []

    def run(self) -> np.ndarray:
        total = (0, 0, 0)
        for number in range(len(self.batches)):
            self.starts.append(len(self.chunks))
            self.counts.append(total)
            mine = {*self.batches[number]}
            while any(left and ask.item in mine for ask, left in zip(self.asks, self.left, strict=True)):
                self._round()
            self._read(self.flight)
            self.flight = None
            old, page = self.schedule, self.sizes.units(self.sizes.page)
            now = (old.prefilled, old.shared, old.put_back)
            total = tuple(a + b for a, b in zip(total, now, strict=True))
            rows = sorted(old.put_all_back(), key=lambda row: row.number)
            self.schedule = Schedule([Pool(self.pages, page) for _ in range(self.replicas)], self.sizes.rows)
            self.schedule.add(rows)
            self.seats = self.size = 0
            for items in self.batches[number + 1 + self.lag : number + 2 + self.lag]:
                self.add(itertools.chain(*(self.stage.first(item) for item in items)))
        self.starts.append(len(self.chunks))
        self.counts.append(total)
        return np.array(self.chunks, np.float64).reshape(-1, len(FIELDS))


# Stages ---------------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A stage of the recipe. make(seed): what it asks; items: of one session; requests: of an item, about; times:
    sessions, one after another, each of all items; lag: those that overlap with one."""

    name: str
    make: Callable[[int], Stage]
    items: int
    requests: int
    times: int = 1
    lag: int = 0


LAGS = 1, 2, 4
BATCHES = 12  # of those that overlap: so many are replayed, and the first ones and the last ones left out
RECIPE = (
    Part("attempts", functools.partial(Samples, samples=64), 4_500, 64),
    Part("proposals", Proposals, 16_190, 5),
    Part(
        "guided, all tries",
        functools.partial(Samples, samples=32, median=CONTINUATION, prefix=PREFIX),
        14_766,
        32,
    ),
    Part("guided, until right", Guided, 14_766, 24),
    Part(
        "effect table", functools.partial(Samples, samples=32, median=CONTINUATION, prefix=PREFIX), 334, 32, 4
    ),
    Part("RL", functools.partial(Samples, samples=8), 32, 8, 400),
    *(Part(f"RL, lag {lag}", functools.partial(Samples, samples=8), 32, 8, 400, lag) for lag in LAGS),
    Part("evaluation", functools.partial(Samples, samples=128), 500, 128, 3),
)
# What the hours of the whole recipe leave out.
ALTERNATIVES = (
    "guided, until right",
    *(f"RL, lag {lag}" for lag in LAGS),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """A stage that was replayed, as it is whole: shares of 1, tokens, hours.

    Attributes:
      occupancy: rows that run / rows, over all steps. full: the same while requests wait. held: pages in use, likewise.
      useful, useful_padded: (weights + live) / (weights + read), of pages and of the xla layout. once: read / what is
        read where shared pages are read once. even: bytes of all replicas / (replicas x those of the fullest).
      asked: requests of a session. tail: of the hours, after the last request was let in. replayed: of the requests.
    """

    stage: str
    machine: str
    replicas: int
    rows: int
    occupancy: float
    full: float
    held: float
    useful: float
    useful_padded: float
    once: float
    even: float
    drawn: float
    prefilled: float
    shared: float
    put_back: float
    asked: float
    hours: float
    hours_once: float
    prefill_hours: float
    tail: float
    replayed: float


def replay(
    part: Part, machine: Machine, sizes: Sizes, enough: int, seed: int = 0, shape: Shape = QWEN3_4B
) -> Found:
    """Replay a stage on a machine, of which each process has its share. enough: requests a row; of a stage with more
    of them a part of the items, of one with many sessions some."""
    rows, stages = machine.processes * machine.replicas * sizes.rows, []
    wanted = part.items * part.requests
    items = max(machine.processes, min(part.items, round(part.items * enough * rows / wanted)))
    times = min(part.times, max(1, enough * rows // (4 * wanted), 4 if part.times > 4 else 1))
    # Of eight processes two: all have the same to do.
    some = min(machine.processes, 2)
    whole, sums = part.items / items, []
    if part.lag:
        times = BATCHES - 2 * part.lag
        pages = machine.pages(shape, sizes.page)
        stage = part.make(seed)
        size = [stage.size(item) for item in range(part.items)]
        of_process = []
        for share in shares(size, machine.processes)[:some]:
            batches = [[part.items * number + item for item in share] for number in range(BATCHES)]
            session = Overlapping(stage, batches, part.lag, machine.replicas, pages, sizes)
            chunks = session.run()
            of_process.append(
                [batch_of(session, chunks, n, machine, shape) for n in range(part.lag, BATCHES - part.lag)]
            )
        sums = [*map(list, zip(*of_process, strict=True))]
        items = part.items
    for time in range(0 if part.lag else times):
        stage = part.make(seed + time)
        dealt = shares([stage.size(item) for item in range(items)], machine.processes)[:some]
        pages = machine.pages(shape, sizes.page)
        for share in dealt:
            session = Session(stage, share, machine.replicas, pages, sizes)
            stages.append((session, dict(zip(FIELDS, session.run().T, strict=True))))
        sums.append([summed(*one, machine, shape, whole) for one in stages[-some:]])
    # The stage ends with its last process.
    sessions = [max(of_session, key=lambda one: one["hours"]) for of_session in sums]
    every = [one for of_session in sums for one in of_session]

    def total(name: str, of=every) -> float:
        return sum(one[name] for one in of)

    up = part.times / times
    all_of = up * machine.processes / some
    longest = total("steps", sessions) * some
    weights = shape.weights / shape.token * machine.replicas
    base = weights * total("steps")
    return Found(
        part.name,
        machine.name,
        machine.processes * machine.replicas,
        sizes.rows,
        total("drawn") / (longest * machine.replicas * sizes.rows),
        total("drawn_full") / max(1, total("steps_full") * machine.replicas * sizes.rows),
        total("held_full") / max(1, total("steps_full") * machine.replicas * pages),
        (base + total("live")) / (base + total("read")),
        (base + total("live")) / (base + total("padded")),
        total("read") / total("once"),
        total("read") / (machine.replicas * total("read_most")),
        total("drawn") * all_of,
        total("prefilled_real") * all_of,
        total("shared") * all_of,
        total("put_back") * all_of,
        total("asked") * machine.processes / some / times,
        total("hours", sessions) * up,
        total("hours_once", sessions) * up,
        total("prefill_hours", sessions) * up,
        total("hours_tail", sessions) / total("hours", sessions),
        items * times / (part.items * part.times),
    )


def batch_of(
    session: Overlapping, chunks: np.ndarray, number: int, machine: Machine, shape: Shape
) -> dict[str, float]:
    """The sums of one batch of those that overlap."""
    start, end = session.starts[number : number + 2]
    found = summed(session, dict(zip(FIELDS, chunks[start:end].T, strict=True)), machine, shape, 1.0)
    before, after = session.counts[number : number + 2]
    prefilled, shared, put_back = (b - a for a, b in zip(before, after, strict=True))
    unit = session.sizes.unit
    asked = len(session.batches[number]) * len(session.stage.first(0))
    return found | {
        "prefilled_real": prefilled * unit,
        "shared": shared * unit,
        "put_back": put_back,
        "asked": asked,
    }


def summed(session: Session, chunk: dict, machine: Machine, shape: Shape, whole: float) -> dict[str, float]:
    """The sums of a session's chunks, as if it had `whole` times the requests: what comes before the last one is let in
    is repeated until all their tokens are drawn, the tail comes once."""
    waited = np.flatnonzero(chunk["waiting"])
    full = np.arange(len(chunk["steps"])) <= (waited[-1] if len(waited) else -1)
    tail = chunk["drawn"][~full].sum()
    # 100 tokens, 20 of them in the tail; of 10 times the requests: 1,000, of which 980 before: 12.25 times 80.
    often = (whole * chunk["drawn"].sum() - tail) / chunk["drawn"][full].sum() if full.any() else 1.0
    many = np.where(full, often, 1.0)
    device = machine.device

    def hours(read) -> np.ndarray:
        return roofline.decode_seconds(device, shape, chunk["steps"], chunk[read]) / 3600

    work = chunk["prefilled"], chunk["seen"], chunk["programs"]
    prefill = roofline.forward_seconds(device, shape, *work) / 3600
    sums = {name: float((chunk[name] * many).sum()) for name in FIELDS}
    tokens = session.sizes.unit * whole
    return sums | {
        "drawn_full": float((chunk["drawn"] * many)[full].sum()),
        "steps_full": float((chunk["steps"] * many)[full].sum()),
        "held_full": float((chunk["held"] * chunk["steps"] * many)[full].sum()),
        "prefilled_real": session.schedule.prefilled * tokens,
        "shared": session.schedule.shared * tokens,
        "put_back": session.schedule.put_back * whole,
        "asked": len(session.asks) * whole,
        "hours": float(((hours("read_most") + prefill) * many).sum()),
        "hours_once": float(((hours("once_most") + prefill) * many).sum()),
        "hours_tail": float((hours("read_most") + prefill)[~full].sum()),
        "prefill_hours": float((prefill * many).sum()),
    }


def training_hours(machine: Machine, flash: bool, response: float) -> float:
    """Of 138 updates of SFT and 400 of the policy gradient."""
    # Half of the groups have an advantage; a guided attempt is trained up to its intervention.
    parts = ((400, 32 * 8 / 2, PROBLEM + response), (138, 64, PROBLEM + mean(PREFIX) + INTERVENTION))
    devices, share = machine.processes * machine.replicas, None if flash else machine.plain

    def seconds(updates: int, sequences: float, tokens: float) -> float:
        read = updates * sequences * tokens
        seen = read * tokens / 2 * SQUARE
        return roofline.training_seconds(machine.device, QWEN3_4B, devices, read, seen, updates, share)

    return sum(seconds(*part) for part in parts) / 3600


def mean(median: float) -> float:
    return work.length(median, NEW).mean


# Output ---------------------------------------------------------------------------------------------------------------


def assumed(sizes: Sizes) -> str:
    rng = np.random.default_rng(0)
    drawn = np.array([length(rng, RESPONSE) for _ in range(100_000)])
    machines = "\n".join(
        f"  {m.name}: {m.memory:.0f} GiB a device, {m.rows} rows; {told(m.device)}, with plain attention "
        f"{m.plain:.1%}"
        for m in (H200, V5P)
    )
    return f"""Assumed, not measured:
  lengths lognormal, sigma {SPREAD}, cut at {NEW:,}; medians: responses {RESPONSE:,} (mean {drawn.mean():,.0f}, \
{(drawn == NEW).mean():.0%} cut), prefixes {PREFIX:,}, continuations {CONTINUATION:,}, each turn of a check {CHECK:,}
  a problem {PROBLEM} tokens, a reference {REFERENCE:,}, an intervention {INTERVENTION}; the prompt of a check is \
these, the first turn's answer and the attempt, 30,000 at most
  "until right": {MENDED:.0%} of the guided attempts can be mended, and {RIGHT:.0%} of the continuations of these are \
right
{machines}
  half of the groups have an advantage
Settings: pages of {sizes.page}, chunks of {sizes.decode_steps} steps, prefill of \
{sizes.prefill_tokens:,} tokens between two; a token of the schedule stands for {sizes.unit}."""


def line(one: Found) -> str:
    return (
        f"{one.stage:<20}{one.replicas:>4}{one.occupancy:>9.1%}{one.full:>7.1%}{one.held:>7.1%}{one.useful:>9.1%}"
        f"{one.useful_padded:>7.1%}{one.once:>7.2f}{one.even:>7.1%}{one.tail:>7.1%}{one.drawn / 1e6:>9,.0f}"
        f"{one.prefilled / 1e6:>7,.0f}{one.shared / 1e6:>7,.0f}{one.put_back:>8,.0f}{one.hours:>9.1f}"
        f"{one.replayed:>9.1%}"
    )


HEAD = (
    f"{'stage':<20}{'rep':>4}{'occupied':>9}{'while':>7}{'pages':>7}{'useful':>9}{'xla':>7}{'once':>7}{'even':>7}"
    f"{'tail':>7}{'drawn':>9}{'prefil':>7}{'shared':>7}{'back':>8}{'hours':>9}{'replay':>9}"
)
LEGEND = """
occupied: rows that run, of all, over the stage; while: while requests wait; pages: those in use, meanwhile; useful:
(weights + live keys and values) / (weights + read); xla: in the layout without kernels; once: bytes of keys and values
/ those if shared pages were read once; even: mean over the replicas / the fullest, which all wait for; tail: of the
hours, behind the last admission; drawn, prefil, shared: millions of tokens; back: rows put back; replay: of the
requests."""


def reasons(found: Sequence[Found]) -> list[str]:
    """Each target that a stage misses, with what it is for."""
    said = []
    for one in found:
        where = f"{one.stage}, {one.replicas} replicas: "
        if one.useful < 0.85:
            said.append(where + f"useful {one.useful:.1%} < 85%: short rows on whole pages")
        if one.occupancy >= 0.9:
            continue
        why = f"occupied {one.occupancy:.1%} < 90%: "
        if not one.full:
            why += f"{one.asked / one.replicas:.0f} requests a replica for {one.rows} rows; all wait for the longest"
        elif one.full < 0.9 and one.held > 0.8:
            why += f"pages are the limit, {one.held:.0%} in use where one of 16 is kept free: rows hold long prompts"
        else:
            why += f"{one.full:.0%} while requests wait; the tail is {one.tail:.0%} of the hours"
        said.append(where + why)
    return said


def table(found: dict[str, list[Found]]) -> list[str]:
    """Hours by machine and stage; of the recipe with all tries of a guided attempt."""
    lines = [f"{'hours':<28}" + "".join(f"{name:>12}" for name in found)]
    for i, part in enumerate(RECIPE):
        lines.append(f"{part.name:<28}" + "".join(f"{some[i].hours:>12.1f}" for some in found.values()))
    machines = {m.name: m for m in (NODE, HOST, HOSTS)}
    both = {
        name: [training_hours(machines[name], flash, mean(RESPONSE)) for flash in (False, True)]
        for name in found
    }
    for i, name in enumerate(("plain", "flash")):
        lines.append(
            f"{f'training, {name} attention':<28}" + "".join(f"{b[i]:>12.1f}" for b in both.values())
        )
    sums = {name: [one for one in some if one.stage not in ALTERNATIVES] for name, some in found.items()}
    for label, field, flash in (
        ("all, plain attention", "hours", 0),
        ("all, flash", "hours", 1),
        ("all, flash, prefix read once", "hours_once", 1),
    ):
        cells = (sum(getattr(one, field) for one in some) + both[name][flash] for name, some in sums.items())
        lines.append(f"{label:<28}" + "".join(f"{cell:>12.0f}" for cell in cells))
    return [*lines, f"{'before there were pages':<28}" + "".join(f"{PRESENT[name]:>12,}" for name in found)]


def one_of(job) -> Found:
    return replay(*job)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small part of each stage, 1 and 8 replicas: a minute"
    )
    parser.add_argument("--rows", type=int, help="of each replica, on all machines")
    parser.add_argument("--page", type=int, default=128)
    parser.add_argument("--unit", type=int, default=64)
    parser.add_argument("--enough", type=int, default=8, help="requests a row, where a stage has more")
    parser.add_argument("--stages", nargs="*", default=[part.name for part in RECIPE])
    parser.add_argument("--out", type=Path, help="a JSONL file to append to")
    args = parser.parse_args()
    machines = (H200, NODE, NODES, HOST, HOSTS)
    if args.quick:
        machines, args.enough, args.unit = (H200, NODE), 2, 128
    # A long chunk stands for the wait of a row that has ended until the host knows.
    ahead = args.unit <= 2 * Engine.decode_steps

    def sizes(machine: Machine) -> Sizes:
        return Sizes(args.rows or machine.rows, args.page, ahead=ahead, unit=args.unit)

    parts = [part for part in RECIPE if part.name in args.stages]
    print(assumed(sizes(H200)), HEAD, sep="\n\n", flush=True)
    jobs = [(part, machine, sizes(machine), args.enough) for machine in machines for part in parts]
    found: list[Found] = []
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for one in pool.map(one_of, jobs):
            if one.stage == parts[0].name:
                print(f"-- {one.machine}")
            print(line(one), flush=True)
            found.append(one)
    if args.out:
        head = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
        now = datetime.datetime.now().isoformat(timespec="minutes")
        with args.out.open("a") as file:
            for one in found:
                record = {"date": now, "commit": commit, "page": args.page, "unit": args.unit}
                file.write(json.dumps(record | dataclasses.asdict(one)) + "\n")
    print(LEGEND, *reasons(found), sep="\n")
    if args.quick:
        print("Quick: two requests a row, the start of a stage and its tail; the hours are too few.")
    if not args.quick and len(parts) == len(RECIPE):
        by_machine = {m.name: [one for one in found if one.machine == m.name] for m in (NODE, HOST, HOSTS)}
        print("", *table(by_machine), sep="\n")


if __name__ == "__main__":
    main()
