"""MLX's rms_norm and layer_norm, their gradients, and rope.

The wheel contains them in compiled form only; they run from a checkout, $MLX_SOURCE.
"""

import functools
from pathlib import Path

import mlx.core as mx
import numpy as np

from metal_conformance.case import FLOATS, ROUNDING, Case, agree, double, normal, short, threads
from metal_conformance.headers import KERNELS
from metal_conformance.sweep import source_directory
from mlx_flash.metal import MetalLibrary

_ROWS, _U32, _F32 = 3, np.uint32, np.float32
# MLX's instances are named by their dtypes; the looped variants take rows of any length.
_NAMES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}


@functools.cache
def file_library(file: str) -> MetalLibrary:
    """The library of a .metal file in the checkout."""
    root: Path = source_directory()
    return MetalLibrary((root / KERNELS / file).read_text(), [root], name=file)


def run_rms_norm(dtype: mx.Dtype, looped: bool, columns: int):
    x, w = normal((_ROWS, columns), dtype, 1), normal((columns,), dtype, 2)
    kernel = file_library("rms_norm.metal").kernel(f"rms{'_looped' * looped}{_NAMES[dtype]}")
    group = (1024 if looped else -(-columns // 128) * 32, 1, 1)
    arguments = [x, w, (x.shape, dtype), _F32(1e-5), _U32(columns), _U32(1)]
    (got,) = kernel(arguments, threads((_ROWS, 1, 1), group), group)
    values = double(x)
    wanted = values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-5) * double(w)
    agree(got, wanted, 4 * ROUNDING[dtype] + 1e-6, "rms_norm")


def run_layer_norm(dtype: mx.Dtype, looped: bool, columns: int):
    x, w, b = (normal(shape, dtype, seed) for seed, shape in enumerate([(_ROWS, columns), (columns,), (columns,)]))
    kernel = file_library("layer_norm.metal").kernel(f"layer_norm{'_looped' * looped}{_NAMES[dtype]}")
    group = (1024 if looped else -(-columns // 256) * 32, 1, 1)
    arguments = [x, w, b, (x.shape, dtype), _F32(1e-5), _U32(columns), _U32(1), _U32(1)]
    (got,) = kernel(arguments, threads((_ROWS, 1, 1), group), group)
    values = double(x)
    centred = values - values.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * double(w) + double(b)
    agree(got, wanted, 4 * ROUNDING[dtype] + 1e-5, "layer_norm")


def run_rms_norm_vjp(dtype: mx.Dtype, looped: bool, columns: int):
    """Gradients of x, and of w for each row, which MLX adds up afterwards."""
    shapes = [(_ROWS, columns), (columns,), (_ROWS, columns)]
    x, w, g = (normal(shape, dtype, seed) for seed, shape in enumerate(shapes))
    kernel = file_library("rms_norm.metal").kernel(f"vjp_rms{'_looped' * looped}{_NAMES[dtype]}", {"has_w": True})
    group = (1024 if looped else -(-columns // 128) * 32, 1, 1)
    arguments = [x, w, g, (x.shape, dtype), (x.shape, dtype), _F32(1e-5), _U32(columns), _U32(1)]
    arguments += [] if looped else [_U32(_ROWS), _U32(1)]
    got, got_w = kernel(arguments, threads((_ROWS, 1, 1), group), group)
    scale = 1 / np.sqrt((double(x) ** 2).mean(-1, keepdims=True) + 1e-5)
    unit, slope = double(x) * scale, double(g) * double(w)
    agree(got, scale * (slope - unit * (slope * unit).mean(-1, keepdims=True)), 4 * ROUNDING[dtype] + 1e-5, "dx")
    agree(got_w, double(g) * unit, 4 * ROUNDING[dtype] + 1e-5, "dw")


def run_layer_norm_vjp(dtype: mx.Dtype, looped: bool, columns: int):
    shapes = [(_ROWS, columns), (columns,), (_ROWS, columns)]
    x, w, g = (normal(shape, dtype, seed) for seed, shape in enumerate(shapes))
    name = f"vjp_layer_norm{'_looped' * looped}{_NAMES[dtype]}"
    kernel = file_library("layer_norm.metal").kernel(name, {"has_w": True})
    group = (1024 if looped else -(-columns // 256) * 32, 1, 1)
    arguments = [x, w, g, (x.shape, dtype), (x.shape, dtype), _F32(1e-5), _U32(columns), _U32(1)]
    got, got_w = kernel(arguments, threads((_ROWS, 1, 1), group), group)
    centred = double(x) - double(x).mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    unit, slope = centred * scale, double(g) * double(w)
    along = unit * (slope * unit).mean(-1, keepdims=True)
    agree(got, scale * (slope - slope.mean(-1, keepdims=True) - along), 4 * ROUNDING[dtype] + 1e-5, "dx")
    agree(got_w, double(g) * unit, 4 * ROUNDING[dtype] + 1e-5, "dw")


def run_rope(dtype: mx.Dtype, traditional: bool, heads: int = 4, head_dim: int = 64, offset: int = 7):
    """One new token of every head, as when a model generates."""
    x, base = normal((heads, head_dim), dtype, 4), 10000.0
    constants = {"forward": True, "traditional": traditional, "hs_transpose": False}
    kernel = file_library("rope.metal").kernel(f"rope_single_{_NAMES[dtype]}", constants)
    arguments = {
        0: x,
        1: (x.shape, dtype),
        2: np.int32(offset),
        3: _F32(1),
        4: np.int64(head_dim),
        10: _F32(np.log2(base)),
    }
    (got,) = kernel(arguments, (head_dim // 2, heads, 1), (head_dim // 2, heads, 1))
    angle = offset * base ** (-np.arange(head_dim // 2) / (head_dim // 2))
    pairs = double(x).reshape(heads, -1, 2) if traditional else double(x).reshape(heads, 2, -1).swapaxes(1, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)
    wanted = np.stack([turned.real, turned.imag], -1)
    wanted = (wanted if traditional else wanted.swapaxes(1, 2)).reshape(heads, head_dim)
    agree(got, wanted, 4 * ROUNDING[dtype] + 1e-5, "rope")


def cases() -> list[Case]:
    """Empty without a checkout."""
    if source_directory() is None:
        return []
    found = []
    for dtype in FLOATS:
        # A row that leaves a thread of layer_norm_single_row without elements makes MLX's kernel write in front of its
        # own array.
        for looped, columns in ((False, 509), (True, 5001)):
            name = f"{'looped ' * looped}{short(dtype)}"
            found.append(Case("rms_norm", name, functools.partial(run_rms_norm, dtype, looped, columns)))
            found.append(Case("layer_norm", name, functools.partial(run_layer_norm, dtype, looped, columns)))
            found.append(Case("rms_norm vjp", name, functools.partial(run_rms_norm_vjp, dtype, looped, columns)))
            found.append(Case("layer_norm vjp", name, functools.partial(run_layer_norm_vjp, dtype, looped, columns)))
        for traditional in (False, True):
            name = f"{'traditional ' * traditional}{short(dtype)}"
            found.append(Case("rope", name, functools.partial(run_rope, dtype, traditional)))
    return found
