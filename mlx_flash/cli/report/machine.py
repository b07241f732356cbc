"""Facts about this machine for the report."""

from __future__ import annotations

import json
import os
import platform
import subprocess

import mlx.core as mx

from ... import __version__
from ...backends import guard
from ...common.machine import gpu_facts, macos, metal_gpu

PROFILER = ("system_profiler", "SPDisplaysDataType", "-json")


def facts() -> list[tuple[str, str]]:
    """Label and value of chip, cores, memory, system, folder of verdicts and versions."""
    device = gpu_facts() if metal_gpu() or mx.cuda.is_available() else {}
    system = macos()
    gpu = f"{device.get('device_name', 'unknown')}, {device.get('architecture', 'architecture unknown')}"
    return [
        ("GPU", f"{gpu}, {gpu_cores()} cores" if device else "none that MLX can use"),
        ("processor", f"{platform.machine()}, {os.cpu_count()} cores"),
        ("memory", f"{device['memory_size'] / 2**30:.0f} GB" if "memory_size" in device else "unknown"),
        ("system", f"macOS {system}" if system else platform.platform()),
        (
            "verdicts",
            "kept" if guard.keeps() else "not kept, since their folder cannot be written: set MLX_FLASH_CACHE",
        ),
        ("versions", f"mlx_flash {__version__}, MLX {mx.__version__}, Python {platform.python_version()}"),
    ]


def gpu_cores() -> str:
    """Cores of a Mac's GPU, which MLX does not tell; "unknown" elsewhere."""
    try:
        done = subprocess.run(PROFILER, capture_output=True, timeout=20, check=True)
        found = [gpu["sppci_cores"] for gpu in json.loads(done.stdout)["SPDisplaysDataType"] if "sppci_cores" in gpu]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        found = []
    return found[0] if found else "unknown"
