"""The map of an array mask, made by a separate kernel: which blocks of pairs the mask hides or shows as a whole.

Producer warps copy blocks for consumer warps, and all of them must agree on the visited blocks in advance. Tile layers
without producer warps look at the mask itself (mask_look.metal).
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from ..problem.kinds import DECODE, KernelKind
from ..problem.problem import Problem
from ..problem.variants import MOST_BUFFERS, Variants

BLOCK = 32  # queries and keys of one block of the map
STRIP = 4  # adjacent blocks that one simdgroup looks at
PARTIAL = 2  # the state of a block that may hold hidden and visible pairs; views.metal has the others
BUFFERS = 2  # arguments of a kernel: the map and its strides
# A map is made from this many pairs of a query and a key on (in decoding: elements of keys and values). Below, its two
# launches, 8 us on an H200, would cost more than the blocks that it leaves out.
LEAST_PAIRS = LEAST_ELEMENTS = 2**26


def reads_map(kind: KernelKind, producer_warps: int, variants: Variants) -> bool:
    """Whether the kernel reads a map: it has producer warps and an array mask, and room for two more arguments."""
    return bool(producer_warps and kind.tiled and variants.mask and variants.buffers + BUFFERS <= MOST_BUFFERS)


def own_shape(problem: Problem) -> tuple[int, int, int, int]:
    """The shape of the map as it is made, uint8: an axis along which the mask is broadcast has one block."""
    batch, heads, rows, columns = problem.mask_shape
    return batch, heads, -(-rows // BLOCK), -(-columns // BLOCK)


def spread(problem: Problem, own: mx.array) -> mx.array:
    """The map as kernels read it, broadcast to the blocks of all pairs of the call."""
    rows, columns = (-(-length // BLOCK) for length in (problem.query_length, problem.key_length))
    return mx.broadcast_to(own, (problem.batch, problem.query_heads, rows, columns))


def pays(kind: KernelKind, problem: Problem) -> bool:
    """Whether a map saves more time than its launches take."""
    if kind is DECODE:
        columns = problem.head_dim + problem.value_dim
        return problem.batch * problem.key_heads * problem.key_length * columns >= LEAST_ELEMENTS
    pairs = problem.batch * problem.query_heads * problem.query_length * problem.key_length
    return pairs >= LEAST_PAIRS


def unknown(problem: Problem) -> mx.array:
    """A map that leaves no block out."""
    return spread(problem, _partial())


@lru_cache
def _partial() -> mx.array:
    return mx.array([PARTIAL], mx.uint8)
