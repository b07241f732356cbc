"""Score and Visible: a user's own attention as text, compiled into the kernels."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import mlx.core as mx
import numpy as np

from ...common.errors import wrong
from ...common.scalars import LARGEST, evaluated, real, shown, traced, truth, whole
from ..masks import PARTIAL, BlockMask, counted
from .evaluate import evaluate
from .program import POSITIONS, SCORE, Formula
from .scope import RESERVED
from .syntax import Item, Name, Named, expressions

MOST_AXES, MOST_ELEMENTS = 4, 2**28
MASKS_KEPT = 64
WIDE = (mx.uint32, mx.int64, mx.uint64)
VARIABLES = frozenset(one.name for one in (SCORE, *POSITIONS))


class Text:
    """The common part of Score and Visible: a text, and the numbers and arrays that it names.

    Attributes: formula, the checked text with the types of its names; arrays, by name, float32 or int32.
    """

    def __init__(self, text: str, /, **named):
        owner = type(self).__name__
        if not isinstance(text, str):
            raise wrong("text", "a string", type(text).__name__, 'Pass a text such as "s - 0.1 * abs(q - k)".', owner)
        numbers, self.arrays, kinds = [], {}, []
        for name, given in named.items():
            if not name.isidentifier() or not name.isascii() or name in RESERVED or name in VARIABLES:
                remedy = "Give it another name."
                raise wrong(name, "a name that the language does not have", repr(name), remedy, owner)
            number = _number(name, given, owner)
            if number is not None:
                numbers.append((Named(name, "int" if isinstance(number, int) else "float"), number))
                continue
            array, type_ = _array(name, given, owner)
            self.arrays[name] = evaluated(array)
            kinds.append(Named(name, type_, self.arrays[name].ndim))
        self.formula = Formula(
            owner, text, (*(kind for kind, _ in numbers), *kinds), tuple(value for _, value in numbers)
        )
        self.formula.check()
        # The key for cached calls: texts with equal keys differ at most in the values of their arrays.
        self.key = self.formula, tuple(array.shape for array in self.arrays.values())

    def __repr__(self) -> str:
        named = [f"{one.name}={value}" for one, value in zip(self.formula.named, self.formula.numbers)]
        named += [f"{name}={list(array.shape)}" for name, array in self.arrays.items()]
        return f"{self.formula.owner}({', '.join([repr(self.formula.text), *named])})"

    @property
    def operands(self) -> dict[str, mx.array]:
        """The arrays by their names among a call's operands."""
        return {self.formula.operand(name): array for name, array in self.arrays.items()}

    def check_heads(self, heads: int) -> None:
        """Raises ValueError where an axis that the text indexes with h is shorter than that."""
        for one in expressions(self.formula.body):
            if not isinstance(one, Item):
                continue
            for axis, (index, extent) in enumerate(zip(one.indices, self.arrays[one.array].shape)):
                if isinstance(index, Name) and index.name == "h" and extent < heads:
                    expected = f"at least {heads} numbers along axis {axis}, one for each query head"
                    raise wrong(one.array, expected, extent, "Its index is h.", self.formula.owner)


class Score(Text):
    """A function of every score, as text: ``attention(..., score=Score("s - slope[h] * abs(q - k)", slope=slopes))``.

    It replaces the score s of a pair, scale and softcap included, before ALiBi and an array mask are added; masks then
    hide what they hide. It is compiled into the kernels, forward and backward, so no array of all pairs exists.

    Args:
        text: an expression in Metal's syntax, or the body of a function that returns a float: locals of type float,
            int and bool, if and else, for with constant bounds. It reads the score ``s`` (float); the batch entry ``b``
            and the query head ``h``; the positions ``q`` and ``k``, where the last query has the position of the last
            key (q = i + Lk - Lq; with segments of unequal lengths each aligns to its own end); ``segment``, the id of
            the query's segment, 0 without any. Division of integers rounds towards zero, as in C.
        named: numbers, and arrays of 0 to 4 axes of a float, integer or bool type, that the text calls by these names.
            An element beyond an array's ends is NaN, of an integer array -2**31. Values of numbers and arrays, and
            sizes of arrays, compile nothing anew.

    dQ, dK and dV are exact: backward kernels compute with dual numbers. So are gradients of float arrays that the text
    reads at one place, by an index of b, h, q and k (slopes, temperatures, tables of relative biases), and the same
    bits every time: their sums over the axes that the index does not name take one more kernel and at most 2**24
    elements. Others raise UnsupportedProblem when they are asked for. A -INFINITY that the text names hides its key; a
    NaN reaches the rows that see it and no further.

    Raises:
        ValueError: the text is wrong, with its line and column, or a name or an array is.
    """


class Visible(Text):
    """A mask as text: ``attention(..., visible=Visible("k <= q || k < prefix", prefix=256))``.

    The text is as in Score, without s, and returns a bool: whether query and key see each other. Kernels evaluate it
    for the pairs of blocks that it hides in part, and never visit blocks that it hides as a whole. These are found once
    for every pair of lengths, and cached by text, numbers and values of arrays. Every block is visited where arrays
    have no values yet (inside mx.compile and mx.vmap), where queries are few, and where positions depend on segments of
    unequal lengths or on `lengths`.

    Args:
        text, named: as in Score.
        block: rows and columns of a block, a multiple of 32.

    Raises:
        ValueError: as Score, or another block.
    """

    def __init__(self, text: str, /, *, block: int = 128, **named):
        super().__init__(text, **named)
        given, self.block = block, whole(block)
        if self.block is None or self.block < 32 or self.block % 32:
            raise wrong("block", "a positive multiple of 32", shown(given), "Use 64 or 128.", "Visible")
        self.key = *self.key, self.block
        self._content: bytes | None = None

    def block_mask(self, query_length: int, key_length: int, batch: int = 1, heads: int = 1) -> BlockMask:
        """The mask as a BlockMask, of one layer unless the text reads b or h, to look at (`plot`) or to count blocks.

        Raises ValueError where arrays have no values yet, or the text asks for segments.
        """
        if "segment" in self.formula.names or not self.known:
            remedy = "Call it outside of mx.compile and mx.vmap, without segments."
            raise wrong("block_mask", "a text whose values are known", repr(self), remedy, "Visible")
        query_length, key_length = counted("query_length", query_length, 1), counted("key_length", key_length, 1)
        layers = [count if name in self.formula.names else 1 for name, count in (("b", batch), ("h", heads))]
        key = (self.formula, self.content, self.block, query_length, key_length, *layers)
        if key not in _masks:
            while len(_masks) >= MASKS_KEPT:
                del _masks[next(iter(_masks))]
            _masks[key] = self._block_mask(query_length, key_length, *layers)
        return _masks[key]

    def _block_mask(self, query_length: int, key_length: int, batch: int, heads: int) -> BlockMask:
        def seen(b, h, i, j):
            places = {"b": b, "h": h, "q": i + key_length - query_length, "k": j}
            values = {name: mx.array(place, mx.int32) for name, place in places.items()}
            found = evaluate(self.formula.body, {**self.formula.values, **self.arrays, **values})
            return np.broadcast_to(np.array(found), (i.shape[0], j.shape[1]))

        layers = {"batch": batch, "heads": heads}
        return BlockMask.from_predicate(seen, query_length, key_length, block=self.block, **layers)

    @property
    def known(self) -> bool:
        """Whether all arrays have values."""
        return not any(traced(array) for array in self.arrays.values())

    @property
    def content(self) -> bytes:
        """A digest of its arrays: equal for equal values."""
        if self._content is None:
            held = [np.array(array) for array in self.arrays.values()]
            self._content = hashlib.sha256(b"".join([repr(self.key).encode(), *map(bytes, held)])).digest()
        return self._content


_masks: dict[tuple, BlockMask] = {}


def visited_as_a_whole(query_length: int, key_length: int, block: int) -> BlockMask:
    """A mask of partial blocks only: kernels evaluate every pair."""
    blocks = (1, 1, -(-query_length // block), -(-key_length // block))
    return _all_partial(blocks, block)


@lru_cache(maxsize=256)
def _all_partial(blocks: tuple[int, ...], block: int) -> BlockMask:
    shape = (1, 1, blocks[2] * block, blocks[3] * block)
    return BlockMask(shape, block, np.full(blocks, PARTIAL, np.int32), np.zeros((1, block, block), np.uint8))


def text(given, kind: type[Text]) -> Text:
    """The argument of a call; a string becomes a Score or Visible without arrays."""
    return _text(given, kind) if type(given) is str else given


@lru_cache(maxsize=256)
def _text(given: str, kind: type[Text]) -> Text:
    return kind(given)


def checked(name: str, given, kind: type[Text]) -> Text:
    """The argument of a call as Score or Visible. Raises ValueError for everything else."""
    given = text(given, kind)
    if type(given) is not kind:
        got = type(given).__name__
        raise wrong(name, f"a mlx_flash.{kind.__name__} or its text", got, f'Pass {kind.__name__}("...").')
    return given


def _number(name: str, given, owner: str) -> int | float | None:
    """Python's and numpy's numbers; arrays, those without axes too, are read by kernels where they are."""
    if isinstance(given, (mx.array, np.ndarray, list, tuple)):
        return None
    integer = whole(given)
    number = int(given) if truth(given) is not None else integer if integer is not None else real(given)
    if number is None:
        raise wrong(name, "a number or an array", shown(given), "Pass a float, an int or an mx.array.", owner)
    if isinstance(number, int) and not -(2**31) <= number < 2**31:
        raise wrong(name, "an integer of 32 bits", number, "Pass a float.", owner)
    if isinstance(number, float) and math.isfinite(number) and abs(number) > LARGEST:
        raise wrong(name, "a number that float32 holds", number, "Scale it.", owner)
    return number


def _array(name: str, given, owner: str) -> tuple[mx.array, str]:
    """(the array as kernels read it, its type in the language)."""
    array = given
    if not isinstance(array, mx.array):
        try:
            array = np.asarray(given)
            array = _narrow(name, array, owner) if np.issubdtype(array.dtype, np.integer) else mx.array(array)
        except (ValueError, TypeError, RuntimeError) as error:
            if "[mlx_flash" in str(error):
                raise
            raise wrong(name, "an array of numbers", shown(given), "Pass an mx.array.", owner) from None
    if array.ndim > MOST_AXES or not 0 < array.size <= MOST_ELEMENTS:
        expected = f"0 to {MOST_AXES} axes and 1 to {MOST_ELEMENTS} elements"
        raise wrong(name, expected, shown(array), "Reshape or slice it.", owner)
    if array.dtype == mx.bool_:
        return array.astype(mx.int32), "bool"
    if mx.issubdtype(array.dtype, mx.integer):
        return _narrow(name, array, owner), "int"
    if array.dtype in (mx.float32, mx.float16, mx.bfloat16):
        return array.astype(mx.float32), "float"
    raise wrong(name, "a bool, integer or float type of at most 32 bits", shown(array), "Cast it.", owner)


def _narrow(name: str, array, owner: str) -> mx.array:
    """Integers as int32. Values of wider types are checked, since truncation would change them."""
    wide = array.dtype in WIDE if isinstance(array, mx.array) else array.dtype.itemsize > 2
    if wide and array.size:
        if traced(array):
            raise wrong(name, "int32 where values are not known yet", shown(array), "Cast it to mx.int32.", owner)
        if int(array.min()) < -(2**31) or int(array.max()) >= 2**31:
            raise wrong(name, "integers of 32 bits", shown(array), "Renumber them.", owner)
    return array.astype(mx.int32) if isinstance(array, mx.array) else mx.array(array.astype(np.int32))
