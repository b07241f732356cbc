"""Nodes of a formula. Every expression knows its type: "bool", "int" or "float"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple


class Named(NamedTuple):
    """A name that was given beside the text: a number (`axes` None), or an array with `axes` axes."""

    name: str
    type: str
    axes: int | None = None


@dataclass(frozen=True)
class Expression:
    type: str


@dataclass(frozen=True)
class Literal(Expression):
    value: bool | int | float


@dataclass(frozen=True)
class Name(Expression):
    """A variable of the language, a number, an array without axes, or a local."""

    name: str


@dataclass(frozen=True)
class Item(Expression):
    """An element of an array."""

    array: str
    indices: tuple[Expression, ...]


@dataclass(frozen=True)
class Unary(Expression):
    sign: str
    of: Expression


@dataclass(frozen=True)
class Binary(Expression):
    sign: str
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Choice(Expression):
    condition: Expression
    then: Expression
    other: Expression


@dataclass(frozen=True)
class Call(Expression):
    """A function, or a conversion to the type of that name."""

    function: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True)
class Assign:
    """An assignment. `declares`: it declares the local."""

    name: str
    type: str
    value: Expression
    declares: bool


@dataclass(frozen=True)
class If:
    condition: Expression
    then: tuple
    other: tuple


@dataclass(frozen=True)
class For:
    """A loop that runs the body once for each number."""

    name: str
    numbers: range
    body: tuple


@dataclass(frozen=True)
class Return:
    value: Expression


Body = tuple[Assign | If | For | Return, ...]


def parts(node) -> Iterator[Expression]:
    """Expressions right below a node."""
    for one in fields(node):
        value = getattr(node, one.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Expression):
                yield part


def expressions(node) -> Iterator[Expression]:
    """An expression, or the expressions of statements, with everything below."""
    if isinstance(node, tuple):
        for one in node:
            yield from expressions(one)
        return
    if isinstance(node, Expression):
        yield node
    for part in parts(node):
        yield from expressions(part)
    for name in ("then", "other", "body"):
        inner = getattr(node, name, ())
        if isinstance(inner, tuple):
            yield from expressions(inner)


def statements(body: Body) -> Iterator:
    """All statements, those in blocks too."""
    for one in body:
        yield one
        for name in ("then", "other", "body"):
            yield from statements(getattr(one, name, ()))


def returns(body: Body) -> bool:
    """Whether every path through the statements ends at a return."""
    last = body[-1] if body else None
    return isinstance(last, Return) or (isinstance(last, If) and returns(last.then) and returns(last.other))
