"""What a quantized cache costs in accuracy, as it is, rotated, and balanced: `python bench/quantization.py`.

Three kinds of activations, all normal at first:
- scaled: one channel in a hundred (of all heads), of keys and values, is 10 to 30 times larger;
- shifted: three key channels in a hundred have a mean of 10 to 30, the same for all tokens, around which they vary by a
  fifth of it: what keys are reported to look like (KIVI, Liu et al. 2024; SageAttention, Zhang et al. 2024);
- scattered: one number in a thousand, of q too, has another added that is 10 times larger, FlashAttention-3's test.
The error is the root mean square of the output against float64 over unquantized keys and values, relative to the
output's own. `Balance` sees the first 128 of 1024 tokens. Writes bench/results/quantization.json. The reference backend
computes: the numbers are those of any machine.
"""

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_flash import quantized_attention, use_backend
from mlx_flash.rotations import Balance, Rotation

RESULTS = Path(__file__).parent / "results" / "quantization.json"
HEADS, QUERIES, KEYS, DIMENSION = 8, 64, 1024, 128
SAMPLE = 128  # tokens that Balance sees
SIZES = (10, 30)
FORMATS = [("affine", 4, 32), ("affine", 4, 64), ("affine", 4, 128), ("affine", 8, 64), ("mxfp4", 4, 32),
           ("mxfp8", 8, 32), ("nvfp4", 4, 16)]  # fmt: skip
KINDS = ("scaled", "shifted", "scattered")
METHODS = ("none", "rotated", "signed", "balanced")
SIGNS = mx.random.key(7)


def activations(kind: str, seed: int, dimension: int = DIMENSION) -> list[np.ndarray]:
    """q, k and v; of a kind that is none of KINDS they stay normal."""
    random = np.random.default_rng(seed)
    arrays = [random.standard_normal((1, HEADS, length, dimension)) for length in (QUERIES, KEYS, KEYS)]
    channels = HEADS * dimension

    def chosen(part: float) -> tuple[np.ndarray, np.ndarray]:
        which = random.choice(channels, round(part * channels), replace=False)
        return which, random.uniform(*SIZES, len(which))

    for array in arrays[1:] if kind == "scaled" else arrays[1:2] if kind == "shifted" else ():
        factors, means = np.ones(channels), np.zeros(channels)
        which, sizes = chosen(0.01 if kind == "scaled" else 0.03)
        if kind == "scaled":
            factors[which] = sizes
        else:
            factors[which], means[which] = sizes / 5, sizes * random.choice((-1, 1), len(which))
        array *= factors.reshape(1, HEADS, 1, dimension)
        array += means.reshape(1, HEADS, 1, dimension)
    for array in arrays if kind == "scattered" else ():
        array += 10 * random.standard_normal(array.shape) * (random.random(array.shape) < 0.001)
    return arrays


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p @ v / p.sum(-1, keepdims=True)


def same(array: mx.array) -> mx.array:
    return array


def maps(method: str, k: mx.array, v: mx.array):
    """The maps of q, of k, of v and of the output."""
    if method == "none":
        return same, same, same, same
    if method == "balanced":
        keys, values = (Balance(array[:, :, :SAMPLE], SIGNS) for array in (k, v))
        return keys.queries, keys, values, values.undo
    rotation = Rotation(DIMENSION, SIGNS if method == "signed" else None)
    return rotation, rotation, rotation, rotation.undo


def error(kind: str, form: tuple[str, int, int], method: str, seed: int) -> float:
    """Relative RMS error of the output."""
    mode, bits, group_size = form
    arrays = activations(kind, seed)
    q, k, v = (mx.array(array.astype(np.float32)) for array in arrays)
    of_q, of_k, of_v, undo = maps(method, k, v)
    packed = [mx.quantize(array, group_size=group_size, bits=bits, mode=mode) for array in (of_k(k), of_v(v))]
    with use_backend("reference"):
        out = quantized_attention(of_q(q), *packed, group_size=group_size, bits=bits, mode=mode)
    want = exact(*arrays)
    return float(np.sqrt(np.mean((np.array(undo(out)).astype(np.float64) - want) ** 2) / np.mean(want**2)))


def row(kind: str, form: tuple[str, int, int], seeds=range(4)) -> dict:
    """The error of each method, and what the others leave of that of none."""
    errors = {method: float(np.mean([error(kind, form, method, seed) for seed in seeds])) for method in METHODS}
    left = {f"{method}_over_none": round(errors[method] / errors["none"], 3) for method in METHODS[1:]}
    return {"activations": kind, "mode": form[0], "bits": form[1], "group_size": form[2],
            **{method: round(value, 5) for method, value in errors.items()}, **left}  # fmt: skip


def main():
    rows = []
    for kind in KINDS:
        for form in FORMATS:
            rows.append(row(kind, form))
            print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    facts = {"heads": HEADS, "queries": QUERIES, "keys": KEYS, "dimension": DIMENSION, "sample": SAMPLE}
    RESULTS.write_text(json.dumps({"problem": facts, "relative_rms_errors": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
