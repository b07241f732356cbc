"""How attention gets into models that do not know it."""

from .patch import QUANTIZED, patch, unpatch

__all__ = ["QUANTIZED", "patch", "unpatch"]
