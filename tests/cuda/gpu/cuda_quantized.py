"""Jobs of cuda_trust.py: quantized keys and values."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
from cuda_judging import Job, drawn, repeated

from mlx_flash import quantized_attention
from mlx_flash.cli.accuracy.oracle import Error, acceptable, exact_tensors, float64, unfused
from mlx_flash.problem.quantization import quantization_of

FORMS = (
    {"mode": "affine", "bits": 4, "group_size": 64}, {"mode": "affine", "bits": 3, "group_size": 32},
    {"mode": "affine", "bits": 8, "group_size": 64}, {"mode": "mxfp4", "bits": 4, "group_size": 32},
    {"mode": "mxfp8", "bits": 8, "group_size": 32}, {"mode": "nvfp4", "bits": 4, "group_size": 16},
)  # fmt: skip


def quantized(family: str, dtype: str, head_dim: int) -> Job:
    """Every width of codes at one head dimension, over the front of a larger cache: few queries, whose kernel
    dequantizes, and many, whose keys and values are dequantized before. 30 times the same bits."""
    asked = [(2, 8, 2, 1, 5003), (1, 24, 2, 8, 1999), (2, 8, 2, 130, 1003)]

    def make():
        made = []
        for number, form in enumerate(FORMS):
            batch, heads, key_heads, length, keys = asked[number % len(asked)]
            shapes = (batch, heads, length, head_dim), *[(batch, key_heads, keys + 60, head_dim)] * 2
            q, k, v = drawn(11 + number, dtype, *shapes)
            packed = [tuple(part[:, :, :keys] for part in mx.quantize(one, **form)) for one in (k, v)]
            values = [quantization_of(**form).dequantized(slice(None), q.dtype, *one) for one in packed]
            call = partial(quantized_attention, q, *packed, causal=True, **form)
            made.append((str(quantization_of(**form)), call, [q, *values], call()))
        return made

    def judge(made):
        figures = {}
        for name, call, inputs, got in made:
            mx.eval(inputs, got)
            want = exact_tensors(*map(float64, [*inputs, mx.zeros(got.shape)]), True)[0]
            ours, other = Error.of(got, want), Error.of(unfused(*inputs, True), want)
            assert acceptable("O", dtype, ours, other), f"{name}: {ours} against {other}"
            repeated(partial(_alone, call), [got])
            figures[name] = ours.largest
        return figures

    return Job(family, make, judge)


def _alone(call) -> list[mx.array]:
    return [call()]


def quantized_jobs(families: list[str]) -> dict[str, tuple]:
    """(function, arguments) of every job, by name."""
    asked = (("bfloat16", 64), ("float16", 128), ("bfloat16", 192), ("float16", 256), ("float32", 64))
    return {
        f"quantized {family} {dtype} D={head_dim}": (quantized, family, dtype, head_dim)
        for family in families
        for dtype, head_dim in asked
    }
