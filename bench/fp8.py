"""What attention in FP8 costs in accuracy: `python bench/fp8.py`.

q, k and v are rounded to e4m3, each head with a scale that takes its largest number to 448, and so are the weights P,
which lie between 0 and 1, as they are or times 256; sums are exact. Activations as in `quantization.py`, as they are
or with q, k and v rotated by a Hadamard matrix with random signs, as FlashAttention-3 does. The error is the root mean
square of the output against float64 over the numbers before any rounding, relative to the output's own; bfloat16
rounds the same operands to 8 bits. Writes its part of bench/results/fp8.json; `fp8_speed.py` is for the other.
NumPy and MLX's CPU compute: the numbers are those of any machine.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from quantization import KEYS, KINDS, activations, exact

from mlx_flash.rotations import Rotation

RESULTS = Path(__file__).parent / "results" / "fp8.json"
DIMENSIONS = (64, 128, 256)
LARGEST = 448.0  # of e4m3
P_SCALE = 256.0  # the largest power of two that is none too large for a weight of 1
SEEDS = range(4)


def e4m3(array: np.ndarray) -> np.ndarray:
    """Rounded to the nearest number of e4m3."""
    rounded = mx.from_fp8(mx.to_fp8(mx.array(array.astype(np.float32))), mx.float32)
    return np.array(rounded).astype(np.float64)


def e4m3_by_head(array: np.ndarray) -> np.ndarray:
    """The same, each head with a scale of its own."""
    scale = abs(array).max((-1, -2), keepdims=True) / LARGEST
    return e4m3(array / scale) * scale


def bfloat16(array: np.ndarray) -> np.ndarray:
    return np.array(mx.array(array.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32)).astype(np.float64)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, of_operand, of_weights) -> np.ndarray:
    """Rounded by these functions; the sum of the weights is of those before rounding, as kernels compute it."""
    q, k, v = (of_operand(array) for array in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return of_weights(p) @ v / p.sum(-1, keepdims=True)


METHODS = {
    "bfloat16": (False, bfloat16, bfloat16),
    "e4m3": (False, e4m3_by_head, lambda p: e4m3(p * P_SCALE) / P_SCALE),
    "e4m3_rotated": (True, e4m3_by_head, lambda p: e4m3(p * P_SCALE) / P_SCALE),
    "e4m3_rotated_p_unscaled": (True, e4m3_by_head, e4m3),
    "e4m3_rotated_p_bfloat16": (True, e4m3_by_head, bfloat16),
}


def error(kind: str, dimension: int, method: str, seed: int) -> float:
    """Relative RMS error of the output."""
    rotates, of_operand, of_weights = METHODS[method]
    arrays = activations(kind, seed, dimension)
    want = exact(*arrays)
    operands = arrays
    if rotates:
        rotation = Rotation(dimension, mx.random.key(7))
        operands = [np.array(rotation(mx.array(array.astype(np.float32)))).astype(np.float64) for array in arrays]
    out = attention(*operands, of_operand, of_weights)
    if rotates:
        out = np.array(rotation.undo(mx.array(out.astype(np.float32)))).astype(np.float64)
    return float(np.sqrt(np.mean((out - want) ** 2) / np.mean(want**2)))


def keep(path: Path, **parts) -> None:
    """Puts these parts in place of those in the file of results: a row a line."""
    kept = (json.loads(RESULTS.read_text()) if RESULTS.exists() else {}) | parts

    def text(value) -> str:
        return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if isinstance(value, list) else json.dumps(value)

    path.write_text("{\n" + ",\n".join(f" {json.dumps(key)}: {text(value)}" for key, value in kept.items()) + "\n}\n")


def main():
    rows = []
    for dimension in DIMENSIONS:
        for kind in ("normal", *KINDS):
            errors = {name: float(np.mean([error(kind, dimension, name, seed) for seed in SEEDS])) for name in METHODS}
            rows.append({"D": dimension, "activations": kind, **{name: round(e, 5) for name, e in errors.items()}})
            print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    keep(RESULTS, keys=KEYS, relative_rms_errors=rows)


if __name__ == "__main__":
    main()
