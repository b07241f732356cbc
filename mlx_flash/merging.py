"""Joining partial results of attention over disjoint sets of keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from .errors import wrong


def merge(outputs: Sequence[mx.array], lses: Sequence[mx.array]) -> tuple[mx.array, mx.array]:
    """The attention over the union of disjoint sets of keys, from the attention over each: exact and differentiable.

    Args:
        outputs: arrays [B, H, L, Dv] of ``attention(..., return_lse=True)``, one per set of keys.
        lses: their natural-log sums of exponentials, float32 [B, H, L].

    Returns:
        (output, lse) as one call over all keys would. Rows that saw no key in any part give zeros and -inf.

    Raises:
        ValueError: no parts, unequal numbers of outputs and lses, or shapes that do not match.
    """
    outputs, lses = list(outputs), list(lses)
    if not outputs or len(outputs) != len(lses):
        raise wrong(
            "outputs, lses", "as many outputs as lses, at least one", f"{len(outputs)} and {len(lses)}",
            "Pass both results of each attention call.", "merge",
        )  # fmt: skip
    for output, lse in zip(outputs, lses):
        if output.shape != outputs[0].shape or tuple(lse.shape) != tuple(outputs[0].shape[:-1]):
            raise wrong(
                "outputs, lses", f"shapes {outputs[0].shape} and {outputs[0].shape[:-1]}",
                f"{output.shape} and {lse.shape}", "All parts share one set of queries.", "merge",
            )  # fmt: skip
    stacked = mx.stack(lses).astype(mx.float32)
    # Any reference cancels; the largest keeps the exponentials in range and must not be differentiated.
    largest = mx.stop_gradient(stacked.max(0))
    reference = mx.where(largest == -math.inf, 0, largest)
    parts = mx.where(stacked == -math.inf, 0, mx.exp(stacked - reference))
    total = parts.sum(0)
    empty = total == 0
    safe = mx.where(empty, 1, total)
    values = mx.stack(outputs).astype(mx.float32)
    output = (values * (parts / safe)[..., None]).sum(0).astype(outputs[0].dtype)
    return output, mx.where(empty, -math.inf, mx.log(safe) + reference)
