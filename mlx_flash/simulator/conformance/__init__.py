"""Runs kernels that nobody here wrote: MLX's own, from the headers inside the macOS wheel `mlx-metal`, against float64 numpy."""

from .case import Case, Mismatch
from .suite import cases

__all__ = ["Case", "Mismatch", "cases"]
