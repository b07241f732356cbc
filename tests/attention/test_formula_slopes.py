"""The slope of every function in s, by dual numbers and by MLX's own rules, against derivatives written by hand."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash import Score
from mlx_flash.kernels import source
from mlx_flash.problem.formulas.evaluate import evaluate
from mlx_flash.problem.formulas.functions import POLYMORPH, SMOOTH, STEPS
from mlx_flash.problem.formulas.metal import struct
from mlx_flash.simulator import metal_kernel

X = np.linspace(-0.96, 0.97, 40)
DERIVATIVES = {
    "sqrt(s + 2)": lambda x: 0.5 / np.sqrt(x + 2),
    "rsqrt(s + 2)": lambda x: -0.5 * (x + 2) ** -1.5,
    "exp(s)": np.exp,
    "exp2(s * s)": lambda x: 2.0 ** (x * x) * np.log(2) * 2 * x,
    "log(s + 2)": lambda x: 1 / (x + 2),
    "log2(3 + s)": lambda x: 1 / (x + 3) / np.log(2),
    "log10(3 - s)": lambda x: -1 / (3 - x) / np.log(10),
    "sin(s)": np.cos,
    "cos(2 * s)": lambda x: -2 * np.sin(2 * x),
    "tan(s)": lambda x: 1 / np.cos(x) ** 2,
    "asin(s)": lambda x: 1 / np.sqrt(1 - x * x),
    "acos(s)": lambda x: -1 / np.sqrt(1 - x * x),
    "atan(s)": lambda x: 1 / (1 + x * x),
    "sinh(s)": np.cosh,
    "cosh(s)": np.sinh,
    "tanh(s / 0.5)": lambda x: 2 / np.cosh(2 * x) ** 2,
    "fract(3 * s)": lambda x: 3 + 0 * x,
    "saturate(2 * s)": lambda x: 2.0 * ((2 * x > 0) & (2 * x < 1)),
    "pow(s + 2, 3)": lambda x: 3 * (x + 2) ** 2,
    "pow(2, s)": lambda x: 2.0**x * np.log(2),
    "pow(s + 2, s)": lambda x: (x + 2) ** x * (np.log(x + 2) + x / (x + 2)),
    "pow(0, s * s + 0.5)": lambda x: 0 * x,  # the base's part is 0 times infinity, and the exponent's too
    "atan2(s, 2)": lambda x: 2 / (4 + x * x),
    "atan2(2, s)": lambda x: -2 / (4 + x * x),
    "fmod(5 * s, 2)": lambda x: 5 + 0 * x,
    "fma(s, s, s)": lambda x: 2 * x + 1,
    "mix(s, 3, s)": lambda x: 1 - 2 * x + 3,
    "abs(s)": np.sign,
    "min(s, 0.2)": lambda x: 1.0 * (x < 0.2),
    "max(s, -s)": np.sign,
    "clamp(s, -0.5, 0.5)": lambda x: 1.0 * (np.abs(x) < 0.5),
    "s * floor(s) + ceil(s) * round(s)": np.floor,
    "s * sign(s) + trunc(s) + rint(s) + step(s, 0.5)": np.sign,
    "1 / (s + 2)": lambda x: -1 / (x + 2) ** 2,
    "(s - 3) / (s + 2)": lambda x: 5 / (x + 2) ** 2,
    "2 - s": lambda x: -1 + 0 * x,
    "s > 0 ? s * s : 3.0": lambda x: np.where(x > 0, 2 * x, 0),
    "float y = 1; for (int i = 0; i < 3; i++) { y = y * s; } return y;": lambda x: 3 * x * x,
    "float y = s; if (s > 0.5) y *= s; else { y = 2; } return y - s;": lambda x: np.where(x > 0.5, 2 * x, 0) - 1,
    "3.0": lambda x: 0 * x,
}


def judged(slopes: np.ndarray, text: str) -> None:
    want = np.broadcast_to(DERIVATIVES[text](X), X.shape)
    assert np.abs(slopes - want).max() <= 32 * np.finfo(np.float32).eps * max(1, np.abs(want).max()), text


def test_every_function_is_here():
    together = " ".join(DERIVATIVES)
    assert all(f"{name}(" in together for name in (*SMOOTH, *STEPS, *POLYMORPH))


def test_by_mlx():
    s = mx.array(X.astype(np.float32))
    for text in DERIVATIVES:
        body = Score(text).formula.body

        def call(s, body=body):
            return [mx.broadcast_to(evaluate(body, {"s": s}), s.shape)]

        judged(np.array(mx.jvp(call, [s], [mx.ones_like(s)])[1][0]), text)


@pytest.mark.simulator
def test_by_dual_numbers():
    parts = [source.template("views").split("namespace flash")[0], source.template("formula"), source.template("dual")]
    parts += ["namespace flash { namespace formula {"]
    body = [
        "uint n = thread_position_in_grid.x; uint count = x_shape[0]; const flash::formula::Pair at = {0, 0, 0, 0, 0};"
    ]
    for number, text in enumerate(DERIVATIVES):
        parts.append(struct(Score(text).formula, "s", True).replace("struct Score", f"struct Score{number}"))
        asked = "score.of(formula::Dual{x[n], 1}, at).slope"
        body.append(f"{{ formula::Score{number} score; out[{number} * count + n] = {asked}; }}")
    parts.append("} } using namespace flash;")
    x = mx.array(X.astype(np.float32))
    (out,) = metal_kernel("slopes", ["x"], ["out"], "\n".join(body), "\n".join(parts))(
        inputs=[x], grid=(x.size, 1, 1), threadgroup=(40, 1, 1), output_shapes=[(len(DERIVATIVES), x.size)],
        output_dtypes=[mx.float32],
    )  # fmt: skip
    for got, text in zip(np.array(out), DERIVATIVES):
        judged(got, text)
