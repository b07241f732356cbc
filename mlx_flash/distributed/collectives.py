"""Collectives in the same order on all ranks.

MLX starts a collective when it is evaluated, and ranks that start collectives in different orders misinterpret each
other's messages. So each collective of a call depends on the one before it, and the first on arrays that are named. MLX
must not differentiate them, since its gradient of all_gather is the local slice: use them inside custom functions only.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from ..common.errors import wrong
from ..common.mlx_private import awaited, host_waits

MARK = "attention of "  # prefix of a description, by which the garbage of a lost peer is recognised
DESCRIPTION_BYTES = 1024  # size of the message in which ranks compare their arguments
AWAITED_BYTES = 2**28  # a gather of this many waits on the host: its kernels take a hundred times as long


class Collectives:
    """The collectives of one call over `group`. `after`: as in `follow`."""

    def __init__(self, group: mx.distributed.Group, *after: mx.array):
        self.group, self._after, self._before = group, after, []

    def follow(self, *after: mx.array) -> None:
        """The next collective begins when these arrays are evaluated.

        MLX allocates far ahead of a GPU, so that what was gathered for them would still be held beside what follows.
        Before large collectives, therefore, the host waits for them too.
        """
        self._after = after

    def gather(self, array: mx.array, arrange: Callable | None = None) -> mx.array:
        """The arrays of all ranks, [ranks, ...]. `arrange`: a function of the result, for which the next collective
        waits too, so that only one gathered array is held at a time."""
        gathered = mx.distributed.all_gather(self._ordered(array)[None], group=self.group)
        return self._done(arrange(gathered) if arrange else gathered)

    def sum(self, array: mx.array) -> mx.array:
        """The sum over all ranks."""
        return self._done(mx.distributed.all_sum(self._ordered(array), group=self.group))

    def _ordered(self, array: mx.array) -> mx.array:
        after, self._after = list(self._after), ()
        if after and host_waits() and array.nbytes * self.group.size() >= AWAITED_BYTES:
            after = awaited(after)
        before = [*self._before, *after]
        return mx.depends([array], before)[0] if before else array

    def _done(self, array: mx.array) -> mx.array:
        self._before = [array]
        return array


def group_of(group, function: str) -> mx.distributed.Group:
    """The group, or the global one for None. Raises ValueError for anything else, in the name of a function."""
    if group is None:
        return mx.distributed.init()
    if not isinstance(group, mx.distributed.Group):
        got = type(group).__name__
        raise wrong("group", "an mx.distributed.Group or None", got, "Pass mx.distributed.init().", function)
    return group


def agree(description: str, group: mx.distributed.Group, function: str) -> None:
    """Raises ValueError, on every rank, unless all ranks call with the same description of their arguments, and
    RuntimeError where a peer is lost.

    It sends one message of a fixed size immediately, in which even ranks that disagree about all else can meet.
    """
    text = (MARK + description).encode()[:DESCRIPTION_BYTES].ljust(DESCRIPTION_BYTES)
    sent = mx.distributed.all_gather(mx.array(np.frombuffer(text, np.uint8))[None], group=group)
    found = [bytes(row).decode(errors="replace").rstrip() for row in np.array(sent)]
    if not all(one.startswith(MARK) for one in found):
        raise RuntimeError(f"[mlx_flash.{function}] a peer was lost, or makes another collective at this place.")
    found = [one.removeprefix(MARK) for one in found]
    if len(set(found)) > 1:
        first = found.index(next(one for one in found if one != found[0]))
        got = f"rank 0: {found[0]}; rank {first}: {found[first]}"
        remedy = "Cut the sequence with shard, and pass the same options."
        raise wrong("arguments", "the same shapes and options on every rank", got, remedy, function)
