"""Runs kernel text on the CPU with the simulator. Launches run immediately, so mx.compile cannot trace them."""

from __future__ import annotations

import platform
import shutil
from contextlib import nullcontext
from importlib.util import find_spec

from ..common.errors import UnsupportedProblem
from ..kernels.plan import Plan
from ..kernels.tile_layers import LAYERS
from ..metal import ToolchainError, language, metal_kernel
from ..metal.cpu.compiler import cache_directory, toolchain
from ..metal.frontend.errors import TracedError
from ..problem.kinds import SCORES
from ..problem.problem import Problem
from .metal import kernel_object, run_with

# On a Mac without Apple's developer tools a call of this program asks the user to install them. The compiler in them
# counts its versions otherwise than LLVM, and is not supported.
APPLES_CLANG = "/usr/bin/clang"


def ready() -> str | None:
    """Why kernels cannot be compiled on this machine; None if they can."""
    if platform.system() == "Darwin" and not find_spec("ziglang") and shutil.which("clang") == APPLES_CLANG:
        return 'compiling needs the clang of ziglang, not Apple\'s: pip install "mlx-flash-attention[simulator]"'
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
    needed = LAYERS[plan.config.tiles].language
    try:
        with language(needed) if needed else nullcontext():
            return run_with(compiled, plan.launch(problem), inputs, None)  # streams concern GPUs only
    except TracedError as error:
        raise UnsupportedProblem(
            f'[mlx_flash] backend "simulator": {error} Attention itself maps with mlx_flash.vmap, and compiles with '
            'use_backend("reference").'
        ) from None
