"""What a quantized cache costs in accuracy, with and without a Hadamard rotation: `python bench/quantization.py`.

Keys and values are normal, 1 % of their channels (of all heads) 10 to 30 times larger, as in trained models. The error
is the root mean square of the output against float64 over unquantized keys and values, relative to the output's own.
Writes bench/results/quantization.json. The reference backend computes: the numbers are those of any machine.
"""

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_flash import quantized_attention, use_backend
from mlx_flash.hadamard import Rotation

RESULTS = Path(__file__).parent / "results" / "quantization.json"
HEADS, QUERIES, KEYS, DIMENSION = 8, 64, 1024, 128
OUTLIERS, SIZES = 0.01, (10, 30)
FORMATS = [("affine", 4, 32), ("affine", 4, 64), ("affine", 4, 128), ("affine", 8, 64), ("mxfp4", 4, 32),
           ("mxfp8", 8, 32), ("nvfp4", 4, 16)]  # fmt: skip
ROTATIONS = {"none": None, "hadamard": Rotation(DIMENSION), "signed": Rotation(DIMENSION, mx.random.key(7))}


def activations(seed: int) -> list[np.ndarray]:
    """q, k and v; one channel in a hundred of k and v is an outlier."""
    random = np.random.default_rng(seed)
    arrays = [random.standard_normal((1, HEADS, length, DIMENSION)) for length in (QUERIES, KEYS, KEYS)]
    channels = HEADS * DIMENSION
    for array in arrays[1:]:
        factors = np.ones(channels)
        chosen = random.choice(channels, round(OUTLIERS * channels), replace=False)
        factors[chosen] = random.uniform(*SIZES, len(chosen))
        array *= factors.reshape(1, HEADS, 1, DIMENSION)
    return arrays


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(DIMENSION)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p @ v / p.sum(-1, keepdims=True)


def error(format: tuple[str, int, int], rotation: Rotation | None, seed: int) -> float:
    """Relative RMS error of the output."""
    mode, bits, group_size = format
    arrays = activations(seed)
    q, k, v = (mx.array(array.astype(np.float32)) for array in arrays)
    rotated = [array if rotation is None else rotation(array) for array in (q, k, v)]
    packed = [mx.quantize(array, group_size=group_size, bits=bits, mode=mode) for array in rotated[1:]]
    with use_backend("reference"):
        out = quantized_attention(rotated[0], *packed, group_size=group_size, bits=bits, mode=mode)
    out = np.array(out if rotation is None else rotation.undo(out)).astype(np.float64)
    want = exact(*arrays)
    return float(np.sqrt(np.mean((out - want) ** 2) / np.mean(want**2)))


def table(seeds=range(4)) -> list[dict]:
    """A row a format: the error of each rotation, and what is left of it with rotation."""
    rows = []
    for format in FORMATS:
        errors = {name: float(np.mean([error(format, rotation, seed) for seed in seeds]))
                  for name, rotation in ROTATIONS.items()}  # fmt: skip
        left = {f"{name}_over_none": round(errors[name] / errors["none"], 3) for name in ("hadamard", "signed")}
        rows.append({"mode": format[0], "bits": format[1], "group_size": format[2],
                     **{name: round(value, 5) for name, value in errors.items()}, **left})  # fmt: skip
    return rows


if __name__ == "__main__":
    rows = table()
    facts = {"heads": HEADS, "keys": KEYS, "dimension": DIMENSION, "outlier_channels": OUTLIERS, "outliers": SIZES}
    RESULTS.write_text(json.dumps({"problem": facts, "relative_rms_errors": rows}, indent=1) + "\n")
    for row in rows:
        print(" ".join(f"{key} {value}" for key, value in row.items()))
