"""Kernel + Problem -> what to launch: output shapes, grid, threadgroup, and the arguments a kernel reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import mlx.core as mx

from ..problem.kinds import BACKWARD_MASK, COMBINE, DECODE, Step
from .split_kv import packed_rows

if TYPE_CHECKING:
    from ..problem.problem import Problem
    from .apple import Row
    from .source import Kernel

# Operands that may be views of anything: kernels read them as bytes through their strides.
STRIDED = frozenset({"Q", "K", "V", "O", "dO", "K_scales", "K_biases", "V_scales", "V_biases"})
# Small operands that kernels index without strides.
PACKED = frozenset({"L", "delta", "slopes", "sinks", "dropout_key"})
# Operands that kernels hold device pointers to: below 8 elements MLX would pass them in the constant address space.
POINTED = frozenset(
    {"attention_mask", "slopes", "q_segments", "k_segments", "block_map", "block_lists", "block_counts"}
)


@dataclass(frozen=True)
class Launch:
    """`grid` counts threads, as in MLX; every axis is a positive multiple of the threadgroup's."""

    kernel: Kernel
    output_shapes: tuple[tuple[int, ...], ...]
    output_dtypes: tuple[mx.Dtype, ...]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]

    def __post_init__(self):
        for threads, group in zip(self.grid, self.threadgroup):
            if threads <= 0 or threads % group:
                raise ValueError(f"{self.kernel.name}: grid {self.grid} is no multiple of {self.threadgroup}")

    def arguments(self, inputs: dict[str, mx.array | float]) -> list[mx.array]:
        """The arrays the kernel reads, in its order.

        Viewing an operand as bytes makes MLX copy it only where its last axis is not contiguous, and never lets it
        fall below the 8 elements under which MLX passes an input in another address space.
        """
        return [_argument(name, inputs[name]) for name in self.kernel.inputs]

    @property
    def output_bytes(self) -> int:
        sizes = zip(self.output_shapes, self.output_dtypes)
        return sum(_product(shape) * dtype.size for shape, dtype in sizes)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for extent in shape:
        result *= extent
    return result


def output_shape(name: str, problem: Problem) -> tuple[int, ...]:
    query = (problem.batch, problem.query_heads, problem.query_length)
    key = (problem.batch, problem.key_heads, problem.key_length)
    return {
        "O": (*query, problem.value_dim),
        "L": query,
        "delta": query,
        "dQ": (*query, problem.head_dim),
        "dK": (*key, problem.head_dim),
        "dV": (*key, problem.value_dim),
        "dM": problem.options.mask_shape,
    }[name]


def launch(step: Step, row: Row, kernel: Kernel, problem: Problem, parts: int = 1) -> Launch:
    """One threadgroup per block of the parallel dimension, head and batch; a mask's gradient has its own axes, and so
    has decoding. `parts`: of the keys, whose results are float32 and have an axis in front if they are several."""
    length, heads = problem.query_length, problem.query_heads
    if step.over_keys:
        length, heads = problem.key_length, problem.key_heads
    blocks = -(-length // row.parallel)
    batch = problem.batch
    if step is BACKWARD_MASK:
        batch, heads, rows, columns = problem.options.mask_shape
        blocks = -(-rows // row.parallel) * -(-columns // row.traversal)
    if step is COMBINE:
        blocks, heads, batch = -(-batch * heads * length // row.parallel), 1, 1
    if step is DECODE:
        blocks, heads = parts, problem.key_heads * -(-packed_rows(problem) // row.parallel)
    fronts = {"O": (parts,), "L": (2, parts)} if parts > 1 else {}  # m and l in place of L
    return Launch(
        kernel=kernel,
        output_shapes=tuple((*fronts.get(name, ()), *output_shape(name, problem)) for name in step.outputs),
        output_dtypes=tuple(mx.float32 if fronts else getattr(mx, dtype) for dtype in kernel.output_dtypes),
        grid=(blocks * row.threads, heads, batch),
        threadgroup=(row.threads, 1, 1),
    )


@lru_cache(maxsize=256)
def constant(value: float | tuple[int, ...]) -> mx.array:
    return mx.array(value, mx.float32 if isinstance(value, float) else mx.int32)


def _argument(name: str, value: mx.array | float | tuple[int, ...]) -> mx.array:
    if isinstance(value, (float, tuple)):
        return constant(value)
    if name in STRIDED:
        value = value.view(mx.uint8)
        return value if value.size >= 8 else mx.pad(value, [(0, 0)] * 3 + [(0, 8)])
    if name in PACKED:
        value = value.view(mx.uint8).view(value.dtype)  # copied unless contiguous, and mx.export_function can write it
    if name in POINTED and value.size < 8:
        return mx.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, 8)])
    return value
