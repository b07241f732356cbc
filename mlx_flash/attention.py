"""The public function."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from .autograd import attend
from .backends import current_backend
from .problem import padded, problem_of


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float | None = None,
    mask: str | None = None,
    causal: bool = False,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array:
    """Exact attention, softmax(scale * q k^T) v, in memory linear in the lengths, with gradients for q, k and v.

    Args:
        q: [B, Hq, Lq, D], float32, float16 or bfloat16. Any D of at least 1; multiples of 8 avoid a padded copy.
        k: [B, Hk, Lk, D], q's dtype. Hq must be a multiple of Hk: query head h uses key head h // (Hq // Hk).
        v: [B, Hk, Lk, Dv], q's dtype.
        scale: multiplies q k^T; finite. None means 1/sqrt(D).
        mask: None or "causal", as in ``mx.fast.scaled_dot_product_attention``.
        causal: the same as mask="causal". Aligned to the lower right: query i sees keys 0 .. i + Lk - Lq.
        stream: stream or device of the launches.

    Returns:
        [B, Hq, Lq, Dv] in q's dtype. A query that sees no key gives zeros and takes part in no gradient. Views
        (transposed, sliced) are read in place as long as their last axis is contiguous.

    Raises:
        ValueError: an argument is wrong; the message names it, what was expected, what came and what to do.
        UnsupportedProblem: the chosen backend cannot serve the call. Second derivatives and mx.jvp raise it too.

    Scores, softmax statistics and their gradients stay float32 whatever the inputs' dtype; results repeat bit for bit.
    Source: FlashAttention-2 (Dao 2023); kernels after metal-flash-attention (Turner 2024).
    """
    problem = problem_of(q, k, v, scale=scale, mask=mask, causal=causal)
    if problem.empty:
        return mx.zeros(problem.output_shape, q.dtype, stream=stream)
    head_dim, value_dim = padded(problem.head_dim), padded(problem.value_dim)
    q, k = (_pad(array, head_dim, stream) for array in (q, k))
    v = _pad(v, value_dim, stream)
    inner = replace(problem, head_dim=head_dim, value_dim=value_dim)
    out, _ = attend(inner, current_backend(), stream)(q, k, v)
    return out if value_dim == problem.value_dim else out[..., : problem.value_dim]


def _pad(array: mx.array, dimension: int, stream) -> mx.array:
    """Zero columns up to a multiple of 8: they change no dot product, and their gradients are dropped."""
    missing = dimension - array.shape[3]
    return mx.pad(array, [(0, 0), (0, 0), (0, 0), (0, missing)], stream=stream) if missing else array
