"""FlashAttention for MLX as custom Metal kernels, forward and backward."""

from .attention import attention
from .backends import use_backend
from .errors import UnsupportedProblem
from .explain import explain

__version__ = "0.1.0"
__all__ = ["UnsupportedProblem", "__version__", "attention", "explain", "use_backend"]
