"""One sequence in one layer: the pages that hold its older tokens, and its place in a tail of new ones."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .storage import Layer

RESERVE = 256  # tokens behind a window that stay, so that a few can be trimmed


class Tail(NamedTuple):
    """New tokens of the rows of a batch, keys and values [B, heads, capacity, columns]."""

    k: mx.array
    v: mx.array


class Row:
    """`dropped`: tokens in front that a window has left behind; `stored`: those in pages; `fresh`: those in the tail,
    where the row has `place`."""

    def __init__(self, layer: Layer):
        self.layer, self.pages = layer, []
        self.dropped = self.stored = self.fresh = self.place = 0
        self.tail: Tail | None = None

    def __del__(self):
        self.layer.release(self.pages)

    def __len__(self) -> int:
        return self.dropped + self.stored + self.fresh

    def fork(self) -> Row:
        """The same tokens: pages are shared until one of the two writes into one."""
        other = Row(self.layer)
        other.pages, other.tail, other.place = list(self.pages), self.tail, self.place
        other.dropped, other.stored, other.fresh = self.dropped, self.stored, self.fresh
        self.layer.hold(other.pages)
        return other

    def trim(self, count: int) -> None:
        """Forgets the last tokens."""
        fresh = min(count, self.fresh)
        self.fresh -= fresh
        self.stored -= count - fresh
        keep = -(-self.stored // self.layer.page)
        self.layer.release(self.pages[keep:])
        del self.pages[keep:]

    def trimmable(self) -> int:
        """Tokens that may be forgotten: what a window then needs must not have been dropped."""
        return len(self) if not self.dropped else max(0, len(self) - self.dropped - self.layer.window)

    def wanted(self, count: int) -> int:
        """The number of free pages that `count` more stored tokens need, including a copy of a shared last page."""
        if not count:
            return 0
        return -(-(self.stored + count) // self.layer.page) - len(self.pages) + self._shared()

    def _shared(self) -> bool:
        """Whether another row holds the page of the next token too."""
        return self.stored % self.layer.page != 0 and self.layer.holders[self.pages[-1]] > 1

    def extend(self, count: int) -> tuple[list[tuple[int, int]], list[int], list[int]]:
        """Makes room for `count` tokens, from reserved pages: (pages to copy first, page of each token, slot of
        each)."""
        page, copies = self.layer.page, []
        if count and self._shared():
            copies.append((self.pages[-1], self.layer.take()))
            self.layer.release([self.pages[-1]])
            self.pages[-1] = copies[0][1]
        while len(self.pages) * page < self.stored + count:
            self.pages.append(self.layer.take())
        places = range(self.stored, self.stored + count)
        self.stored += count
        return copies, [self.pages[j // page] for j in places], [j % page for j in places]

    def drop(self) -> None:
        """Releases pages that no query will see any more, except for a reserve behind the window."""
        if self.layer.window is None:
            return
        behind = len(self) - self.layer.window - RESERVE - self.dropped
        pages = max(0, min(behind, self.stored)) // self.layer.page
        self.layer.release(self.pages[:pages])
        del self.pages[:pages]
        self.dropped += pages * self.layer.page
        self.stored -= pages * self.layer.page
