"""The check that all ranks make the same call, before they send anything of it."""

from __future__ import annotations

import mlx.core as mx

from ..common.scalars import shown
from .collectives import agree, group_of


def described(q, k, v, options: dict) -> str:
    """The facts that must agree on every rank, as text: shapes, dtypes and options. Values of arrays may differ."""
    named = {"q": q, "k": k, "v": v} | {name: value for name, value in options.items() if value is not None}
    return ", ".join(f"{name} {_shown(value)}" for name, value in named.items())


def _shown(value) -> str:
    if isinstance(value, mx.array):
        return f"{str(value.dtype).rpartition('.')[2]}{list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_shown, value))})"
    return shown(value)


def check(q, k, v, *, group: mx.distributed.Group | None = None, **options) -> None:
    """Raises ValueError, on every rank, unless all ranks would call `attention` with shapes and options that agree.

    `attention` checks this whenever Python calls it, which under mx.compile happens only while it is traced. Call
    `check` before a compiled function where shapes could change on one rank alone::

        distributed.check(q, k, v, causal=True)

    Args:
        q, k, v, group, options: as in `distributed.attention`. Values of arrays may differ between ranks.
    """
    group = group_of(group, "distributed.check")
    if group.size() > 1:
        agree(described(q, k, v, options), group, "distributed.check")
