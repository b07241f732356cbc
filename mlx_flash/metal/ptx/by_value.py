"""Kernels that get the shapes and strides of their arrays by value, as parameters of the launch.

MLX passes precompiled kernels neither, so that other launches read them from an array in the GPU's memory, made for
every length (strides.py, resident.py). To kernels of mx.fast.cuda_kernel, which it compiles itself, it passes both as
they are when a kernel is launched. It looks for such a kernel first in its folder of compiled kernels, under its name
and the hash of its text. So our code is written there, and MLX gets a text that only names the arrays. MLX promises
none of that: a kernel that writes what it was given is tried first, once in a process. The text does not compile, so
that a file which is missing later is an error and never a wrong result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache

import mlx.core as mx

from ...common.mlx_private import compiled_name, cuda_text
from . import by_name
from .ptx import Ptx

TYPES = ("int", "long", "int")  # of a shape, of strides, of a number of axes
_STORES = "".join(
    f"ld.param.s32 %r1, [shape+{4 * axis}];\ncvt.s64.s32 %d2, %r1;\nst.global.s64 [%d1+{8 * axis}], %d2;\n"
    f"ld.param.s64 %d2, [strides+{8 * axis}];\nst.global.s64 [%d1+{32 + 8 * axis}], %d2;\n"
    for axis in range(4)
)
_WRITER = f""".version 7.1
.target sm_80
.address_size 64
.visible .entry mlx_flash_by_value(.param .u64 array, .param .align 4 .b8 shape[16], .param .align 8 .b8 strides[32],
.param .u32 axes, .param .u64 number, .param .u64 written, .param .u64 copy) {{
.reg .u32 %r<3>;
.reg .u64 %d<5>;
ld.param.u64 %d1, [written];
cvta.to.global.u64 %d1, %d1;
{_STORES}ld.param.u32 %r1, [axes];
cvt.u64.u32 %d2, %r1;
st.global.u64 [%d1+64], %d2;
ld.param.u64 %d3, [number];
cvta.to.global.u64 %d3, %d3;
ld.global.u32 %r2, [%d3];
ld.param.u64 %d4, [copy];
cvta.to.global.u64 %d4, %d4;
st.global.u32 [%d4], %r2;
ret;
}}
"""


def kernel_of(
    ptx: Ptx, inputs: list[tuple[mx.Dtype, int, tuple[bool, bool, bool]]], outputs: tuple[mx.Dtype, ...],
    ensure_row_contiguous: bool,
) -> Callable | None:  # fmt: skip
    """MLX's object for a compiled kernel, to be called like those of mx.fast.cuda_kernel; None where its code cannot be
    stored.

    `inputs`: dtype and number of axes of each array, and whether the kernel takes its shape, its strides and its number
    of axes.
    """
    names, results = [f"a{n}" for n in range(len(inputs))], [f"o{n}" for n in range(len(outputs))]
    wanted = [
        f"{name}_{part}"
        for name, (*_, facts) in zip(names, inputs)
        for part, wants in zip(("shape", "strides", "ndim"), facts)
        if wants
    ]
    body = " ".join(["#error this text stands for a kernel that was not found:", ptx.name, *wanted])
    digest = hashlib.sha256(ptx.code + repr((inputs, outputs)).encode()).hexdigest()[:32]
    name = f"mlx_flash_{digest}"
    given = [(one, dtype, axes) for one, (dtype, axes, _) in zip(names, inputs)]
    text = cuda_text(name, given, list(zip(results, outputs)), body)
    function = f"custom_kernel_{name}"
    if not by_name.store(compiled_name(function, text.encode()), f"mlx::core::cu::{function}", ptx.name, ptx.code):
        return None
    return mx.fast.cuda_kernel(
        name=name, input_names=names, output_names=results, source=body, ensure_row_contiguous=ensure_row_contiguous,
        shared_memory=ptx.shared_memory,
    )  # fmt: skip


@cache
def works() -> bool:
    """Whether MLX launches a stored kernel by its name and passes shapes and strides as its parameters."""
    if not by_name.finds_stored_kernels():
        return False
    writer = Ptx("mlx_flash_by_value", _WRITER.encode(), 0)
    forms = [(mx.bfloat16, 4, (True, True, True)), (mx.float32, 1, (False, False, False))]
    try:
        call = kernel_of(writer, forms, (mx.int64, mx.float32), False)
        if call is None:
            return False
        with mx.stream(mx.gpu):
            array = mx.zeros((3, 6, 5, 8), mx.bfloat16)[:, 1:5, :, :6]
        found = call(
            inputs=[array, mx.full((8,), 2.5, stream=mx.gpu)], output_shapes=[(9,), (1,)],
            output_dtypes=[mx.int64, mx.float32], grid=(1, 1, 1), threadgroup=(1, 1, 1), stream=mx.gpu,
        )  # fmt: skip
        mx.eval(found)
    except RuntimeError:  # MLX compiled the text
        return False
    return found[0].tolist() == [3, 4, 5, 6, 240, 40, 8, 1, 4] and found[1].tolist() == [2.5]
