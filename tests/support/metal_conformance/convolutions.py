"""MLX's convolutions: implicit products of two and three dimensions; from a checkout, unfolded and by depth."""

import functools
import itertools

import mlx.core as mx
import numpy as np

from metal_conformance.case import (
    METAL_TYPES,
    ROUNDING,
    Case,
    agree,
    double,
    library,
    normal,
    short,
    structure,
    threads,
)
from metal_conformance.norms import file_library
from metal_conformance.sweep import source_directory

_I, _L = np.int32, np.int64
_BLOCKS = (32, 32, 16, 2, 2)


def _params(dims: int, x, w, out, stride, pad, dilation) -> np.void:
    """MLX's description of a convolution: images [N, *S, C], weights [O, *S, C]."""
    fields = [("N", _I), ("C", _I), ("O", _I)]
    fields += [(name, _I, dims) for name in ("iS", "wS", "oS", "str", "pad", "kdil", "idil")]
    fields += [(f"{name}_strides", _L, dims + 2) for name in ("in", "wt", "out")]
    strides = [[int(np.prod(shape[i + 1 :])) for i in range(dims + 2)] for shape in (x.shape, w.shape, out)]
    return structure(
        [*fields, ("groups", _I), ("flip", np.bool_)], N=x.shape[0], C=x.shape[-1], O=w.shape[0], iS=x.shape[1:-1],
        wS=w.shape[1:-1], oS=out[1:-1], str=stride, pad=pad, kdil=dilation, idil=[1] * dims, in_strides=strides[0],
        wt_strides=strides[1], out_strides=strides[2], groups=x.shape[-1] // w.shape[-1], flip=False,
    )  # fmt: skip


def unfolded(x: np.ndarray, filter_shape, stride, pad, dilation) -> np.ndarray:
    """[N, *outputs, *filter, C]: the input under every position of the filter."""
    x = np.pad(x, [(0, 0), *((p, p) for p in pad), (0, 0)])
    spans = [d * (k - 1) + 1 for k, d in zip(filter_shape, dilation)]
    seen = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(1, x.ndim - 1)))
    dims = len(filter_shape)
    seen = seen[(slice(None), *(slice(None, None, s) for s in stride), slice(None))]
    seen = seen[(*[slice(None)] * (dims + 2), *(slice(None, None, d) for d in dilation))]
    return np.moveaxis(seen, dims + 1, -1)


def _outputs(shape, filter_shape, stride, pad, dilation) -> tuple[int, ...]:
    parts = zip(shape, filter_shape, stride, pad, dilation)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in parts)


def run_implicit(dtype: mx.Dtype, channels: int, image=(9, 11), filters=(3, 2), stride=(2, 1), dilation=(1, 2)):
    """The convolution as a product whose left matrix is never stored."""
    # MLX calls the kernel for numbers of outputs that are multiples of 16, not of a block.
    dims, outputs, pad = len(image), 48, (1,) * len(image)
    x, w = normal((2, *image, channels), dtype, 1), normal((outputs, *filters, channels), dtype, 2, 0.3)
    shape = (2, *_outputs(image, filters, stride, pad, dilation), outputs)
    params = _params(dims, x, w, shape, stride, pad, dilation)
    bm, bn, bk, wm, wn = _BLOCKS
    rows, area, special = int(np.prod(shape[:-1])), int(np.prod(filters)), channels if channels <= 4 else 0
    rounds = area * -(-channels // bk)
    if special:
        rounds = -(-area * (channels if channels <= 2 else 4) // bk)
    steps = [int(s) * d for s, d in zip(params["in_strides"][1:-1], dilation)]
    # From the last element of a row of the filter to the first of the next, and from the very last to the first.
    last = [(n - 1) * step for n, step in zip(filters, steps)]
    names = ("inp_jump_w", "inp_jump_h", "inp_jump_d")[:dims]
    jumps = {name: steps[i] - sum(last[i + 1 :]) for name, i in zip(names, reversed(range(dims)))}
    jumps["inp_jump_c"] = bk - sum(last)
    fields = [(n, _I) for n in ("M", "N", "K", "gemm_k_iterations", *names, "inp_jump_c", "tiles_n", "tiles_m")]
    gemm = structure(
        [*fields, ("swizzle_log", _I)], M=rows, N=outputs, K=area * channels, gemm_k_iterations=rounds,
        tiles_n=-(-outputs // bn), tiles_m=-(-rows // bm), **jumps,
    )  # fmt: skip
    file = "steel_conv" if dims == 2 else "steel_conv_3d"
    source = library(("steel/conv/conv.h", "steel/conv/params.h", "steel/utils.h", f"steel/conv/kernels/{file}.h"))
    template = [METAL_TYPES[dtype], *_BLOCKS, *([special] if dims == 2 else []), str(not special).lower()]
    kernel = source.kernel(f"implicit_gemm_conv_{dims}d<{', '.join(map(str, template))}>")
    group = (32, wn, wm)
    (got,) = kernel([x, w, (shape, dtype), params, gemm], threads((-(-outputs // bn), -(-rows // bm), 1), group), group)
    seen = unfolded(double(x), filters, stride, pad, dilation).reshape(*shape[:-1], -1)
    agree(got, seen @ double(w).reshape(outputs, -1).T, 4 * ROUNDING[dtype] + 1e-5, "the convolution")


def run_unfold(dtype: mx.Dtype, image=(7, 9), filters=(3, 2), stride=(2, 1), dilation=(1, 2)):
    x, pad = normal((2, *image, 5), dtype, 3), (1, 1)
    shape = (2, *_outputs(image, filters, stride, pad, dilation), 6)
    params = _params(2, x, mx.zeros((6, *filters, 5)), shape, stride, pad, dilation)
    rows, area = int(np.prod(shape[:-1])), int(np.prod(filters))
    name = {mx.float32: "float32", mx.bfloat16: "bfloat16"}[dtype]
    kernel = file_library("conv.metal").kernel(f"naive_unfold_nd_{name}_2")
    (got,) = kernel([x, ((rows, area, 5), dtype), params, _I(0)], (5, area, rows), (5, area, 1))
    agree(got, unfolded(double(x), filters, stride, pad, dilation).reshape(got.shape), 0, "what the filter sees")


def run_depthwise(dtype: mx.Dtype, image=(10, 13), filters=(3, 3), stride=(1, 1)):
    channels, pad, dilation = 16, (1, 1), (1, 1)
    x, w = normal((2, *image, channels), dtype, 4), normal((channels, *filters, 1), dtype, 5)
    shape = (2, *_outputs(image, filters, stride, pad, dilation), channels)
    params = _params(2, x, w, shape, stride, pad, dilation)
    constants = {"ker_h": 3, "ker_w": 3, "str_h": 1, "str_w": 1, "tgp_h": 4, "tgp_w": 8, "do_flip": False}
    name = {mx.float32: "float32", mx.float16: "float16"}[dtype]
    kernel = file_library("conv.metal").kernel(f"depthwise_conv_2d_{name}", constants)
    groups = (channels // 8, -(-shape[2] // 8), -(-shape[1] // 4) * 2)
    (got,) = kernel([x, w, (shape, dtype), params], threads(groups, (8, 8, 4)), (8, 8, 4))
    seen = unfolded(double(x), filters, stride, pad, dilation)
    # The sum is in the dtype.
    agree(got, np.einsum("nhwijc,cij->nhwc", seen, double(w)[..., 0]), 9 * ROUNDING[dtype] + 1e-5, "the convolution")


def cases() -> list[Case]:
    """Channels that fill a block, few channels, three dimensions; and the kernels of a checkout, if there is one."""
    found = []
    for dtype, channels in itertools.chain(zip((mx.float32, mx.float16, mx.bfloat16), (32, 16, 32)), [(mx.float32, 3)]):
        name = f"{'implicit' if channels > 4 else 'few channels,'} 2d {channels} channels {short(dtype)}"
        found.append(Case("convolution", name, functools.partial(run_implicit, dtype, channels)))
    volume = dict(image=(4, 5, 6), filters=(2, 3, 2), stride=(1, 2, 1), dilation=(2, 1, 1))
    run = functools.partial(run_implicit, mx.float32, 16, **volume)
    found.append(Case("convolution", "implicit 3d 16 channels float32", run))
    if source_directory() is not None:
        found += [
            Case("convolution", f"unfolded {short(dtype)}", functools.partial(run_unfold, dtype))
            for dtype in (mx.float32, mx.bfloat16)
        ]
        found += [
            Case("convolution", f"by depth {short(dtype)}", functools.partial(run_depthwise, dtype))
            for dtype in (mx.float32, mx.float16)
        ]
    return found
