"""FlashAttention for MLX as custom Metal kernels, forward and backward."""

from .attention import attention
from .backends import use_backend
from .block_mask import BlockMask
from .errors import UnsupportedProblem
from .explain import explain
from .integrations import patch, unpatch
from .merging import merge
from .quantized import quantized_attention
from .transforms import install

install()
del install

__version__ = "0.1.0"
__all__ = [
    "BlockMask", "UnsupportedProblem", "__version__", "attention", "explain", "merge", "patch", "quantized_attention",
    "unpatch", "use_backend",
]  # fmt: skip
