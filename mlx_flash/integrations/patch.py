"""mlx_flash in place of mx.fast.scaled_dot_product_attention, for every model that looks it up when called."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable

import mlx.core as mx

from .derivatives import replacements
from .replacement import LOCK, Replacement
from .serve import NotServed, serve_attention, serve_quantized

LOGGER = logging.getLogger("mlx_flash")
QUANTIZED = ("mlx_lm.models.base", "quantized_scaled_dot_product_attention")
MOST_REASONS = 32  # sentences that are kept apart: some hold shapes, and a server runs for long

_active: tuple[patch, ...] = ()  # never changed in place: calls read it without the lock
_replacements: list[Replacement] = []
_mlx_lm = None  # the module whose function is replaced


class patch:
    """Replaces ``mx.fast.scaled_dot_product_attention`` by `attention`, for a block or until `undo`.

    ``with mlx_flash.patch() as report: ...``, or ``report = mlx_flash.patch(); ...; report.undo()``, or
    ``mlx_flash.unpatch()``, which takes all patches back. Serves ``mlx.nn.MultiHeadAttention`` and mlx-lm's models,
    which look the function up when they call it, and mlx-lm's function for quantized caches, which becomes
    `quantized_attention`. mlx-lm is not imported for that: where it is imported later, its first other call tells.

    Calls that cannot be served, wrong ones included, go to the built-in function, which answers or raises as ever; so
    do those inside ``mx.jvp`` or a gradient of a gradient: to tell, ``mx.grad``, ``mx.value_and_grad``, ``mx.vjp`` and
    ``mx.jvp`` keep count while a patch is active.

    Args:
        min_queries: calls with fewer queries go to the built-in: 9 leaves decoding to it.

    Attributes: served, a Counter of the calls served here by what they were ("prefill", more than 8 queries, or
    "decode", and the same with "quantized"); built_in, a Counter of the reasons of the others. They are logged on
    leaving (logger "mlx_flash", level INFO); ``print(report)`` shows them.

    A patch holds for all threads. Patches nest, and a call counts in one of them: the innermost of its own thread, or
    of all where its thread has none. A function compiled by ``mx.compile`` keeps what stood there when it was traced,
    and is counted when it is traced.

    One difference from the built-in: a query that sees no key gives zeros.
    """

    def __init__(self, min_queries: int = 1):
        if not isinstance(min_queries, int) or isinstance(min_queries, bool) or min_queries < 1:
            raise ValueError(
                f"[mlx_flash.patch] min_queries: expected a whole number of at least 1, got {min_queries!r}. "
                "Pass 1 to serve every call."
            )
        self.min_queries, self.served, self.built_in = min_queries, Counter(), Counter()
        self._thread = threading.get_ident()
        global _active
        with LOCK:
            if not _active:
                _replacements.append(Replacement(mx.fast, "scaled_dot_product_attention", _served_by(serve_attention)))
                _replacements.extend(replacements())
            _active = (*_active, self)
        _find_mlx_lm()

    @property
    def ours(self) -> int:
        """The number of calls served here."""
        return self.served.total()

    def __enter__(self) -> patch:
        return self

    def __exit__(self, *_) -> None:
        self.undo()

    def undo(self) -> None:
        """Takes this patch back; the built-in returns with the last one. A second call does nothing."""
        global _active, _mlx_lm
        with LOCK:
            if self not in _active:
                return
            _active = tuple(one for one in _active if one is not self)
            if not _active:
                while _replacements:
                    _replacements.pop().undo()
                _mlx_lm = None
        LOGGER.info("%s", self)

    def __str__(self) -> str:
        with LOCK:
            kinds, reasons = self.served.most_common(), self.built_in.most_common()
        ours, others = sum(count for _, count in kinds), sum(count for _, count in reasons)
        what = f" ({', '.join(f'{count} {kind}' for kind, count in kinds)})" if kinds else ""
        why = "".join(f"\n  {count} to the built-in: {reason}" for reason, count in reasons)
        return f"mlx_flash served {ours} of {ours + others} attention calls{what}{why}"

    def _count(self, counter: Counter, what: str) -> None:
        with LOCK:
            known = what in counter or len(counter) < MOST_REASONS
            counter[what if known else "other reasons"] += 1


def unpatch() -> None:
    """Takes every patch back."""
    with LOCK:
        for one in reversed(_active):
            one.undo()


def _find_mlx_lm() -> None:
    """Replaces mlx-lm's function for quantized caches, once somebody has imported mlx-lm."""
    global _mlx_lm
    base = sys.modules.get(QUANTIZED[0])
    if base is None or base is _mlx_lm or not hasattr(base, QUANTIZED[1]):  # the last: an import under way
        return
    with LOCK:
        if _active and base is not _mlx_lm:
            _replacements.append(Replacement(base, QUANTIZED[1], _served_by(serve_quantized)))
            _mlx_lm = base


def _current() -> patch | None:
    """The patch that a call of this thread belongs to."""
    active = _active
    if len(active) < 2:
        return active[0] if active else None
    thread = threading.get_ident()
    return next((one for one in reversed(active) if one._thread == thread), active[-1])


def _served_by(serve: Callable) -> Callable:
    """What a Replacement asks for: a function that tries `serve` with the patch's min_queries, counts, and calls the
    built-in where it may not."""

    def make(built_in: Callable) -> Callable:
        def call(*args, **kwargs):
            current = _current()
            if current is None:
                return built_in(*args, **kwargs)
            _find_mlx_lm()
            try:
                what, out = serve(current.min_queries, *args, **kwargs)
            except (NotServed, TypeError, ValueError) as reason:  # a wrong call, or one that the backend cannot serve
                current._count(current.built_in, str(reason).partition("\n")[0])
                return built_in(*args, **kwargs)
            current._count(current.served, what)
            return out

        return call

    return make
