"""MLX's kernel headers: fetched from the package index once and kept in the user's cache, never vendored."""

import functools
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import mlx.core as mx

from mlx_flash.metal.cpu.compiler import cache_directory

KERNELS = "mlx/backend/metal/kernels"
_PLATFORM = "macosx_15_0_arm64"


class Unavailable(RuntimeError):
    """A wheel cannot be fetched; the message says why."""


def version() -> str:
    """The version of MLX whose kernels are run: the installed one."""
    return mx.__version__.split("+")[0]


@functools.cache
def include_directory() -> Path:
    """The folder for `#include "mlx/..."`. Raises Unavailable if the wheel can be neither found nor fetched."""
    folder = cache_directory() / f"mlx-metal-{version()}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            wheel = fetched(f"mlx-metal=={version()}", Path(scratch), "--platform", _PLATFORM)
            _unpack(wheel, Path(scratch) / "headers")
            try:
                os.replace(Path(scratch) / "headers", folder)
            except OSError:
                if not folder.exists():  # otherwise another process was faster
                    raise
    return folder


def fetched(wheel: str, scratch: Path, *options: str) -> Path:
    """Downloads a wheel, "name==version", from the package index into `scratch`; raises Unavailable.

    options: further options of `pip download`.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *options]
    try:
        done = subprocess.run([*command, "--dest", str(scratch), wheel], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"Fetching the wheel {wheel} took more than five minutes.") from None
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip said nothing")
        raise Unavailable(f"The wheel {wheel} cannot be fetched: {reason}")
    return wheels[0]


def _unpack(wheel: Path, folder: Path):
    prefix = "mlx/include/"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix + KERNELS) and name.endswith(".h"):
                target = folder / name[len(prefix) :]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
