"""Jobs of cuda_trust.py: gradients by five products, which keep P and dS between kernels."""

from __future__ import annotations

import mlx.core as mx
from cuda_judging import TENSORS, Job, gross, judged, problem, repeated, with_gradients

MUCH, LITTLE = 2**30, 32 * 1040 * 1104  # bytes for P and dS: of all key heads, and of two (of one in float32)


def kept(family: str, dtype: str, head_dim: int) -> Job:
    """Gradients by five products: against float64, 30 times the same bits, and those of heads that take turns."""

    def make():
        inputs = problem(dtype, head_dim, 1027, 1091)
        return inputs, *(with_gradients(inputs, causal=True, scratch=bound) for bound in (MUCH, LITTLE))

    def judge(made):
        inputs, got, turns = made
        mx.eval(inputs, got, turns)
        figures = judged(dtype, inputs, got, True, 1, 2)
        gross(dtype, inputs, got, True)
        for name, one, other in zip(TENSORS, got, turns):
            assert mx.array_equal(one, other).item(), f"{name} depends on the heads that are kept at a time"
        repeated(lambda: with_gradients(inputs, causal=True, scratch=MUCH), got)
        return figures

    return Job(family, make, judge)
