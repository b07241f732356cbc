"""Kernels nobody here wrote: MLX's own, from the headers in the macOS wheel `mlx-metal`, against float64 numpy."""

from .case import Case, Mismatch
from .suite import cases

__all__ = ["Case", "Mismatch", "cases"]
