"""FlashAttention for MLX as custom Metal kernels, forward and backward."""

from .common import requirements  # noqa: F401, first: without MLX nothing else can be imported

# isort: split
from .api import attention, quantized_attention
from .backends import use_backend
from .common.errors import UnsupportedProblem
from .explanations.explain import explain
from .integrations import patch, unpatch
from .masks import BlockMask
from .problem.formulas.score import Score, Visible
from .sequences import merge
from .transforms import export_function, exporter, vmap

__path__.append(f"{__path__[0]}/former")  # modules are found under the names that they had before 0.2, too
__version__ = "0.2.0"
__all__ = [
    "BlockMask", "Score", "UnsupportedProblem", "Visible", "__version__", "attention", "explain", "export_function",
    "exporter", "merge", "patch", "quantized_attention", "unpatch", "use_backend", "vmap",
]  # fmt: skip
