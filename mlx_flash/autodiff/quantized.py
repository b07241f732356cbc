"""Attention over keys and values that stay quantized in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import mlx.core as mx

from ..backends import Backend, current_backend
from ..backends import backend as backend_of
from ..masks import BlockMask
from ..problem.problem import problem_of
from ..problem.quantization import Quantization, quantization_of, shape_of
from .call import Call, call_of

KERNELS = ("metal", "simulator")  # backends whose kernels dequantize


def quantized_attention(
    q: mx.array,
    k: tuple[mx.array, ...],
    v: tuple[mx.array, ...],
    *,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    scale: float | None = None,
    mask: str | mx.array | BlockMask | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: mx.array | None = None,
    sinks: mx.array | None = None,
    segments: tuple[mx.array, mx.array] | None = None,
    return_lse: bool = False,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """`attention` over keys and values as mx.quantize packs them, dequantized as they are read. Forward only.

    Args:
        q: [B, Hq, Lq, D], float32, float16 or bfloat16.
        k: what mx.quantize returns for [B, Hk, Lk, D], as mlx-lm's QuantizedKVCache holds it: (packed uint32
            [B, Hk, Lk, D * bits / 32], scales [B, Hk, Lk, D / group_size]) and, in mode "affine", biases like scales.
            Scales and biases of mode "affine" have q's dtype. Slices of a larger cache are read in place.
        v: the same for [B, Hk, Lk, Dv].
        mode, bits, group_size: "affine" with 4 or 8 bits and groups of 32, 64 or 128 (default 4 and 64); "mxfp4" (4
            bits, groups of 32), "mxfp8" (8, 32), "nvfp4" (4, 16; without a global scale).
        scale, mask, causal, window, softcap, alibi_slopes, sinks, segments, return_lse, stream: as in `attention`. What
            it has beyond these, dropout, belongs to training.

    Returns:
        [B, Hq, Lq, Dv] in q's dtype; with return_lse also float32 [B, Hq, Lq].

    Raises:
        ValueError: an argument is wrong, or bits, group size or mode have no kernel.
        UnsupportedProblem: a derivative is asked for. mx.vmap is served as in `attention`.

    Kernels on "metal" and "simulator" read a key once for all query heads that share it, as `attention` does; elsewhere
    blocks are dequantized one by one, in memory linear in the lengths.
    """
    options = {
        "mask": mask, "window": window, "softcap": softcap, "alibi_slopes": alibi_slopes, "sinks": sinks,
        "segments": segments, "dropout": 0.0, "key": None,
    }  # fmt: skip
    backend = current_backend()
    if backend.name not in KERNELS:
        backend = backend_of("reference")
    make = _made(mode, bits, group_size)
    call = call_of(q, k, v, backend, stream, return_lse, make, scale=scale, causal=causal, **options)
    return call(q, k, v, options)


class QuantizedCall(Call):
    """All calls of `quantized_attention` with one problem on one backend."""

    def __init__(self, quantization: Quantization, q, k, v, backend: Backend, stream, return_lse: bool, **options):
        dtype = q.dtype if isinstance(q, mx.array) else mx.float32
        # The checks of attention, on operands of the same shapes that are never evaluated
        logical = [mx.zeros(shape_of(name, parts, quantization, dtype), dtype) for name, parts in (("k", k), ("v", v))]
        super().__init__(problem_of(q, *logical, **options), backend, stream, return_lse)
        self.inner = replace(self.inner, options=replace(self.inner.options, quantization=quantization))

    def _parts(self) -> tuple[str, ...]:
        return self.inner.options.quantization.inputs

    def _operands(self, q: mx.array, k, v) -> tuple[mx.array, ...]:
        return self._signed(q), k[0], v[0], *k[1:], *v[1:]


@lru_cache(typed=True)  # True is no 1
def _made(mode, bits, group_size) -> Callable:
    return partial(QuantizedCall, quantization_of(mode, bits, group_size))
