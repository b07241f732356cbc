"""Everything a call may ask for beyond plain and causal attention, checked, as numbers and facts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx

from ..errors import wrong
from ..masks import BlockMask
from .features import Features
from .quantization import Quantization

FLOATS = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
INTEGERS = (mx.int8, mx.int16, mx.int32, mx.uint8, mx.uint16)


@dataclass(frozen=True)
class Options:
    """`window`: keys before and after a query's own position, both bounds finite. `mask`: element type of the array
    mask, `mask_shape`: its own four axes, each 1 or the full length. `block`: block size of the block mask.
    `dropout`: probability. `quantization`: of keys and values, whose lengths and dimensions are those they stand for.
    """

    window: tuple[int, int] | None = None
    softcap: float | None = None
    alibi: bool = False
    sinks: bool = False
    mask: str | None = None
    mask_shape: tuple[int, ...] | None = None
    segments: bool = False
    block: int | None = None
    dropout: float = 0.0
    quantization: Quantization | None = None

    def features(self, causal: bool) -> Features:
        return Features(
            causal=causal,
            window=self.window is not None,
            mask=self.mask,
            alibi=self.alibi,
            sinks=self.sinks,
            softcap=self.softcap is not None,
            segments=self.segments,
            block=self.block,
            dropout=self.dropout > 0,
            quantization=self.quantization,
        )


def options_of(
    shape, dtype, *, mask=None, window=None, softcap=None, alibi_slopes=None, sinks=None, segments=None, dropout=0.0,
    key=None,
) -> Options:  # fmt: skip
    """`shape`: (B, Hq, Lq, Lk). Raises ValueError for whatever is wrong."""
    heads = shape[1]
    for name, array in (("alibi_slopes", alibi_slopes), ("sinks", sinks)):
        if array is not None:
            _check_per_head(name, array, heads, dtype)
    if segments is not None:
        _check_segments(segments, shape)
    blocks = mask if isinstance(mask, BlockMask) else None
    array = None if blocks is not None else mask
    if blocks is not None:
        blocks.check(shape)
    return Options(
        window=_window(window, shape),
        softcap=_softcap(softcap),
        alibi=alibi_slopes is not None,
        sinks=sinks is not None,
        mask=None if array is None else _mask_type(array, shape, dtype),
        mask_shape=None if array is None else (1,) * (4 - array.ndim) + tuple(array.shape),
        segments=segments is not None,
        block=blocks.block if blocks is not None else None,
        dropout=_dropout(dropout, key),
    )


def _mask_type(mask, shape, dtype) -> str:
    if not isinstance(mask, mx.array):
        raise wrong(
            "mask", 'None, "causal", an mlx.core.array or a BlockMask', type(mask).__name__, "Wrap it in mx.array(...)."
        )
    if mask.dtype != mx.bool_ and mask.dtype not in FLOATS:
        raise wrong("mask", "dtype bool (True = keep) or a float type that is added", mask.dtype, "Cast the mask.")
    if mask.dtype != mx.bool_ and mx.result_type(mask, mx.zeros((), dtype)) != dtype:
        raise wrong("mask", f"a dtype that promotes to q's {dtype}", mask.dtype, f"Cast it with .astype({dtype}).")
    axes = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if mask.ndim > 4 or any(own not in (1, full) for own, full in zip(axes, shape)):
        raise wrong(
            "mask", f"a shape that broadcasts to [B, Hq, Lq, Lk] = {list(shape)}", f"shape {tuple(mask.shape)}",
            "Add or slice axes.",
        )  # fmt: skip
    return "bool" if mask.dtype == mx.bool_ else FLOATS[mask.dtype]


def _check_per_head(name, array, heads, dtype):
    if not isinstance(array, mx.array) or array.dtype not in FLOATS:
        got = array.dtype if isinstance(array, mx.array) else type(array).__name__
        raise wrong(name, "an mlx.core.array of a float type", got, "Convert it with mx.array(...).")
    if array.shape != (heads,):
        raise wrong(name, f"shape ({heads},), one number per query head", f"{array.shape}", "Reshape it.")
    if name == "sinks" and mx.result_type(array, mx.zeros((), dtype)) != dtype:
        raise wrong(name, f"a dtype that promotes to q's {dtype}", array.dtype, f"Cast it with .astype({dtype}).")


def _window(window, shape) -> tuple[int, int] | None:
    if window is None:
        return None
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise wrong("window", "(left, right), each a number of keys or None", repr(window), "Pass a pair.")
    for side in window:
        if side is not None and (not isinstance(side, int) or isinstance(side, bool) or side < 0):
            raise wrong("window", "sides of at least 0, or None for no bound", repr(window), "Pass whole numbers.")
    everything = shape[2] + shape[3]
    left, right = (everything if side is None else min(side, everything) for side in window)
    return left, right


def _softcap(softcap) -> float | None:
    if softcap is None:
        return None
    try:
        number = float(softcap)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise wrong("softcap", "a finite number above 0, or None", repr(softcap), "Pass a float such as 50.0.")
    return number


def _check_segments(segments, shape):
    if not isinstance(segments, (tuple, list)) or len(segments) != 2:
        raise wrong("segments", "(q_ids, k_ids)", type(segments).__name__, "Pass a pair of integer arrays.")
    for name, ids, length in zip(("q_ids", "k_ids"), segments, shape[2:]):
        if not isinstance(ids, mx.array) or ids.dtype not in INTEGERS:
            got = ids.dtype if isinstance(ids, mx.array) else type(ids).__name__
            raise wrong(f"segments {name}", "an integer array of at most 32 signed bits", got, "Cast it to mx.int32.")
        if tuple(ids.shape) not in ((length,), (1, length), (shape[0], length)):
            raise wrong(
                f"segments {name}", f"shape [B, length] = {[shape[0], length]} or [{length}]", f"{ids.shape}",
                "Give every position an id.",
            )  # fmt: skip


def _dropout(dropout, key) -> float:
    if not isinstance(dropout, (int, float)) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        raise wrong("dropout", "a probability of at least 0 and below 1", repr(dropout), "Pass 0.0 to switch it off.")
    if dropout > 0 and key is None:
        raise wrong("key", "an mx.random key when dropout > 0", "None", "Pass key=mx.random.key(seed).")
    if key is not None and (not isinstance(key, mx.array) or key.dtype != mx.uint32 or key.shape != (2,)):
        raise wrong("key", "an mx.random key (uint32 of shape (2,))", repr(key), "Pass mx.random.key(seed).")
    if key is not None and dropout == 0:
        raise wrong("key", "None when dropout is 0", "a key", "Pass dropout > 0 or leave the key out.")
    return float(dropout)
