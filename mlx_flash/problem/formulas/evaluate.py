"""A formula in mx operations, element by element over broadcast arrays: what backends without kernels compute."""

from __future__ import annotations

import math

import mlx.core as mx

from .functions import FUNCTIONS
from .syntax import Assign, Binary, Body, Call, Choice, Expression, For, If, Item, Literal, Name, Unary

DTYPES = {"bool": mx.bool_, "int": mx.int32, "float": mx.float32}
OUTSIDE = {"float": math.nan, "int": -(2**31), "bool": False}  # the value of an element beyond an array's ends


def evaluate(body: Body, values: dict[str, mx.array | int | float]) -> mx.array:
    """The value of the text: float32 of a score, bool of a predicate.

    `values`: variables, numbers and arrays by name. Variables broadcast against one another.
    """
    return _Evaluation(values).run(body)


def quotient(a: mx.array, b: mx.array) -> mx.array:
    """Integers divided towards zero, as in C; 0 where C has no answer."""
    safe = mx.where(b == 0, 1, mx.abs(b))
    whole = mx.abs(a) // safe
    return mx.where(b == 0, 0, mx.where((a < 0) != (b < 0), -whole, whole))


def read(array: mx.array, indices: list[mx.array], type: str) -> mx.array:
    """An element of an array, or the value of an element beyond its ends."""
    inside, place = None, 0
    for index, extent in zip(indices, array.shape):
        within = (index >= 0) & (index < extent)
        inside = within if inside is None else inside & within
        place = place * extent + index
    found = mx.take(array.flatten(), mx.where(inside, place, 0))
    found = mx.where(inside, found, mx.array(OUTSIDE[type], found.dtype))
    return found != 0 if type == "bool" else found  # kernels and this hold bools as integers


OPERATORS = {
    "+": mx.add, "-": mx.subtract, "*": mx.multiply, "==": mx.equal, "!=": mx.not_equal, "<": mx.less,
    ">": mx.greater, "<=": mx.less_equal, ">=": mx.greater_equal, "&&": mx.logical_and, "||": mx.logical_or,
    "&": mx.bitwise_and, "|": mx.bitwise_or, "^": mx.bitwise_xor,
    "%": lambda a, b: mx.where(b == 0, 0, a - b * quotient(a, b)),
    "<<": lambda a, b: mx.left_shift(a, b & 31), ">>": lambda a, b: mx.right_shift(a, b & 31),
}  # fmt: skip


class _Evaluation:
    """Runs statements on all elements at once; `live`: where no return was met and every condition holds."""

    def __init__(self, values: dict):
        self.values = dict(values)
        self.result = self.open = None  # open: where no return was met

    def run(self, body: Body) -> mx.array:
        self.block(body, None)
        return self.result

    def block(self, body: Body, live: mx.array | None) -> None:
        for one in body:
            reached = _both(live, self.open)
            if isinstance(one, Assign):
                value = self.of(one.value)
                old = None if one.declares else self.values[one.name]
                self.values[one.name] = value if old is None or reached is None else mx.where(reached, value, old)
            elif isinstance(one, If):
                condition = self.of(one.condition)
                self.block(one.then, _both(live, condition))
                self.block(one.other, _both(live, mx.logical_not(condition)))
            elif isinstance(one, For):
                for number in one.numbers:
                    self.values[one.name] = mx.array(number, mx.int32)
                    self.block(one.body, live)
            else:
                self.returned(self.of(one.value), reached, live)

    def returned(self, value: mx.array, reached: mx.array | None, live: mx.array | None) -> None:
        first = self.result is None or reached is None
        self.result = value if first else mx.where(reached, value, self.result)
        closed = mx.array(True) if live is None else live
        self.open = _both(self.open, mx.logical_not(closed))

    def of(self, node: Expression) -> mx.array:
        if isinstance(node, Literal):
            return mx.array(node.value, DTYPES[node.type])
        if isinstance(node, Name):
            value = self.values[node.name]
            return value if isinstance(value, mx.array) else mx.array(value, DTYPES[node.type])
        if isinstance(node, Item):
            return read(self.values[node.array], [self.of(index) for index in node.indices], node.type)
        if isinstance(node, Unary):
            of = self.of(node.of)
            return {"-": mx.negative, "!": mx.logical_not, "~": lambda x: -x - 1}[node.sign](of)
        if isinstance(node, Choice):
            return mx.where(self.of(node.condition), self.of(node.then), self.of(node.other))
        if isinstance(node, Binary):
            left, right = self.of(node.left), self.of(node.right)
            if node.sign == "/":
                return (quotient if node.type == "int" else mx.divide)(left, right)
            return OPERATORS[node.sign](left, right)
        return self.call(node)

    def call(self, node: Call) -> mx.array:
        arguments = [self.of(one) for one in node.arguments]
        if node.function in FUNCTIONS:
            return FUNCTIONS[node.function].operations(*arguments).astype(DTYPES[node.type])
        (of,) = arguments
        if node.function == "bool":
            return of != 0
        if node.function == "int" and of.dtype == mx.float32:  # as GPUs convert: to the nearest that there is
            of = mx.clip(mx.where(of == of, of, 0.0), -(2.0**31), 2.0**31 - 128)
        return of.astype(DTYPES[node.function])


def _both(a: mx.array | None, b: mx.array | None) -> mx.array | None:
    return b if a is None else a if b is None else a & b
