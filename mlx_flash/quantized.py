"""Attention over keys and values that stay quantized in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import mlx.core as mx

from .autograd import run
from .backends import Backend, current_backend
from .backends import backend as backend_of
from .block_mask import BlockMask
from .calls import call_of
from .decoding import KERNELS, forward_step
from .errors import UnsupportedProblem
from .operands import operands, step_inputs
from .problem import Problem
from .quantization import FUNCTION, quantization_of, shape_of
from .transforms import trace


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
    sinks: mx.array | None = None,
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
        scale, mask, causal, window, softcap, sinks, return_lse, stream: as in `attention`.

    Returns:
        [B, Hq, Lq, Dv] in q's dtype; with return_lse also float32 [B, Hq, Lq].

    Raises:
        ValueError: an argument is wrong, or bits, group size or mode have no kernel.
        UnsupportedProblem: a derivative or mx.vmap is asked for.

    Kernels on "metal" and "simulator" read a key once for all query heads that share it, as `attention` does; elsewhere
    blocks are dequantized one by one, in memory linear in the lengths.
    """
    quantization = quantization_of(mode, bits, group_size)
    dtype = q.dtype if isinstance(q, mx.array) else mx.float32
    logical = [mx.zeros(shape_of(name, parts, quantization, dtype), dtype) for name, parts in (("k", k), ("v", v))]
    options = {
        "mask": mask, "window": window, "softcap": softcap, "alibi_slopes": None, "sinks": sinks, "segments": None,
        "dropout": 0.0, "key": None,
    }  # fmt: skip
    backend = current_backend()
    if backend.name not in KERNELS:
        backend = backend_of("reference")
    # The checks of attention, on operands of the same shapes that are never evaluated
    call = call_of(q, *logical, backend, stream, return_lse, scale=scale, causal=causal, **options)
    if call.empty:
        return call(q, *logical, options)
    problem = replace(call.inner, options=replace(call.inner.options, quantization=quantization))
    extras = operands(problem, **options)
    attend = _attend(problem, tuple(extras), backend, stream)
    out, L = attend(call.signed(q), *k, *v, *extras.values())
    return (out, L * math.log(2)) if return_lse else out


def _refuse(*_):
    raise UnsupportedProblem(
        f"[mlx_flash.{FUNCTION}] it is forward only: for gradients or mx.vmap, dequantize and call attention."
    )


@lru_cache(maxsize=1024)
def _attend(problem: Problem, names: tuple[str, ...], backend: Backend, stream) -> Callable:
    """The function (Q, parts of K, parts of V, *operands) -> (O, L) that refuses every transformation."""
    step, parts = forward_step(problem, backend), problem.options.quantization.inputs
    half = len(parts) // 2
    own = ("Q", "K", *parts[:half], "V", *parts[half:])

    def kernel(*arrays):
        inputs = dict(zip(own, arrays)) | {"scale": problem.scale}
        extras = dict(zip(names, arrays[len(own) :]))
        return run(step, problem, backend, stream, inputs | step_inputs(problem, extras, False))

    # MLX looks inside a custom function before it asks it: another one, around its arguments, is what it meets first.
    function, guard = _custom(kernel), _custom(lambda *same: same)

    def guarded(*arrays):
        if trace.witness is not None:
            _refuse()
        trace.called = True
        return kernel(*arrays) if trace.bare else function(*guard(*arrays))

    return guarded


def _custom(function: Callable) -> Callable:
    wrapped = mx.custom_function(function)
    for transform in (wrapped.vjp, wrapped.jvp, wrapped.vmap):
        transform(_refuse)
    return wrapped
