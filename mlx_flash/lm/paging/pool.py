"""A pool of pages for the caches of one model."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial

from ...common.errors import wrong
from ...common.scalars import shown, whole
from ...problem.quantization import quantization_of
from ...problem.rows import PAGE_MULTIPLE
from ..models import check_model
from .cache import PagedKVCache
from .errors import PagePoolError
from .probe import refusal
from .storage import Layer


class PagePool:
    """Key-value caches of one mlx-lm model in pages of a common pool.

    ``pool = PagePool(model, bytes=8 << 30); model.make_cache = pool.caches``, and generation inside ``with
    mlx_flash.patch():``. mlx-lm's generators, its BatchGenerator and its server then use these caches as they use their
    own. A model receives opaque handles from its caches and passes them on to attention; where it computes with keys
    itself, or with its mask, all its layers keep mlx-lm's caches, and ``print(pool)`` says why. Layers of other kinds
    than attention keep theirs in any case.

    Args:
        model: of mlx-lm. It is run on two tokens without computing anything, to see what it does with a handle.
        bytes: the most memory that pages may take. They are allocated as they are needed, twice as many each time.
        page: tokens of a page, a multiple of 8; 64 fits the kernels' blocks.
        bits, group_size, mode: None for pages of the model's dtype, else how full pages are quantized, as
            `quantized_attention` has it. New tokens are kept as they are until they move to pages.

    Attributes: paged, the number of layers in pages; ordinary, a Counter of the reasons of the others.

    Raises:
        ValueError: an argument is wrong.

    A pool is made for one thread at a time: a second one inside it at the same moment gets a PagePoolError, and so does
    the use of a released cache or of an old handle. Where the pool is full, PagePoolFull is raised before anything is
    written.
    """

    def __init__(self, model, bytes: int = 8 << 30, page: int = 64, bits=None, group_size=64, mode: str = "affine"):
        for name, value, least in (("bytes", bytes, 1), ("page", page, PAGE_MULTIPLE)):
            if whole(value) is None or value < least:
                raise wrong(name, f"a whole number of at least {least}", shown(value), "Pass an int.", "PagePool")
        if page % PAGE_MULTIPLE:
            raise wrong("page", f"a multiple of {PAGE_MULTIPLE}", page, "Take 64.", "PagePool")
        check_model(model, "PagePool")
        self.bytes, self.page = bytes, page
        self._quantization = None if bits is None else quantization_of(mode, bits, group_size)
        self._inside = threading.RLock()
        self._ordinary = _ordinary(model)
        self.layers: list[Layer | None] = [self._layer(cache) for cache in self._ordinary()]
        self.ordinary = Counter(f"{type(c).__name__}" for c, l in zip(self._ordinary(), self.layers) if l is None)
        reason = refusal(model, self) if any(self.layers) else ""
        if reason:
            self.ordinary[reason] += sum(layer is not None for layer in self.layers)
            self.layers = [None] * len(self.layers)

    def _layer(self, cache) -> Layer | None:
        """The pages in place of one of mlx-lm's caches; None where it must stay."""
        kind = type(cache).__name__
        if kind == "KVCache":
            return Layer(self.page, None, self.room, self._quantization)
        if kind == "RotatingKVCache" and not cache.keep:
            return Layer(self.page, cache.max_size, self.room, self._quantization)
        return None

    @property
    def paged(self) -> int:
        return sum(layer is not None for layer in self.layers)

    def caches(self) -> list:
        """A cache for each layer, for one sequence or for the rows of one input: the model's `make_cache`."""
        own = [PagedKVCache(self, n) if layer else None for n, layer in enumerate(self.layers)]
        if all(own):
            return own
        return [ours or theirs for ours, theirs in zip(own, self._ordinary())]

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use; one that several sequences share counts once."""
        return sum(layer.used * layer.page_bytes for layer in self.layers if layer and layer.holders)

    @property
    def pages(self) -> int:
        """Pages in use, of all layers."""
        return sum(layer.used for layer in self.layers if layer)

    def room(self) -> int:
        """Bytes that may still be allocated."""
        return self.bytes - sum(layer.capacity_bytes for layer in self.layers if layer)

    def reserve(self, number: int, count: int) -> None:
        """Makes sure that a layer and all layers after it have `count` free pages. Raises PagePoolFull, before any
        layer has written anything of the step, because the first layer reserves for all of them."""
        first = next(n for n, layer in enumerate(self.layers) if layer)
        if number == first:
            for layer in self.layers:
                if layer:
                    layer.reserve(count)
        self.layers[number].reserve(count)

    @contextmanager
    def entered(self):
        """Raises PagePoolError if another thread is inside the pool."""
        if not self._inside.acquire(blocking=False):
            raise PagePoolError("[mlx_flash.PagePool] two threads at the same time: let one serve, or use a pool each")
        try:
            yield
        finally:
            self._inside.release()

    def __str__(self) -> str:
        words = [f"{self.paged} of {len(self.layers)} layers in pages of {self.page} tokens"]
        words[0] += f", {self.pages} pages in use: {self.nbytes / 1e6:.1f} of {self.bytes / 1e6:.1f} MB"
        words += [f"{count} layers keep mlx-lm's caches: {reason}" for reason, count in self.ordinary.items()]
        return "\n  ".join(words)


def _ordinary(model):
    """The function that makes mlx-lm's own caches of the model, also where another pool has taken its place."""
    own = getattr(model, "make_cache", None)
    pool = getattr(own, "__self__", None)
    if isinstance(pool, PagePool):
        return pool._ordinary
    return own or partial(_plain, len(model.layers))


def _plain(layers: int) -> list:
    from mlx_lm.models.cache import KVCache

    return [KVCache() for _ in range(layers)]
