"""mlx-lm's generation with and without mlx_flash: `python -m mlx_flash lm`."""

from .models import tiny_model

__all__ = ["tiny_model"]
