"""Which request runs in which row, and on which pages: the host's side of sampling. It knows no model and no device.

The keys and values of a row lie on pages of one pool; each replica (a place along the mesh axis "data") has rows and a
pool of its own. Pages are known by their content: a request whose first tokens stand on some page shares it, whoever
wrote it. So samples share their prompt, candidates of a proposal their conversation, continuations of a splice the
attempt before the cut, and a reply is added to a conversation, without a second prefill.
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence

SCANNED = 64  # pages, at most, that are looked at for one whose first tokens alone are shared
FREE = 16  # of a pool one page in so many is left to the rows that run, where their lengths are guessed


@dataclasses.dataclass(eq=False)
class Page:
    """A page of keys and values.

    Attributes:
      number: where it lies in its pool; 0 is scrap, which nobody reads. parent: the page before it.
      tokens: what stands on it, or will once its prefill has run. written: how many of them stand there.
      users: rows that hold it. below: pages that follow it, held or not.
      copied: while its first tokens, so many, are to be copied from another page: (that page, so many).
    """

    number: int
    parent: "Page | None"
    tokens: list[int] = dataclasses.field(default_factory=list)
    written: int = 0
    users: int = 0
    below: dict["Page", None] = dataclasses.field(default_factory=dict)
    copied: "tuple[Page, int] | None" = None

    def ends_with(self, count: int) -> bool:
        """Whether a row whose first `count` tokens here are the page's can go on writing on it: nothing else stands
        there, and nobody holds it."""
        return not self.users and self.copied is None and self.written == len(self.tokens) == count


class Pool:
    """The pages of one replica: free ones, held ones, and those that nobody holds but whose content may be asked for
    again. Of these the one that was let go first is taken when no page is free.

    Args:
      count: pages, page 0 included. size: tokens of a page.
    """

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size
        self.root = Page(0, None)
        self._free = list(range(count - 1, 0, -1))
        # In the order in which they were let go. A row lets go of its last page first, and holds a page's parents as
        # long as the page: so the first one here has nothing below it.
        self._unused: dict[Page, None] = {}
        self._full: dict[tuple[Page, tuple[int, ...]], Page] = {}

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._unused)

    def find(self, tokens: Sequence[int], most: int) -> tuple[list[Page], Page | None, int]:
        """The pages that hold the first of the tokens, whole ones, `most` tokens at most; a further page, perhaps, that
        holds some of those that follow; and how many of its tokens these are."""
        found: list[Page] = []
        page, size = self.root, self.size
        while (start := len(found) * size) + size <= most:
            after = self._full.get((page, tuple(tokens[start : start + size])))
            if after is None:
                break
            found.append(page := after)
        rest = tokens[start : min(most, start + size)]
        best, shared = None, 0
        for other in itertools.islice(reversed(page.below), SCANNED):
            # Its first tokens: none where it holds another text.
            same = next((i for i, (a, b) in enumerate(zip(other.tokens, rest, strict=False)) if a != b), None)
            same = min(len(other.tokens), len(rest)) if same is None else same
            if same > shared:
                best, shared = other, same
            if shared == len(rest):
                break
        # Not from one that is still to be copied itself: all samples of a prompt can then begin together.
        while best is not None and best.copied is not None and best.copied[1] >= shared:
            best = best.copied[0]
        if best is None:
            return found, None, 0
        # A copy is worth its while where nothing is left to be prefilled, or much is shared.
        worth = shared == len(rest) or (found and 2 * shared >= size) or best.ends_with(shared)
        return (found, best, shared) if worth else (found, None, 0)

    def hold(self, page: Page) -> None:
        page.users += 1
        self._unused.pop(page, None)

    def take(self, parent: Page) -> Page | None:
        """A page behind another, held; None where all are held."""
        if self._free:
            number = self._free.pop()
        elif self._unused:
            oldest = next(iter(self._unused))
            del self._unused[oldest]
            self._forget(oldest)
            number = oldest.number
        else:
            return None
        page = Page(number, parent, users=1)
        parent.below[page] = None
        return page

    def _forget(self, page: Page) -> None:
        assert page.parent is not None and not page.below
        del page.parent.below[page]
        key = (page.parent, tuple(page.tokens))
        if self._full.get(key) is page:
            del self._full[key]

    def wrote(self, page: Page, tokens: Sequence[int]) -> None:
        """Tokens were written behind those of a page."""
        page.tokens += tokens
        page.written = len(page.tokens)
        self.completed(page)

    def completed(self, page: Page) -> None:
        """Let a page be found, where it is full: in one look-up instead of a search."""
        if len(page.tokens) == self.size:
            assert page.parent is not None
            self._full.setdefault((page.parent, tuple(page.tokens)), page)

    def release(self, pages: Sequence[Page]) -> None:
        """Let go of a row's pages, in its order."""
        for page in reversed(pages):
            page.users -= 1
            if not page.users and page.tokens:
                self._unused[page] = None
            elif not page.users:  # taken for tokens that never came
                self._forget(page)
                self._free.append(page.number)


@dataclasses.dataclass(eq=False)
class Row:
    """A request that is drawn.

    Attributes:
      number: of the request. tokens: its prompt, of `prompt` tokens, and what was drawn after it; logp: of the latter.
      limit: the length at which it ends. begin: the text that comes next, as far as that is given.
      replica, pages: where it is drawn. cached: its first tokens, whose keys and values are on its pages; all but the
        last one, once it is ready. copy: the page of it of which a part is to be copied (`Page.copied`), None for none.
      ahead: tokens that may have been drawn of which the host does not know yet.
    """

    number: int
    tokens: list[int]
    prompt: int
    limit: int
    begin: str = ""
    logp: list[float] = dataclasses.field(default_factory=list)
    replica: int = -1
    pages: list[Page] = dataclasses.field(default_factory=list)
    cached: int = 0
    copy: Page | None = None
    ahead: int = 0

    @property
    def ready(self) -> bool:
        """Whether it can be decoded."""
        return self.copy is None and self.cached >= len(self.tokens) - 1


class Schedule:
    """Requests that wait, in their order, and those that have a row.

    A row is given out while there are pages for what rows hold on average while they run, not for what they hold at
    their end: some end while others grow. Where that was too little and no page is left, the youngest row of the
    replica is put back to wait, with what it has drawn.

    Args:
      pools: of each replica, all of one size; what an earlier schedule left on them may be shared. rows: of each.

    Attributes:
      rows: those of each replica, oldest first. most: of each. pages: of each pool.
      prefilled, shared, put_back: tokens that went through a prefill, tokens that did not since they stood on a page,
        and rows that were put back, so far.
    """

    def __init__(self, pools: list[Pool], rows: int):
        self.pools, self.most = pools, rows
        self.pages, self.size = pools[0].count, pools[0].size
        self.rows: list[list[Row]] = [[] for _ in pools]
        self._waiting: collections.deque[Row] = collections.deque()
        # Responses that ended; tokens drawn; of each of these, the tokens that were drawn before it, summed up.
        self._ended, self._drawn, self._before = 0, 0, 0
        self.prefilled = self.shared = self.put_back = 0

    def __bool__(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._waiting) or any(self.rows)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def count(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + sum(map(len, self.rows))

    def add(self, rows: Sequence[Row]) -> None:
        """Queue rows; behind those that wait, or, once something was drawn, before them: a reply or a further round
        then finds the pages of what it continues."""
        if self._drawn:
            self._waiting.extendleft(reversed(rows))
        else:
            self._waiting.extend(rows)

    def needs(self, tokens: int) -> int:
        """Pages of so many tokens."""
        return -(-tokens // self.size)

    def _held(self) -> int | None:
        """Tokens behind its prompt that a row holds on average while it runs; None where too little is known."""
        # Those that end first are short: a mean of few says little.
        if self._ended < 8:
            return None
        # Lengths of 2 and 6: it holds 1 of 2 tokens on average, then 3 of 6, that is (2 x 1 + 6 x 3) / 8 = 2.5. At the
        # beginning all are young; half of the mean length, which is then too high, is a bound that holds at the end.
        return max(self._before // self._drawn, self._drawn // self._ended // 2)

    def _growth(self, rows: Sequence[Row]) -> int:
        """Pages that rows will hold together beyond those that they have; below 0 where many are long."""
        held, size = self._held(), self.size
        if held is None:
            return sum(self.needs(row.limit) - len(row.pages) for row in rows)
        return sum(-(-min(row.limit, row.prompt + held + size) // size) - len(row.pages) for row in rows)

    def _expected(self, row: Row) -> int:
        """Pages for a row that is to begin."""
        held = self._held()
        length = row.limit if held is None else max(len(row.tokens), row.prompt + held) + self.size
        return self.needs(min(row.limit, length))

    def admit(self) -> None:
        """Give rows and pages to what waits, first come, first served."""
        if not self._waiting:
            return
        growth = [self._growth(rows) for rows in self.rows]
        while self._waiting:
            row = self._waiting[0]
            found = self._place(row, growth)
            if found is None:
                return
            self._waiting.popleft()
            replica, pages, partial, shared = found
            self._begin(row, replica, pages, partial, shared)
            growth[replica] += self._growth([row])

    def _place(self, row: Row, growth: list[int]) -> tuple[int, list[Page], Page | None, int] | None:
        """The replica for a row, and what it shares there (`Pool.find`); None where it has to wait.

        That which has most of its pages, if it has no more rows than the others will have; of equal ones the emptiest,
        then the first."""
        fair = min(self.most, -(-self.count // len(self.pools)))
        expected, known, kept = self._expected(row), len(row.tokens) - 1, 0
        if self._ended >= 8:
            kept = self.pages // FREE
        best, found = None, None
        for replica, (rows, pool) in enumerate(zip(self.rows, self.pools, strict=True)):
            # What the rows there will take is not to be had.
            taken = max(0, growth[replica]) + kept if rows else 0
            if len(rows) >= fair or (rows and pool.available - taken < expected - self.needs(known)):
                continue
            pages, partial, shared = pool.find(row.tokens, known)
            # What it shares and nobody holds counts as available: it is not, once the row holds it.
            room = pool.available - sum(not page.users for page in pages)
            if partial is not None and room - (not partial.users) < self.needs(known) - len(pages):
                partial, shared = None, 0
            room -= partial is not None and not partial.users
            if rows and room - taken < expected - len(pages):
                continue
            order = -len(pages), len(rows)
            if best is None or order < best:
                best, found = order, (replica, pages, partial, shared)
        return found

    def _begin(self, row: Row, replica: int, pages: list[Page], partial: Page | None, shared: int) -> None:
        pool = self.pools[replica]
        for page in pages:
            pool.hold(page)
        row.replica, row.pages, row.copy = replica, [*pages], None
        row.cached = len(pages) * self.size
        known = len(row.tokens) - 1
        if partial is not None:
            appended = partial.ends_with(shared)  # as a reply is to what was said before it
            pool.hold(partial)  # where it is copied, it must not be taken before that
            if appended:
                start = row.cached
                partial.tokens = row.tokens[start : min(start + self.size, known)]
                pool.completed(partial)
                row.pages.append(partial)
                row.cached, shared, partial = start + shared, 0, None
        while len(row.pages) * self.size < known:
            start = len(row.pages) * self.size
            new = pool.take(row.pages[-1] if row.pages else pool.root)
            if new is None:
                raise MemoryError(
                    f"a row of {len(row.tokens)} tokens needs {self.needs(known)} pages of {self.size} tokens, and a "
                    f"replica's pool has {self.pages - 1}: shorten the prompt, or take more memory (pages)"
                )
            # What will stand there: those that come next wait for it instead of computing it, too.
            new.tokens = row.tokens[start : min(start + self.size, known)]
            pool.completed(new)
            row.pages.append(new)
        if partial is not None:
            row.copy = row.pages[len(pages)]
            row.copy.copied = partial, shared
        self.shared += row.cached + shared
        self.rows[replica].append(row)

    def copies(self) -> list[tuple[int, int, int]]:
        """Pages to be copied now, as (replica, from, to): the others' sources are not written yet."""
        found = []
        for row in itertools.chain(*self.rows):
            if row.copy is not None and row.copy.copied is not None and self._shared_ready(row):
                source, count = row.copy.copied
                if source.written >= count:
                    found.append((row, row.copy, source, count))
        for row, page, source, count in found:
            page.written, page.copied, row.copy = count, None, None
            row.cached += count
            self.pools[row.replica].release([source])
        return [(row.replica, source.number, page.number) for row, page, source, _ in found]

    def _shared_ready(self, row: Row) -> bool:
        """Whether the pages that it shares are written."""
        return all(page.written == self.size for page in row.pages[: row.cached // self.size])

    def prefill(self, budget: int, most: int) -> list[tuple[Row, int]]:
        """Rows whose next so many tokens, `most` each, are to be computed now, about `budget` tokens of each replica.
        They count as written from here on: what is dispatched later reads what was dispatched before."""
        found = []
        for rows in self.rows:
            left = budget
            for row in rows:
                missing = len(row.tokens) - 1 - row.cached
                if left <= 0:
                    break
                if missing > 0 and row.copy is None and self._shared_ready(row):
                    found.append((row, min(missing, most)))
                    left -= min(missing, most)
        for row, count in found:
            self._written(row, count)
            self.prefilled += count
        return found

    def _written(self, row: Row, count: int) -> None:
        end = row.cached + count
        for index in range(row.cached // self.size, self.needs(end)):
            page = row.pages[index]
            page.written = min(self.size, end - index * self.size)
        row.cached = end

    def decode(self, steps: int) -> list[list[Row]]:
        """The rows of each replica that can be decoded, with pages for `steps` more tokens each; where there are none
        left the youngest rows are put back."""
        for replica, rows in enumerate(self.rows):
            pool = self.pools[replica]
            for row in [*rows]:
                end = self._end(row, steps)
                while len(row.pages) * self.size < end and row.replica >= 0 and row.ready:
                    page = pool.take(row.pages[-1] if row.pages else pool.root)
                    if page is not None:
                        row.pages.append(page)
                        continue
                    self._put_back(next(other for other in reversed(rows) if other.ready))
        return [[row for row in rows if row.ready] for rows in self.rows]

    def _end(self, row: Row, steps: int) -> int:
        """Tokens that a row has on its pages after so many steps."""
        # The last known token is written by the next step.
        return min(len(row.tokens) - 1 + row.ahead + steps, row.limit - 1)

    def short(self, steps: int) -> bool:
        """Whether pages for `steps` more tokens of each row would have to be taken from others."""
        for rows, pool in zip(self.rows, self.pools, strict=True):
            wanted = 0
            for row in rows:
                end = self._end(row, steps)
                if len(row.pages) * self.size < end and row.ready:
                    wanted += self.needs(end) - len(row.pages)
            if wanted > pool.available:
                return True
        return False

    def _put_back(self, row: Row) -> None:
        if len(self.rows[row.replica]) == 1:
            raise MemoryError(
                f"a row of {len(row.tokens)} tokens does not fit into a replica's {self.pages - 1} pages of "
                f"{self.size} tokens: "
                "lower max_new_tokens, or take more memory (pages)"
            )
        assert not row.ahead
        self._leave(row)
        self.put_back += 1
        self._waiting.appendleft(row)

    def put_all_back(self) -> list[Row]:
        """All rows and what waits, in their order, without pages: for another schedule."""
        rows = [*itertools.chain(*self.rows), *self._waiting]
        for row in [*itertools.chain(*self.rows)]:
            self._leave(row)
        self._waiting.clear()
        return rows

    def _leave(self, row: Row) -> None:
        self.rows[row.replica].remove(row)
        self.pools[row.replica].release(row.pages)
        if row.copy is not None and row.copy.copied is not None:
            self.pools[row.replica].release([row.copy.copied[0]])
            row.copy.copied = None
        row.pages, row.cached, row.copy, row.replica = [], 0, None, -1

    def drew(self, row: Row, tokens: Sequence[int], logp: Sequence[float]) -> None:
        """A row has so many more tokens."""
        row.tokens += tokens
        row.logp += logp
        self._drawn += len(tokens)
        self._before += len(tokens) * (len(row.tokens) - row.prompt - len(tokens) // 2)
        pool = self.pools[row.replica]
        # All but the last one are in the cache.
        while row.cached < len(row.tokens) - 1:
            page = row.pages[row.cached // self.size]
            start = row.cached % self.size
            some = row.tokens[row.cached : min(len(row.tokens) - 1, row.cached + self.size - start)]
            pool.wrote(page, some)
            row.cached += len(some)

    def end(self, row: Row) -> None:
        """A row has ended: its pages are kept as long as nobody needs the room."""
        self._ended += 1
        self._leave(row)
