"""Ready-made scores and masks, each a few lines of text that kernels compile.

Scores (`gallery.scores`) go to ``attention(..., score=...)``, masks (`gallery.masks`) to
``attention(..., visible=...)``. ``python -m mlx_flash gallery`` draws them all::

    out = attention(q, k, v, visible=masks.neighbourhood((8, 8), 3))
    out = attention(q, k, v, causal=True, score=scores.alibi(mx.array([0.5, 0.25, 0.125, 0.0625])))

Every function raises ValueError for numbers and arrays that make no sense: argument, expected, got, what to do.
"""

from . import masks, scores

__all__ = ["masks", "scores"]
