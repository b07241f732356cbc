"""MLX's steel attention, and its vector attention in one pass and in two."""

import functools
import itertools
import math

import mlx.core as mx
import numpy as np

from metal_conformance.case import (
    FLOATS,
    METAL_TYPES,
    ROUNDING,
    Case,
    agree,
    double,
    library,
    normal,
    short,
    structure,
    threads,
)

HEAD_DIMS = (64, 72, 80, 96, 128, 192, 256)
MASKS = ("no", "causal", "bool", "additive")
_I, _L = np.int32, np.int64
_PARAMS = [
    ("B", _I), ("H", _I), ("D", _I), ("qL", _I), ("kL", _I), ("gqa_factor", _I), ("scale", np.float32), ("NQ", _I), (
        "NK", _I),
    ("NQ_aligned", _I), ("NK_aligned", _I), ("qL_rem", _I), ("kL_rem", _I), ("qL_off", _I),
    ("Q_strides", _L, 3), ("K_strides", _L, 3), ("V_strides", _L, 3), ("O_strides", _L, 3),
]  # fmt: skip


def softmax_attention(q, k, v, scale: float, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(attention, logsumexp) in float64; `bias` is added to the scores."""
    repeats = q.shape[1] // k.shape[1]
    scores = scale * q @ np.repeat(k, repeats, 1).swapaxes(-1, -2) + bias
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return weights / total @ np.repeat(v, repeats, 1), (np.log(total) + top)[..., 0]


def masked(kind: str, dtype: mx.Dtype, heads: int, rows: int, columns: int) -> tuple[mx.array | None, np.ndarray]:
    """(the mask as the kernel takes it, the numbers that it adds to the scores)."""
    nothing = np.zeros((1, heads, rows, columns))
    if kind == "causal":
        below = np.arange(columns) <= np.arange(rows)[:, None] + columns - rows
        return None, nothing + np.where(below, 0.0, -np.inf)
    if kind == "bool":
        kept = np.random.default_rng(7).random((1, heads, rows, columns)) < 0.7
        kept[..., 0] = True
        return mx.array(kept), np.where(kept, 0.0, -np.inf)
    if kind == "additive":
        mask = normal((1, heads, rows, columns), dtype, 8)
        return mask, double(mask)
    return None, nothing


def _strides(array: mx.array) -> list[int]:
    _, heads, rows, columns = array.shape
    return [heads * rows * columns, rows * columns, columns]


def block_sizes(head_dim: int, dtype: mx.Dtype) -> tuple[int, int, int, int]:
    """(query rows, key rows, simdgroups along the rows, simdgroups along the head dimension), as in MLX.

    MLX also instantiates D192 in float32 with 32 rows. That needs 40448 bytes of threadgroup memory, more than the
    32768 of any GPU, so its rows are halved here.
    """
    if head_dim == 192 and dtype == mx.float32:
        return 16, 16, 2, 1
    return 32, 32 if head_dim < 128 else 16, 4, 2 if head_dim == 256 else 1


def steel_kernel(head_dim: int, dtype: mx.Dtype, blocks: tuple[int, int, int, int], mask_type: str, constants: dict):
    """MLX's kernel for one head dimension, dtype and type of mask."""
    name, (rows, columns, wm, wn) = METAL_TYPES[dtype], blocks
    instance = f"attention<{name}, {rows}, {columns}, {head_dim}, {head_dim}, {wm}, {wn}, {mask_type}, float>"
    return library(("steel/attn/kernels/steel_attention.h",)).kernel(instance, constants)


def run_steel(
    head_dim: int, dtype: mx.Dtype, kind: str, blocks: tuple[int, int, int, int], rows: int = 40, columns: int = 72,
    kernel_of=steel_kernel, rounding=ROUNDING, heads=2,
):  # fmt: skip
    """Runs the kernel on lengths that are not multiples of a block. All query heads share a key head.

    kernel_of: a function that makes the kernel, with steel_kernel's arguments. rounding: the multiplying unit's, by
    dtype.
    """
    scale = 1 / math.sqrt(head_dim)
    q, k, v = (
        normal((1, h, n, head_dim), dtype, s) for s, (h, n) in enumerate([(heads, rows), (1, columns), (1, columns)])
    )
    mask, bias = masked(kind, dtype, heads, rows, columns)
    wanted, lse = softmax_attention(double(q), double(k), double(v), scale, bias)
    block, key_block, wm, wn = blocks
    params = structure(
        _PARAMS, B=1, H=heads, D=head_dim, qL=rows, kL=columns, gqa_factor=heads, scale=scale,
        NQ=-(-rows // block), NK=-(-columns // key_block), NQ_aligned=rows // block, NK_aligned=columns // key_block,
        qL_rem=rows % block, kL_rem=columns % key_block, qL_off=columns - rows,
        Q_strides=_strides(q), K_strides=_strides(k), V_strides=_strides(v), O_strides=_strides(q),
    )  # fmt: skip
    constants = {
        "align_Q": rows % block == 0, "align_K": columns % key_block == 0, "has_mask": mask is not None,
        "do_causal": kind == "causal", "has_sinks": False, "save_lse": True,
    }  # fmt: skip
    arguments = {0: q, 1: k, 2: v, 3: (q.shape, dtype), 4: params, 8: (q.shape[:3], mx.float32)}
    if mask is not None:
        arguments |= {5: np.array(_strides(mask), np.int64), 6: mask}
    kernel = kernel_of(head_dim, dtype, blocks, "bool" if kind == "bool" else METAL_TYPES[dtype], constants)
    got, got_lse = kernel(arguments, threads((-(-rows // block), heads, 1), (32, wm, wn)), (32, wm, wn))
    agree(got, wanted, 8 * rounding[dtype] + 1e-5, "O")
    agree(got_lse, lse, 8 * rounding[dtype] + 1e-5, "logsumexp")


def cases() -> list[Case]:
    """Every head dimension, dtype and type of mask."""
    return [
        Case(
            "steel attention",
            f"D{head_dim} {short(dtype)} {kind} mask",
            functools.partial(run_steel, head_dim, dtype, kind, block_sizes(head_dim, dtype)),
        )
        for head_dim, dtype, kind in itertools.product(HEAD_DIMS, FLOATS, MASKS)
    ]
