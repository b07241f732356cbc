"""Runs the same kernel text on an NVIDIA GPU through mlx_flash/metal/ptx: lazy, and inside mx.compile too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod

import mlx.core as mx

from ..common.errors import UnsupportedProblem
from ..common.scalars import dotted
from ..kernels.devices import FAMILIES, Family
from ..kernels.launch import Launch
from ..kernels.plan import Plan
from ..kernels.tile_layers import LAYERS, register_reallocation
from ..metal import ToolchainError
from ..metal.cpu.compiler import toolchain
from ..metal.ptx import by_value, driver, metal_kernel
from ..metal.ptx.kernel import CudaKernel, Grid, Prepared
from ..metal.ptx.ptx import Ptx, cache_directory
from ..problem.kinds import DECODE
from ..problem.masks import LAYERED, REPEATED_BYTES
from ..problem.problem import Problem
from .metal import kernel_object
from .tuned import tuned

LEAST_CAPABILITY = (8, 0)
LEAST_DRIVER = (12, 0)  # the CUDA version of the driver, which compiles the kernels
_INSTALL = 'pip install "mlx-flash-attention[cuda]"'


def capability() -> tuple[int, int]:
    """The GPU's compute capability, (9, 0) on an H100 or H200."""
    information = mx.device_info(mx.gpu)
    return int(information["compute_capability_major"]), int(information["compute_capability_minor"])


def ready(family: str | None = None) -> str | None:
    """Why the kernels of a family (None: this GPU's) cannot run here; None if they can."""
    if not mx.cuda.is_available():
        return "this machine has no CUDA GPU, or MLX was installed without CUDA: " + _INSTALL
    found, known = capability(), driver.version()
    if found < LEAST_CAPABILITY:
        return f"compute capability {dotted(LEAST_CAPABILITY)} or later is needed, this GPU has {dotted(found)}"
    if known and known < LEAST_DRIVER:
        of = f"of this GPU (compute capability {dotted(found)})"
        return f"a driver for CUDA {dotted(LEAST_DRIVER)} or later is needed, that {of} is for {dotted(known)}"
    if family == "sm90" and found[0] != 9:
        return f"the kernels of sm90 need compute capability 9.0, this GPU has {dotted(found)}"
    try:
        toolchain()
    except ToolchainError as error:
        # Cached kernels run without a compiler.
        return None if any(cache_directory().glob("*.ptx")) else _no_compiler(error)
    return None


def _no_compiler(error: ToolchainError) -> str:
    return f"kernels are compiled by ziglang's clang: {_INSTALL} ({error})"


@lru_cache
def family_here() -> Family:
    """The family of this GPU, with the rows tuned on it: "sm90" on Hopper, which has matrix instructions of its own,
    else "sm80"."""
    family = FAMILIES["sm90" if capability()[0] == 9 else "sm80"]
    return replace(family, tuned=tuned(family))


# Operands that may be copied. Masks and lists are often broadcast, and a copy would be far larger.
_COPIED = frozenset({"Q", "K", "V", "O", "dO", "q_segments", "k_segments", "shifts"})
_FEW_BYTES, _MOST_BYTES = 2**25, 2**29
_MANY_QUERIES = 2048
_FEW_ROUNDS = 12  # threadgroups of a core


@lru_cache
def _kernel(
    kernel, target: str, producers: int, registers: tuple[int, int] | None, resident: int, row_contiguous=False
) -> CudaKernel:
    return kernel_object(
        metal_kernel, kernel, target=target, converged=True, producers=producers, registers=registers,
        resident=resident, ensure_row_contiguous=row_contiguous, by_value=True,
    )  # fmt: skip


def _of(row, row_contiguous=False) -> Callable:
    layer = LAYERS[row.tiles]
    return partial(
        _kernel, target=layer.target, producers=32 * layer.producer_warps, registers=register_reallocation(row),
        resident=row.resident, row_contiguous=row_contiguous,
    )  # fmt: skip


def compiled(plan: Plan, problem: Problem, inputs: dict, values: bool = False) -> Ptx:
    """The compiled kernel that `run` would launch. It needs a compiler, but no GPU. `values`: where MLX passes shapes
    and strides by value."""
    launch = plan.launch(problem)
    arrays = tuple((array.dtype, array.ndim, array.size) for array in launch.arguments(inputs))
    grid = Grid(launch.grid, launch.threadgroup, _heads_first(plan, launch))
    known = [index for index, name in enumerate(plan.kernel.inputs) if not isinstance(inputs[name], mx.array)]
    return _of(plan.config)(launch.kernel).compiled(arrays, [], launch.output_dtypes, grid, known, values=values)


def _heads_first(plan: Plan, launch: Launch) -> bool:
    """Whether the same rows of all heads are started one after another, and not all rows of a head.

    Causal attention starts with the longest rows of a head. Where a core runs few threadgroups, those of the last head
    would keep some cores busy while the others have finished: with 16 heads of 4096 queries on 132 cores, a kernel
    would take 1.26 times the mean of a core, and this way takes 1.02. Where it runs many, nothing is lost, and the keys
    of few heads at a time stay in the cache.
    """
    groups = prod(launch.grid) // launch.threadgroup[0]
    ordered = plan.signature.variants.causal and plan.kind.tiled and plan.kind is not DECODE
    return ordered and groups <= _FEW_ROUNDS * plan.family.cores


def _copies(plan: Plan, problem: Problem, inputs: dict) -> bool:
    """Whether a launch copies operands that are not contiguous, to know their strides, where MLX does not pass these.

    Otherwise an additional launch reads the strides, which takes 25 us on an H200. With few keys a copy takes less time
    than that, and with many queries for each key it is a small part of the work. Contiguous operands are never copied.
    """
    kernel = _of(plan.config)(plan.kernel)
    strided = {name for name, (_, strides, _) in zip(kernel.input_names, kernel.facts) if strides}
    columns, size = problem.head_dim + problem.value_dim, getattr(mx, problem.dtype).size
    keys = problem.batch * problem.key_heads * problem.key_length * columns * size
    queries = problem.batch * problem.query_heads * problem.query_length * columns * size
    many = problem.query_length * (problem.query_heads // problem.key_heads) >= _MANY_QUERIES
    small = {name for name in strided if name in LAYERED and inputs[name].nbytes <= REPEATED_BYTES}
    return strided - small <= _COPIED and (keys <= _FEW_BYTES or (many and keys + queries <= _MOST_BYTES))


@dataclass(frozen=True)
class _Ready:
    """The part of a launch that all calls of a plan with one problem share, or all with this launch where shapes and
    strides are passed by value.

    `others`: (shape, dtype) of the inputs whose shape the problem does not determine, by name. `arrays`: the names of
    the inputs that are not numbers.
    """

    launch: Launch
    kernel: CudaKernel
    prepared: Prepared
    others: dict[str, tuple]
    arrays: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, problem: Problem, inputs: dict, copies: bool) -> _Ready:
        launch = plan.launch(problem)
        kernel, arrays = _of(plan.config, copies)(launch.kernel), launch.arguments(inputs)
        given = [inputs[name] for name in kernel.input_names]
        known = {index: value for index, value in enumerate(given) if not isinstance(value, mx.array)}
        prepared = kernel.prepare(arrays, launch.output_dtypes, launch.grid, launch.threadgroup, known=known,
            y_first=_heads_first(plan, launch),
        )  # fmt: skip
        names = tuple([name for name in kernel.input_names if isinstance(inputs[name], mx.array)])
        form = _rank if prepared.by_value else _form
        others = {name: form(inputs[name]) for name in names if name not in _SHAPED}
        return cls(launch, kernel, prepared, others, names)

    def serves(self, inputs: dict) -> bool:
        form = _rank if self.prepared.by_value else _form
        return all(form(inputs[name]) == found for name, found in self.others.items())

    def start(self, arrays: list[mx.array], stream) -> list[mx.array]:
        """Launches the kernel, where shapes and strides are passed by value. `arrays`: as the kernel reads them, but no
        numbers."""
        prepared, launch = self.prepared, self.launch
        outputs = prepared.call(  # by keywords: to unpack a dictionary takes the host longer
            inputs=arrays if prepared.facts is None else [*arrays, prepared.facts],
            output_shapes=launch.output_shapes,
            output_dtypes=launch.output_dtypes,
            grid=prepared.fixed["grid"],
            threadgroup=prepared.fixed["threadgroup"],
            stream=mx.gpu if stream is None else stream,
        )
        return launch.results(outputs, stream)

    def arguments(self, inputs: dict) -> list:
        """The kernel's arguments: the arrays themselves if MLX makes them contiguous, else views as bytes."""
        if self.kernel.ensure_row_contiguous:
            return [inputs[name] for name in self.kernel.input_names]
        return self.launch.arguments(inputs)


def _form(array: mx.array) -> tuple:
    return array.shape, array.dtype


def _rank(array: mx.array) -> tuple:
    return array.ndim, array.dtype


_SHAPED = frozenset({"Q", "K", "V", "O", "dO", "L", "delta", "O_parts", "L_parts"})
_MOST_READY = 64  # cached problems (lengths) of a plan


def run(kind, plan: Plan, problem: Problem, inputs: dict, stream) -> list[mx.array]:
    """Runs a kernel. Raises UnsupportedProblem if it is not cached and cannot be compiled or stored."""
    launch = plan.launch(problem)
    ready = launch.ready
    if ready is None or (ready.others and not ready.serves(inputs)):
        try:
            ready = _ready(plan, problem, inputs, launch)
        except ToolchainError as error:
            reason = str(error) if isinstance(error.__cause__, OSError) else _no_compiler(error)
            raise UnsupportedProblem(f'[mlx_flash] backend "cuda": {reason}') from error
    prepared = ready.prepared
    if not prepared.by_value:
        arrays = ready.arguments(inputs)
        outputs = ready.kernel.start(prepared, arrays, launch.output_shapes, launch.output_dtypes, stream=stream)
        return launch.results(outputs, stream)
    return ready.start(launch.arguments(inputs, ready.arrays), stream)


def _ready(plan: Plan, problem: Problem, inputs: dict, launch: Launch) -> _Ready:
    """What calls like this one share: kept with the launch if all calls with this launch do, else by the problem's
    lengths."""
    if by_value.works():
        ready = _Ready.of(plan, problem, inputs, copies=False)
        if ready.prepared.by_value:
            launch.ready = ready
            launch.start = None if ready.others else ready.start
            return ready
    known = plan.resources.setdefault("cuda", {})
    lengths = problem[1:]  # a plan has one signature, which takes long to hash
    ready = known.get(lengths)
    if ready is None or not ready.serves(inputs):
        if len(known) >= _MOST_READY:
            known.clear()
        ready = known[lengths] = _Ready.of(plan, problem, inputs, _copies(plan, problem, inputs))
    return ready
