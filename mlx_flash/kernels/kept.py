"""The backward pass of five products: dQ's kernel keeps P and dS, and those of dK and dV do not recompute them.

They take an element each for every pair of a query and a key, until dK and dV are there. That memory is bounded: the
heads of a call take turns, as many at a time as the bound allows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..problem.kinds import BACKWARD_KEY_KEPT, BACKWARD_QUERY
from ..problem.problem import Problem
from ..problem.variants import MOST_BUFFERS
from .config import precision_of
from .devices import Family
from .lookup import candidates, lookup, matrix_rows

TILE = 16  # queries and keys of a tile of P or dS, whose elements lie together
MOST_KEYS = 2**24  # kernels count the elements of 128 queries in 32 bits
BUFFERS = 2  # arguments that dQ's kernel has more: P and dS


class Gain(NamedTuple):
    """A row of TABLE, for head dimensions up to `max_head` in `dtypes`: calls with at least `pairs` visible pairs of a
    query and a key are faster so, and `bytes` may be kept for them."""

    max_head: int
    pairs: int
    bytes: int
    dtypes: tuple[str, ...] = ("float16", "bfloat16")


# Writing and reading P and dS takes the same time for every head dimension, and recomputing them grows with it. Timed
# on an H200: gradients of 4096 queries and 16 heads, not causal, take 1.0 of the time at 64 columns, 0.87 at 128, and
# 0.74 at 256. MLX's own backward pass is linear in memory up to 128 columns: beyond its results it takes the float32
# sums of dQ, in which P and dS of D / N of the heads would fit. So nothing is kept there, and a training step takes no
# more memory than MLX's for it. With more columns MLX holds all scores. The bound is that of 16384 queries of 16 heads
# in four turns, and a quarter more, since lengths end within tiles.
# On Apple GPUs the cost model predicts 0.65 to 0.7 of the time from 64 columns on, if memory is written and read during
# products. No Mac has timed it, so that rows begin where it would be 0.95 on M1 to M4 even if nothing overlapped. They
# leave float16 out: on these GPUs dS is otherwise a float32 factor, which small and large gradients need.
APPLE = (
    Gain(72, 0, 0, ("bfloat16",)), Gain(256, 2**24, 5 * 2**26, ("bfloat16",)),
    Gain(144, 0, 0, ("float32",)), Gain(256, 2**24, 5 * 2**26, ("float32",)),
)  # fmt: skip
TABLE = {  # by the family's name
    "sm90": (Gain(128, 0, 0), Gain(256, 2**26, 5 * 2**30)),
    "apple7": APPLE, "apple8": APPLE, "apple9": APPLE,
}  # fmt: skip
# Limits on turns where `scratch` is not given. At most MOST_TURNS: MLX allocates ahead of the GPU, and may hold the
# memory of all turns. At least LEAST_QUERIES: with shorter kernels the host would be slower than the GPU. At least
# LEAST_SHARE threadgroups for every core: with fewer, many cores would wait for the last ones.
MOST_TURNS, LEAST_QUERIES, LEAST_SHARE = 4, 8192, 1.5
APPLE_LEAST_QUERIES = 1024  # an M4 has a fiftieth of an H200's multipliers
ROWS = 128  # of a threadgroup; on Apple GPUs of those that a core holds at a time


def kept_shape(problem: Problem) -> tuple[int, int, int, int, int]:
    """The shape of P, and of dS, as kernels keep it: tiles of 16 queries and 16 keys."""
    tiles = (-(-length // TILE) for length in (problem.query_length, problem.key_length))
    return (problem.batch, problem.query_heads, *tiles, TILE * TILE)


def kept_bytes(problem: Problem) -> int:
    """Bytes of P and dS for one key head of all batch entries, and the query heads that share it."""
    _, _, rows, columns, elements = kept_shape(problem)
    size = 4 if problem.dtype == "float32" else 2
    return 2 * size * problem.batch * problem.signature.group * rows * columns * elements


def heads_at_a_time(problem: Problem, family: Family | None) -> int:
    """Key heads whose P and dS are kept at a time, 0 where they are recomputed. The heads take turns as evenly as
    possible. The bound is the signature's `scratch`; without one that of the table, for calls that gain."""
    bound, asked = problem.signature.scratch, problem.signature.scratch is not None
    if family is None or bound == 0 or not keeps(problem, family):
        return 0
    heads, most = problem.key_heads, (bound if asked else _gained_by(problem, family)) // kept_bytes(problem)
    if most >= heads:
        return heads
    if most == 0 or not problem.variants.alike:
        return 0
    turns = -(-heads // most)
    found = -(-heads // turns)
    groups = problem.batch * found * problem.signature.group * -(-problem.query_length // ROWS)
    least = APPLE_LEAST_QUERIES if family.apple else LEAST_QUERIES
    pays = turns <= MOST_TURNS and problem.query_length >= least and groups >= LEAST_SHARE * family.cores
    return found if asked or pays else 0


def turn_of(problem: Problem, heads: int) -> Problem:
    """The problem of one turn of `heads` key heads."""
    signature = replace(problem.signature, query_heads=heads * problem.signature.group, key_heads=heads)
    return problem._replace(signature=signature)


def keeps(problem: Problem, family: Family) -> bool:
    """Whether the family has kernels that read P and dS, with rows for these head dimensions."""
    signature, variants, head_dim = problem.signature, problem.variants, _head_dim(problem)
    rows = (candidates if family.apple else matrix_rows)(BACKWARD_KEY_KEPT, precision_of(signature.dtype), family)
    # Only kernels of one tile layer agree on how P and dS lie in memory.
    keeping = lookup(BACKWARD_QUERY, signature.dtype, family, head_dim).tiles
    served = any(head_dim <= row.max_head and row.tiles == keeping for row in rows)
    whole_tiles = not variants.block or variants.block % TILE == 0
    return served and whole_tiles and problem.key_length < MOST_KEYS and variants.buffers + BUFFERS <= MOST_BUFFERS


def _gained_by(problem: Problem, family: Family) -> int:
    """Bytes that may be kept without being asked for."""
    pairs = problem.batch * problem.query_heads * problem.query_length * problem.key_length
    visible = pairs // (2 if problem.variants.causal else 1)
    rows = (row for row in TABLE.get(family.name, ()) if problem.dtype in row.dtypes)
    row = next((row for row in rows if _head_dim(problem) <= row.max_head), None)
    return row.bytes if row and visible >= row.pairs else 0


def _head_dim(problem: Problem) -> int:
    return max(problem.head_dim, problem.value_dim)
