"""Kernels by other people: MLX's own, from the headers in the macOS wheel `mlx-metal`, against float64 numpy."""

from metal_conformance.case import Case, Mismatch
from metal_conformance.suite import cases

__all__ = ["Case", "Mismatch", "cases"]
