"""metal_kernel: the signature, the checks and the wording of `mx.fast.metal_kernel`, run on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import mlx.core as mx

from ..cpu.kernel import MetalKernel
from ..frontend.errors import CompileError
from ..frontend.signature import kernel_name
from .ptx import Ptx, build
from .resident import resident
from .strides import learned, row_contiguous
from .target import Variant

_TAG = "[metal_kernel]"
# Threadgroups a launch may have along y and z.
_MOST_GROUPS = 65535
_MOST_PREPARED = 1024  # kinds of launches that are kept


@lru_cache
def gpu() -> str | None:
    """The GPU's architecture, such as "sm_90"."""
    return str(mx.device_info(mx.gpu)["architecture"]) if mx.cuda.is_available() else None


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


@dataclass
class Prepared:
    """What launches with inputs of the same shapes have in common.

    `fixed`: what MLX is told. `sources`: where each input comes from: an array of the call by its number, one that
    is always the same (MLX passes kernels made elsewhere neither shapes nor strides), or, from -1 down, the learned
    strides of those that `asked` numbers.
    """

    fixed: dict
    sources: list[int | mx.array] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def inputs(self, arrays, stream) -> list[mx.array]:
        """The inputs, each followed by what the text asks about its layout.

        The strides are those of the memory the kernel gets: never those that an array might have had.
        """
        strides = learned([arrays[index] for index in self.asked], stream) if self.asked else ()
        found = []
        for source in self.sources:
            if not isinstance(source, int):
                found.append(source)
            else:
                found.append(arrays[source] if source >= 0 else strides[-1 - source])
        return found

    def keep(self, index: int, array: mx.array) -> None:
        """Input `index` is the same array in every launch."""
        kept = resident(array)
        self.sources = [kept if isinstance(source, int) and source == index else source for source in self.sources]


class CudaKernel(MetalKernel):
    """What metal_kernel returns: call it with keywords, as MLX's own. Lazy, inside mx.compile too."""

    def __init__(self, *arguments, target: str, **facts):
        super().__init__(*arguments)
        self.target, self.compiling = target, facts  # of a Variant
        self._built: dict = {}
        self._prepared: dict[tuple, Prepared] = {}

    def compiled(self, inputs, template, output_dtypes, grid: Grid, verbose: bool = False) -> Ptx:
        """The kernel for inputs of these (dtype, ndim, size) and a launch like `grid`.

        Raises CompileError, in terms of the Metal text.
        """
        text, _ = self.text(inputs, template, output_dtypes)
        if verbose:
            print(f"Generated source code for `{self.name}`:\n```\n{text}\n```")
        variant = Variant(
            grid.threadgroup, grid.folded, grid.ragged, self.target, fast_math=self.fast_math, **self.compiling
        )
        if (text, variant) not in self._built:
            try:
                name = kernel_name(self.name, template, inputs, output_dtypes)
                self._built[text, variant] = build(text, name, variant, gpu())
            except CompileError as error:
                raise CompileError(f"{_TAG} Kernel '{self.name}' is not valid Metal:\n{error}") from None
        return self._built[text, variant]

    def launch(self, arrays, shapes, dtypes, grid, threadgroup, template, init_value, verbose, stream):
        looks = tuple([(array.shape, array.dtype) for array in arrays])
        chosen = tuple([(name, type(value), value) for name, value in template])
        key = (looks, tuple(dtypes), tuple(grid), tuple(threadgroup), chosen)
        prepared = self._prepared.get(key)
        if prepared is None or verbose:
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            prepared = self._prepared[key] = self.prepare(arrays, dtypes, grid, threadgroup, template, verbose)
        return self.start(prepared, arrays, shapes, dtypes, init_value, stream)

    def start(self, prepared: Prepared, arrays, shapes, dtypes, init_value=None, stream=None) -> list[mx.array]:
        """Launches what `prepare` made for arrays like these."""
        stream = mx.gpu if stream is None else stream  # whatever the default device
        return mx.fast.precompiled_cuda_kernel(
            inputs=prepared.inputs(arrays, stream),
            output_shapes=shapes,
            output_dtypes=list(dtypes),
            init_value=init_value,
            ensure_row_contiguous=self.ensure_row_contiguous,
            stream=stream,
            **prepared.fixed,
        )

    def prepare(self, arrays, dtypes, grid, threadgroup, template=(), verbose=False) -> Prepared:
        """All that launches with arrays of these shapes and types have in common."""
        place = Grid(tuple(grid), tuple(min(pair) for pair in zip(threadgroup, grid)))
        ptx = self.compiled(tuple((a.dtype, a.ndim, a.size) for a in arrays), template, dtypes, place, verbose)
        made = Prepared(
            dict(
                name=ptx.name,
                compiled_source=ptx.code,
                scalars=list(place.threads),
                shared_memory=ptx.shared_memory,
                **place.launched(),
            )
        )
        for index, (array, (shape, strides, ndim)) in enumerate(zip(arrays, self.facts)):
            made.sources.append(index)
            if array.ndim:
                made.sources += [resident(mx.array(array.shape, mx.int32))] if shape else []
                if strides and self.ensure_row_contiguous:
                    made.sources.append(resident(row_contiguous(array.shape)))
                elif strides:
                    made.sources.append(-1 - len(made.asked))
                    made.asked.append(index)
                made.sources += [resident(mx.array(array.ndim, mx.int32))] if ndim else []
        return made


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
) -> CudaKernel:
    """`mx.fast.metal_kernel` on an NVIDIA GPU: same arguments, same text, same errors, lazy as there.

    target: the least GPU the code runs on; "sm_90a" runs on no other. converged: the kernel calls simdgroup functions
    only where all lanes come, which makes them faster. producers: how many of a threadgroup's last threads are
    producers, whose code is compiled separately. registers: (of a producer, of a consumer) after setmaxnreg.
    """
    return CudaKernel(
        name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, compile_options,
        target=target, converged=converged, producers=producers, registers=registers,
    )  # fmt: skip
