"""The functions of the language: their types, their names in Metal, and their mx operations.

`SMOOTH` functions have a derivative (templates/shared/dual.metal). `STEPS` are constant between jumps and `TESTS` are
bool, so these have none. `POLYMORPH` functions of integers are integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx


class Function(NamedTuple):
    arity: int
    metal: str
    operations: Callable


def largest(a, b):
    """max as in Metal: of a number and a NaN it is the number."""
    return mx.where(a > b, a, mx.where(b == b, b, a))


def least(a, b):
    return mx.where(a < b, a, mx.where(b == b, b, a))


def fmod(x, y):
    """The remainder with the sign of x, exact as the C function."""
    rest = mx.remainder(mx.abs(x), mx.abs(y))
    return mx.where(mx.isinf(y) & mx.isfinite(x), x, mx.where(x < 0, -rest, rest))


def truncated(x):
    return mx.where(x < 0, mx.ceil(x), mx.floor(x))


def rounded(x):
    """Halves away from zero, as C's round."""
    whole = truncated(x)
    return whole + mx.where(mx.abs(x - whole) >= 0.5, mx.sign(x), 0.0)


SMOOTH = {
    "sqrt": Function(1, "precise::sqrt", mx.sqrt),
    "rsqrt": Function(1, "precise::rsqrt", mx.rsqrt),
    "exp": Function(1, "precise::exp", mx.exp),
    "exp2": Function(1, "precise::exp2", lambda x: mx.power(mx.array(2.0), x)),
    "log": Function(1, "precise::log", mx.log),
    "log2": Function(1, "precise::log2", mx.log2),
    "log10": Function(1, "precise::log10", mx.log10),
    "sin": Function(1, "precise::sin", mx.sin),
    "cos": Function(1, "precise::cos", mx.cos),
    "tan": Function(1, "precise::tan", mx.tan),
    "asin": Function(1, "precise::asin", mx.arcsin),
    "acos": Function(1, "precise::acos", mx.arccos),
    "atan": Function(1, "precise::atan", mx.arctan),
    "sinh": Function(1, "precise::sinh", mx.sinh),
    "cosh": Function(1, "precise::cosh", mx.cosh),
    "tanh": Function(1, "precise::tanh", mx.tanh),
    "fract": Function(1, "fraction", lambda x: x - mx.floor(x)),
    "saturate": Function(1, "saturate", lambda x: least(largest(x, mx.array(0.0)), mx.array(1.0))),
    "pow": Function(2, "precise::pow", mx.power),
    "atan2": Function(2, "precise::atan2", mx.arctan2),
    "fmod": Function(2, "precise::fmod", fmod),
    "fma": Function(3, "fma", lambda a, b, c: a * b + c),
    "mix": Function(3, "mix", lambda a, b, t: a + (b - a) * t),
}
STEPS = {
    "floor": Function(1, "floor", mx.floor),
    "ceil": Function(1, "ceil", mx.ceil),
    "trunc": Function(1, "trunc", truncated),
    "rint": Function(1, "rint", mx.round),
    "round": Function(1, "round", rounded),
    "sign": Function(1, "sign", lambda x: mx.where(x == x, mx.sign(x), 0.0)),
    "step": Function(2, "step", lambda edge, x: mx.where(x < edge, 0.0, 1.0)),
}
TESTS = {
    "isnan": Function(1, "isnan", mx.isnan),
    "isinf": Function(1, "isinf", mx.isinf),
    "isfinite": Function(1, "isfinite", mx.isfinite),
}
POLYMORPH = {
    "abs": Function(1, "abs", mx.abs),
    "min": Function(2, "min", least),
    "max": Function(2, "max", largest),
    "clamp": Function(3, "clamp", lambda x, low, high: least(largest(x, low), high)),
}
FUNCTIONS = {**SMOOTH, **STEPS, **TESTS, **POLYMORPH}
TYPES = ("bool", "int", "float")
CONSTANTS = {
    "INFINITY": math.inf, "NAN": math.nan, "M_PI_F": math.pi, "M_E_F": math.e, "M_LOG2E_F": math.log2(math.e),
    "M_LN2_F": math.log(2), "FLT_MAX": (2 - 2**-23) * 2.0**127, "FLT_MIN": 2.0**-126, "INT_MAX": 2**31 - 1,
    "true": True, "false": False,
}  # fmt: skip
