"""The row statistic L [B, Hq, Lq, 2] outside of the kernels: as callers see it, and where gradients pass through it.

L holds m, each row's largest score as the kernels compare scores, and log2 l, l the row's sum of exponentials relative
to m. m is a whole score where scores are scaled first, else one without the scale (softmax.metal says why). A row that
sees no key has -inf and 0.
"""

from __future__ import annotations

import math

import mlx.core as mx

from ..backends.reference.scores import LN2, LOG2E


def natural(L: mx.array, scale: float) -> tuple[mx.array, mx.array]:
    """(largest score, logarithm of the sum relative to it) in natural units, each [B, Hq, Lq]. `scale`: of the scores
    that the kernels compared, 1 where they were scaled before."""
    largest = L[..., 0] if scale == 1 else L[..., 0] * scale
    return largest, L[..., 1] * LN2


def with_lse_gradient(delta: mx.array, L: mx.array, d_L: mx.array) -> mx.array:
    """dS = P * (dP - delta + dLSE): the gradient of the LSE enters where delta does. It comes through log2 l, which
    `natural` multiplies by ln 2; m is a constant that cancels. Rows that see nothing have none."""
    return delta - mx.where(L[..., 0] == -math.inf, 0, d_L[..., 1] * LOG2E)


def sinks_gradient(sinks: mx.array, L: mx.array, delta: mx.array) -> mx.array:
    """A sink takes the part exp(sink - m) / l of each row and has the value 0, so that dP = 0 there. With sinks scores
    are scaled first."""
    largest, log_sum = mx.where(L[..., 0] == -math.inf, math.inf, L[..., 0]), L[..., 1] * LN2
    part = mx.exp(sinks[:, None] - largest - log_sum)
    # Rows behind the end of their batch entry have no part, and a delta that may be NaN.
    return -mx.where(part == 0, 0, part * delta).sum((0, 2))
