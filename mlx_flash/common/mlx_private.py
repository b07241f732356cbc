"""Undocumented behaviour of MLX that this package relies on: one named function or constant for each fact.

tests/project/test_mlx_private.py checks every fact against the MLX that is installed, so that a release which changes
one of them fails in one named test. pyproject.toml sets no upper bound on MLX for that reason.
"""

from __future__ import annotations

import os
from functools import cache
from operator import methodcaller
from pathlib import Path
from threading import get_ident, main_thread

import mlx.core as mx

_MAIN_THREAD = main_thread().ident


class _Probe:
    """A compiled identity, and the placeholder of its argument from the time when it was traced.

    The placeholder stays marked as a tracer, and MLX treats such an array as one only while something is traced. Only
    then does a compiled function that is called with it run its Python function again.
    """

    def __init__(self):
        self.ran, self.placeholder = False, None
        self.compiled = mx.compile(self._identity)
        self.compiled(mx.zeros((1,)))
        self.ran = False
        self.compiled(mx.zeros((1,)))
        self.disabled = self.ran  # by mx.disable_compile: nothing was traced, and so there is no placeholder

    def _identity(self, array: mx.array) -> mx.array:
        self.ran = True
        if self.placeholder is None:
            self.placeholder = array
        return array


_probe: _Probe | None = None  # of the main thread


def in_trace() -> bool:
    """Whether a transformation (mx.grad, mx.vjp, mx.jvp, mx.vmap, mx.compile, mx.export_function) traces in this
    thread. Outside the main thread, and where mx.disable_compile was called, the answer is always True.

    Outside of traces a kernel needs no rules for transformations. The answer costs 1 us, a custom function 6 us. Only
    the main thread may use mx.compile (`may_compile`).
    """
    global _probe
    if get_ident() != _MAIN_THREAD:
        return True
    if _probe is None:
        made = _Probe()
        if made.disabled:
            return True
        _probe = made
    _probe.ran = False
    _probe.compiled(_probe.placeholder)
    return _probe.ran


@cache
def _unknown() -> mx.array:
    """An array of shape [1] without a value: the placeholder of an entry of a map that was traced."""
    found = []
    mx.vmap(lambda entry: found.append(entry) or mx.array(0.0))(mx.zeros((1, 1)))
    return found[0]


@cache
def _one() -> mx.array:
    return mx.array([1.0])  # from the host's memory, so that every thread can use it


def in_shapeless_trace() -> bool:
    """Whether mx.compile(shapeless=True), or an export with shapeless=True, traces in this thread.

    MLX returns an array that needs no broadcasting as it is; in a shapeless trace alone it records the broadcast, with
    the other array as an input. The other array here is one that cannot be evaluated.
    """
    try:
        mx.eval(mx.broadcast_arrays(_one(), _unknown())[0])
    except (ValueError, RuntimeError):  # the first inside another transformation, the second outside
        return True
    return False


def in_export_trace() -> bool:
    """Whether mx.export_function traces in this thread. With a Metal back-end that is unknown, and the answer is False.

    Without one, MLX records a kernel while it exports, and refuses it otherwise.
    """
    if mx.metal.is_available():
        return False
    try:
        _nothing()(
            inputs=[_one()], output_shapes=[(1,)], output_dtypes=[mx.float32], grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
        )  # fmt: skip
    except RuntimeError as error:
        if not says_no_metal(error):
            raise
        return False
    return True


@cache
def _nothing():
    return mx.fast.metal_kernel(
        name="flash_nothing", input_names=["a"], output_names=["b"], source="b[thread_position_in_grid.x] = a[0];"
    )


def says_no_metal(error: RuntimeError) -> bool:
    """Whether a kernel was refused because this MLX has no Metal back-end."""
    return "No Metal back-end" in str(error)


def may_compile() -> bool:
    """Whether this thread may call compiled functions. A process that calls them in other threads may abort at exit."""
    return get_ident() == _MAIN_THREAD


def says_traced(error: ValueError) -> bool:
    """Whether arrays could not be evaluated because mx.compile or mx.vmap traces them."""
    return "function transformations" in str(error)


def after(done: list[mx.array], arrays: list[mx.array]) -> list[mx.array]:
    """The arrays, evaluated only after `done`. In a fixed order MLX can free each block of scores before it computes
    the next; without one it holds many blocks at once."""
    return mx.depends(arrays, done)


def host_waits() -> bool:
    """Whether evaluation waits for a GPU's result where the CPU reads it, as MLX's CUDA backend does."""
    return mx.cuda.is_available()


def awaited(arrays: list[mx.array]) -> list[mx.array]:
    """A number that the CPU makes once the arrays exist. MLX allocates far ahead of a GPU; what is evaluated after this
    number finds the memory free that the arrays were made with. Another thread frees it a moment later, for which the
    second round is long enough."""
    for _ in range(2):
        (mark,) = mx.depends([mx.array(0.0)], arrays)
        arrays = [mx.contiguous(mark, stream=mx.cpu)]
    return arrays


# A view as bytes, for a kernel that reads an array through its strides. MLX copies the array only where its last axis
# is not contiguous, and the view has at least as many elements as the array.
BYTES = mx.uint8
as_bytes = methodcaller("view", BYTES)

# MLX passes inputs of fewer elements to a kernel in the constant address space, as references where they have no axes.
CONSTANT_BELOW = 8

# Arrays of at most this many bytes, and arrays that MLX makes of Python numbers, lie in memory that a CUDA GPU shares
# with the host.
SHARED_BYTES = 8


def contiguous(array: mx.array) -> mx.array:
    """The array, copied unless it is row-contiguous, by operations that can be exported, which mx.contiguous cannot."""
    return as_bytes(array).view(array.dtype)


def kernel_attribute(attribute: str) -> str:
    """An attribute of the kernel. It must end the header, since MLX writes ``[[kernel]] void`` right behind that."""
    return f"[[{attribute}]]"


def printed_source(printed: str) -> str | None:
    """The Metal text between the fences that MLX prints for a kernel with verbose=True; None if there is none."""
    _, opened, rest = printed.partition("```\n")
    text, closed, _ = rest.rpartition("\n```\n")  # the text's own end of line stands before that of the print
    return text if opened and closed else None


def compiled_kernels() -> Path:
    """The folder in which MLX on CUDA stores compiled kernels, and looks one up before it loads code that it is
    given."""
    own = os.environ.get("MLX_PTX_CACHE_DIR")
    if own:
        return Path(own)
    named = (os.environ.get(name) for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"))
    return Path(next(filter(None, named), "/tmp")) / "mlx" / mx.__version__ / "ptx"


# Longer names of compiled kernels become folders.
LONGEST_COMPILED_NAME = 245


def compiled_name(name: str, code: bytes) -> str:
    """The name, without suffix, of a kernel's files in that folder: its own name and the hash of its code, which is
    that of libstdc++ for strings (MurmurHash64A)."""
    multiplier, kept = 0xC6A4A7935BD1E995, (1 << 64) - 1
    mixed = 0xC70F6907 ^ (len(code) * multiplier & kept)
    whole = len(code) // 8 * 8
    for start in range(0, whole, 8):
        word = int.from_bytes(code[start : start + 8], "little") * multiplier & kept
        mixed = (mixed ^ ((word ^ word >> 47) * multiplier & kept)) * multiplier & kept
    if whole < len(code):
        mixed = (mixed ^ int.from_bytes(code[whole:], "little")) * multiplier & kept
    mixed = (mixed ^ mixed >> 47) * multiplier & kept
    return f"{name}_{mixed ^ mixed >> 47:x}"


_CUDA_TYPES = {mx.bool_: "bool", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.float32: "float"}
_CUDA_HEADER = """
#include "mlx/backend/cuda/device/utils.cuh"

#include <cooperative_groups.h>

namespace mlx::core::cu {

namespace cg = cooperative_groups;

__global__ void """


def cuda_text(
    name: str, inputs: list[tuple[str, mx.Dtype, int]], outputs: list[tuple[str, mx.Dtype]], body: str
) -> str:
    """The text that mx.fast.cuda_kernel makes for inputs with these names, dtypes and numbers of axes. It names the
    function custom_kernel_ and the kernel's name, in the namespace mlx::core::cu.

    MLX passes an array's shape and strides by value, padded to ten axes, where the body has their names.
    """

    def typed(dtype: mx.Dtype) -> str:
        return _CUDA_TYPES.get(dtype) or f"{str(dtype).rpartition('.')[2]}_t"

    parameters = []
    for array, dtype, axes in inputs:
        parameters.append(f"const {typed(dtype)}* {array}")
        parts = (("Shape", "shape"), ("Strides", "strides"), ("int", "ndim")) if axes else ()
        parameters += [
            f"const __grid_constant__ {kind} {array}_{part}" for kind, part in parts if f"{array}_{part}" in body
        ]
    parameters += [f"{typed(dtype)}* {array}" for array, dtype in outputs]
    lines = ",\n    ".join(parameters)
    return f"{_CUDA_HEADER}custom_kernel_{name}(\n    {lines}) {{\n{body}\n}}\n\n}} // namespace mlx::core::cu\n"


def chip_letter(architecture: str) -> str:
    """The last letter of a Metal GPU's architecture, which tells the size of the chip: "p" phone, "g" plain or Pro, "s"
    Max, "d" Ultra."""
    return architecture[-1:]
