"""FlashAttention for MLX as custom Metal kernels, forward and backward."""

import sys

from .common import requirements  # noqa: F401, first: without MLX nothing else can be imported

# isort: split
from . import rotations as hadamard
from . import sequences as packing
from .api import attention, quantized_attention
from .backends import use_backend
from .common.errors import UnsupportedProblem
from .explanations.explain import explain
from .integrations import patch, unpatch
from .problem import masks
from .problem.formulas.score import Score, Visible
from .problem.masks import BlockMask
from .sequences import merge
from .transforms import export_function, exporter, vmap

# Modules that are found under another name, too: block masks, which lie beside the other masks, and two that had the
# name before 0.2.
_named = {"masks": masks, "hadamard": hadamard, "packing": packing}
sys.modules.update({f"{__name__}.{name}": module for name, module in _named.items()})
__version__ = "0.2.0"
__all__ = [
    "BlockMask", "Score", "UnsupportedProblem", "Visible", "__version__", "attention", "explain", "export_function",
    "exporter", "merge", "patch", "quantized_attention", "unpatch", "use_backend", "vmap",
]  # fmt: skip
