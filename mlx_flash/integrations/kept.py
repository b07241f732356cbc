"""What patch() remembers: calls that the policy leaves to the built-in, and plain calls that are served, so that to
decide again costs next to nothing; and the counts of its report."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import count

import mlx.core as mx

from ..backends import BACKEND, FAMILY, choices_here, current_backend
from ..common.environment import STORED
from ..transforms.replacement import LOCK
from ..transforms.trace import trace

MOST_CALLS = 4096  # remembered calls; a cache that grows has a new one with every token
MOST_REASONS = 32  # different sentences that are counted, since some contain shapes and a server runs for long

stored = STORED.get
calls: dict[tuple, tuple] = {}  # as `keep` writes them and the replacement of the built-in in patch.py reads them
plain: dict[tuple, tuple] = {}  # the same of `keep_plain`


def keep(patches: tuple, thread: int | None, counted, dtype: mx.Dtype, q, k, v, *, mask=None, sinks=None, **_) -> None:
    """Remembers that the built-in serves such calls: what the rules compare, and what their answer depends on besides.

    patches: those that are active. thread: whose calls it holds for; None for all. counted: an iterator that counts
    these calls. dtype: of the result, which is that of all operands together. The rules decide by it, but only times of
    this machine tell the two types of 16 bits apart; the size of an element is asked sooner.
    """
    kind = mask if mask is None or isinstance(mask, str) else mx.array
    family = current_backend().family
    exact = dtype if family is not None and family.tuned.calls else None
    if len(calls) >= MOST_CALLS:
        calls.clear()
    calls[q.shape, v.shape, kind, sinks is None, trace.situation] = (
        patches, thread, choices_here(), stored(BACKEND), stored(FAMILY), dtype.size, exact, counted.__next__
    )  # fmt: skip


def keep_plain(patches: tuple, thread: int | None, counted: tuple, q, k, v, *more, scale=None, mask=None, **options):
    """Remembers that a call was served, if it has no arrays but these, and scale and causality for its options.

    The key has what the rules compare. patches, thread: as in `keep`. counted: the iterators that count these calls.
    """
    listed = mask is None or (mask.__class__ is str and mask == "causal")
    if more or not listed or scale.__class__ is not float or {id(one) for one in options.values()} - {id(None)}:
        return
    if not (q.__class__ is k.__class__ is v.__class__ is mx.array and q.dtype == k.dtype == v.dtype):
        return
    if len(plain) >= MOST_CALLS:
        plain.clear()
    plain[q.shape, v.shape, mask, q.dtype, trace.situation] = (
        patches, thread, choices_here(), stored(BACKEND), stored(FAMILY), current_backend(),
        *(one.__next__ for one in counted),
    )  # fmt: skip


def kept_plain(active: tuple, q, v: mx.array, scale, mask) -> tuple | None:
    """(the backend, two functions that count) of a call like one that `keep_plain` remembers, for all that is asked
    here; attention itself refuses keys and types that do not fit."""
    if not (q.__class__ is mx.array and scale.__class__ is float and (mask is None or mask.__class__ is str)):
        return None
    found = plain.get((q.shape, v.shape, mask, q.dtype, trace.situation))
    if found is None:
        return None
    patches, thread, choices, backend, family, *answer = found
    same = (
        patches is active and choices is choices_here() and stored(BACKEND) == backend and stored(FAMILY) == family
        and (thread is None or thread == threading.get_ident())
    )  # fmt: skip
    return answer if same else None


class Tally(dict):
    """Counts of things, as iterators: `next(tally[what])` counts one in a single step, which needs no lock."""

    def __init__(self):
        super().__init__()
        self._lookups = Counter()

    def __missing__(self, what):
        with LOCK:
            if what not in self and len(self) >= MOST_REASONS:
                what = "other reasons"
            return self.setdefault(what, count())

    def counts(self) -> Counter:
        """The counts as numbers. Reading an iterator takes a number too."""
        with LOCK:
            found = Counter({what: next(numbers) - self._lookups[what] for what, numbers in self.items()})
            self._lookups.update(found.keys())
        return found
