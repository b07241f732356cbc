"""BlockMask: which keys each query sees, in blocks, so that kernels skip empty blocks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cached_property

import mlx.core as mx
import numpy as np

from ..common.errors import wrong
from ..common.scalars import listed, shown, traced, truth, whole

SHOWN = 1024  # elements a side: larger masks are drawn block by block
EMPTY, FULL, PARTIAL = 0, 1, 2  # block states; PARTIAL + n: bitmap n tells the elements
LAYERED = ("block_map", "block_lists", "block_counts", "block_lists_t", "block_counts_t")
MOST_BLOCKS, MOST_ELEMENTS = 2**28, 2**32  # 1 GiB of states; elements of one strip of queries
REPEATED_BYTES = 2**22  # the most memory in which a layer of blocks is repeated


class BlockMask:
    """A mask of square blocks: kernels never visit empty blocks, and do not test full ones element by element.

    Build it with `from_predicate`, `from_array` or a ready-made constructor (`causal`, `window`, `prefix`, `document`,
    `dilated`), pass it as ``attention(..., mask=block_mask)``, and look at it with `plot`. One mask serves all batch
    entries and heads, or has one layer for each. The idea and the name are FlexAttention's (PyTorch).

    Attributes: shape (B or 1, Hq or 1, Lq, Lk); block: rows and columns of a block; map: int32
    [B or 1, Hq or 1, query blocks, key blocks]; bitmaps: uint8 [n, block, block], the distinct partial blocks.

    Every constructor raises ValueError for lengths, counts and blocks that are no whole numbers or too small, and for
    masks of too many blocks.
    """

    def __init__(self, shape: tuple[int, ...], block: int, map: np.ndarray, bitmaps: np.ndarray):
        self.shape, self.block, self.map, self.bitmaps = shape, block, map, bitmaps
        self._repeated: dict[tuple[int, int], dict[str, mx.array]] = {}

    def __repr__(self) -> str:
        return f"BlockMask(shape={self.shape}, block={self.block}, visited={self.visited:.1%})"

    @classmethod
    def from_predicate(
        cls,
        predicate: Callable,
        query_length: int,
        key_length: int,
        *,
        batch: int | None = None,
        heads: int | None = None,
        block: int = 128,
    ) -> BlockMask:
        """A mask in which query i sees key j where ``predicate(i, j)`` is True, or ``predicate(b, h, i, j)`` if `batch`
        or `heads` is given. The predicate gets numpy integer arrays that broadcast against one another and returns a
        bool array. It is evaluated in strips of `block` queries. `block`: a multiple of 32.

        Raises ValueError for lengths, blocks or results of the predicate that are not as described.
        """
        query_length, key_length = counted("query_length", query_length, 1), counted("key_length", key_length, 1)
        layered = batch is not None or heads is not None
        layers = tuple(1 if n is None else counted(name, n, 1) for name, n in (("batch", batch), ("heads", heads)))
        given, block = block, whole(block)
        if block is None or block < 32 or block % 32:
            raise wrong("block", "a positive multiple of 32", shown(given), "Use 64 or 128.", "BlockMask")
        if not callable(predicate):
            raise wrong("predicate", "a function of positions", shown(predicate), "See from_array.", "BlockMask")
        _check_size(query_length, key_length, block, math.prod(layers))
        rows, columns = -(-query_length // block), -(-key_length // block)
        map, bitmaps = np.zeros((*layers, rows, columns), np.int32), _Bitmaps(block)
        keys = np.arange(key_length)[None, :]
        for b, h, row in np.ndindex(*layers, rows):
            queries = np.arange(row * block, min((row + 1) * block, query_length))[:, None]
            seen = np.asarray(predicate(b, h, queries, keys) if layered else predicate(queries, keys))
            if seen.dtype != np.bool_:
                raise wrong("predicate", "a bool array", seen.dtype, "Return a comparison.", "BlockMask")
            shape = (len(queries), key_length)
            if seen.ndim > 2 or any(own not in (1, full) for own, full in zip(seen.shape[::-1], shape[::-1])):
                raise wrong(
                    "predicate", f"a result that broadcasts to {shape}", f"shape {seen.shape}", "Keep both axes.",
                    "BlockMask",
                )  # fmt: skip
            map[b, h, row] = bitmaps.states(np.broadcast_to(seen, shape))
        return cls((*layers, query_length, key_length), block, map, bitmaps.array())

    @classmethod
    def from_array(cls, mask, *, block: int = 128) -> BlockMask:
        """The mask of a bool array [Lq, Lk], [Hq, Lq, Lk] or [B, Hq, Lq, Lk] (axes of 1 are shared), True = keep."""
        if traced(mask):
            remedy = "Build the mask outside of mx.compile and mx.vmap."
            raise wrong("mask", "an array whose values are known", shown(mask), remedy, "BlockMask")
        try:
            seen = np.asarray(mask)
        except ValueError:  # rows of different lengths
            seen = np.array(None)
        if seen.dtype != np.bool_ or not 2 <= seen.ndim <= 4:
            raise wrong(
                "mask", "a bool array of 2 to 4 axes", f"{seen.dtype} of shape {seen.shape}", "Compare or add axes.",
                "BlockMask",
            )  # fmt: skip
        seen = seen.reshape((1,) * (4 - seen.ndim) + seen.shape)
        batch, heads, rows, columns = seen.shape
        return cls.from_predicate(
            lambda b, h, i, j: seen[b, h, i[:, 0]], rows, columns, batch=batch, heads=heads, block=block
        )

    @classmethod
    def causal(cls, query_length: int, key_length: int, *, block: int = 128) -> BlockMask:
        """Query i sees keys up to its own position i + key_length - query_length."""
        return cls.window(query_length, key_length, None, 0, block=block)

    @classmethod
    def window(
        cls, query_length: int, key_length: int, left: int | None, right: int | None, *, block: int = 128
    ) -> BlockMask:
        """Query i sees `left` keys before its own position and `right` after it; None or -1: no bound."""
        left, right = (
            None if side is None or whole(side) == -1 else counted(name, side, 0)
            for name, side in (("left", left), ("right", right))
        )
        offset = counted("key_length", key_length, 1) - counted("query_length", query_length, 1)

        def seen(i, j):
            distance = j - i - offset
            near = np.ones(distance.shape, bool)
            near &= True if left is None else distance >= -left
            return near & (True if right is None else distance <= right)

        return cls.from_predicate(seen, query_length, key_length, block=block)

    @classmethod
    def prefix(cls, query_length: int, key_length: int, prefix: int, *, block: int = 128) -> BlockMask:
        """Causal, and every query also sees the first `prefix` keys (prefix language models)."""
        prefix = counted("prefix", prefix, 0)
        offset = counted("key_length", key_length, 1) - counted("query_length", query_length, 1)
        return cls.from_predicate(lambda i, j: (j <= i + offset) | (j < prefix), query_length, key_length, block=block)

    @classmethod
    def document(cls, lengths, *, causal: bool = True, block: int = 128) -> BlockMask:
        """Documents of these lengths (a list or an array), packed one after another; each sees only itself."""
        counts = [counted("lengths", length, 0) for length in listed(lengths) or (lengths,)]
        if truth(causal) is None:
            raise wrong("causal", "True or False", shown(causal), "Pass a bool.", "BlockMask")
        _check_size(sum(counts), sum(counts), max(whole(block) or 0, 1))
        ids = np.repeat(np.arange(len(counts)), counts)
        return cls.from_predicate(
            lambda i, j: (ids[i] == ids[j]) & ((j <= i) | (not truth(causal))), len(ids), len(ids), block=block
        )

    @classmethod
    def dilated(cls, query_length: int, key_length: int, step: int, *, block: int = 128) -> BlockMask:
        """Causal, with every `step`-th key counted back from the query's own position, which it sees too."""
        step = min(counted("step", step, 1), 2**31)  # numpy's integers have 64 bits
        offset = counted("key_length", key_length, 1) - counted("query_length", query_length, 1)
        return cls.from_predicate(
            lambda i, j: (j <= i + offset) & ((i + offset - j) % step == 0), query_length, key_length, block=block
        )

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless the mask fits attention of [B, Hq, Lq, Lk]."""
        wanted = listed(shape) or []
        fits = all(own in (1, full) for own, full in zip(self.shape[:2], wanted)) and self.shape[2:] == (*wanted[2:],)
        if not fits:
            raise wrong(
                "mask", f"a BlockMask that fits [B, Hq, Lq, Lk] = {wanted}", f"one of {list(self.shape)}",
                "Build it for these lengths, heads and batch.",
            )  # fmt: skip

    @property
    def visited(self) -> float:
        """The fraction of all blocks that are visited."""
        return float((self.map != EMPTY).mean())

    def visible(self, batch: int = 0, head: int = 0) -> np.ndarray:
        """bool [Lq, Lk] of one layer, element by element."""
        map, block = self._layer(batch, head), self.block
        whole = np.zeros((map.shape[0] * block, map.shape[1] * block), bool)
        for row, column in zip(*np.nonzero(map)):
            state = map[row, column]
            part = True if state == FULL else self.bitmaps[state - PARTIAL]
            whole[row * block : (row + 1) * block, column * block : (column + 1) * block] = part
        return whole[: self.shape[2], : self.shape[3]]

    def _layer(self, batch, head) -> np.ndarray:
        """The map of one layer. Negative numbers count from the end; one layer may serve all numbers."""
        for name, number in (("batch", batch), ("head", head)):
            if whole(number) is None:
                raise wrong(name, "a whole number", shown(number), "Pass the number of a layer.", "BlockMask")
        return self.map[whole(batch) % self.shape[0], whole(head) % self.shape[1]]

    @cached_property
    def arrays(self) -> dict[str, mx.array]:
        """The arrays that kernels read: the map, the bitmaps, and the lists of visited blocks by row and by column."""
        lists, counts = _lists(self.map)
        lists_t, counts_t = _lists(self.map.swapaxes(2, 3))
        named = {
            "block_map": self.map, "block_bitmaps": self.bitmaps, "block_lists": lists, "block_counts": counts,
            "block_lists_t": lists_t, "block_counts_t": counts_t,
        }  # fmt: skip
        return {name: mx.array(np.ascontiguousarray(array)) for name, array in named.items()}

    def layers(self, batch: int, heads: int, repeats: bool = False) -> dict[str, mx.array]:
        """The arrays with a layer for each entry of the batch and each head, all but the bitmaps. `repeats`: layers
        that several share are repeated in memory where all together are small, so that strides need not be asked for.
        """
        kept = self._repeated.get((batch, heads)) if repeats else None
        if kept is not None:
            return kept
        found = dict(self.arrays)
        for name in LAYERED:
            # Left lazy: of an evaluated array that is broadcast, mx.export_function would write more bytes than it has.
            found[name] = mx.broadcast_to(found[name], (batch, heads, *found[name].shape[2:]))
        if not repeats or max(found[name].nbytes for name in LAYERED) > REPEATED_BYTES:
            return found
        copies = {name: mx.contiguous(found[name]) for name in LAYERED}
        mx.eval(*copies.values())  # so that every thread can use them
        found |= copies
        self._repeated = {(batch, heads): found}
        return found

    def plot(self, path: str | None = None, *, batch: int = 0, head: int = 0):
        """A picture of one layer: empty, partial and full blocks, partial ones by element. Returns the matplotlib
        figure, and saves it where `path` says. Needs matplotlib."""
        states = np.minimum(self._layer(batch, head), PARTIAL)
        if path is not None and not isinstance(path, (str, os.PathLike)) and not hasattr(path, "write"):
            raise wrong("path", "the name of a file, or None", shown(path), "Pass a path ending in .png.", "BlockMask")
        return _plot(self, states, path, batch, head)


def counted(name: str, number, least: int) -> int:
    """A whole number of at least `least`. Raises ValueError for everything else."""
    count = whole(number)
    if count is None or count < least:
        expected = f"a whole number of at least {least}"
        raise wrong(name, expected, shown(number), "Pass a count of rows or keys.", "BlockMask")
    return count


def _check_size(query_length: int, key_length: int, block: int, layers: int = 1):
    """Raises ValueError if the map of blocks, or the strip of queries that is evaluated at a time, is too large."""
    blocks = layers * -(-query_length // block) * -(-key_length // block)
    if blocks > MOST_BLOCKS or block * key_length > MOST_ELEMENTS:
        raise wrong(
            "query_length, key_length", f"at most {MOST_BLOCKS} blocks, and strips of {MOST_ELEMENTS} elements",
            f"{query_length} x {key_length} in blocks of {block}", "causal= and window= need no mask.", "BlockMask",
        )  # fmt: skip


class _Bitmaps:
    """Collects the distinct partial blocks."""

    def __init__(self, block: int):
        self.block, self.known = block, {}

    def states(self, strip: np.ndarray) -> np.ndarray:
        """The state of every block of a strip of queries. Rows and columns past the end do not make a block partial."""
        rows, keys = strip.shape
        columns = -(-keys // self.block)
        padded = np.zeros((self.block, columns * self.block), bool)
        padded[:rows, :keys] = strip
        blocks = padded.reshape(self.block, columns, self.block).swapaxes(0, 1)
        sizes = rows * np.minimum(self.block, keys - np.arange(columns) * self.block)
        counts = blocks.sum((1, 2))
        states = np.where(counts == 0, EMPTY, np.where(counts == sizes, FULL, PARTIAL)).astype(np.int32)
        for column in np.nonzero(states == PARTIAL)[0]:
            states[column] += self.known.setdefault(np.packbits(blocks[column]).tobytes(), len(self.known))
        return states

    def array(self) -> np.ndarray:
        if not self.known:
            return np.zeros((1, self.block, self.block), np.uint8)
        bitmaps = np.frombuffer(b"".join(self.known), np.uint8).reshape(len(self.known), -1)
        return np.unpackbits(bitmaps, axis=1).reshape(-1, self.block, self.block)


def _lists(map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the visited columns of every row, in order, as column * 2 + (1 if full); their number in every row)."""
    visited = map != EMPTY
    counts = visited.sum(-1).astype(np.int32)
    width = max(int(counts.max()), 1)
    order = np.argsort(~visited, axis=-1, kind="stable")[..., :width]
    full = np.take_along_axis(map == FULL, order, -1)
    return (order * 2 + full).astype(np.int32), counts


def _plot(mask: BlockMask, states: np.ndarray, path: str | None, batch: int, head: int):
    """See BlockMask.plot. `states`: of the layer's blocks, PARTIAL for all that are partial."""
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            '[mlx_flash.BlockMask] plot needs matplotlib: pip install "mlx-flash-attention[demo]"'
        ) from None
    rows, keys = mask.shape[2:]
    lines, columns = (blocks * mask.block for blocks in states.shape)  # the last blocks may reach past the end
    image = states.repeat(mask.block, 0).repeat(mask.block, 1)[:rows, :keys] if max(rows, keys) <= SHOWN else states
    if image is not states:
        image = np.where(image == PARTIAL, PARTIAL + mask.visible(batch, head), image)
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axes = figure.subplots()
    colours = ["#f4f4f4", "#1f5fa8", "#cfe0f3", "#5b93d0"] if image is not states else ["#f4f4f4", "#1f5fa8", "#8fb7e3"]
    axes.imshow(
        image, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, interpolation="nearest",
        extent=(0, keys, rows, 0) if image is not states else (0, columns, lines, 0),
    )  # fmt: skip
    axes.set(xlim=(0, keys), ylim=(rows, 0))
    axes.set(xlabel="key", ylabel="query", title=f"{rows} x {keys}, blocks of {mask.block}: {mask.visited:.1%} visited")
    ticks = {"color": "#999999", "linewidth": 0.4}
    if max(states.shape) <= 64:
        for row in range(mask.block, rows, mask.block):
            axes.axhline(row, **ticks)
        for column in range(mask.block, keys, mask.block):
            axes.axvline(column, **ticks)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
