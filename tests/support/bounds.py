"""The one accuracy criterion. No other file of the tests may hold a tolerance.

float32: the error is at most a fixed part of the result's largest magnitude.
float16, bfloat16: the error is at most a multiple of what plain mx operations in that dtype make of the same inputs,
largest error and root mean square each.
Both have floors: what rounding alone does to this problem, in numbers the oracle knows.
"""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import oracle
import oracle_variants

FLOAT32 = {  # of the largest magnitude
    "O": 2e-6, "dQ": 1e-5, "dK": 1e-5, "dV": 1e-5, "dM": 1e-5, "dsinks": 1e-5, "L": 1e-6, "LSE": 1e-6,
    "delta": 1e-6,
}  # fmt: skip
LARGEST = 2.0  # times the unfused error
NO_WORSE = (2.0, 1.1)  # times the largest error, and the root mean square, of other kernels on the same problems
RMS = {"O": 1.1, "dQ": 1.2, "dK": 1.2, "dV": 1.2, "dM": 1.2, "dsinks": 1.2}
LARGEST_FLOOR, RMS_FLOOR = 2.0, 0.5  # units in the last place of the largest magnitude: correct rounding always passes
CANCELLATION = 2.0  # float32 roundings of the terms that cancel
MODEL_LOGITS = 2e-5  # of a whole model in float32, of the largest magnitude or 1
QUANTIZED_LOGITS = 0.05  # of a model over an 8-bit cache, of the largest magnitude or 1
NEGATED = 0.02  # of the largest magnitude: results with the other sign, against another implementation's in any dtype
BENCH = 0.02  # of the bench command's bfloat16 results, in the L2 norm
LOSS = 1e-3  # of every step of a training run against one with the built-in
SLOPE = 0.02  # of a log-log line against its exponent
DIFFERENCES = 1e-7  # of the largest gradient: what central differences of float64 leave
MERGED = 2.0  # float32 units in the last place, of O or of the LSE that weighs it: two parts against the whole
ROTATED = 2.0  # units in the last place, root mean square: operands and output rounded once more in 16 bits
ROTATED_ERROR = 0.6  # of a 4-bit cache with outliers: what a rotation may leave of it
SHIFTED = {True: 2e-5, False: 3e-2}  # of the largest magnitude, in float32 or 16 bits: rows shifted far away
STATISTIC = {True: 1e-6, False: 1e-2}  # the same, of a row's largest score; 1e-4 where that is near 0
SHARED_LOSS = 1e-5  # of a step of training on shared sequences, against one process
SENT = 0.01  # of the bytes that the formulas of context parallelism say
IMBALANCE = 0.01  # of a rank's work: blocks that the diagonal cuts
PEAK_SLOPE = 1.2  # of measured peaks, which no block size divides evenly; 2 is an Lq x Lk array
AGREEMENT = 1.0  # units in the last place of the largest magnitude, in float32: an Apple GPU against the simulator
OTHER_MACHINE = 2.0  # units in the last place of the largest magnitude: the exponentials of another C library
REORDERED = 8.0  # units in the last place of the largest magnitude: the same terms summed in other blocks
SMALLEST = 2.0**-126  # float32 below it may be flushed to 0
ROUNDINGS, LARGE_SCORE = 4.0, 16.0  # of a score, where it is large
DIGITS = {"float32": (23, -126), "float16": (10, -14), "bfloat16": (7, -126)}  # fraction bits, smallest exponent


def ulp(magnitude: float, dtype: str) -> float:
    bits, smallest = DIGITS[dtype]
    exponent = math.frexp(magnitude)[1] - 1 if magnitude else smallest
    return 2.0 ** (max(exponent, smallest) - bits)


def rounding(dtype: str) -> float:
    """The largest relative error of one rounding."""
    return 2.0 ** -(DIGITS[dtype][0] + 1)


def score_rounding(largest: float) -> float:
    """What rounding scores does to float32 exponentials, relatively; 0 for the usual small ones: they get no allowance.

    Each is rounded as a dot product, once scaled, once against the row's largest, and once more to base 2.
    """
    return ROUNDINGS * rounding("float32") * largest / math.log(2) if largest > LARGE_SCORE else 0.0


@dataclass(frozen=True)
class Error:
    largest: float
    rms: float

    @classmethod
    def of(cls, got, want: np.ndarray) -> "Error":
        difference = np.abs(float64(got) - want)
        if difference.size == 0:
            return cls(0.0, 0.0)
        if not np.isfinite(difference).all():
            return cls(math.inf, math.inf)  # NaN must never compare as small
        return cls(float(difference.max()), float(np.sqrt(np.mean(difference**2))))


def float64(array) -> np.ndarray:
    """Exact: every float16, bfloat16 and float32 is a float64."""
    if isinstance(array, mx.array):
        array = np.array(array.astype(mx.float32))
    return array.astype(np.float64)


def check(
    name: str, got, want: np.ndarray, case: str, dtype: str, *, terms=0.0, unfused: Error | None = None, floor=0.0
):
    """Fails unless tensor `name` is as accurate as promised.

    terms: oracle.term_magnitudes of this tensor. unfused: the error of plain mx operations; float32 needs none.
    floor: an error that no implementation of this kind can avoid on this problem.
    """
    assert tuple(got.shape) == want.shape, f"{name}: shape {tuple(got.shape)}, expected {want.shape} ({case})"
    error = Error.of(got, want)
    magnitude = float(np.abs(want).max(initial=0.0))
    floor = max(floor, CANCELLATION * ulp(terms, "float32") if terms else 0.0)
    if dtype == "float32":
        limits = Error(max(FLOAT32[name] * magnitude, floor, SMALLEST), math.inf)
    else:
        assert math.isfinite(unfused.largest), f"{name}: unfused mx overflows, choose another case ({case})"
        unit = ulp(magnitude, dtype)
        largest, rms = LARGEST * unfused.largest, RMS[name] * unfused.rms
        limits = Error(max(largest, LARGEST_FLOOR * unit, floor), max(rms, RMS_FLOOR * unit, floor))
    for measure in ("largest", "rms"):
        found, limit = getattr(error, measure), getattr(limits, measure)
        assert found <= limit, (
            f"{name}: {measure} error {found:.3e} exceeds {limit:.3e} (largest magnitude {magnitude:.3e}, "
            f"unfused {getattr(unfused, measure, None)}) in {case}"
        )


def unfused(q, k, v, scale: float, causal: bool):
    """softmax(scale q k^T) v in plain mx operations and one dtype, as mx.fast's fallback does it."""
    batch, heads, length, dimension = q.shape
    group = heads // k.shape[1]
    q = (q * mx.array(scale, q.dtype)).reshape(batch, k.shape[1], group, length, dimension)
    scores = q @ k[:, :, None].swapaxes(-1, -2)
    seen = mx.array(oracle.visibility(length, k.shape[2], causal))
    scores = mx.where(seen, scores, mx.array(mx.finfo(q.dtype).min, q.dtype))
    p = mx.where(seen, mx.softmax(scores, axis=-1, precise=True), mx.array(0, q.dtype))
    return (p @ v[:, :, None]).reshape(batch, heads, length, v.shape[3])


def unfused_variant(q, k, v, mask, sinks, *, scale: float, attention):
    """Attention with every variant in plain mx operations and one dtype: O, and LSE as float32. `attention`: the
    oracle's, for what is constant: what is visible, softcap, ALiBi, the dropout's pattern."""
    facts, dtype, group = attention.facts, q.dtype, q.shape[1] // k.shape[1]
    k, v = (mx.repeat(array, group, axis=1) for array in (k, v))
    scores = (q * mx.array(scale, dtype)) @ k.swapaxes(-1, -2)
    if facts.softcap is not None:
        scores = facts.softcap * mx.tanh(scores / facts.softcap)
    if facts.score is not None:
        own = oracle_variants.positions(facts, *scores.shape[2:])[:, None, :, None]
        scores = facts.score.value(scores, own, np.arange(scores.shape[3]), mx)
    if facts.slopes is not None:
        scores = scores + mx.array(oracle_variants.alibi(facts, *scores.shape[2:])).astype(dtype)
    if mask is not None:
        scores = scores + mask
    seen = mx.array(attention.seen)
    scores = mx.where(seen, scores, mx.array(mx.finfo(dtype).min, dtype))
    if sinks is not None:
        column = mx.broadcast_to(sinks.reshape(1, -1, 1, 1), (*scores.shape[:3], 1))
        if facts.q_lengths is not None:
            behind = mx.array(oracle_variants.behind(facts, scores.shape[2]))[:, None, :, None]
            column = mx.where(behind, mx.array(mx.finfo(dtype).min, dtype), column)
        scores = mx.concatenate([scores, column], -1)
    p = mx.softmax(scores, axis=-1, precise=True)[..., : k.shape[2]]
    p = mx.where(seen, p, mx.array(0, dtype))
    if facts.survives is not None:
        p = p * (mx.array(facts.survives) / (1 - facts.dropout)).astype(dtype)
    return p @ v, mx.logsumexp(scores, axis=-1).astype(mx.float32)


def unfused_errors(arrays, d_o, scale, causal, want: dict[str, np.ndarray]) -> dict[str, Error]:
    outs, grads = mx.vjp(lambda *x: unfused(*x, scale, causal), list(arrays), [d_o])
    results = dict(zip(("O", "dQ", "dK", "dV"), (outs[0], *grads)))
    return {name: Error.of(results[name], want[name]) for name in want}


def slope(lengths, sizes) -> float:
    """Slope of the log-log line: 1 is linear, 2 an Lq x Lk array."""
    return float(np.polyfit(np.log(lengths), np.log(sizes), 1)[0])


def is_near(got, want, relative: float) -> bool:
    """Whether every number is within `relative` of its own magnitude, or 1e-4 of zero."""
    return bool(np.allclose(float64(got), want, rtol=relative, atol=1e-4))


def no_worse(name: str, errors: np.ndarray, others: np.ndarray) -> None:
    """Fails where the errors of a tensor's elements are larger than those of other kernels, whose sizes are alike."""
    for measure, times in zip((np.max, lambda x: np.sqrt(np.mean(x**2))), NO_WORSE):
        mine, limit = measure(np.abs(errors)), times * measure(np.abs(others))
        assert mine <= limit, f"{name}: {mine:.3e} exceeds {limit:.3e}"


def near(got, want, relative: float) -> None:
    assert is_near(got, want, relative), np.abs(float64(got) - want).max()
