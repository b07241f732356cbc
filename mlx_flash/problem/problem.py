"""The checked numbers of one attention call: its signature, which kernels are made for, and its lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

import mlx.core as mx

from ..common.errors import wrong
from ..common.scalars import LARGEST, real, shown, whole
from .rows import check_extents
from .variants import Variants, check_lengths, variants_of

DTYPES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
SIZED = ("mask", "segments", "lengths", "pages")  # arguments with axes of the lengths, checked with every call
new = tuple.__new__  # makes a Problem faster than its own constructor, a Python function around this one
MAX_LENGTH = 2**30  # rows of queries or keys: kernels count in 32 bits, and add two such numbers


def padded(dimension: int) -> int:
    """The head dimension as the kernels see it: rounded up to the 8 columns of a matrix fragment."""
    return -(-dimension // 8) * 8


@dataclass(frozen=True)
class Signature:
    """Everything about a call but its batch and lengths: the key of kernels, custom functions and plans.

    `dtype` is the name of the type of q, k, v and the result; `scale` multiplies q k^T. `scratch`: bytes that the
    backward pass may take to keep P and dS between its kernels; None: as the GPU family has it.
    """

    query_heads: int
    key_heads: int
    head_dim: int
    value_dim: int
    dtype: str
    scale: float
    variants: Variants = Variants()
    scratch: int | None = None

    @cached_property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query_heads // self.key_heads if self.key_heads else 1

    @cached_property
    def lacking_scale(self) -> float:
        """The factor that the kernels' row maxima still lack: the scale, or 1 where scores are scaled first."""
        return 1.0 if self.variants.scaled_first else self.scale


class Problem(NamedTuple):
    """One call: q [batch, query_heads, query_length, head_dim], k [batch, key_heads, key_length, head_dim], v
    [batch, key_heads, key_length, value_dim]; the result has q's shape with value_dim columns.

    With pages, key_length counts the keys of a whole row of the table. Where batch entries have lengths of their own,
    the lengths here are the arrays'. `mask_shape`: the array mask's four axes, each 1 or the full length.
    """

    signature: Signature
    batch: int
    query_length: int
    key_length: int
    mask_shape: tuple[int, ...] | None = None

    # The signature's facts, read here too.
    query_heads = property(attrgetter("signature.query_heads"))
    key_heads = property(attrgetter("signature.key_heads"))
    head_dim = property(attrgetter("signature.head_dim"))
    value_dim = property(attrgetter("signature.value_dim"))
    dtype = property(attrgetter("signature.dtype"))
    scale = property(attrgetter("signature.scale"))
    variants = property(attrgetter("signature.variants"))

    @property
    def empty(self) -> bool:
        """Whether there is no query or no key: the result is zeros, and no kernel runs."""
        return 0 in (self.batch, self.signature.query_heads, self.query_length, self.key_length)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.query_heads, self.query_length, self.value_dim)


def signature_of(q, k, v, *, scale=None, latent=False, scratch=None, **options) -> Signature:
    """The signature of a call, from its arguments, checked as far as lengths do not matter.

    `latent`: v is a view of k's first columns. Raises ValueError naming the argument, what was expected, what came and
    what to do.
    """
    _check_arrays(q, k, v)
    _check_heads(q, k, v)
    if options.get("pages") is not None:
        options["page"] = k.shape[2]
    return Signature(
        query_heads=q.shape[1],
        key_heads=k.shape[1],
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        dtype=DTYPES[q.dtype],
        scale=_checked_scale(scale, q.shape[3]),
        variants=variants_of(q.shape[1], q.dtype, latent=latent, **options),
        scratch=_checked_scratch(scratch),
    )


def sized(
    signature: Signature, q_shape, k_shape, v_shape, mask=None, segments=None, lengths=None, pages=None
) -> Problem:
    """The problem of arrays of these shapes; heads and dimensions are known to be the signature's. Raises ValueError
    where batch or lengths do not fit together."""
    if pages is None and k_shape[0] != q_shape[0]:
        raise wrong("k", f"batch {q_shape[0]} as in q", f"batch {k_shape[0]} (shape {k_shape})", "Match axis 0.")
    if v_shape[:3] != k_shape[:3]:
        raise wrong(
            "v", f"batch, heads and length {k_shape[:3]} as in k", f"{v_shape[:3]} (shape {v_shape})",
            "Give k and v the same first three axes.",
        )  # fmt: skip
    if lengths is not None:
        check_extents(q_shape[0], lengths, pages)
    batch, heads, queries, _ = q_shape
    keys = k_shape[2] if pages is None else k_shape[2] * pages.shape[1]
    if queries >= MAX_LENGTH or keys >= MAX_LENGTH:
        name, length = ("q", queries) if queries >= MAX_LENGTH else ("k", keys)
        raise wrong(name, f"fewer than {MAX_LENGTH} rows", length, "Split the sequence and merge the parts.")
    variants = signature.variants
    mask_shape = None
    if variants.mask or variants.segments or variants.block:
        mask_shape = check_lengths(variants, (batch, heads, queries, keys), mask, segments)
    return new(Problem, (signature, batch, queries, keys, mask_shape))


def problem_of(q, k, v, **options) -> Problem:
    """Checks the arguments of `attention` and returns their Problem. Raises ValueError as `signature_of` does."""
    signature = signature_of(q, k, v, **options)
    return sized(signature, q.shape, k.shape, v.shape, *(options.get(name) for name in SIZED))


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


def _check_heads(q, k, v):
    if k.shape[3] != q.shape[3]:
        raise wrong(
            "k", f"head dimension {q.shape[3]} as in q", f"{k.shape[3]} (shape {k.shape})", "Match the last axis."
        )
    if v.shape[1] != k.shape[1]:
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


def _checked_scratch(scratch) -> int | None:
    number = None if scratch is None else whole(scratch)
    if scratch is not None and (number is None or number < 0):
        expected = "a number of bytes, 0 for none, or None for what suits the GPU"
        raise wrong("scratch", expected, shown(scratch), "Pass an int.")
    return number


def _checked_scale(scale, head_dim: int) -> float:
    if scale is None:
        return 1 / math.sqrt(head_dim)
    number = float(scale) if isinstance(scale, bool) else real(scale)
    if number is None or not abs(number) <= LARGEST:
        expected = "a finite number or None for 1/sqrt(head dimension), within float32"
        raise wrong("scale", expected, shown(scale), "Pass a float.")
    return number
