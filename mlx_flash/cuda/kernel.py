"""metal_kernel: the signature, the checks and the wording of `mx.fast.metal_kernel`, run on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import mlx.core as mx

from ..simulator.errors import CompileError
from ..simulator.kernel import MetalKernel
from ..simulator.signature import kernel_name
from .ptx import Ptx, build
from .strides import learned, row_contiguous
from .target import Variant

_TAG = "[metal_kernel]"
# Threadgroups a launch may have along y and z.
_MOST_GROUPS = 65535


@lru_cache
def gpu() -> str | None:
    """The GPU's architecture, such as "sm_90"."""
    return str(mx.device_info(mx.gpu)["architecture"]) if mx.cuda.is_available() else None


@lru_cache(maxsize=4096)
def _constant(values: tuple[int, ...] | int, dtype: mx.Dtype) -> mx.array:
    """A shape or a number of axes as an input: MLX passes kernels made elsewhere nothing but arrays and scalars."""
    return mx.array(values, dtype)


@dataclass(frozen=True)
class Grid:
    """A launch in Metal's terms, and as the GPU takes it: threadgroups of one row of threads."""

    threads: tuple[int, int, int]
    threadgroup: tuple[int, int, int]

    @property
    def groups(self) -> tuple[int, int, int]:
        return tuple(-(-threads // size) for threads, size in zip(self.threads, self.threadgroup))

    @property
    def folded(self) -> bool:
        return max(self.groups[1:]) > _MOST_GROUPS

    @property
    def ragged(self) -> bool:
        return any(threads % size for threads, size in zip(self.threads, self.threadgroup))

    def launched(self) -> dict[str, tuple[int, int, int]]:
        """Threads along each axis, and of a threadgroup."""
        x, y, z = self.groups
        if self.folded:
            y, z = _MOST_GROUPS, -(-y * z // _MOST_GROUPS)
        size = prod(self.threadgroup)
        return {"grid": (x * size, y, z), "threadgroup": (size, 1, 1)}


class CudaKernel(MetalKernel):
    """What metal_kernel returns: call it with keywords, as MLX's own. Lazy, inside mx.compile too."""

    def __init__(self, *arguments, target: str, converged: bool):
        super().__init__(*arguments)
        self.target, self.converged = target, converged
        self._built: dict = {}

    def compiled(self, inputs, template, output_dtypes, grid: Grid, verbose: bool = False) -> Ptx:
        """The kernel for inputs of these (dtype, ndim, size) and a launch like `grid`.

        Raises CompileError, in terms of the Metal text.
        """
        text, _ = self.text(inputs, template, output_dtypes)
        if verbose:
            print(f"Generated source code for `{self.name}`:\n```\n{text}\n```")
        variant = Variant(grid.threadgroup, grid.folded, grid.ragged, self.target, self.converged, self.fast_math)
        if (text, variant) not in self._built:
            try:
                name = kernel_name(self.name, template, inputs, output_dtypes)
                self._built[text, variant] = build(text, name, variant, gpu())
            except CompileError as error:
                raise CompileError(f"{_TAG} Kernel '{self.name}' is not valid Metal:\n{error}") from None
        return self._built[text, variant]

    def launch(self, arrays, shapes, dtypes, grid, threadgroup, template, init_value, verbose, stream):
        place = Grid(tuple(grid), tuple(min(pair) for pair in zip(threadgroup, grid)))
        ptx = self.compiled(tuple((a.dtype, a.ndim, a.size) for a in arrays), template, dtypes, place, verbose)
        return mx.fast.precompiled_cuda_kernel(
            name=ptx.name,
            compiled_source=ptx.code,
            inputs=self._arguments(arrays, stream),
            output_shapes=shapes,
            output_dtypes=list(dtypes),
            scalars=list(place.threads),
            **place.launched(),
            shared_memory=ptx.shared_memory,
            init_value=init_value,
            ensure_row_contiguous=self.ensure_row_contiguous,
            stream=stream,
        )

    def _arguments(self, arrays, stream) -> list[mx.array]:
        """The inputs, each followed by what the text asks about its layout.

        The strides are those of the memory the kernel gets: never those that an array might have had.
        """
        asked = [array for array, (_, strides, _) in zip(arrays, self.facts) if strides and array.ndim]
        gapless = self.ensure_row_contiguous
        strides = iter([row_contiguous(array.shape) for array in asked] if gapless else learned(asked, stream))
        arguments = []
        for array, (shape, stride, ndim) in zip(arrays, self.facts):
            arguments.append(array)
            if array.ndim:
                arguments += [_constant(array.shape, mx.int32)] if shape else []
                arguments += [next(strides)] if stride else []
                arguments += [_constant(array.ndim, mx.int32)] if ndim else []
        return arguments


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: dict | None = None,
    target: str = "sm_80",
    converged: bool = False,
) -> CudaKernel:
    """`mx.fast.metal_kernel` on an NVIDIA GPU: same arguments, same text, same errors, lazy as there.

    target: the least GPU the code runs on; "sm_90a" runs on no other. converged: the kernel calls simdgroup functions
    only where all lanes come, which makes them faster.
    """
    return CudaKernel(
        name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, compile_options,
        target=target, converged=converged,
    )  # fmt: skip
