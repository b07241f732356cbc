"""The row statistic L [B, Hq, Lq, 2] outside of the kernels: as the LSE that callers see, and in gradients.

L holds m, each row's largest score as the kernels compare scores, and log2 l, where l is the row's sum of exponentials
relative to m. m is a scaled score where scores are scaled first, and otherwise lacks the scale (softmax.metal says
why). A row that sees no key has -inf and 0.
"""

from __future__ import annotations

import math

import mlx.core as mx

from ..backends.reference.scores import LN2, LOG2E, sink_scores
from ..common.scalars import LARGEST


def natural(L: mx.array, scale: float, sinks: mx.array | None) -> tuple[mx.array, mx.array]:
    """(largest score, logarithm of the sum relative to it) in natural units, each [B, Hq, Lq]. `scale`: the factor that
    the kernels' maxima lack, 1 where scores are scaled first."""
    largest, log_sum = L[..., 0], L[..., 1] * LN2
    if scale == 1:
        return largest, log_sum
    if sinks is None:
        return largest * scale, log_sum
    beyond = mx.abs(largest) == LARGEST  # stands for a sink that, divided by the scale, leaves float32
    return mx.where(beyond, sinks.astype(mx.float32)[:, None], largest * scale), log_sum


def with_lse_gradient(delta: mx.array, L: mx.array, d_L: mx.array) -> mx.array:
    """delta with the gradient of the LSE, since dS = P * (dP - delta + dLSE).

    The gradient comes through log2 l, which `natural` multiplies by ln 2; m cancels. Rows that see no key have none.
    """
    return delta - mx.where(L[..., 0] == -math.inf, 0, d_L[..., 1] * LOG2E)


def sinks_gradient(sinks: mx.array, L: mx.array, delta: mx.array, scale: float) -> mx.array:
    """The gradient of sinks. A sink has the weight exp(sink - m) / l in each row and the value 0, so that dP = 0 there.
    `scale`: as in `natural`."""
    largest, log_sum = mx.where(L[..., 0] == -math.inf, math.inf, L[..., 0]), L[..., 1] * LN2
    own, rest = (one[:, None] for one in sink_scores(sinks, scale))
    part = mx.exp((own - largest) * scale + rest - log_sum)
    # Rows behind the end of their batch entry have weight 0, and a delta that may be NaN.
    return -mx.where(part == 0, 0, part * delta).sum((0, 2))
