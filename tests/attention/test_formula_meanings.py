"""A text of Score means the same in Metal and in mx operations, and what its words mean in C."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash import Score
from mlx_flash.kernels import source
from mlx_flash.problem.formulas.evaluate import evaluate
from mlx_flash.problem.formulas.metal import struct
from mlx_flash.simulator import metal_kernel

TABLE = mx.array([1.5, -2.0, 0.25, 8.0])
# Every expression of the language that has a trap, and what it is in Python; x and y are floats, i and j integers.
MEANINGS = {
    "i / j": lambda x, y, i, j: 0 if j == 0 else int(i / j),
    "i % j": lambda x, y, i, j: 0 if j == 0 else int(math.fmod(i, j)),
    "i % 4": lambda x, y, i, j: int(math.fmod(i, 4)),
    "i << j": lambda x, y, i, j: ((i << (j & 31)) + 2**31) % 2**32 - 2**31,
    "i >> (j & 3)": lambda x, y, i, j: i >> (j & 3),
    "~i ^ (j | 5) & 9": lambda x, y, i, j: ~i ^ ((j | 5) & 9),
    "int(x)": lambda x, y, i, j: 0 if math.isnan(x) else int(max(min(x, 2147483520), -(2**31))),
    "float(i) / j": lambda x, y, i, j: np.float32(i) / np.float32(j),
    "max(x, y)": lambda x, y, i, j: y if math.isnan(x) else x if math.isnan(y) else max(x, y),
    "min(x, i)": lambda x, y, i, j: i if math.isnan(x) else min(x, i),
    "clamp(i, -3, 2)": lambda x, y, i, j: max(-3, min(i, 2)),
    "abs(i - j)": lambda x, y, i, j: abs(i - j),
    "round(x)": lambda x, y, i, j: x if not math.isfinite(x) else math.copysign(math.floor(abs(x) + 0.5), x),
    "rint(x) + trunc(y)": lambda x, y, i, j: np.rint(np.float32(x)) + np.trunc(np.float32(y)),
    "fmod(x, y)": lambda x, y, i, j: np.fmod(np.float32(x), np.float32(y)),
    "fract(x) + sign(y)": lambda x, y, i, j: x - np.floor(x) + (0 if y != y else np.sign(y)),
    "x < y ? i : y": lambda x, y, i, j: i if x < y else y,
    "select(x, y, i > j)": lambda x, y, i, j: y if i > j else x,
    "(i > j) + (i < 2) * 2": lambda x, y, i, j: int(i > j) + int(i < 2) * 2,
    "!(i == j) && x == x || isinf(y)": lambda x, y, i, j: float((i != j and x == x) or math.isinf(y)),
    "step(x, y) + saturate(y)": lambda x, y, i, j: float(not y < x) + (0 if y != y else max(0, min(1, y))),
    "table[i]": lambda x, y, i, j: np.array(TABLE)[i] if 0 <= i < 4 else math.nan,
    "ids[i][j]": lambda x, y, i, j: i * 3 + j if 0 <= i < 2 and 0 <= j < 3 else -(2**31),
    "-i + +j - -x": lambda x, y, i, j: -i + j + x,
    "1e-1f + .5 * x": lambda x, y, i, j: np.float32(0.1) + 0.5 * x,
    "int t = i; for (int n = 6; n > 0; n -= 2) { if (t > n) { t -= n; } else t += 1; } return t;": None,
    "for (int n = 0; n <= 3; n++) { if (i == n) return x; } return y;": lambda x, y, i, j: x if 0 <= i <= 3 else y,
    "if (i < 0) { if (j > 0) return 1.0; } else { return 2; } return x;": (
        lambda x, y, i, j: (1 if j > 0 else x) if i < 0 else 2
    ),
}
FLOATS = [0.5, -2.5, 1.5, math.nan, math.inf, 3e9, -7.25, 0.0]
INTEGERS = [-7, -1, 0, 1, 2, 3, 5, 33]


def rounds(x, y, i, j):
    for n in (6, 4, 2):
        i = i - n if i > n else i + 1
    return i


def points() -> list[np.ndarray]:
    grid = np.meshgrid(FLOATS, FLOATS[::-1], INTEGERS, INTEGERS, indexing="ij")
    kinds = (np.float32, np.float32, np.int32, np.int32)
    return [axis.reshape(-1)[::3].astype(kind) for axis, kind in zip(grid, kinds)]


def texts() -> list:
    """The texts with x, y, i and j as values of s, an array, and two positions."""
    named = {"table": TABLE, "ids": mx.arange(6).reshape(2, 3), "ys": mx.zeros(1), "b0": 0}
    starts = "float x = s; float y = ys[b]; int i = q; int j = k; "
    found = []
    for text in MEANINGS:
        body = text if "return" in text else f"return {text};" if "&&" not in text else f"return float({text});"
        found.append(Score(starts + body, **named))
    return found


@np.errstate(all="ignore")
def wanted(meaning, x, y, i, j) -> np.ndarray:
    return np.array([float((meaning or rounds)(*one)) for one in zip(x.tolist(), y.tolist(), i.tolist(), j.tolist())])


@np.errstate(all="ignore")
def same(got, want, text: str) -> None:
    """Equal, but for a few of the last bits"""
    got, want = np.array(got, np.float64), np.float64(np.float32(want))
    near = np.abs(got - want) <= 4 * np.spacing(np.float32(np.abs(want)))
    bad = ~((got == want) | (np.isnan(got) & np.isnan(want)) | near)
    assert not bad.any(), (text, got[bad][:3], want[bad][:3], np.nonzero(bad)[0][:3])


def test_meanings_in_mx_operations():
    x, y, i, j = points()
    for score, (text, meaning) in zip(texts(), MEANINGS.items()):
        values = {"s": mx.array(x), "q": mx.array(i), "k": mx.array(j), "b": mx.arange(x.size), "h": 0, "segment": 0}
        got = evaluate(score.formula.body, {**score.arrays, **score.formula.values, **values, "ys": mx.array(y)})
        same(mx.broadcast_to(got, x.shape), wanted(meaning, x, y, i, j), text)


@pytest.mark.simulator
@pytest.mark.parametrize("dual", [False, True])
def test_meanings_in_metal(dual):
    """Values alone, and values with slopes, in one kernel that asks every text."""
    x, y, i, j = points()
    parts = [
        source.template("views").split("namespace flash")[0],
        source.template("formula"),
        source.template("dual") if dual else "",
    ]
    parts += ["namespace flash { namespace formula {"]
    body = ["uint n = thread_position_in_grid.x; uint count = x_shape[0];"]
    asked = ("formula::Dual{x[n], 1}", ".value") if dual else ("x[n]", "")
    for number, score in enumerate(texts()):
        parts.append(
            struct(score.formula, "s" if dual else None, number % 2 == 0).replace(
                "struct Score", f"struct Score{number}"
            )
        )
        body += [
            f"{{ formula::Score{number} score; const formula::Pair at = {{int(n), 0, i[n], j[n], 0}};",
            f"score.open(data, at); out[{number} * count + n] = score.of({asked[0]}, at){asked[1]}; }}",
        ]
    parts.append("} } using namespace flash;")
    kernel = metal_kernel("meanings", ["x", "i", "j", "data"], ["out"], "\n".join(body), "\n".join(parts))
    named = [[0, 4], np.array(TABLE).view(np.int32), [2, 3], np.arange(6), [x.size], y.view(np.int32)]
    data = mx.array(np.concatenate(named).astype(np.int32))
    (out,) = kernel(
        inputs=[mx.array(x), mx.array(i), mx.array(j), data], grid=(x.size, 1, 1), threadgroup=(32, 1, 1),
        output_shapes=[(len(MEANINGS), x.size)], output_dtypes=[mx.float32],
    )  # fmt: skip
    for got, (text, meaning) in zip(np.array(out), MEANINGS.items()):
        same(got, wanted(meaning, x, y, i, j), text)
