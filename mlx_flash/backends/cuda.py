"""Runs the very same kernel text on an NVIDIA GPU, through mlx_flash/metal/ptx. Lazy, inside mx.compile too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import mlx.core as mx

from ..errors import UnsupportedProblem
from ..kernels.devices import FAMILIES, Family
from ..kernels.launch import Launch
from ..kernels.plan import Plan
from ..kernels.tile_layers import LAYERS, register_reallocation
from ..metal import ToolchainError
from ..metal.cpu.compiler import toolchain
from ..metal.ptx import driver, metal_kernel
from ..metal.ptx.kernel import CudaKernel, Grid, Prepared
from ..metal.ptx.ptx import Ptx, cache_directory
from ..problem.problem import Problem
from .metal import kernel_object

LEAST_CAPABILITY = (8, 0)
LEAST_DRIVER = (12, 0)  # the CUDA version a driver speaks; it compiles the kernels
_INSTALL = 'pip install "mlx-flash-attention[cuda]"'


def capability() -> tuple[int, int]:
    """The GPU's compute capability, (9, 0) on an H100 or H200."""
    information = mx.device_info(mx.gpu)
    return int(information["compute_capability_major"]), int(information["compute_capability_minor"])


def ready(family: str | None = None) -> str | None:
    """Why the kernels of a family (None: this GPU's own) cannot run here, or None."""
    if not mx.cuda.is_available():
        return "this machine has no CUDA GPU, or MLX was installed without CUDA: " + _INSTALL
    found, known = capability(), driver.version()
    if found < LEAST_CAPABILITY:
        return f"compute capability {_dotted(LEAST_CAPABILITY)} or later is needed, this GPU has {_dotted(found)}"
    if known and known < LEAST_DRIVER:
        of = f"of this GPU (compute capability {_dotted(found)})"
        return f"a driver for CUDA {_dotted(LEAST_DRIVER)} or later is needed, that {of} is for {_dotted(known)}"
    if family == "sm90" and found[0] != 9:
        return f"the kernels of sm90 need compute capability 9.0, this GPU has {_dotted(found)}"
    try:
        toolchain()
    except ToolchainError as error:
        # What was compiled before, here or elsewhere, runs without a compiler.
        return None if any(cache_directory().glob("*.ptx")) else _no_compiler(error)
    return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _no_compiler(error: ToolchainError) -> str:
    return f"kernels are compiled by ziglang's clang: {_INSTALL} ({error})"


@lru_cache
def family_here() -> Family:
    """Hopper has matrix products of its own; all others share those of Ampere."""
    return FAMILIES["sm90" if capability()[0] == 9 else "sm80"]


# Operands that may be copied; masks and lists are often broadcast, and far larger than their memory.
_COPIED = frozenset({"Q", "K", "V", "O", "dO", "q_segments", "k_segments"})
_FEW_BYTES, _MOST_BYTES = 2**25, 2**29
_MANY_QUERIES = 2048


@lru_cache
def _kernel(kernel, target: str, producers: int, registers: tuple[int, int] | None, row_contiguous=False) -> CudaKernel:
    return kernel_object(
        metal_kernel, kernel, target=target, converged=True, producers=producers, registers=registers,
        ensure_row_contiguous=row_contiguous,
    )  # fmt: skip


def _of(row, row_contiguous=False) -> Callable:
    layer = LAYERS[row.tiles]
    return partial(
        _kernel, target=layer.target, producers=32 * layer.producer_warps, registers=register_reallocation(row),
        row_contiguous=row_contiguous,
    )  # fmt: skip


def compiled(plan: Plan, problem: Problem, inputs: dict) -> Ptx:
    """The kernel that `run` would launch; needs a compiler, but no GPU."""
    launch = plan.launch(problem)
    arrays = tuple((array.dtype, array.ndim, array.size) for array in launch.arguments(inputs))
    grid = Grid(launch.grid, launch.threadgroup)
    known = [index for index, name in enumerate(plan.kernel.inputs) if not isinstance(inputs[name], mx.array)]
    return _of(plan.config)(launch.kernel).compiled(arrays, [], launch.output_dtypes, grid, known)


def _copies(plan: Plan, problem: Problem) -> bool:
    """Does a launch have views copied that have gaps, so that it knows the strides?

    Otherwise a launch of its own learns them, 25 us of an H200. Copying costs nothing where there are no gaps; where
    there are, less than that if the keys are few, and little of the work if each is seen by many queries.
    """
    kernel = _of(plan.config)(plan.kernel)
    strided = {name for name, (_, strides, _) in zip(kernel.input_names, kernel.facts) if strides}
    columns, size = problem.head_dim + problem.value_dim, getattr(mx, problem.dtype).size
    keys = problem.batch * problem.key_heads * problem.key_length * columns * size
    queries = problem.batch * problem.query_heads * problem.query_length * columns * size
    many = problem.query_length * (problem.query_heads // problem.key_heads) >= _MANY_QUERIES
    return strided <= _COPIED and (keys <= _FEW_BYTES or (many and keys + queries <= _MOST_BYTES))


@dataclass(frozen=True)
class _Ready:
    """What all launches of a plan for one problem share: they decide the shapes of q, k, v and the constants.

    `others`: shape and dtype of the inputs that a caller may shape in several ways, by their names.
    """

    launch: Launch
    kernel: CudaKernel
    prepared: Prepared
    others: dict[str, tuple]

    @classmethod
    def of(cls, plan: Plan, problem: Problem, inputs: dict) -> _Ready:
        launch = plan.launch(problem)
        kernel, arrays = _of(plan.config, _copies(plan, problem))(launch.kernel), launch.arguments(inputs)
        given = [inputs[name] for name in kernel.input_names]
        known = {index: value for index, value in enumerate(given) if not isinstance(value, mx.array)}
        prepared = kernel.prepare(arrays, launch.output_dtypes, launch.grid, launch.threadgroup, known=known)
        varied = [name for name in kernel.input_names if isinstance(inputs[name], mx.array) and name not in _SHAPED]
        others = {name: _looks(inputs[name]) for name in varied}
        return cls(launch, kernel, prepared, others)

    def serves(self, inputs: dict) -> bool:
        return all(_looks(inputs[name]) == looks for name, looks in self.others.items())

    def arguments(self, inputs: dict) -> list:
        """What the kernel is given: the arrays themselves, if MLX sees to it that they have no gaps."""
        if self.kernel.ensure_row_contiguous:
            return [inputs[name] for name in self.kernel.input_names]
        return self.launch.arguments(inputs)


def _looks(array: mx.array) -> tuple:
    return array.shape, array.dtype


_SHAPED = frozenset({"Q", "K", "V", "O", "dO", "L", "delta"})
_MOST_READY = 64  # lengths that a plan keeps ready


def run(kind, plan: Plan, problem: Problem, inputs: dict, stream) -> list[mx.array]:
    """Raises UnsupportedProblem for a kernel that neither is compiled already nor can be here."""
    known = plan.resources.setdefault("cuda", {})
    ready = known.get(problem)
    if ready is None or not ready.serves(inputs):
        if len(known) >= _MOST_READY:
            known.clear()
        try:
            ready = known[problem] = _Ready.of(plan, problem, inputs)
        except ToolchainError as error:
            raise UnsupportedProblem(f'[mlx_flash] backend "cuda": {_no_compiler(error)}') from error
    arrays, launch = ready.arguments(inputs), ready.launch
    return ready.kernel.start(ready.prepared, arrays, launch.output_shapes, launch.output_dtypes, stream=stream)
