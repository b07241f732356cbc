"""The map of an array mask: which blocks of pairs it hides or shows as a whole, made by a kernel of its own.

Where producer warps copy blocks for consumer warps, all of them have to know which blocks are visited before one of
them has looked at the mask. Layers without producers look at the mask itself (mask_look.metal).
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from ..problem.kinds import DECODE, KernelKind
from ..problem.problem import Problem
from ..problem.variants import MOST_BUFFERS, Variants

BLOCK = 32  # queries and keys of one block of the map
STRIP = 4  # blocks side by side that one simdgroup looks at
PARTIAL = 2  # the state of a block of which nothing is known; views.metal has the others
BUFFERS = 2  # the map and its strides
# From so many on a map is made: pairs of a query and a key, and in decoding, elements of keys and values. With fewer,
# its two launches, 8 us on an H200, would cost more than blocks without a visible pair.
LEAST_PAIRS = LEAST_ELEMENTS = 2**26


def reads_map(kind: KernelKind, producer_warps: int, variants: Variants) -> bool:
    """Does the kernel read a map? Not if that would be more arguments than a kernel may have."""
    return bool(producer_warps and kind.tiled and variants.mask and variants.buffers + BUFFERS <= MOST_BUFFERS)


def own_shape(problem: Problem) -> tuple[int, int, int, int]:
    """The shape of the map that the kernel makes, uint8: axes that the mask is broadcast along have one block."""
    batch, heads, rows, columns = problem.mask_shape
    return batch, heads, -(-rows // BLOCK), -(-columns // BLOCK)


def spread(problem: Problem, own: mx.array) -> mx.array:
    """The map as kernels read it, with blocks for all pairs of the call."""
    rows, columns = (-(-length // BLOCK) for length in (problem.query_length, problem.key_length))
    return mx.broadcast_to(own, (problem.batch, problem.query_heads, rows, columns))


def pays(kind: KernelKind, problem: Problem) -> bool:
    """Is a map worth its launch?"""
    if kind is DECODE:
        columns = problem.head_dim + problem.value_dim
        return problem.batch * problem.key_heads * problem.key_length * columns >= LEAST_ELEMENTS
    pairs = problem.batch * problem.query_heads * problem.query_length * problem.key_length
    return pairs >= LEAST_PAIRS


def unknown(problem: Problem) -> mx.array:
    """A map of which every block is visited."""
    return spread(problem, _partial())


@lru_cache
def _partial() -> mx.array:
    return mx.array([PARTIAL], mx.uint8)
