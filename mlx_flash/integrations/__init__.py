"""What models plug into."""

from .patching import patch, unpatch

__all__ = ["patch", "unpatch"]
