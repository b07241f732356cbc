"""The pages of one layer: arrays, and how many rows hold each page."""

from __future__ import annotations

from math import prod

import mlx.core as mx

from ...problem.quantization import Quantization
from .errors import PagePoolFull

FIRST = 16  # pages of a layer that has any; a drained layer doubles


class Layer:
    """Keys [N, heads, page, head_dim] and values [N, heads, page, value_dim] of one layer, or their quantized parts.

    `window`: keys that a query sees, its own among them; None for all. `room`: how many bytes a layer may still take.
    """

    def __init__(self, page: int, window: int | None, room, quantization: Quantization | None = None):
        self.page, self.window, self.quantization, self._room = page, window, quantization, room
        self.heads = self.dims = self.dtype = None
        self.shared = False  # do other layers of the model ask for these keys too?
        self.arrays: list[mx.array] = []  # the parts of keys, then those of values
        self.holders: list[int] = []  # the number of rows that hold each page
        self._free: list[int] = []

    def known(self, k: mx.array, v: mx.array) -> None:
        """Takes heads, dimensions and dtype from the first keys and values of the layer."""
        if self.heads is None:
            self.heads, self.dims, self.dtype = k.shape[1], (k.shape[3], v.shape[3]), k.dtype

    @property
    def columns(self) -> list[tuple[int, mx.Dtype]]:
        """Columns and dtype of each part."""
        if self.quantization is None:
            return [(dim, self.dtype) for dim in self.dims]
        bits, group = self.quantization.bits, self.quantization.group_size
        scales = len(self.quantization.parts) - 1
        scale = self.dtype if self.quantization.mode == "affine" else mx.uint8
        parts = [[(dim * bits // 32, mx.uint32), *[(dim // group, scale)] * scales] for dim in self.dims]
        return [part for one in parts for part in one]

    @property
    def page_bytes(self) -> int:
        return sum(prod((self.heads, self.page, count)) * dtype.size for count, dtype in self.columns)

    @property
    def used(self) -> int:
        """Pages that some row holds."""
        return len(self.holders) - len(self._free)

    @property
    def capacity_bytes(self) -> int:
        return len(self.holders) * self.page_bytes if self.holders else 0

    def reserve(self, count: int) -> None:
        """Makes sure that `count` pages are free. Raises PagePoolFull without having changed anything."""
        missing = count - len(self._free)
        if missing <= 0:
            return
        wanted = max(missing, len(self.holders), FIRST)
        more = min(wanted, self._room() // self.page_bytes)
        if more < missing:
            raise PagePoolFull(
                f"[mlx_flash.PagePool] no room for {missing} more pages of {self.page_bytes} bytes: "
                f"{self.used} are in use. Release caches, admit fewer requests, or make the pool larger."
            )
        first = len(self.holders)
        added = [mx.zeros((more, self.heads, self.page, count), dtype) for count, dtype in self.columns]
        self.arrays = [mx.concatenate(pair) for pair in zip(self.arrays, added)] if self.arrays else added
        self.holders += [0] * more
        self._free += range(first + more - 1, first - 1, -1)

    def take(self) -> int:
        """A free page, held once. The caller has reserved it."""
        page = self._free.pop()
        self.holders[page] = 1
        return page

    def hold(self, pages: list[int]) -> None:
        for page in pages:
            self.holders[page] += 1

    def release(self, pages: list[int]) -> None:
        for page in pages:
            self.holders[page] -= 1
            if not self.holders[page]:
                self._free.append(page)

    def copy(self, copies: list[tuple[int, int]]) -> None:
        """Copies pages: pairs (from, to)."""
        if copies:
            source, target = (mx.array(pages) for pages in zip(*copies))
            for array in self.arrays:
                array[target] = array[source]

    def write(self, pages: list[int], slots: list[int], k: mx.array, v: mx.array) -> None:
        """Writes keys and values [T, heads, columns] to rows of pages, quantized if the layer is."""
        where, slot = mx.array(pages), mx.array(slots)
        for array, part in zip(self.arrays, (*self._parts(k), *self._parts(v))):
            array[where, :, slot] = part

    def _parts(self, array: mx.array) -> tuple[mx.array, ...]:
        form = self.quantization
        if form is None:
            return (array,)
        return tuple(mx.quantize(array, group_size=form.group_size, bits=form.bits, mode=form.mode))

    def operands(self) -> tuple:
        """Keys and values as attention, or quantized_attention, takes them."""
        half = len(self.arrays) // 2
        if self.quantization is None:
            return tuple(self.arrays)
        return tuple(self.arrays[:half]), tuple(self.arrays[half:])
