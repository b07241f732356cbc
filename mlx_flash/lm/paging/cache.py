"""The cache of one layer as mlx-lm's models, generators and server use it: rows of a batch, with keys in a pool."""

from __future__ import annotations

import mlx.core as mx

from ...common.errors import wrong
from .errors import PagePoolError
from .handle import PagedKeys, Values, causal
from .row import Row, Tail
from .storage import Layer


class PagedKVCache:
    """In the place of mlx-lm's KVCache, BatchKVCache, RotatingKVCache and BatchRotatingKVCache.

    New tokens go to the tail, a dense array of a page's length for each row, so that a step copies the tail at most;
    when a row's tail is full, all tails move to pages. Longer inputs go to pages at once. Merging, extending,
    filtering, extracting, trimming and copying move integers. `batch`: offsets are arrays, one number a row.
    """

    def __init__(self, pool, number: int, rows: list[Row] | None = None, batch: bool = False):
        self.pool, self.number, self.step = pool, number, 0
        self._rows, self._batch, self._released = rows or [], batch, False
        self._given: tuple[PagedKeys, Values] | None = None  # the handles of this step, where other layers share them
        self._coming: list[int] | None = None  # right-padded inputs: tokens of every row that are still to come

    @property
    def layer(self) -> Layer:
        return self.pool.layers[self.number]

    def check_open(self) -> None:
        if self._released:
            raise PagePoolError("[mlx_flash.PagePool] a cache that was released: make another with pool.caches()")

    def release(self) -> None:
        """Gives the pages back now, not when Python forgets the cache; the cache cannot be used again."""
        with self.pool.entered():
            self._rows, self._given, self._released = [], None, True

    # Methods that models call

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[PagedKeys, Values]:
        """Takes the keys and values [B, heads, L, columns] of the next tokens. Raises PagePoolFull, and has then
        written nothing in any layer."""
        with self.pool.entered():
            self.check_open()
            batch, length = k.shape[0], k.shape[2]
            self.layer.known(k, v)
            self._given = None
            rows = self._rows or [Row(self.layer) for _ in range(batch)]
            if len(rows) != batch:
                held = f"batch {len(rows)} as in the cache"
                raise wrong("keys", held, f"batch {batch}", "Filter the cache.", "PagePool")
            coming = self._coming or [length] * batch
            new = [min(length, count) for count in coming]
            keys = self._stored(rows, k, v, new) if length > self.layer.page else self._appended(rows, k, v, new)
            if self._coming is not None:
                self._coming = [count - taken for count, taken in zip(coming, new)]
            self._rows, given = rows, (keys, Values(keys, v.shape[3]))
            self._given = given if self.layer.shared else None
            return given

    def keys_and_values(self) -> tuple[PagedKeys, Values]:
        """The result of the last `update_and_fetch`, for layers that share the keys of another."""
        self.check_open()
        if self._given is None:
            raise PagePoolError("[mlx_flash.PagePool] no keys of this step: the model did not share any before")
        return self._given

    def make_mask(self, queries: int, return_array: bool = False, window_size: int | None = None):
        """Rows know their lengths: no array is needed. Raises PagePoolError where a model asks for one."""
        if return_array:
            raise PagePoolError("[mlx_flash.PagePool] the model computes with its mask, and pages have none")
        return None if queries == 1 and window_size is None else causal(window_size)

    @property
    def offset(self) -> int | mx.array:
        """Tokens of the cache: positions of the next ones."""
        lengths = [len(row) for row in self._rows]
        if self._batch:
            return mx.array(lengths)
        return lengths[0] if lengths else 0

    # Methods that generators and servers call

    @property
    def state(self):
        """The arrays, for mx.eval."""
        tails = {id(row.tail): row.tail for row in self._rows if row.tail is not None}
        return [*self.layer.arrays, *tails.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that the rows hold, one that several hold counted once, and of the tails."""
        pages = {page for row in self._rows for page in row.pages}
        tails = {id(row.tail): row.tail for row in self._rows if row.fresh}
        tokens = sum(array.nbytes for tail in tails.values() for array in tail)
        return (len(pages) * self.layer.page_bytes if pages else 0) + tokens

    def size(self) -> int:
        return max((len(row) for row in self._rows), default=0)

    def empty(self) -> bool:
        return not self.size()

    def is_trimmable(self) -> bool:
        """Whether any number of tokens may be trimmed: not where a window has dropped some."""
        return not any(row.dropped for row in self._rows)

    def trim(self, count: int) -> int:
        """Forgets the last tokens of every row. Raises ValueError where a window needs keys that were dropped."""
        with self.pool.entered():
            self.check_open()
            count = min(count, min((len(row) for row in self._rows), default=0))
            most = min((row.trimmable() for row in self._rows), default=0)
            if count > most:
                remedy = "Compute the prompt again."
                raise wrong("n", f"at most {most} tokens behind a window", count, remedy, "PagePool")
            for row in self._rows:
                row.trim(count)
            self.step += 1
            return count

    def merge(self, caches: list[PagedKVCache]) -> PagedKVCache:
        """One batch of the rows of several caches, which keep theirs."""
        with self.pool.entered():
            for cache in caches:
                cache.check_open()
            rows = [row.fork() for cache in caches for row in (cache._rows or [Row(self.layer)])]
            return PagedKVCache(self.pool, self.number, rows, batch=True)

    def extend(self, other: PagedKVCache) -> None:
        """Takes the rows of another batch over."""
        with self.pool.entered():
            self.check_open()
            other.check_open()
            self._rows = self._rows + other._rows
            other._rows, self._coming = [], None
            self.step += 1

    def filter(self, keep: list[int]) -> None:
        """Keeps the rows with these numbers."""
        with self.pool.entered():
            self.check_open()
            keep = keep.tolist() if isinstance(keep, mx.array) else list(keep)
            self._rows = [self._rows[n] if keep.count(n) == 1 else self._rows[n].fork() for n in keep]
            self.step += 1

    def extract(self, number: int) -> PagedKVCache:
        """A cache of one row, which stays in the batch too."""
        with self.pool.entered():
            self.check_open()
            return PagedKVCache(self.pool, self.number, [self._rows[number].fork()])

    def prepare(self, *, left_padding=None, lengths=None, right_padding=None) -> None:
        """Says how many of the next tokens of every row exist; those behind them are padding."""
        if left_padding is not None and max(left_padding) > 0:
            raise wrong("left_padding", "None: rows need none", left_padding, "Pad on the right.", "PagePool")
        if lengths is not None:
            self._coming = list(lengths)

    def finalize(self) -> None:
        """The padding is over; nothing has to be moved."""
        self._coming = None

    def __deepcopy__(self, _) -> PagedKVCache:
        return self.fork()

    def fork(self) -> PagedKVCache:
        """The same tokens in another cache; pages are shared until either writes into one."""
        with self.pool.entered():
            self.check_open()
            return PagedKVCache(self.pool, self.number, [row.fork() for row in self._rows], self._batch)

    # How tokens are written

    def _appended(self, rows: list[Row], k: mx.array, v: mx.array, new: list[int]) -> PagedKeys:
        """New tokens to the tail; the older ones to pages first, where the tail is full."""
        if max(row.fresh for row in rows) + k.shape[2] > self.layer.page:
            self._reserve([row.wanted(row.fresh) for row in rows])
            self._wait()
            self._flush(rows)
        tail = self._tail(rows, k, v)
        batch, place = self._existing(new)
        slot = mx.array([row.fresh + n for row, count in zip(rows, new) for n in range(count)])
        for array, tokens in zip(tail, (k, v)):
            array[batch, :, slot] = tokens[batch, :, place]
        for number, (row, count) in enumerate(zip(rows, new)):
            row.tail, row.place, row.fresh = tail, number, row.fresh + count
        self.step += 1
        facts = [(row.stored, row.fresh, count, row.dropped) for row, count in zip(rows, new)]
        return PagedKeys(self, self.layer, self._table(rows), facts, tail, k.shape[2])

    def _stored(self, rows: list[Row], k: mx.array, v: mx.array, new: list[int]) -> PagedKeys:
        """Many new tokens: to pages at once, behind those of the tail."""
        self._reserve([row.wanted(row.fresh + count) for row, count in zip(rows, new)])
        self._wait()
        self._flush(rows)
        before = [row.stored for row in rows]
        batch, place = self._existing(new)
        self._write(rows, new, k[batch, :, place], v[batch, :, place])
        self.step += 1
        facts = [(stored, count, count, row.dropped) for stored, count, row in zip(before, new, rows)]
        keys = PagedKeys(self, self.layer, self._table(rows), facts, (k, v), k.shape[2])
        return keys

    def _reserve(self, wanted: list[int]) -> None:
        """Pages in this layer, and in all that follow: they take the same tokens."""
        self.pool.reserve(self.number, sum(wanted))

    def _wait(self) -> None:
        """A step in flight still reads the pool: MLX would write to a copy."""
        mx.synchronize()

    def _flush(self, rows: list[Row]) -> None:
        counts = [row.fresh for row in rows]
        if not any(counts):
            return
        if self._together(rows):
            batch, place = self._existing(counts)
            tokens = [array[batch, :, place] for array in rows[0].tail]
        else:
            parts = [[array[row.place, :, : row.fresh] for array in row.tail] for row in rows if row.fresh]
            tokens = [mx.concatenate(part, axis=1).swapaxes(0, 1) for part in zip(*parts)]
        for row in rows:
            row.fresh, row.tail = 0, None
        self._write(rows, counts, *tokens)

    def _write(self, rows: list[Row], counts: list[int], k: mx.array, v: mx.array) -> None:
        copies, pages, slots = [], [], []
        for row, count in zip(rows, counts):
            for found, more in zip((copies, pages, slots), row.extend(count)):
                found += more
        self.layer.copy(copies)
        self.layer.write(pages, slots, k, v)
        for row in rows:
            row.drop()

    def _together(self, rows: list[Row]) -> bool:
        """Do all rows lie in one tail, in order?"""
        tail = rows[0].tail
        same = tail is not None and tail.k.shape[0] == len(rows)
        return same and all(row.tail is tail and row.place == n for n, row in enumerate(rows))

    def _tail(self, rows: list[Row], k: mx.array, v: mx.array) -> Tail:
        """Arrays of this step's own, with what the rows' tails hold."""
        if self._together(rows):
            return Tail(*map(mx.array, rows[0].tail))  # a step that is not computed yet keeps its own
        empty = [mx.zeros((1, *one.shape[1:2], self.layer.page, one.shape[3]), one.dtype) for one in (k, v)]
        parts = [
            [array[row.place : row.place + 1] for array in row.tail] if row.fresh else empty for row in rows
        ]  # fmt: skip
        return Tail(*(mx.concatenate(part) for part in zip(*parts)))

    def _existing(self, counts: list[int]) -> tuple[mx.array, mx.array]:
        """(row, place) of every token that exists, padding left out."""
        pairs = [(n, place) for n, count in enumerate(counts) for place in range(count)]
        return mx.array([n for n, _ in pairs], mx.int32), mx.array([place for _, place in pairs], mx.int32)

    def _table(self, rows: list[Row]) -> mx.array | None:
        longest = max(len(row.pages) for row in rows)
        return mx.array([row.pages + [-1] * (longest - len(row.pages)) for row in rows], mx.int32) if longest else None
