"""Paged key-value caches for mlx-lm: see PagePool."""

from .errors import PagePoolError, PagePoolFull
from .pool import PagePool

__all__ = ["PagePool", "PagePoolError", "PagePoolFull"]
