"""The float64 computation and the criterion of accuracy that the commands share: `check`, `check --fuzz` and `bench`.

float32 must stay within a fixed fraction of the largest magnitude. The 16-bit types must stay within a multiple of the
error of plain mx operations in the same type on the same inputs, or of correct rounding where that is larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

TENSORS = ("O", "dQ", "dK", "dV")
# float32: the largest error, as a part of the largest magnitude
FLOAT32 = {"O": 2e-6, "LSE": 1e-6, "dQ": 1e-5, "dK": 1e-5, "dV": 1e-5, "dM": 1e-5, "dsinks": 1e-5}
LARGEST, RMS = 2.0, {"O": 1.1, "dQ": 1.2, "dK": 1.2, "dV": 1.2}  # 16 bits: times the unfused error
LARGEST_FLOOR, RMS_FLOOR = 2.0, 0.5  # units in the last place of the largest magnitude
FRACTION_BITS = {"float32": 23, "float16": 10, "bfloat16": 7}
# Where terms cancel: float32 roundings of the largest sum of |terms|, and the score above which its own rounding
# counts.
ROUNDINGS, LARGE_SCORE = 4 * 2.0**-23, 16.0


@dataclass(frozen=True)
class Error:
    """Errors of one tensor, relative to its largest magnitude."""

    largest: float
    rms: float

    @classmethod
    def of(cls, got: mx.array, exact: np.ndarray) -> Error:
        difference = np.abs(float64(got) - exact) / np.abs(exact).max()
        if not np.isfinite(difference).all():
            return cls(math.inf, math.inf)
        return cls(float(difference.max()), float(np.sqrt(np.mean(difference**2))))

    def worse(self, other: Error) -> Error:
        return Error(max(self.largest, other.largest), max(self.rms, other.rms))


def acceptable(tensor: str, dtype: str, ours: Error, unfused: Error) -> bool:
    """Whether the error of a tensor meets the criterion at the head of this file."""
    if dtype == "float32":
        return ours.largest <= FLOAT32[tensor]
    ulp = 2.0 ** -FRACTION_BITS[dtype]
    largest, rms = max(LARGEST * unfused.largest, LARGEST_FLOOR * ulp), max(RMS[tensor] * unfused.rms, RMS_FLOOR * ulp)
    return ours.largest <= largest and ours.rms <= rms


def float64(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def causal_table(rows: int, columns: int) -> np.ndarray:
    """bool [rows, columns]: the last query sees the last key."""
    return np.arange(columns) <= np.arange(rows)[:, None] + columns - rows


@dataclass(frozen=True)
class Terms:
    """The options of a call as float64 arrays that broadcast to [B, Hq, Lq, Lk]: the pairs that are `seen`, the `bias`
    added to the scores, and the factor that dropout leaves of a weight, `kept`. `sinks`: [Hq]. `mask_shape`: the shape
    of an additive mask whose gradient is wanted; extents of 1 are summed over."""

    seen: np.ndarray | bool = True
    bias: np.ndarray | float = 0.0
    kept: np.ndarray | float = 1.0
    softcap: float | None = None
    sinks: np.ndarray | None = None
    mask_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Exact:
    """Results by name, and for each the error that no float32 computation avoids."""

    values: dict[str, np.ndarray]
    floors: dict[str, float]


def exact(q, k, v, d_o, terms: Terms | None = None, d_lse: np.ndarray | None = None) -> Exact:
    """O, LSE, dQ, dK, dV, and dM and dsinks where asked for, with the whole matrix of scores.

    q [B, Hq, Lq, D], k [B, Hk, Lk, D], v [B, Hk, Lk, Dv], the cotangents d_o [B, Hq, Lq, Dv] and d_lse [B, Hq, Lq]: all
    numpy float64. The scale is 1 / sqrt(D). Rows that see nothing give 0 and an LSE of -inf.
    """
    terms = terms or Terms()
    key_heads, scale = k.shape[1], 1 / math.sqrt(q.shape[3])
    k, v = (np.repeat(array, q.shape[1] // key_heads, axis=1) for array in (k, v))
    d_lse = np.zeros(q.shape[:3]) if d_lse is None else d_lse
    s = scale * q @ k.swapaxes(-1, -2)
    u = np.zeros(()) if terms.softcap is None else np.tanh(s / terms.softcap)
    s = (s if terms.softcap is None else terms.softcap * u) + terms.bias
    seen = np.broadcast_to(terms.seen, s.shape)
    s = np.where(seen, s, -np.inf)
    sink = np.full((1, 1, 1), -np.inf) if terms.sinks is None else terms.sinks[:, None, None]
    top = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), sink)
    top = np.where(np.isneginf(top), 0, top)
    p, p_sink = np.exp(s - top), np.exp(sink - top)
    total = p.sum(-1, keepdims=True) + p_sink
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    p, p_sink = (array / np.where(total == 0, 1, total) for array in (p, p_sink))

    def results(q, k, v, d_o, d_lse, sign):
        """The results with `sign` -1; the sums of |terms| with `sign` 1 and magnitudes as arguments."""
        d_p = terms.kept * (d_o @ v.swapaxes(-1, -2))
        row, slope = (p * d_p).sum(-1, keepdims=True), 1 + sign * u * u
        d_s = p * (d_p + sign * row + d_lse[..., None])
        grouped = (q.shape[0], key_heads, -1, k.shape[2])
        found = {
            "O": (p * terms.kept) @ v, "dQ": scale * (d_s * slope) @ k,
            "dK": (scale * (d_s * slope).swapaxes(-1, -2) @ q).reshape(*grouped, q.shape[3]).sum(2),
            "dV": ((p * terms.kept).swapaxes(-1, -2) @ d_o).reshape(*grouped, v.shape[3]).sum(2),
        }  # fmt: skip
        if terms.mask_shape is not None:
            axes = tuple(axis for axis, extent in enumerate(terms.mask_shape) if extent == 1)
            found["dM"] = d_s.sum(axes, keepdims=True)
        if terms.sinks is not None:
            found["dsinks"] = (p_sink[..., 0] * (d_lse + sign * row[..., 0])).sum((0, 2))
        return found

    largest = float(np.abs(s[seen]).max(initial=1.0))
    rounding = ROUNDINGS * (largest / (2 * math.log(2)) if largest > LARGE_SCORE else 1)
    sizes = results(*map(np.abs, (q, k, v, d_o, d_lse)), 1)
    floors = {name: rounding * float(np.abs(array).max(initial=0.0)) for name, array in sizes.items()}
    products = float((scale * np.abs(q) @ np.abs(k).swapaxes(-1, -2)).max(initial=0.0))  # behind a score
    values = results(q, k, v, d_o, d_lse, -1) | {"LSE": lse}
    return Exact(values, floors | {"LSE": ROUNDINGS * max(products, largest)})


def exact_tensors(q, k, v, d_o, causal: bool) -> tuple[np.ndarray, ...]:
    """O, dQ, dK and dV of a call without options, or with causal masking alone; arguments as of `exact`."""
    terms = Terms(causal_table(q.shape[2], k.shape[2])) if causal else Terms()
    return tuple(exact(q, k, v, d_o, terms).values[name] for name in TENSORS)


def unfused(q: mx.array, k: mx.array, v: mx.array, causal: bool) -> mx.array:
    """Attention in plain mx operations, every intermediate in the inputs' dtype."""
    group = q.shape[1] // k.shape[1]
    k, v = (mx.repeat(array, group, axis=1) for array in (k, v))
    s = (q * (1 / math.sqrt(q.shape[3]))) @ k.swapaxes(-1, -2)
    if causal:
        s = mx.where(mx.array(causal_table(*s.shape[2:])), s, mx.array(-math.inf, s.dtype))
    return mx.softmax(s, axis=-1, precise=True) @ v
