"""MLX's reductions, scans and sorts."""

import functools
import itertools

import mlx.core as mx
import numpy as np

from metal_conformance.case import FLOATS, METAL_TYPES, Case, agree, double, library, normal, short, threads

_REDUCE = ("atomic.h", "reduction/ops.h", "reduce.h")
_OPERATIONS = {"Sum": np.sum, "Prod": np.prod, "Max": np.max, "Min": np.min}
_SIZE, _LONG, _INT = np.uint64, np.int64, np.int32


def _input(shape, dtype: mx.Dtype, operation: str) -> mx.array:
    """Input for an operation; near one for products, so that a product of many numbers stays finite."""
    if dtype in FLOATS:
        return 1 + normal(shape, dtype, 3, 0.02) if operation.endswith("Prod") else normal(shape, dtype, 3)
    return mx.array(np.random.default_rng(3).integers(-50, 50, shape)).astype(dtype)


def _accumulator(dtype: mx.Dtype) -> mx.Dtype:
    return mx.float32 if dtype in FLOATS else dtype


def run_reduce(variant: str, operation: str, dtype: mx.Dtype):
    rows, columns = 21, 203
    x, to = _input((rows, columns), dtype, operation), _accumulator(dtype)
    types = f"{METAL_TYPES[dtype]}, {METAL_TYPES[to]}, {operation}<{METAL_TYPES[to]}>"
    arguments, group, groups, axis, template = {
        "all_reduce": ([x, ((1,), to), _SIZE(x.size), _SIZE(x.size)], (64, 1, 1), (1, 1, 1), None, ""),
        "row_reduce_simple": ([x, ((rows,), to), _SIZE(columns), _LONG(rows)], (64, 1, 1), (1, -(-rows // 4), 1), 1,
            ""),
        "row_reduce_looped": (
            [x, ((rows,), to), _LONG(columns), _LONG(1), np.array([rows], _INT), np.array([columns], _LONG), _INT(1),
             np.array([1], _INT), np.array([0], _LONG), _INT(0)],
            (64, 1, 1), (1, rows, 1), 1, ", int64_t, 1",
        ),
        "col_reduce_looped": (
            [x, ((columns,), to), _SIZE(rows), _LONG(columns), np.array([1], _INT), np.array([0], _LONG), _INT(0),
             np.array([rows], _INT), np.array([columns], _LONG), _INT(1), _SIZE(1), _LONG(0)],
            (256, 1, 1), (-(-columns // 32), 1, 1), 0, ", int64_t, 1, 32, 32",
        ),
    }[variant]  # fmt: skip
    kernel = library(_REDUCE).kernel(f"{variant}<{types}{template}>")
    (got,) = kernel(arguments, threads(groups, group), group)
    wanted = _OPERATIONS[operation](double(x), axis=axis)
    agree(got, np.reshape(wanted, got.shape), 1e-4, f"{operation} over axis {axis}")


def run_scan(variant: str, operation: str, dtype: mx.Dtype, inclusive: bool, reverse: bool):
    """Scans along the last axis (contiguous_scan) or along the first (strided_scan)."""
    shape, axis = ((3, 517), 1) if variant == "contiguous_scan" else ((67, 40), 0)
    x, to = _input(shape, dtype, operation), _accumulator(dtype)
    flags = f"{str(inclusive).lower()}, {str(reverse).lower()}"
    call = f"{variant}<{METAL_TYPES[dtype]}, {METAL_TYPES[to]}, {operation}<{METAL_TYPES[to]}>, 4, {flags}>"
    if variant == "contiguous_scan":
        arguments, groups, group = [x, (shape, to), _SIZE(shape[1])], (1, shape[0], 1), (64, 1, 1)
    else:
        arguments = [x, (shape, to), _SIZE(shape[0]), _SIZE(shape[1]), _SIZE(-(-shape[1] // 32))]
        groups, group = (1, -(-shape[1] // 32), 1), (256, 1, 1)
    (got,) = library(("scan.h",)).kernel(call)(arguments, threads(groups, group), group)
    values = np.flip(double(x), axis) if reverse else double(x)
    running = {
        "CumSum": np.cumsum,
        "CumProd": np.cumprod,
        "CumMax": np.maximum.accumulate,
        "CumMin": np.minimum.accumulate,
    }
    wanted = running[operation](values, axis=axis)
    if not inclusive:
        first = np.full_like(np.take(wanted, [0], axis), 1.0 if operation == "CumProd" else 0.0)
        wanted = np.concatenate([first, np.take(wanted, range(shape[axis] - 1), axis)], axis)
    agree(got, np.flip(wanted, axis) if reverse else wanted, 1e-4, operation)


def run_sort(dtype: mx.Dtype, indices: bool, rows: int = 3, columns: int = 701):
    x = _input((rows, columns), dtype, "Sort")
    to = mx.uint32 if indices else dtype
    call = f"block_sort<{METAL_TYPES[dtype]}, {METAL_TYPES[to]}, {str(indices).lower()}, 128, 8>"
    arguments = [x, (x.shape, to), _INT(columns), _INT(1), _INT(1), _INT(columns), _INT(columns)]
    (got,) = library(("sort.h",)).kernel(call)(arguments, threads((1, rows, 1), (128, 1, 1)), (128, 1, 1))
    values = double(x)
    if indices:
        order = np.array(got).astype(np.int64)
        agree(mx.array(np.sort(order, -1)), np.broadcast_to(np.arange(columns), x.shape), 0, "the sorted indices")
        got = mx.array(np.take_along_axis(values, order, -1))
    agree(got, np.sort(values, -1), 1e-12 if indices else 0, "the sorted values")


def cases() -> list[Case]:
    """Every operation in every variant, and every dtype in some of them."""
    found = []
    for variant, operation in itertools.product(
        ("all_reduce", "row_reduce_simple", "row_reduce_looped", "col_reduce_looped"), _OPERATIONS
    ):
        for dtype in (*FLOATS, mx.int32) if operation == "Sum" else (mx.float32, mx.bfloat16):
            found.append(
                Case(
                    "reduce",
                    f"{variant} {operation} {short(dtype)}",
                    functools.partial(run_reduce, variant, operation, dtype),
                )
            )
    for variant, operation in itertools.product(
        ("contiguous_scan", "strided_scan"), ("CumSum", "CumProd", "CumMax", "CumMin")
    ):
        # An exclusive scan of maxima starts with a number that depends on the dtype.
        kinds = (
            ((True, False), (True, True), (False, False), (False, True))
            if operation in ("CumSum", "CumProd")
            else ((True, False), (True, True))
        )
        for (inclusive, reverse), dtype in zip(
            kinds, (mx.float32, mx.float16, mx.bfloat16, mx.int32 if operation == "CumSum" else mx.float32)
        ):
            kind = ("inclusive" if inclusive else "exclusive") + " reversed" * reverse
            name = f"{variant} {operation} {kind} {short(dtype)}"
            found.append(Case("scan", name, functools.partial(run_scan, variant, operation, dtype, inclusive, reverse)))
    for dtype, indices in itertools.product((*FLOATS, mx.int32), (False, True)):
        found.append(
            Case(
                "sort",
                f"{'argsort' if indices else 'sort'} {short(dtype)}",
                functools.partial(run_sort, dtype, indices),
            )
        )
    return found
