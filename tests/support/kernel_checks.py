"""Checks single kernels: inputs from the oracle's statistics, outputs against the oracle within bounds."""

import bounds
import mlx.core as mx
import numpy as np
import oracle
from cases import Case, expected
from problems import make_problem

from mlx_flash.autodiff.launching import run_kernel
from mlx_flash.problem.problem import Problem


def residuals(case: Case, arrays) -> tuple[dict[str, mx.array], dict[str, np.ndarray]]:
    """The inputs of the kernels, and the oracle's LSE and delta: backward kernels are judged on exact statistics."""
    q, k, v, d_o = (bounds.float64(arrays[name]) for name in ("q", "k", "v", "d_o"))
    out, lse = oracle.forward(q, k, v, case.scale, case.causal)
    inputs = {"Q": arrays["q"], "K": arrays["k"], "V": arrays["v"], "dO": arrays["d_o"], "scale": case.scale}
    inputs["O"] = mx.array(out.astype(np.float32)).astype(arrays["q"].dtype)
    want = {"L": lse, "delta": (bounds.float64(inputs["O"]) * d_o).sum(-1)}
    inputs["L"] = row_statistics(lse, case.scale)
    inputs["delta"] = mx.array((out * d_o).sum(-1).astype(np.float32))
    return inputs, want


def row_statistics(lse: np.ndarray, scale: float) -> mx.array:
    """L [B, Hq, Lq, 2] as kernels read it, from the float64 LSE [B, Hq, Lq].

    The first number is the maximum in units of the scale (of 1 if scores are scaled first), the second the rest in base
    2. Any split whose sum is the LSE gives the same results.
    """
    seen = np.isfinite(lse)
    most = (lse / scale).astype(np.float32)
    rest = np.where(seen, (lse - np.where(seen, most, 0) * scale) / np.log(2), 0).astype(np.float32)
    return mx.array(np.stack([most, rest], -1))


def problem(case: Case) -> Problem:
    """The package's description of a case."""
    batch, heads, query_length, head_dim = case.shapes["q"]
    _, key_heads, key_length, value_dim = case.shapes["v"]
    return make_problem(
        batch, heads, key_heads, query_length, key_length, head_dim, value_dim, case.dtype, case.scale, case.causal
    )


def check_step(step, case: Case, backend):
    """Checks one kernel of the backend against the oracle."""
    arrays = case.arrays()
    inputs, statistics = residuals(case, arrays)
    outputs = run_kernel(step, problem(case), backend, None, {name: inputs[name] for name in step.inputs})
    judge = expected(case, arrays)
    for name, got in zip(step.outputs, outputs):
        if name not in statistics:
            judge.check(**{name: got})
            continue
        assert got.dtype == mx.float32
        got = bounds.float64(got) @ [case.scale, np.log(2)] if name == "L" else got
        finite = np.isfinite(statistics[name])
        assert np.array_equal(np.isneginf(bounds.float64(got)), ~finite), f"{name}: rows that see nothing in {case}"
        want = np.where(finite, statistics[name], 0)
        terms = np.abs(bounds.float64(inputs["O"]) * bounds.float64(inputs["dO"])).sum(-1).max() + 1
        bounds.check(name, np.where(finite, bounds.float64(got), 0), want, str(case), "float32", terms=terms)
