"""MLX's attention for the neural accelerators of M5, with a whole head dimension and split over two simdgroups."""

import functools
import itertools

import mlx.core as mx

from metal_conformance.attention import MASKS, run_steel
from metal_conformance.case import FLOATS, METAL_TYPES, RELAXED, TENSOR_LANGUAGE, Case, library, short

HEAD_DIMS = (64, 96, 128, 256)
_BLOCKS = (64, 32, 4, 1)  # query rows, key rows, simdgroups along the rows and along the head dimension
_SPLIT = (64, 32, 4, 2)


def tensor_kernel(head_dim: int, dtype: mx.Dtype, blocks: tuple[int, int, int, int], mask_type: str, constants: dict):
    """The kernel, with the arguments of steel_kernel in attention.py."""
    rows, columns, wm, wn = blocks
    function, values = ("attention_nax", f"{head_dim}, ") if wn == 1 else ("attention_nax_dsplit", "")
    instance = (
        f"{function}<{METAL_TYPES[dtype]}, {rows}, {columns}, {head_dim}, {values}{wm}, {wn}, {mask_type}, float>"
    )
    return library(("steel/attn/kernels/steel_attention_nax.h",), TENSOR_LANGUAGE).kernel(instance, constants)


def run(head_dim: int, dtype: mx.Dtype, kind: str, rows: int = 70, columns: int = 90, heads: int = 2):
    blocks = _SPLIT if head_dim == 256 else _BLOCKS
    run_steel(head_dim, dtype, kind, blocks, rows, columns, tensor_kernel, RELAXED, heads)


def cases() -> list[Case]:
    """Every head dimension, dtype and mask; also with whole blocks for both kernels."""
    found = [
        Case(
            f"tensor attention{', split' if head_dim == 256 else ''}",
            f"D{head_dim} {short(dtype)} {kind} mask",
            functools.partial(run, head_dim, dtype, kind),
        )
        for head_dim, dtype, kind in itertools.product(HEAD_DIMS, reversed(FLOATS), reversed(MASKS))
    ]
    for head_dim in (128, 256):
        run_whole = functools.partial(run, head_dim, mx.float16, "causal", 64, 128)
        found.append(Case("tensor attention, whole blocks", f"D{head_dim} float16 causal mask", run_whole))
    return found
