"""Attention in models that call MLX's own function: patch() and its rules."""

from .patch import QUANTIZED, patch, unpatch

__all__ = ["QUANTIZED", "patch", "unpatch"]
