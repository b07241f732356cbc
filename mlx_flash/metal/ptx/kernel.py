"""metal_kernel for NVIDIA GPUs, with the signature, checks and error messages of `mx.fast.metal_kernel`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..cpu.kernel import MetalKernel
from ..frontend.errors import CompileError, ToolchainError, refused
from ..frontend.signature import CONSTANT_BELOW, kernel_name
from . import by_value
from .by_name import code_or_name
from .ptx import Ptx, build
from .resident import resident
from .strides import learned, row_contiguous
from .target import Variant

_TAG = "[metal_kernel]"
# The largest number of threadgroups of a launch along y and along z.
_MOST_GROUPS = 65535
_MOST_PREPARED = 1024  # cached kinds of launches


@lru_cache
def gpu() -> str | None:
    """The GPU's architecture, such as "sm_90"."""
    return str(mx.device_info(mx.gpu)["architecture"]) if mx.cuda.is_available() else None


@dataclass(frozen=True)
class Grid:
    """A launch in Metal's terms, converted to a CUDA launch whose blocks are one row of threads.

    `y_first`: threadgroups that differ along y start one after another, if the GPU can count those along x as rows.
    """

    threads: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    y_first: bool = False

    @property
    def groups(self) -> tuple[int, int, int]:
        return tuple(-(-threads // size) for threads, size in zip(self.threads, self.threadgroup))

    @property
    def swapped(self) -> bool:
        x, _, z = self.groups
        return self.y_first and max(x, z) <= _MOST_GROUPS

    @property
    def folded(self) -> bool:
        return not self.swapped and max(self.groups[1:]) > _MOST_GROUPS

    @property
    def ragged(self) -> bool:
        return any(threads % size for threads, size in zip(self.threads, self.threadgroup))

    def launched(self) -> dict[str, tuple[int, int, int]]:
        """The CUDA launch: threads along each axis, and threads of a block."""
        x, y, z = self.groups
        if self.swapped:
            x, y = y, x
        if self.folded:
            y, z = _MOST_GROUPS, -(-y * z // _MOST_GROUPS)
        size = prod(self.threadgroup)
        return {"grid": (x * size, y, z), "threadgroup": (size, 1, 1)}


class Layout(NamedTuple):
    """The origin of a kernel's buffers, independent of lengths.

    `sources`: for each buffer the index of an array of the call, or -1 - n for the strides of array `asked[n]`, which
    are read when it is computed. `places`: (index of a buffer, offset in bytes in the array of facts) for everything
    known before the launch: shapes, strides of contiguous arrays, numbers. MLX passes precompiled kernels neither
    shapes nor strides. `values`: (index of a buffer, type, number) of the shapes and strides that a launch passes by
    value (by_value.py), where it does; the facts are only numbers then.
    """

    sources: tuple[int, ...]
    asked: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    values: tuple[tuple[int, str, int], ...] = ()


@dataclass
class Prepared:
    """The part of a launch that depends only on the shapes and dtypes of its inputs, and not even on lengths where
    they are passed `by_value`: then the inputs are the arrays of the call, and the facts. `call`: the function of MLX
    that launches it; `fixed`: constant arguments of it. `facts`: one array with everything in `Layout.places`."""

    call: Callable
    fixed: dict
    layout: Layout
    facts: mx.array | None
    by_value: bool = False

    def inputs(self, arrays, stream) -> list[mx.array]:
        """The arrays and strides that the kernel reads, followed by the facts.

        Strides describe the memory that the kernel receives, which may be a copy of the array of the call.
        """
        sources, asked, *_ = self.layout
        strides = learned([arrays[index] for index in asked], stream) if asked else ()
        found = [arrays[source] if source >= 0 else strides[-1 - source] for source in sources]
        return found if self.facts is None else [*found, self.facts]


class CudaKernel(MetalKernel):
    """The callable that metal_kernel returns. It takes the keywords of MLX's kernels and is lazy, in mx.compile too."""

    def __init__(self, *arguments, target: str, by_value: bool = False, **facts):
        super().__init__(*arguments)
        self.target, self.compiling = target, facts  # arguments of Variant
        self.by_value = by_value
        self._built: dict = {}
        self._prepared: dict[tuple, Prepared] = {}
        self._fitting: dict[tuple, tuple[Ptx, Layout, Callable | None]] = {}

    def layout(self, inputs, known=(), values: bool = False) -> Layout:
        """The layout for inputs with these (dtype, ndim, size); `known`: the indices of inputs that are numbers;
        `values`: whether shapes and strides are passed by value."""
        sources, asked, places, passed, end, buffer = [], [], [], [], 0, 0

        def place(size: int) -> None:
            nonlocal end, buffer
            places.append((buffer, end))
            end += -(-size // 8) * 8
            buffer += 1

        for index, ((dtype, ndim, size), (shape, strides, rank)) in enumerate(zip(inputs, self.facts)):
            if index in known:
                place(dtype.size * size)
            else:
                sources.append(index)
                buffer += 1
            if values:
                for kind, wanted, count in zip(by_value.TYPES, (shape, strides, rank), (ndim, ndim, 1)):
                    if wanted and ndim:
                        passed.append((buffer, kind, count))
                        buffer += 1
                continue
            if shape and ndim:
                place(4 * ndim)
            if strides and ndim and self.ensure_row_contiguous:
                place(8 * ndim)
            elif strides and ndim:
                sources.append(-1 - len(asked))
                asked.append(index)
                buffer += 1
            if rank and ndim:
                place(4)
        return Layout(tuple(sources), tuple(asked), tuple(places), tuple(passed))

    def facts_of(self, arrays, known: dict, values: bool = False) -> mx.array | None:
        """The facts in the order of `layout`, as an array in the GPU's memory. A growing cache has new ones with every
        token, unless lengths are passed by value."""
        form, found = "<", []

        def put(kind: str, values) -> None:
            nonlocal form
            bytes_of_each = 8 if kind == "q" else 4
            form += f"{len(values)}{kind}{-len(values) * bytes_of_each % 8}x"
            found.extend(values)

        for index, (array, (shape, strides, rank)) in enumerate(zip(arrays, self.facts)):
            if index in known:
                value = known[index]
                put("f" if array.dtype == mx.float32 else "i", value if isinstance(value, tuple) else (value,))
            if values:
                continue
            if shape and array.ndim:
                put("i", array.shape)
            if strides and array.ndim and self.ensure_row_contiguous:
                put("q", row_contiguous(array.shape))
            if rank and array.ndim:
                put("i", (array.ndim,))
        return _resident(struct.pack(form, *found)) if found else None

    def compiled(
        self, inputs, template, output_dtypes, grid: Grid, known=(), verbose: bool = False, values: bool = False
    ) -> Ptx:
        """The compiled kernel for inputs with these (dtype, ndim, size) and a launch like `grid`; `values`: as in
        `layout`.

        Raises CompileError with lines of the Metal text.
        """
        text, _ = self.text(inputs, template, output_dtypes)
        if verbose:
            print(f"Generated source code for `{self.name}`:\n```\n{text}\n```")
        layout = self.layout(inputs, known, values)
        variant = Variant(
            grid.threadgroup, grid.folded, grid.swapped, grid.ragged, self.target, fast_math=self.fast_math,
            facts=layout.places, facts_at=len(layout.sources) + len(layout.values), values=layout.values,
            **self.compiling,
        )  # fmt: skip
        if (text, variant) not in self._built:
            try:
                name = kernel_name(self.name, template, inputs, output_dtypes)
                self._built[text, variant] = build(text, name, variant, gpu())
            except CompileError as error:
                raise CompileError(refused(f"{_TAG} Kernel '{self.name}'", str(error))) from None
            except OSError as error:
                raise ToolchainError(
                    f"{_TAG} Kernel '{self.name}' cannot be built: {error}. If the folder of built kernels cannot be "
                    "written, set MLX_FLASH_CACHE to another."
                ) from error
        return self._built[text, variant]

    def launch(self, arrays, shapes, dtypes, grid, threadgroup, template, init_value, verbose, stream):
        signature = tuple([(array.shape, array.dtype) for array in arrays])
        chosen = tuple([(name, type(value), value) for name, value in template])
        key = (signature, tuple(dtypes), tuple(grid), tuple(threadgroup), chosen)
        prepared = self._prepared.get(key)
        if prepared is None or verbose:
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            prepared = self._prepared[key] = self.prepare(arrays, dtypes, grid, threadgroup, template, verbose)
        return self.start(prepared, arrays, shapes, dtypes, init_value, stream)

    def start(self, prepared: Prepared, arrays, shapes, dtypes, init_value=None, stream=None) -> list[mx.array]:
        """Launches the result of `prepare` on arrays of the same shapes and dtypes."""
        stream = mx.gpu if stream is None else stream  # independent of the default device
        return prepared.call(
            inputs=prepared.inputs(arrays, stream),
            output_shapes=shapes,
            output_dtypes=list(dtypes),
            init_value=init_value,
            stream=stream,
            **prepared.fixed,
        )

    def prepare(
        self, arrays, dtypes, grid, threadgroup, template=(), verbose=False, known=None, y_first=False
    ) -> Prepared:
        """The part of a launch that all arrays with these shapes and dtypes share.

        `known`: the values of inputs that are numbers, by index; of their arrays only the dtype is used. `y_first`: as
        in Grid.
        """
        place, known = Grid(tuple(grid), tuple(min(pair) for pair in zip(threadgroup, grid)), y_first), known or {}
        inputs = tuple((a.dtype, a.ndim, a.size) for a in arrays)
        ptx, layout, by_values = self._code(inputs, template, dtypes, place, known, verbose)
        if by_values:
            return Prepared(by_values, place.launched(), layout, self.facts_of(arrays, known, True), True)
        fixed = dict(
            name=ptx.name,
            compiled_source=ptx.code,
            scalars=list(place.threads),
            shared_memory=ptx.shared_memory,
            ensure_row_contiguous=self.ensure_row_contiguous,
            **place.launched(),
        )
        return Prepared(mx.fast.precompiled_cuda_kernel, fixed, layout, self.facts_of(arrays, known))

    def _code(self, inputs, template, dtypes, place: Grid, known, verbose: bool):
        """The compiled kernel, its code as MLX gets it, the origin of its buffers, and MLX's object for it if it takes
        shapes and strides by value. None follows a length: to find them by the kernel's text would cost more than all
        else that a new length of a growing cache needs."""
        forms = tuple([(dtype, ndim, min(size, CONSTANT_BELOW)) for dtype, ndim, size in inputs])
        chosen = tuple([(name, type(value), value) for name, value in template])
        key = (forms, chosen, tuple(dtypes), place.threadgroup, place.folded, place.swapped, place.ragged, tuple(known))
        found = self._fitting.get(key)
        if found is None or verbose:
            found = self._by_value(inputs, template, dtypes, place, known, verbose)
            if found is None:
                ptx = self.compiled(inputs, template, dtypes, place, known, verbose)
                ptx = replace(ptx, code=code_or_name(ptx.name, ptx.code)) if gpu() else ptx
                found = ptx, self.layout(inputs, known), None
            self._fitting[key] = found
        return found

    def _by_value(self, inputs, template, dtypes, place: Grid, known, verbose: bool):
        """The same for a kernel that takes shapes and strides by value; None where MLX cannot pass them."""
        if not self.by_value or place.folded or place.ragged or not by_value.works():
            return None
        ptx = self.compiled(inputs, template, dtypes, place, known, verbose, values=True)
        layout = self.layout(inputs, known, values=True)
        given = [(inputs[index][0], inputs[index][1], self.facts[index]) for index in layout.sources]
        given += [(mx.int32, 1, (False, False, False))] if layout.places else []
        call = by_value.kernel_of(ptx, given, tuple(dtypes), self.ensure_row_contiguous)
        return call and (ptx, layout, call)


@lru_cache(maxsize=_MOST_PREPARED)
def _resident(facts: bytes) -> mx.array:
    return resident(mx.array(np.frombuffer(facts, np.int32)))


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
    producers: int = 0,
    registers: tuple[int, int] | None = None,
    resident: int = 1,
    by_value: bool = False,
) -> CudaKernel:
    """`mx.fast.metal_kernel` on an NVIDIA GPU: the same arguments, text and errors, and as lazy.

    Args beyond those of MLX:
        target: the oldest GPU that runs the code; "sm_90a" runs on compute capability 9.0 only.
        converged: simdgroup functions are called only where all lanes are active, which makes them faster.
        producers: the number of producer threads, the last ones of a threadgroup. They get a body of their own,
            compiled separately.
        registers: (registers of a producer thread, registers of a consumer thread) after setmaxnreg, or None.
        resident: threadgroups that a core holds at a time, if `registers` are given.
        by_value: shapes and strides are passed by value where MLX can, which costs neither copies nor launches. The
            text may index them, and keep them as `const constant int64_t*`, but not pass them as other constants.

    Raises:
        CompileError: the text is not valid Metal. ToolchainError: there is no compiler and no cached kernel.
    """
    return CudaKernel(
        name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, compile_options,
        target=target, converged=converged, producers=producers, registers=registers,
        resident=resident, by_value=by_value,
    )  # fmt: skip
