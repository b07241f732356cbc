"""Ready-made scores and masks, each a few lines of text that kernels compile.

Scores (`gallery.scores`) go to ``attention(..., score=...)``, masks (`gallery.masks`) to
``attention(..., visible=...)``. ``python -m mlx_flash gallery`` draws them all.
"""

from . import masks, scores

__all__ = ["masks", "scores"]
