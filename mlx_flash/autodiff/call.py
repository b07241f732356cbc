"""What calls that look alike have in common: checked once, then kept, so that a call pays for its arrays only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import get_ident, main_thread

import mlx.core as mx

from ..backends import Backend
from ..masks import BlockMask
from ..problem.kinds import FORWARD
from ..problem.problem import Problem, padded, problem_of
from .operands import operands
from .vjp import attend

MOST = 1024  # kinds of calls that are kept
VALUES = frozenset({bool, int, float, str})  # types whose values are all that the checks see
ARRAYS = frozenset({"mask", "alibi_slopes", "sinks", "segments", "key"})  # of an array given here, shape and dtype are
SMALLEST = 2.0**-126  # float32 numbers below it count as zero on a GPU
MAIN_THREAD = main_thread().ident
_kept: dict[tuple, Call] = {}


class Call:
    """All calls of `attention` with one problem on one backend."""

    def __init__(self, problem: Problem, backend: Backend, stream, return_lse: bool):
        self.problem, self.backend, self.stream, self.return_lse = problem, backend, stream, return_lse
        self.empty = problem.empty
        head_dim, value_dim = padded(problem.head_dim), padded(problem.value_dim)
        # Kernels scale scores by a positive number, so that a row's largest score stays the largest: a sign goes to q.
        self.sign = 0.0 if abs(problem.scale) < SMALLEST else math.copysign(1.0, problem.scale)
        scale = abs(problem.scale) if self.sign else 1.0
        self.inner = replace(problem, head_dim=head_dim, value_dim=value_dim, scale=scale)
        self.pads = (head_dim - problem.head_dim, value_dim - problem.value_dim)
        self._forward = self._replayed = None

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, options: dict):
        if self.empty:
            return self._nothing(q.dtype, options["sinks"])
        extras = operands(self.problem, **options)
        if self._forward is None:
            names = (*self._parts(), *extras)
            forward = partial(attend(self.inner, names, self.backend, self.stream, self.return_lse), FORWARD)
            # MLX traces another stream anew, and looks into the function when another transformation traces.
            self._replayed = mx.compile(forward) if self.backend.replays else forward
            self._forward = forward
        # A process that used mx.compile in other threads may abort when it ends (MLX 0.32.4).
        forward = self._replayed if get_ident() == MAIN_THREAD else self._forward
        out, L = forward(*self._operands(q, k, v), *extras.values())
        value = self.pads[1]
        out = out[..., :-value] if value else out
        return (out, L * math.log(2)) if self.return_lse else out

    def _parts(self) -> tuple[str, ...]:
        """Names of what `_operands` returns beyond three."""
        return ()

    def _operands(self, q: mx.array, k, v) -> tuple[mx.array, ...]:
        """Q, K and V as `inner` has them."""
        head, value = self.pads
        if head:
            q, k = self._pad(q, head), self._pad(k, head)
        return self._signed(q), k, self._pad(v, value) if value else v

    def _signed(self, q: mx.array) -> mx.array:
        """q as it belongs to the scale of `inner`."""
        return q if self.sign == 1 else mx.multiply(q, self.sign, stream=self.stream)

    def _pad(self, array: mx.array, columns: int) -> mx.array:
        """Zero columns up to a multiple of 8: they change no dot product, and their gradients are dropped."""
        return mx.pad(array, [(0, 0), (0, 0), (0, 0), (0, columns)], stream=self.stream)

    def _nothing(self, dtype, sinks):
        """Zeros; without keys each row's only score, if any, is its head's sink."""
        out = mx.zeros(self.problem.output_shape, dtype)
        if not self.return_lse:
            return out
        lse = -math.inf if sinks is None else sinks.astype(mx.float32)[:, None]
        return out, mx.broadcast_to(mx.array(lse), self.problem.output_shape[:3])


def _checked(q, k, v, backend: Backend, stream, return_lse: bool, **options) -> Call:
    return Call(problem_of(q, k, v, **options), backend, stream, return_lse)


def call_of(q, k, v, backend: Backend, stream, return_lse: bool, make: Callable = _checked, **options) -> Call:
    """The Call of these arguments, made by `make` of them if none looked like them before. Raises ValueError, as
    `problem_of` does, for those that are wrong."""
    try:
        given = [(name, _looks(value, name in ARRAYS)) for name, value in options.items() if value is not None]
        where = None if stream is None else (type(stream), str(stream))  # equal streams have unequal hashes
        key = (make, _looks(q), _looks(k), _looks(v), backend, where, bool(return_lse), *given)
        call = _kept.get(key)
    except TypeError:  # something whose looks do not tell all: checked every time
        key = call = None
    if call is None:
        call = make(q, k, v, backend, stream, return_lse, **options)
        if key is not None:
            if len(_kept) >= MOST:
                _kept.clear()
            _kept[key] = call
    return call


def forget() -> None:
    """Drops what is kept, as after a change of templates."""
    _kept.clear()
    attend.cache_clear()


def _looks(value, array=True):
    """What the checks see of an argument: the type too, since True is no 1. Raises TypeError for what is unknown here,
    and for an array in the place of a number."""
    kind = type(value)
    if kind is mx.array and array:
        return value.shape, value.dtype
    if kind in VALUES:
        return kind, value
    if kind is tuple or kind is list:
        return kind, *(_looks(one, array) for one in value)
    if kind is BlockMask:
        return kind, value.shape, value.block
    if value is None:
        return None
    raise TypeError
