"""The checked numbers of one attention call. Building a Problem is all the validation there is."""

import math
from dataclasses import dataclass

import mlx.core as mx

from ..errors import wrong
from .features import Features
from .options import Options, options_of

DTYPES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}


def padded(dimension: int) -> int:
    """The head dimension as the kernels see it: rounded up to the 8 columns of a matrix fragment."""
    return -(-dimension // 8) * 8


@dataclass(frozen=True)
class Problem:
    """Shapes: q [batch, query_heads, query_length, head_dim], k [batch, key_heads, key_length, head_dim],
    v [batch, key_heads, key_length, value_dim]; the result has q's shape with value_dim columns.
    `scale` multiplies q k^T. `dtype` is the name of q's, k's, v's and the result's type. `options`: everything else.
    """

    batch: int
    query_heads: int
    key_heads: int
    query_length: int
    key_length: int
    head_dim: int
    value_dim: int
    dtype: str
    scale: float
    causal: bool = False
    options: Options = Options()

    @property
    def features(self) -> Features:
        """What the kernels are specialised by."""
        return self.options.features(self.causal)

    @property
    def empty(self) -> bool:
        """No query, or nothing to attend to: the result is zeros and no kernel runs."""
        return 0 in (self.batch, self.query_heads, self.query_length, self.key_length)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.query_heads, self.query_length, self.value_dim)


def _check_arrays(q, k, v):
    for name, array in (("q", q), ("k", k), ("v", v)):
        if not isinstance(array, mx.array):
            raise wrong(name, "an mlx.core.array", type(array).__name__, "Convert it with mx.array(...).")
    for name, array in (("q", q), ("k", k), ("v", v)):
        if array.ndim != 4:
            raise wrong(
                name, "4 axes [batch, heads, length, dimension]", f"shape {array.shape}", "Reshape or add axes."
            )
        if array.dtype not in DTYPES:
            raise wrong(name, "dtype float32, float16 or bfloat16", array.dtype, "Cast it with .astype(...).")
    for name, array in (("k", k), ("v", v)):
        if array.dtype != q.dtype:
            raise wrong(name, f"q's dtype {q.dtype}", array.dtype, "Cast q, k and v to one dtype.")


def _check_shapes(q, k, v):
    if k.shape[0] != q.shape[0]:
        raise wrong("k", f"batch {q.shape[0]} as in q", f"batch {k.shape[0]} (shape {k.shape})", "Match axis 0.")
    if k.shape[3] != q.shape[3]:
        raise wrong(
            "k", f"head dimension {q.shape[3]} as in q", f"{k.shape[3]} (shape {k.shape})", "Match the last axis."
        )
    if v.shape[:3] != k.shape[:3]:
        raise wrong(
            "v", f"batch, heads and length {k.shape[:3]} as in k", f"{v.shape[:3]} (shape {v.shape})",
            "Give k and v the same first three axes.",
        )  # fmt: skip
    for name, array in (("q", q), ("v", v)):
        if array.shape[3] == 0:
            raise wrong(name, "a head dimension of at least 1", f"shape {array.shape}", "Drop the empty call.")
    heads, key_heads = q.shape[1], k.shape[1]
    if (heads % key_heads if key_heads else heads) != 0:
        raise wrong("q", f"a number of heads that is a multiple of k's {key_heads}", heads, "Repeat or drop heads.")


def _checked_scale(scale, head_dim: int) -> float:
    if scale is None:
        return 1 / math.sqrt(head_dim)
    try:
        number = float(scale)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise wrong("scale", "a finite number or None for 1/sqrt(head dimension)", repr(scale), "Pass a float.")
    return number


def problem_of(q, k, v, *, scale=None, mask=None, causal=False, **options) -> Problem:
    """Checks the arguments of `attention` and returns their Problem.

    Raises ValueError naming the argument, what was expected, what came and what to do.
    """
    _check_arrays(q, k, v)
    _check_shapes(q, k, v)
    if isinstance(mask, str) and mask != "causal":
        raise wrong("mask", 'None, "causal", an array or a BlockMask', repr(mask), "Check the spelling.")
    if not isinstance(causal, bool):
        raise wrong("causal", "True or False", repr(causal), "Pass a bool.")
    shape = (*q.shape[:3], k.shape[2])
    return Problem(
        batch=q.shape[0],
        query_heads=q.shape[1],
        key_heads=k.shape[1],
        query_length=q.shape[2],
        key_length=k.shape[2],
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        dtype=DTYPES[q.dtype],
        scale=_checked_scale(scale, q.shape[3]),
        causal=causal or isinstance(mask, str),
        options=options_of(shape, q.dtype, mask=None if isinstance(mask, str) else mask, **options),
    )
