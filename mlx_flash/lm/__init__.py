"""mlx-lm's generation with and without mlx_flash: `python -m mlx_flash lm`."""

from .models import tiny_model
from .paging import PagePool, PagePoolError, PagePoolFull

__all__ = ["PagePool", "PagePoolError", "PagePoolFull", "tiny_model"]
