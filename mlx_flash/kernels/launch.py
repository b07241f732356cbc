"""Kernel + Problem -> Launch: output shapes, grid, threadgroup, and the arrays that a kernel reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import mlx.core as mx

from ..common.mlx_private import BYTES, CONSTANT_BELOW, as_bytes, contiguous
from ..problem.kinds import BACKWARD_MASK, COMBINE, DECODE, MASK_MAP, SCORES, KernelKind
from ..problem.problem import Problem
from ..problem.variants import ARGUMENT_TYPES
from .config import TileConfig
from .kept import kept_shape
from .mask_map import STRIP, own_shape
from .source import Kernel
from .split_kv import Parts, gqa_rows
from .tile_layers import column_shares, heads_between

# Strided operands, passed as bytes: kernels read views of any layout in place. The first ones have eight bytes a row or
# more, in codes too.
OPERANDS = frozenset({"Q", "K", "V", "O", "dO"})
STRIDED = OPERANDS | {"K_scales", "K_biases", "V_scales", "V_biases"}
STATISTICS = frozenset({"L", "delta", "L_parts"})  # row statistics, indexed without strides or shapes
# Kernels index plain pointers without strides, so arrays behind them are copied unless they are row-contiguous. Row
# statistics are as kernels wrote them.
CONTIGUOUS = frozenset({name for name, kept in ARGUMENT_TYPES.items() if kept.endswith("*")})
# Kernels hold device pointers to these, so short arrays are padded until MLX passes them in the device address space.
NEEDS_DEVICE_ADDRESS_SPACE = STATISTICS | {
    "mask_map",
    *(name for name, kept in ARGUMENT_TYPES.items() if kept.startswith(("const device", "Strided"))),
}


@dataclass  # made for every length of a growing cache: a frozen one takes three times as long
class Launch:
    """One launch. `grid` counts threads, as in MLX; every axis is a positive multiple of the threadgroup's.

    In decoding, `parts` is the number of parts of the keys, and `decode_params` holds the number of queries and the
    rule by which the kernel splits keys. `between`: of each output, whether it lies in memory with its heads between
    the rows; () if none does. `ready`: what a backend keeps for this launch; `start`: its function of the kernel's
    arrays, without numbers, and the stream, for arrays that `arguments` would change no more.
    """

    kernel: Kernel
    output_shapes: tuple[tuple[int, ...], ...]
    output_dtypes: tuple[mx.Dtype, ...]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    parts: int = 1
    decode_params: tuple[int, ...] | None = None
    between: tuple[bool, ...] = ()
    ready: object = None
    start: Callable | None = None

    def __post_init__(self):
        (x, y, z), (threads, *others) = self.grid, self.threadgroup
        if x <= 0 or y <= 0 or z <= 0 or x % threads or others != [1, 1]:
            raise ValueError(f"{self.kernel.name}: grid {self.grid} is no multiple of {self.threadgroup}")

    def arguments(self, inputs: dict[str, mx.array | float], names: Sequence[str] | None = None) -> list[mx.array]:
        """The arrays that the kernel reads, in its order; `names`: only these.

        Strided operands are passed as bytes: MLX then copies them only where their last axis is not contiguous, and
        few are so short that they would land in the constant address space. A kernel that gathers gets them as they
        are, with eight elements or more.
        """
        # Hot path: numbers become cached constants, and only short or contiguous arrays need more than a view.
        as_they_are = OPERANDS if self.kernel.gathers else ()
        return [
            value if name in as_they_are
            else value.view(BYTES) if name in OPERANDS
            else constant(value) if type(value) is not mx.array
            else _argument(name, value) if name in CONTIGUOUS or value.size < CONSTANT_BELOW
            else value.view(BYTES) if name in STRIDED
            else value
            for name in names or self.kernel.inputs
            for value in (inputs[name],)
        ]  # fmt: skip

    def results(self, outputs: list[mx.array], stream=None) -> list[mx.array]:
        """The outputs as callers see them: views where heads lie between the rows. `stream`: None for MLX's default,
        on which views of operands are too."""
        if not self.between:
            return outputs
        return [one.swapaxes(1, 2, stream=stream) if swaps else one for one, swaps in zip(outputs, self.between)]

    @property
    def output_bytes(self) -> int:
        return sum(prod(shape) * dtype.size for shape, dtype in zip(self.output_shapes, self.output_dtypes))


def output_shape(name: str, problem: Problem) -> tuple[int, ...]:
    query = (problem.batch, problem.query_heads, problem.query_length)
    key = (problem.batch, problem.key_heads, problem.key_length)
    if name == "O":
        return (*query, problem.value_dim)
    if name == "L":  # per row: its largest score, and the logarithm of its sum relative to that
        return (*query, 2)
    if name == "delta":
        return query
    if name == "mask_map":
        return own_shape(problem)
    if name in SCORES:
        return kept_shape(problem)
    if name == "dM":
        return problem.mask_shape
    return (*(query if name == "dQ" else key), problem.value_dim if name == "dV" else problem.head_dim)


def launch(
    kind: KernelKind, config: TileConfig, kernel: Kernel, problem: Problem, split: Parts | None = None
) -> Launch:
    """The launch of one kernel: one threadgroup per block of the parallel dimension, head and batch entry, with other
    axes for a mask's gradient, for decoding and for the kernels that stream rows.

    `split`: in decoding, the rule of the parts and their number. Results of several parts are float32, with an axis of
    the parts in front.
    """
    parts = split.count if split else 1
    length, heads = problem.query_length, problem.query_heads
    if kind.over_keys:
        length, heads = problem.key_length, problem.key_heads
    blocks = -(-length // config.parallel) * column_shares(kind, config, problem.head_dim, problem.value_dim).parts
    batch = problem.batch
    if kind is BACKWARD_MASK:
        batch, heads, rows, columns = problem.mask_shape
        blocks = -(-rows // config.parallel) * -(-columns // config.traversal)
    if kind is COMBINE:
        blocks, heads, batch = -(-batch * heads * length // config.parallel), 1, 1
    if kind is MASK_MAP:
        batch, heads, rows, columns = own_shape(problem)
        blocks = -(-rows * -(-columns // STRIP) // config.parallel)
    if kind is DECODE:
        blocks, heads = parts, problem.key_heads * -(-gqa_rows(problem) // config.parallel)
    shapes = [output_shape(name, problem) for name in kind.outputs]
    if parts > 1:  # O of every part, and m and l in place of L
        query = output_shape("delta", problem)
        shapes = [(parts, *query, problem.value_dim), (2, parts, *query)]
    between = heads_between(kind, config)
    shapes = [(shape[0], shape[2], shape[1], shape[3]) if swaps else shape for shape, swaps in zip(shapes, between)]
    return Launch(
        kernel=kernel,
        output_shapes=tuple(shapes),
        output_dtypes=tuple(mx.float32 if parts > 1 else getattr(mx, dtype) for dtype in kernel.output_dtypes),
        grid=(blocks * config.threads, heads, batch),
        threadgroup=(config.threads, 1, 1),
        parts=parts,
        decode_params=(problem.query_length, *split) if split else None,
        between=between if any(between) else (),
    )


@lru_cache(maxsize=256)
def constant(value: float | tuple[int, ...]) -> mx.array:
    return mx.array(value, mx.float32 if isinstance(value, float) else mx.int32)


def _argument(name: str, value: mx.array) -> mx.array:
    if name in STRIDED:
        value = as_bytes(value)
        return value if value.size >= CONSTANT_BELOW else mx.pad(value, [(0, 0)] * 3 + [(0, 8)])
    if name in CONTIGUOUS:
        value = contiguous(value)
    if name in NEEDS_DEVICE_ADDRESS_SPACE and value.size < CONSTANT_BELOW:
        value = mx.reshape(value, (-1,)) if name in STATISTICS else value
        if name == "pages":  # kernels read the length of its last axis, so rows are added
            return mx.pad(value, [(0, CONSTANT_BELOW), (0, 0)])
        return mx.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, 8)])
    return value
