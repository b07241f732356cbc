"""Attention over a prefix that all entries of a batch share, and over the rest of each: keys of the prefix are read for
all entries at once (cascade attention)."""

from __future__ import annotations

import mlx.core as mx

from .api import attention
from .common.errors import wrong
from .common.scalars import shown
from .sequences import merge

FUNCTION = "cascade"
EVERYWHERE = ("scale", "stream")  # options that are the same for both parts


def cascade(
    q: mx.array, prefix: dict, rest: dict, *, sinks: mx.array | None = None, return_lse: bool | str = False, **options
) -> mx.array | tuple[mx.array, mx.array]:
    """Attention of every batch entry over a common prefix and its own keys, which follow it.

    Queries of all entries become queries of one, which sees the prefix whole; both results are merged. A threadgroup
    that reads a key of the prefix serves all rows it has: ceil(B G Lq / rows) reads in decoding, and not B.

    Args:
        q: [B, Hq, Lq, D].
        prefix: the arguments k and v of `attention` for the prefix, [1, Hk, Lp, D], and what belongs to them: pages
            [1, n] and lengths [1], value_dim.
        rest: k and v for the rest [B, Hk, Lk, D], and what belongs to them: pages, lengths, mask, causal, window (which
            must not reach into the prefix), alibi_slopes.
        sinks, return_lse: as in `attention`.
        options: scale and stream, for both parts. A cap of scores stands in both.

    Returns:
        As `attention` over keys of both parts one after the other.

    Raises:
        ValueError: an argument is wrong, or the prefix has a batch.
    """
    for name in options:
        if name not in EVERYWHERE:
            remedy = "Put it into rest, whose keys it is about."
            raise wrong(name, f"one of {', '.join(EVERYWHERE)}", name, remedy, FUNCTION)
    for name, part in (("prefix", prefix), ("rest", rest)):
        if not isinstance(part, dict) or not isinstance(part.get("k"), mx.array):
            expected = "a dict with the arguments k and v of attention"
            raise wrong(name, expected, shown(part), "Pass {'k': k, 'v': v}.", FUNCTION)
    paged, keys = prefix.get("pages"), prefix["k"]
    if (keys.shape[0] if paged is None else paged.shape[0]) != 1:
        raise wrong("prefix", "one batch entry, which all share", f"shape {keys.shape}", "Pass it once.", FUNCTION)
    batch, heads, queries, dimension = q.shape
    together = q.swapaxes(0, 1).reshape(1, heads, batch * queries, dimension)
    out, lse = attention(together, **prefix, **options, return_lse="split")
    shape = (heads, batch, queries)
    first = out.reshape(*shape, -1).swapaxes(0, 1), lse.reshape(2, *shape).swapaxes(1, 2)
    second = attention(q, **rest, **options, sinks=sinks, return_lse="split")
    out, lse = merge(*zip(first, second))
    if not return_lse:
        return out
    return out, lse if return_lse == "split" else lse.sum(0)
