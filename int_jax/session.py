"""The loop of the sampler on the host: requests in, responses out, and what the engine's programs are called with."""

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from int_jax import sample
from int_jax.processes import end_if_asked, to_host
from int_jax.sampler import Request, Response, Sampling
from int_jax.schedule import Row
from int_jax.sharding import on_mesh
from int_jax.tokenizer import Tokenizer
from int_jax.watching import Chunk

if TYPE_CHECKING:
    from int_jax.engine import Engine


def bucket(size: int, least: int = 64) -> int:
    """The smallest of least, 1.5 least, 2 least, 3 least, 4 least ... that holds `size`."""
    # 64, 96, 128, 192, 256 ...: two sizes an octave, so that few programs are compiled, and from the second size on at
    # most a third is padding.
    while least < size:
        if least * 3 // 2 >= size:
            return least * 3 // 2
        least *= 2
    return least


def row_bucket(count: int, least: int, most: int) -> int:
    """One of least, 4 least, 16 least ... most rows: the smallest that holds `count`, or the one before it where that
    would leave more than half of the rows empty."""
    # 5 rows, of 1, 4 or 16: 4, since 16 would be two thirds empty. The fifth goes into the next call.
    rows = least
    while rows < count and rows < most and min(4 * rows, most) <= 2 * count:
        rows = min(4 * rows, most)
    return rows


def known_pages(pages: int) -> int:
    """The smallest number of pages that decoding is compiled for and that holds so many: 2, 4, 6 ... 16, 20 ... 32, 40
    ...: of many pages at most a fifth is padding."""
    # 17 to 32 pages have 5 bits, less one of it: steps of 4.
    step = 1 << max(1, (pages - 1).bit_length() - 3)
    return max(2, -(-pages // step) * step)


def prefix_pages(pages: int) -> int:
    """The same for what stands before the tokens of a prefill: 0, 4, 8, 16 ..."""
    return 0 if not pages else 4 << (-(-pages // 4) - 1).bit_length()


def together(count: int, width: int, most: int) -> int:
    """Rows of a prefill of `width` tokens where `count` are to be computed: 256 tokens (with fewer it takes as long),
    four times as many ... while all of its rows are needed."""
    rows = min(max(1, 256 // width), most)
    while 4 * rows <= min(count, most):
        rows *= 4
    return rows


def seen_rows(most: int, each: int) -> int:
    """Rows of a prefill that attend to `each` tokens where all of them may attend to `most`."""
    return max(1, most // each)


def task_word(task: str) -> int:
    """32 bits of a task's id for its random stream."""
    # hash() differs from process to process, and a resumed run must draw the same.
    return int.from_bytes(hashlib.blake2b(task.encode(), digest_size=4).digest(), "little")


def spell(
    begins: set[str], tokenizer: Tokenizer | None, vocab: int
) -> tuple[dict[str, int], sample.Spellings]:
    """The state in which each text to begin with starts ("" is 0, which is free), and the table of all states.

    Raises: ValueError where there is such a text and no tokenizer, or no token of the model can begin with it.
    """
    allowed: dict[str, dict[int, str]] = {}
    for text in sorted(begins - {""}):
        if tokenizer is None:
            raise ValueError(f"generate: a request begins with {text!r}: pass the model's tokenizer")
        allowed |= tokenizer.spellings(text)
    # {"": 0, "\n\n": 1, "\n": 2}. Unused places of the table hold the id `vocab`, which is no token's.
    states = {"": 0} | {rest: state for state, rest in enumerate(allowed, 1)}
    shape = bucket(len(states), 8), bucket(max(map(len, allowed.values()), default=0), 8)
    ids_AY, next_AY = np.full(shape, vocab, np.int32), np.zeros(shape, np.int32)
    for rest, tokens in allowed.items():
        # The tokenizer may know tokens beyond the model's embedding.
        inside = {token: after for token, after in tokens.items() if token < vocab}
        if not inside:
            raise ValueError(f"generate: no token of the model can begin with {rest!r}")
        ids_AY[states[rest], : len(inside)] = list(inside)
        next_AY[states[rest], : len(inside)] = [states[after] for after in inside.values()]
    return states, sample.Spellings(ids_AY, next_AY)


class Flight(NamedTuple):
    """A decode that was dispatched: the row in each seat, those of the first replica first, and what it gives."""

    seats: list[Row | None]
    rows: sample.Rows
    tokens_BC: Any
    logp_BC: Any


class EngineSession:
    """See `sampler.Session`.

    Each round gives rows and pages to what waits, prefills what they do not share with others, lets all rows decode for
    `decode_steps` tokens, and takes the responses that ended. Where something waits, decoding returns as soon as a
    quarter of a replica's rows has ended. With `Engine.ahead` the next decode is dispatched before the last one is
    read; who has ended is then known one decode later.
    """

    def __init__(self, engine: "Engine", params, sampling: Sampling, tokenizer: Tokenizer | None):
        if sampling.stop and tokenizer is None:
            raise ValueError(f"generate: responses stop at {sampling.stop}: pass the model's tokenizer")
        self.engine, self.sampling, self.tokenizer = engine, sampling, tokenizer
        self.given, self.params = params, on_mesh(params, engine.local)
        self.requests: list[Request] = []
        self.left = 0
        self.begins = {""}
        self.states, self.spellings = spell(self.begins, tokenizer, engine.model.config.vocab)
        self.texts = [*self.states]
        self.schedule, self.pool = engine.take_pool(params)
        self.flight: Flight | None = None
        self.size = 0  # seats of each replica
        self.ended: list[tuple[int, Response]] = []  # that were not asked for yet
        self.stop_E = np.full(bucket(len(sampling.stop_ids), 8), -1, np.int32)  # -1: no token has that id
        self.stop_E[: len(sampling.stop_ids)] = sampling.stop_ids
        self.task_word = functools.lru_cache(maxsize=None)(task_word)
        self.since = time.perf_counter()  # the last decode was read, or the session began

    def __bool__(self) -> bool:
        return self.left > 0

    def add(self, requests: Sequence[Request]) -> None:
        """See `sampler.Session`. Raises: as `Engine.generate`."""
        rows, checked = [], set()
        for number, request in enumerate(requests, len(self.requests)):
            prompt = tuple(request.prompt)
            if prompt not in checked:
                self.engine.check_prompt(prompt, f"request {number} (task {request.task!r})")
                checked.add(prompt)
            start = len(prompt) - request.drawn
            limit = min(start + request.limit(self.sampling), self.engine.max_len)
            # Whoever asks knows the log-probabilities of what was drawn before.
            rows.append(Row(number, [*prompt], start, limit, request.begin, [0.0] * request.drawn))
        begins = self.begins | {request.begin for request in requests}
        if begins != self.begins:
            self.ended += self._read()  # what was dispatched counts its states by the old table
            self.begins = begins
            self.states, self.spellings = spell(begins, self.tokenizer, self.engine.model.config.vocab)
            self.texts = [*self.states]
        self.requests += requests
        self.left += len(rows)
        if rows:
            self._make_room(rows)
            self.schedule.add(rows)

    def _make_room(self, rows: list[Row]) -> None:
        """See to a pool that holds `rows` beside the others. Where a larger one is made, all rows are put back."""
        wanted = self.engine.pages_for(self.schedule.count + len(rows), max(row.limit for row in rows))
        if wanted > self.schedule.pages:
            self.ended += self._read()
            back = self.schedule.put_all_back()
            self.pool = None  # its memory first
            self.schedule, self.pool = self.engine.new_pool(wanted)
            self.schedule.add(back)

    def take(self) -> list[tuple[int, Response]]:
        """See `sampler.Session`."""
        while self.left and not self.ended:
            self.ended = self._round()
        ended, self.ended = self.ended, []
        self.left -= len(ended)
        if not self.left:
            self._read()
            self.engine.keep_pool(self.given, self.schedule.pools, self.pool)
        return ended

    def leave(self) -> list[tuple[int, Response]]:
        """See `sampler.Session`."""
        found = [*self.ended, *self._read()]
        for row in self.schedule.put_all_back():
            found.append((row.number, self._response(row, 0 if row.begin else None)._replace(stop="")))
        self.ended, self.left = [], 0
        self.engine.keep_pool(self.given, self.schedule.pools, self.pool)
        return found

    def _round(self) -> list[tuple[int, Response]]:
        end_if_asked(in_step=self.engine.spans_processes)
        engine, schedule = self.engine, self.schedule
        schedule.admit()
        self._prefill()
        last = self.flight
        if last and (schedule.short(engine.decode_steps) or self._size() != len(last.seats)):
            return self._read()  # before rows are put back or change seats, all that they drew is known
        rows = schedule.decode(engine.decode_steps)
        if any(rows):
            self.flight = self._decode(rows, last)
            if last or not engine.ahead:
                return self._read(last)
            return []
        return self._read()

    # What the programs are called with ------------------------------------------------------------------------------

    def _size(self) -> int:
        """Seats of the next decode: fewer than now where an eighth will do."""
        most = self._padded(max(sum(row.ready for row in rows) for rows in self.schedule.rows))
        self.size = most if most > self.size or 8 * most <= self.size else self.size
        return self.size * self.engine.replicas

    def _padded(self, count: int) -> int:
        """Rows of a program, of each replica: 4, 16, 64 ..., or as many as there are at most."""
        size = 4
        while size < count:
            size *= 4
        return min(size, self.schedule.most)

    def _table(self, seats: Sequence[Row | None], pages: int) -> np.ndarray:
        table_BP = np.zeros((len(seats), pages), np.int32)
        for seat, row in enumerate(seats):
            if row is not None:
                numbers = [page.number for page in row.pages[:pages]]
                table_BP[seat, : len(numbers)] = numbers
        return table_BP

    def _pages(self, tokens: int, more: int, gathered: Callable[[int], int] | None) -> tuple[int, int]:
        """Pages of rows of so many tokens, and those of their tables, with room for `more`.

        Where a program puts pages side by side it costs what they hold: `gathered` rounds their number. A kernel reads
        of a table only what a row has, and is compiled for tables of 16, 64, 256 ... pages.
        """
        needs = self.schedule.needs
        if gathered is not None:
            known = gathered(needs(tokens))
            return known, known + needs(more)
        pages = 16
        while pages < needs(tokens + more):
            pages *= 4
        return 0, pages

    def _prefill(self) -> None:
        """Compute what is missing on the pages of rows, up to `Engine.prefill_tokens`; longer prompts go on next time,
        so that decoding need not wait for them."""
        engine, budget = self.engine, self.engine.prefill_tokens
        while True:
            pairs = self.schedule.copies()
            self._copy(pairs)
            pieces = self.schedule.prefill(budget, engine.prefill_width)
            if not pieces and not pairs:
                return
            budget -= sum(count for _, count in pieces)
            # The longest first. Those that are longer than half of it go with it, and others, while there is room.
            pieces.sort(key=lambda piece: -piece[1])
            while pieces:
                width = 16
                while width < pieces[0][1]:
                    width *= 2
                replicas: list[list[tuple[Row, int]]] = [[] for _ in range(engine.replicas)]
                for piece in pieces:
                    replicas[piece[0].replica].append(piece)
                # What is shorter than half of the narrowest width goes with it, too.
                alike = max(sum(max(count, 9) > width // 2 for _, count in some) for some in replicas)
                most = max(1, min(self.schedule.most, engine.prefill_tokens // width))
                if engine.attention != "tpu":
                    known = prefix_pages(
                        self.schedule.needs(max(row.cached - count for row, count in pieces))
                    )
                    most = min(most, seen_rows(engine.prefill_seen, width + known * engine.page))
                size = together(alike, width, most)
                taken = [some[:size] for some in replicas]
                self._fill(taken, size, width)
                pieces = [piece for some in replicas for piece in some[size:]]
                pieces.sort(key=lambda piece: -piece[1])

    def _fill(self, pieces: list[list[tuple[Row, int]]], size: int, width: int) -> None:
        """Prefill `size` rows of each replica at most, up to `width` tokens each."""
        seats: list[Row | None] = [None] * (len(pieces) * size)
        tokens_BT = np.zeros((len(seats), width), np.int32)
        start_B, count_B = np.zeros(len(seats), np.int32), np.zeros(len(seats), np.int32)
        for replica, some in enumerate(pieces):
            for seat, (row, count) in enumerate(some, replica * size):
                start = row.cached - count  # they count as cached already
                tokens_BT[seat, :count] = row.tokens[start : row.cached]
                seats[seat], start_B[seat], count_B[seat] = row, start, count
        known, count = self._pages(
            int(start_B.max()), width, prefix_pages if self.engine.attention != "tpu" else None
        )
        table_BP = self._table(seats, count)
        arguments = self.pool, tokens_BT, start_B, count_B, table_BP
        self.pool = self.engine.prefill(self.params, *arguments, known)

    def _copy(self, pairs: list[tuple[int, int, int]]) -> None:
        if not pairs:
            return
        replicas = [[pair[1:] for pair in pairs if pair[0] == r] for r in range(self.engine.replicas)]
        size = self._padded(max(map(len, replicas)))
        from_to = np.zeros((len(replicas), size, 2), np.int32)  # page 0 onto itself where there are fewer
        for replica, some in enumerate(replicas):
            from_to[replica, : len(some)] = np.reshape(some, (-1, 2))
        self.pool = self.engine.copy(self.pool, from_to[..., 0].ravel(), from_to[..., 1].ravel())

    def _seats(self, rows: list[list[Row]], last: Flight | None) -> list[Row | None]:
        """Who sits where: as in the last decode, the others in what is free."""
        size = self._size() // self.engine.replicas
        seats: list[Row | None] = [*last.seats] if last else [None] * (size * self.engine.replicas)
        for replica, some in enumerate(rows):
            places = range(replica * size, (replica + 1) * size)
            stay = {*some}
            for place in places:
                if seats[place] not in stay:
                    seats[place] = None
            there = {*(seats[place] for place in places)}
            free = [place for place in places if seats[place] is None]
            for row, place in zip((row for row in some if row not in there), free, strict=False):
                seats[place] = row
        return seats

    def _decode(self, rows: list[list[Row]], last: Flight | None) -> Flight:
        engine, schedule, steps = self.engine, self.schedule, self.engine.decode_steps
        seats = self._seats(rows, last)
        # What is not in its seat since the last decode is told anew; free seats as rows that do not run.
        fresh_B = np.array(
            [row is None or not last or last.seats[i] is not row for i, row in enumerate(seats)]
        )
        now = sample.Rows(*(np.zeros(len(seats), dtype) for dtype in (np.int32, np.int32, bool, np.int32)))
        now.length_B[:] = 1
        limit_B = np.ones(len(seats), np.int32)
        task_B, sample_B = np.zeros(len(seats), np.uint32), np.zeros(len(seats), np.uint32)
        longest = 0
        for seat, row in enumerate(seats):
            if row is not None:
                request = self.requests[row.number]
                now.token_B[seat], now.length_B[seat] = row.tokens[-1], len(row.tokens)
                # A prompt that fills its limit is over before it starts.
                now.running_B[seat] = len(row.tokens) < row.limit
                now.begin_B[seat] = self.states[row.begin]
                limit_B[seat] = row.limit
                task_B[seat], sample_B[seat] = self.task_word(request.task), request.sample
                longest = max(longest, len(row.tokens) + row.ahead)
                row.ahead += steps
        known, count = self._pages(longest, steps, known_pages if engine.attention == "xla" else None)
        table_BP = self._table(seats, count)
        least_B = np.ones(engine.replicas, np.int32)
        if schedule.waiting:
            # 16 rows, all in use: on while 13 run, so that it stops when 4 are free.
            least_B[:] = [max(1, len(some) - max(1, schedule.most // 4) + 1) for some in rows]
        one = self.sampling
        draw = sample.Draw(
            temperature_B=np.full(len(seats), one.temperature, np.float32),
            top_k_B=np.full(len(seats), one.top_k, np.int32),
            top_p_B=np.full(len(seats), one.top_p, np.float32),
            min_p_B=np.full(len(seats), one.min_p, np.float32),
            stop_BE=np.tile(self.stop_E, (len(seats), 1)),
            seed_B=np.full(len(seats), one.seed, np.uint32),
            task_B=task_B,
            sample_B=sample_B,
        )
        before = last.rows if last else now
        arguments = before, now, fresh_B, limit_B, draw, table_BP, self.spellings, least_B
        self.pool, *drawn = engine.decode(self.params, self.pool, *arguments, known)
        return Flight(seats, *drawn)

    def _read(self, flight: Flight | None = None) -> list[tuple[int, Response]]:
        """The responses that ended in a decode; without one, in the one that was dispatched last, if any."""
        if flight is None:
            flight, self.flight = self.flight, None
        if flight is None:
            return []
        rows, tokens_BC, logp_BC = jax.tree.map(to_host, tuple(flight[1:]))
        self._watch(flight, rows.length_B)
        ended = []
        for seat, row in enumerate(flight.seats):
            if row is None:
                continue
            row.ahead -= self.engine.decode_steps
            if row.replica < 0:  # it had ended before, which was not known when this was dispatched
                continue
            seen = len(row.tokens)
            count = rows.length_B[seat] - seen
            self.schedule.drew(row, tokens_BC[seat, :count].tolist(), logp_BC[seat, :count].tolist())
            row.begin = self.texts[rows.begin_B[seat]]
            end = None
            if self.sampling.stop and self.tokenizer is not None:
                drawn, skip = np.array(row.tokens[row.prompt :]), len(self.requests[row.number].begin)
                end = self.tokenizer.stop_length(drawn, self.sampling.stop, seen - row.prompt, skip)
            if end is None and rows.running_B[seat]:
                continue
            self.schedule.end(row)
            ended.append((row.number, self._response(row, end)))
        return ended

    @functools.cached_property
    def weight_bytes(self) -> int:
        """What a step of one replica reads of the weights."""
        return self.engine.weight_bytes(self.params)

    def _watch(self, flight: Flight, length_B) -> None:
        """Tell what a decode did, before its tokens are the rows'."""
        since, self.since = self.since, time.perf_counter()
        if self.engine.watch is None:
            return
        size = len(flight.seats) // self.engine.replicas
        seen_B = np.array(
            [
                length if row is None else len(row.tokens)
                for row, length in zip(flight.seats, length_B, strict=True)
            ]
        )
        count_B = length_B - seen_B
        # The rows of a replica stop together: the one that drew most drew in each step.
        steps = int(count_B.reshape(-1, size).max(axis=1).sum())
        held = int((count_B * (2 * seen_B + count_B - 1) // 2).sum())
        needed = steps * self.weight_bytes + held * self.engine.token_bytes
        self.engine.watch(Chunk(self.since - since, int(count_B.sum()), steps * size, needed))

    def _response(self, row: Row, end: int | None) -> Response:
        """end: tokens drawn up to where a stop text is complete; None where there is none."""
        tokens = np.array(row.tokens if end is None else row.tokens[: row.prompt + end], np.int32)
        logp = np.zeros(len(tokens), np.float32)
        logp[row.prompt :] = row.logp[: len(tokens) - row.prompt]
        by_id = tokens[-1] in self.sampling.stop_ids and not row.begin and len(tokens) > row.prompt
        self.engine.drawn += len(tokens) - len(self.requests[row.number].prompt)
        return Response(tokens, logp, "stop" if end is not None or by_id else "length")
