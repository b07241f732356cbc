"""Kernels that move, choose, find and generate values: copy, select, arange, gather, scatter, searchsorted."""

import functools

import mlx.core as mx
import numpy as np

from metal_conformance.case import METAL_TYPES, Case, agree, double, library, normal, short

_INT, _LONG, _SIZE = np.int32, np.int64, np.uint64
_INDEXING = ("indexing/indexing.h", "atomic.h", "reduction/ops.h")
_ROWS, _COLUMNS, _PICKED = 22, 37, 9


def _indices(shape: tuple[int, ...], size: int) -> mx.array:
    """Indices, some of them negative, as MLX allows."""
    return mx.array(np.random.default_rng(4).integers(-size, size, shape).astype(_INT))


def run_copy(variant: str, from_type: mx.Dtype, to: mx.Dtype):
    """Contiguous (v), one value for all (s), and transposed by strides (g_nd2, g_nd3)."""
    x = normal((_ROWS, _COLUMNS), from_type, 1, 20.0)
    names = f"{METAL_TYPES[from_type]}, {METAL_TYPES[to]}"
    kernel = library(("copy.h",)).kernel(f"copy_{variant}<{names}>")
    values = np.trunc(double(x)) if to == mx.int32 else double(x.astype(to))
    if variant in ("v", "s"):
        per_thread = max(1, 8 // to.size)
        (got,) = kernel([x, (x.shape, to), np.uint32(x.size)], (-(-x.size // per_thread), 1, 1), (32, 1, 1))
        wanted = values if variant == "v" else np.broadcast_to(values[0, 0], x.shape)
    else:
        strides = np.array([1, _COLUMNS] if variant == "g_nd2" else [0, 1, _COLUMNS], _LONG)
        grid = (_ROWS, _COLUMNS, 1 if variant == "g_nd2" else 2)
        shape = tuple(reversed(grid)) if variant == "g_nd3" else (_COLUMNS, _ROWS)
        (got,) = kernel({0: x, 1: (shape, to), 3: strides}, grid, (8, 4, 1))
        wanted = np.broadcast_to(values.T, shape)
    agree(got, wanted, 0, "the copy")


def run_select(dtype: mx.Dtype):
    condition = normal((_ROWS * _COLUMNS,), mx.float32, 2) > 0
    x, y = normal(condition.shape, dtype, 3), normal(condition.shape, dtype, 4)
    kernel = library(("ternary_ops.h", "ternary.h")).kernel(f"ternary_v<{METAL_TYPES[dtype]}, Select, false, false>")
    grid = (-(-x.size * dtype.size // 8), 1, 1)
    (got,) = kernel([condition, x, y, (x.shape, dtype), np.uint32(x.size)], grid, (32, 1, 1))
    agree(got, np.where(np.array(condition), double(x), double(y)), 0, "the choice")


def run_arange(dtype: mx.Dtype):
    start, step = (np.array(mx.array(value).astype(dtype).astype(mx.float32)) for value in (3, -2))
    kernel = library(("arange.h",)).kernel(f"arange<{METAL_TYPES[dtype]}>")
    scalars = [mx.array(value).astype(dtype) for value in (start, step)]
    (got,) = kernel([*scalars, ((100,), dtype)], (100, 1, 1), (32, 1, 1))
    agree(got, start - 2.0 * np.arange(100), 0, "the numbers")


def run_gather_front(dtype: mx.Dtype):
    """Gathers whole rows: x[indices]."""
    x, indices = normal((_ROWS, _COLUMNS), dtype, 5), _indices((_PICKED,), _ROWS)
    kernel = library((*_INDEXING, "indexing/gather_front.h")).kernel(
        f"gather_front<{METAL_TYPES[dtype]}, int32_t, int64_t, 2>"
    )
    arguments = [x, indices, ((_PICKED, _COLUMNS), dtype), _LONG(_COLUMNS), _INT(_ROWS)]
    (got,) = kernel(arguments, (-(-_COLUMNS // 2), _PICKED, 1), (8, 3, 1))
    agree(got, double(x)[np.array(indices)], 0, "the rows")


def _along_first() -> dict:
    """The parameters of gather_axis and scatter_axis for arrays [axis, columns] whose first axis is indexed."""
    return {
        3: np.array([_COLUMNS], _INT), 4: np.array([1], _LONG), 5: np.array([1], _LONG), 6: _SIZE(1), 7: _INT(0),
        8: _INT(_ROWS), 9: _SIZE(_COLUMNS), 10: _SIZE(_COLUMNS),
    }  # fmt: skip


def run_gather_axis(dtype: mx.Dtype):
    """take_along_axis of the first axis."""
    x, indices = normal((_ROWS, _COLUMNS), dtype, 6), _indices((_PICKED, _COLUMNS), _ROWS)
    kernel = library((*_INDEXING, "indexing/gather_axis.h")).kernel(
        f"gather_axis<{METAL_TYPES[dtype]}, int32_t, int64_t, false, false>"
    )
    arguments = {0: x, 1: indices, 2: (indices.shape, dtype), **_along_first()}
    (got,) = kernel(arguments, (_COLUMNS, _PICKED, 1), (8, 3, 1))
    agree(got, np.take_along_axis(double(x), np.array(indices), 0), 0, "what was taken")


def run_scatter_axis(dtype: mx.Dtype, operation: str):
    """Adds to the indexed elements, or takes the maximum with them, atomically: several values meet in one element."""
    updates, indices = normal((_PICKED, _COLUMNS), dtype, 7), _indices((_PICKED, _COLUMNS), _ROWS // 4)
    out = double(normal((_ROWS, _COLUMNS), dtype, 8)).astype({mx.float32: np.float32, mx.float16: np.float16}[dtype])
    wanted, at = out.astype(np.float64), np.array(indices)
    rows, columns = np.where(at < 0, at + _ROWS, at), np.broadcast_to(np.arange(_COLUMNS), at.shape)
    (np.add if operation == "Sum" else np.maximum).at(wanted, (rows, columns), double(updates))
    name = METAL_TYPES[dtype]
    kernel = library((*_INDEXING, "indexing/scatter_axis.h")).kernel(
        f"scatter_axis<{name}, int32_t, int64_t, {operation}<{name}>, false, false>"
    )
    kernel({0: updates, 1: indices, 2: out, **_along_first()}, (_COLUMNS, _PICKED, 1), (8, 3, 1))
    agree(mx.array(out), wanted, 4e-3 if dtype == mx.float16 else 1e-6, "the sums")


def run_search(dtype: mx.Dtype, right: bool):
    sorted_values, wanted = mx.sort(normal((300,), dtype, 9)), normal((100,), dtype, 10)
    wanted = mx.concatenate([wanted, sorted_values[::7]])  # these are found exactly
    kernel = library(("sort.h", "searchsorted.h")).kernel(f"searchsorted<{METAL_TYPES[dtype]}, {str(right).lower()}>")
    arguments = [sorted_values, wanted, (wanted.shape, mx.uint32), np.uint32(300), _LONG(1)]
    (got,) = kernel(arguments, (wanted.size, 1, 1), (wanted.size, 1, 1))
    side = "right" if right else "left"
    agree(got, np.searchsorted(double(sorted_values), double(wanted), side).astype(np.float64), 0, "the places")


def cases() -> list[Case]:
    """Each kernel in one or two dtypes; the dtypes alternate."""
    found = [
        Case("copy", f"{variant} {short(a)} to {short(b)}", functools.partial(run_copy, variant, a, b))
        for variant, a, b in (
            ("v", mx.float32, mx.bfloat16), ("s", mx.float16, mx.float32), ("g_nd2", mx.bfloat16, mx.float16),
            ("g_nd3", mx.float32, mx.int32),
        )
    ]  # fmt: skip
    found += [Case("select", short(dtype), functools.partial(run_select, dtype)) for dtype in (mx.float16, mx.float32)]
    found += [Case("arange", short(dtype), functools.partial(run_arange, dtype)) for dtype in (mx.float32, mx.int32)]
    for name, run, dtypes in (
        ("gather front", run_gather_front, (mx.float32, mx.bfloat16)),
        ("gather axis", run_gather_axis, (mx.float16, mx.float32)),
    ):
        found += [Case("indexing", f"{name} {short(dtype)}", functools.partial(run, dtype)) for dtype in dtypes]
    for dtype, operation in ((mx.float32, "Sum"), (mx.float16, "Sum"), (mx.float32, "Max")):
        run = functools.partial(run_scatter_axis, dtype, operation)
        found.append(Case("indexing", f"scatter axis {operation} {short(dtype)}", run))
    for dtype, right in ((mx.float32, False), (mx.bfloat16, True)):
        name = f"{'right' if right else 'left'} {short(dtype)}"
        found.append(Case("searchsorted", name, functools.partial(run_search, dtype, right)))
    return found
