"""Decoding over a cache that is spread over several machines."""

from __future__ import annotations

import mlx.core as mx

from .. import api
from ..common.errors import UnsupportedProblem
from ..sequences import merge
from .collectives import Collectives, group_of


def decode(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    group: mx.distributed.Group | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: mx.array | None = None,
    stream: mx.Stream | mx.Device | None = None,
) -> tuple[mx.array, mx.array]:
    """Attention of the same queries on every rank over all keys of all ranks; forward only. Every rank must call it::

        out, lse = distributed.decode(q[:, :, -1:], k, v)  # k and v: this rank's part of the cache

    Args:
        q: [B, Hq, L, D], the same on every rank. The queries see every key that any rank passes.
        k: [B, Hk, keys of this rank, D], this rank's part of the cache; ranks may hold different numbers, or none.
        v: [B, Hk, keys of this rank, Dv].
        scale, softcap, sinks, stream: as in `attention`.

    Returns:
        (output [B, Hq, L, Dv] in q's dtype, lse float32 [B, Hq, L]), the same bits on every rank. Each rank sends
        4 B Hq L (Dv + 2) (P - 1) bytes, however long the cache is.

    Raises:
        ValueError: as `attention`. UnsupportedProblem: a gradient is asked for.
    """
    group = group_of(group, "distributed.decode")
    # A sink is one score of a row: the first rank counts it for all.
    own_sinks = sinks if group.rank() == 0 else None
    out, lse = api.attention(q, k, v, scale=scale, softcap=softcap, sinks=own_sinks, return_lse="split", stream=stream)
    if group.size() == 1:
        return out, lse.sum(0)

    @mx.custom_function
    def joined(out, lse):
        row = mx.concatenate([out.astype(mx.float32), mx.moveaxis(lse, 0, -1)], axis=-1)
        parts = Collectives(group).gather(row)
        whole, total = merge(list(parts[..., :-2]), [mx.moveaxis(part[..., -2:], -1, 0) for part in parts])
        return whole.astype(out.dtype), total.sum(0)

    joined.vjp(_forward_only)
    joined.jvp(_forward_only)
    return joined(out, lse)


def _forward_only(*_):
    raise UnsupportedProblem("[mlx_flash.distributed.decode] it is forward only: train with distributed.attention.")
