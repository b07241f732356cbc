"""The tolerances of all tests and the only accuracy criterion. No other file of the tests may hold a tolerance.

float32: the error is at most a fixed part of the result's largest magnitude.

float16, bfloat16: the largest and the root mean square error are each at most a multiple of the error of plain mx
operations on the same inputs in the same dtype.

Both have a floor: the error that rounding alone causes on this problem, computed from numbers of the oracle.
"""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import oracle
import oracle_variants

FLOAT32 = {  # relative to the largest magnitude
    "O": 2e-6, "dQ": 1e-5, "dK": 1e-5, "dV": 1e-5, "dM": 1e-5, "dsinks": 1e-5, "L": 1e-6, "LSE": 1e-6,
    "delta": 1e-6,
}  # fmt: skip
LARGEST = 2.0  # times the error of plain mx operations
NO_WORSE = (2.0, 1.1)  # times the largest and the root mean square error of other kernels on the same problems
RMS = {"O": 1.1, "dQ": 1.2, "dK": 1.2, "dV": 1.2, "dM": 1.2, "dsinks": 1.2}
LARGEST_FLOOR, RMS_FLOOR = 2.0, 0.5  # units in the last place of the largest magnitude: correct rounding always passes
CANCELLATION = 2.0  # float32 roundings of the terms that cancel
MODEL_LOGITS = 2e-5  # logits of a whole float32 model, relative to the largest magnitude or 1
QUANTIZED_LOGITS = 0.05  # logits of a model with an 8-bit cache, relative to the largest magnitude or 1
NEGATED = 0.02  # relative to the largest magnitude: negated results against another implementation, in any dtype
BENCH = 0.02  # results of the bench command in bfloat16, relative in the L2 norm
LOSS = 1e-3  # each step of a training run, against a run with MLX's attention
SLOPE = 0.02  # difference of a log-log line's slope from the exponent
DIFFERENCES = 1e-7  # relative to the largest gradient: the error of central differences in float64
MERGED = 2.0  # float32 units in the last place, of O or of the LSE that weights it: two merged parts against the whole
ROTATED = 2.0  # units in the last place, root mean square: operands and output rounded once more to 16 bits
ROTATED_ERROR = 0.6  # the share of the error of a 4-bit cache with outliers that remains after a rotation
SHIFTED = {True: 2e-5, False: 3e-2}  # relative to the largest magnitude, in float32 or 16 bits: rows with an offset
STATISTIC = {True: 1e-6, False: 1e-2}  # the same for a row's largest score; 1e-4 if that is near 0
SHARED_LOSS = 1e-5  # a step of training on shared sequences, relative to one process
SENT = 0.01  # relative to the bytes predicted by the formulas of context parallelism
IMBALANCE = 0.01  # relative to a rank's work: the blocks on the diagonal
PEAK_SLOPE = 1.2  # of measured peaks, which no block size divides evenly; an Lq x Lk array has 2
AGREEMENT = 1.0  # units in the last place of the largest magnitude, in float32: an Apple GPU against the simulator
OTHER_MACHINE = 2.0  # units in the last place of the largest magnitude: another C library's exponentials
REORDERED = 8.0  # units in the last place of the largest magnitude: the same terms summed in other blocks
SMALLEST = 2.0**-126  # smaller float32 numbers may be flushed to 0
ROUNDINGS, LARGE_SCORE = 4.0, 16.0  # roundings of a score, and the magnitude from which they count
DIGITS = {"float32": (23, -126), "float16": (10, -14), "bfloat16": (7, -126)}  # bits of the fraction, smallest exponent


def ulp(magnitude: float, dtype: str) -> float:
    bits, smallest = DIGITS[dtype]
    exponent = math.frexp(magnitude)[1] - 1 if magnitude else smallest
    return 2.0 ** (max(exponent, smallest) - bits)


def rounding(dtype: str) -> float:
    """The largest relative error of one rounding."""
    return 2.0 ** -(DIGITS[dtype][0] + 1)


def score_rounding(largest: float) -> float:
    """The relative effect of rounded scores on float32 exponentials; 0 for the usual small scores, which get no
    allowance.

    A score is rounded four times: as a dot product, when scaled, when the row's maximum is subtracted, and to base 2.
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
    """The exact values as float64: every float16, bfloat16 and float32 number is one."""
    if isinstance(array, mx.array):
        array = np.array(array.astype(mx.float32))
    return array.astype(np.float64)


def check(
    name: str, got, want: np.ndarray, case: str, dtype: str, *, terms=0.0, unfused: Error | None = None, floor=0.0
):
    """Fails unless the tensor `name` is as accurate as promised.

    terms: oracle.term_magnitudes of this tensor.
    unfused: the error of plain mx operations; not needed for float32.
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
    """softmax(scale q k^T) v in plain mx operations and one dtype, as in the fallback of mx.fast."""
    batch, heads, length, dimension = q.shape
    group = heads // k.shape[1]
    q = (q * mx.array(scale, q.dtype)).reshape(batch, k.shape[1], group, length, dimension)
    scores = q @ k[:, :, None].swapaxes(-1, -2)
    seen = mx.array(oracle.visibility(length, k.shape[2], causal))
    scores = mx.where(seen, scores, mx.array(mx.finfo(q.dtype).min, q.dtype))
    p = mx.where(seen, mx.softmax(scores, axis=-1, precise=True), mx.array(0, q.dtype))
    return (p @ v[:, :, None]).reshape(batch, heads, length, v.shape[3])


def unfused_variant(q, k, v, mask, sinks, *, scale: float, attention):
    """Attention with every variant in plain mx operations and one dtype: O, and the LSE as float32.

    attention: the oracle's, which supplies the constants: visible keys, softcap, ALiBi and the dropout pattern.
    """
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
    """The slope of the log-log line: 1 for linear growth, 2 for an Lq x Lk array."""
    return float(np.polyfit(np.log(lengths), np.log(sizes), 1)[0])


def is_near(got, want, relative: float) -> bool:
    """Whether every number is within `relative` of its own magnitude, or within 1e-4 if near zero."""
    return bool(np.allclose(float64(got), want, rtol=relative, atol=1e-4))


def no_worse(name: str, errors: np.ndarray, others: np.ndarray) -> None:
    """Fails if the errors of a tensor's elements are larger than those of other kernels on problems of the same
    size."""
    for measure, times in zip((np.max, lambda x: np.sqrt(np.mean(x**2))), NO_WORSE):
        mine, limit = measure(np.abs(errors)), times * measure(np.abs(others))
        assert mine <= limit, f"{name}: {mine:.3e} exceeds {limit:.3e}"


def near(got, want, relative: float) -> None:
    assert is_near(got, want, relative), np.abs(float64(got) - want).max()
