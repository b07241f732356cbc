"""Gradients of the arrays that a score reads: slopes, temperatures, tables of relative biases.

A kernel sums dS times the derivative of the score in the array, over all axes (b, h, q, k) that the array's index does
not name: pairs along them read the same element. The sums are added up here by element, in an order that never varies.
In MLX's graph a stand-in operand takes the gradient of these sums, so that nothing is computed for arrays that are not
differentiated, and an array without a gradient raises an error only when one is asked for.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from ..common.errors import UnsupportedProblem
from ..common.mlx_private import in_export_trace
from ..common.scalars import traced
from ..problem.formulas.evaluate import evaluate
from ..problem.formulas.program import Formula
from ..problem.formulas.syntax import Item, Name, Return, expressions
from ..problem.problem import Problem
from ..transforms.trace import trace

SUM = "sum_of_"  # prefix of the stand-in of an operand, which takes the gradient of the kernel's sums
MOST_SUMS = 2**24  # elements of the sums: 64 MiB
CHUNK = 64  # sums that are added at once
POSITIONS = ("b", "h", "q", "k")


def read_at(formula: Formula, name: str) -> tuple:
    """The indices with which a text reads an array; () for one without axes.

    Raises UnsupportedProblem where the array has no gradient, because it is read at several places, or by an index that
    depends on more than the position of a pair.
    """
    sites = {one.indices for one in expressions(formula.body) if isinstance(one, Item) and one.array == name}
    if len(sites) > 1:
        raise _refused(name, "the text reads it at several places: name the element in a local, or give it twice")
    (indices,) = sites or {()}
    known = {*POSITIONS, *(one.name for one in formula.named)}
    below = [one for index in indices for one in expressions(index)]
    strange = sorted({one.name for one in below if isinstance(one, Name)} - known)
    if strange:
        raise _refused(name, f"its index depends on {', '.join(strange)}: write it in b, h, q and k")
    return indices


def sum_shape(formula: Formula, name: str, full: tuple[int, int, int, int]) -> tuple[int, ...]:
    """The shape of the kernel's sums: [B, Hq, Lq, Lk] with 1 for axes that the index does not name. Raises
    UnsupportedProblem as `read_at` does, and for too many sums."""
    below = [one for index in read_at(formula, name) for one in expressions(index)]
    names = {one.name for one in below if isinstance(one, Name)}
    shape = tuple(extent if axis in names else 1 for axis, extent in zip(POSITIONS, full))
    if np.prod(shape) > MOST_SUMS:
        held = "x".join(map(str, shape))
        raise _refused(name, f"its sums over pairs would have {held} elements, more than {MOST_SUMS}")
    return shape


def _refused(name: str, why: str) -> UnsupportedProblem:
    return UnsupportedProblem(f"[mlx_flash.attention] gradients of {name} of score are not available: {why}.")


def stand_in(problem: Problem, formula: Formula, name: str, arrays: dict[str, mx.array]) -> mx.array:
    """Zeros in the shape of the kernel's sums; their gradient becomes that of the array."""
    full = (problem.batch, problem.query_heads, problem.query_length, problem.key_length)
    regular = not (problem.variants.shifts or problem.variants.lengths or problem.variants.page)
    try:
        shape = sum_shape(formula, name, full) if regular else ()
    except UnsupportedProblem:
        shape = ()  # an error only where its gradient is asked for
    if trace.export is not None or in_export_trace():
        return mx.zeros(shape)
    integers = tuple((one.name, arrays[one.name]) for one in formula.arrays if one.type != "float")
    return _function(formula, name, full, regular, shape, _Held(integers))(arrays[name])


class _Held:
    """The integer arrays of a text, compared by identity, as the key of a cache."""

    def __init__(self, arrays: tuple):
        self.arrays = arrays
        self.key = tuple((name, id(array)) for name, array in arrays)

    def __eq__(self, other):
        return self.key == other.key

    def __hash__(self):
        return hash(self.key)


@lru_cache(maxsize=256)
def _function(formula: Formula, name: str, full: tuple[int, ...], regular: bool, shape: tuple[int, ...], held: _Held):
    stand = mx.custom_function(lambda array: mx.broadcast_to(mx.zeros(()), shape))

    @stand.vjp
    def _(array, sums, _):
        if not regular:
            raise _refused(name, "positions depend on segments of unequal lengths, lengths or pages")
        sum_shape(formula, name, full)
        if any(traced(one) for _, one in held.arrays):
            raise _refused(name, "integer arrays beside it have no values inside of mx.compile and mx.vmap")
        levels = _levels(formula, name, full, shape, array.shape, held)
        return gathered(sums, levels).reshape(array.shape).astype(array.dtype)

    @stand.vmap
    def _(array, axis):
        return mx.broadcast_to(mx.zeros(()), (array.shape[axis], *shape)), 0

    return stand


@lru_cache(maxsize=32)
def _levels(formula, name, full, shape, table_shape, held: _Held) -> list[mx.array]:
    """The rounds of additions (see `rounds`) that bring every sum to its element of the flattened array."""
    places = [np.arange(extent) if own == extent else np.zeros(1, int) for own, extent in zip(shape, full)]
    places[2] = places[2] + (full[3] - full[2] if shape[2] == full[2] else 0)
    grid = np.meshgrid(*places, indexing="ij", sparse=True)
    values = {axis: mx.array(place.astype(np.int32)) for axis, place in zip(POSITIONS, grid)}
    values |= formula.values | dict(held.arrays) | {"segment": 0}
    flat, inside = np.zeros(shape, np.int64), np.ones(shape, bool)
    for index, extent in zip(read_at(formula, name), table_shape):
        at = np.array(evaluate((Return(index),), values))
        flat, inside = flat * extent + at, inside & (at >= 0) & (at < extent)
    return rounds(np.where(inside, flat, -1).reshape(-1), int(np.prod(table_shape)))


def rounds(element: np.ndarray, size: int) -> list[mx.array]:
    """Additions in rounds: each is a table of indices into the results of the round before, whose rows are summed. The
    last round has one row for each element. An index past the end stands for zero.

    element[n]: the element that sum n belongs to, -1 for none. size: the number of elements.
    """
    found = []
    while True:
        order = np.argsort(element, kind="stable")
        order = order[element[order] >= 0]
        owner = element[order]
        counts = np.bincount(owner, minlength=size)
        last = counts.max(initial=0) <= CHUNK
        rank = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
        pieces = np.ones(size, int) if last else -(-counts // CHUNK)
        row = (np.cumsum(pieces) - pieces)[owner] + rank // CHUNK
        places = np.full((pieces.sum(), min(CHUNK, max(1, counts.max(initial=1)))), len(element), np.int32)
        places[row, rank % CHUNK] = order
        found.append(mx.array(places))
        if last:
            return found
        element = np.repeat(np.arange(size), pieces)


def gathered(sums: mx.array, levels: list[mx.array]) -> mx.array:
    """The gradient of the flattened array, from the kernel's sums."""
    flat = sums.reshape(-1)
    for places in levels:
        flat = mx.concatenate([flat, mx.zeros((1,))])[places].sum(1)
    return flat
