"""Is MLX here, and is it new enough? Imported before everything else, so that the answer is one sentence."""

from __future__ import annotations

import platform
import re
import sys

LEAST = (0, 32)  # also in pyproject.toml


def _advice() -> str:
    """What to do where MLX cannot be imported."""
    pip = f"{sys.executable or 'python'} -m pip install"
    if platform.system() == "Darwin" and platform.machine() == "x86_64":
        return (
            "This Python was built for Intel processors; on Apple silicon it runs under Rosetta, where MLX does not. "
            "Use a Python for arm64."
        )
    if platform.system() == "Darwin":
        return f"MLX needs macOS 14 or later on Apple silicon. Install it with: {pip} -U mlx"
    return f"On Linux MLX has to know its device. Install it with: {pip} 'mlx[cpu]', or 'mlx[cuda13]' for NVIDIA GPUs"


def require_mlx() -> None:
    """Raises ImportError, with what to do, where MLX is missing, cannot be imported or is too old."""
    try:
        import mlx.core as mx
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and str(error.name).startswith("mlx")
        why = f"is not installed for {sys.executable or 'this Python'}" if missing else f"cannot be imported ({error})"
        raise ImportError(f"mlx_flash needs MLX, which {why}. {_advice()}") from error
    if tuple(map(int, re.findall(r"\d+", mx.__version__)[:2])) < LEAST:
        wanted = ".".join(map(str, LEAST))
        raise ImportError(
            f"mlx_flash needs MLX {wanted} or later, and this is {mx.__version__} in {mx.__file__}. Update it with: "
            f"{sys.executable or 'python'} -m pip install -U mlx"
        )


require_mlx()
