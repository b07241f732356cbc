"""Runs kernel text on the CPU with the simulator. Launches run immediately, so mx.compile cannot trace them."""

from __future__ import annotations

from contextlib import nullcontext

from ..common.errors import UnsupportedProblem
from ..kernels.plan import Plan
from ..kernels.tile_layers import LAYERS
from ..metal import ToolchainError, language, metal_kernel
from ..metal.cpu.compiler import cache_directory, toolchain
from ..metal.frontend.errors import TracedError
from ..problem.kinds import SCORES
from ..problem.problem import Problem
from .metal import kernel_object, run_with


def ready() -> str | None:
    """Why kernels cannot be compiled on this machine; None if they can."""
    try:
        toolchain()
        cache_directory().mkdir(parents=True, exist_ok=True)
    except ToolchainError as error:
        return str(error)
    except RuntimeError:
        return "compiled kernels need a folder, and this user has no home: set MLX_FLASH_CACHE to a folder."
    except OSError as error:
        return f"{error}. Set MLX_FLASH_CACHE to a folder for compiled kernels."
    return None


def run(kind, plan: Plan, problem: Problem, inputs: dict, stream):
    compiled = plan.resources.get("simulator")
    if compiled is None:
        compiled = plan.resources["simulator"] = kernel_object(metal_kernel, plan.kernel)
        compiled.partly_written = SCORES.intersection(plan.kernel.outputs)  # not what the mask hides
        compiled.threadgroup_bytes = plan.family.threadgroup_bytes
    launch, needed = plan.launch(problem), LAYERS[plan.config.tiles].language
    try:
        with language(needed) if needed else nullcontext():
            return launch.results(run_with(compiled, launch, inputs, None))  # streams concern GPUs only
    except TracedError as error:
        raise UnsupportedProblem(
            f'[mlx_flash] backend "simulator": {error} Attention itself maps with mlx_flash.vmap, and compiles with '
            'use_backend("reference").'
        ) from None
