"""NVIDIA's assembler: the installed one, else that of the package index, kept in the user's cache."""

import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mlx_flash.cuda.ptx import cache_directory

WHEEL = "nvidia-cuda-nvcc-cu12==12.9.86"
INSIDE = "nvidia/cuda_nvcc/bin/ptxas"


class Unavailable(RuntimeError):
    """There is no assembler here, and none can be fetched; the message says why."""


@functools.cache
def ptxas() -> str:
    """The command. Raises Unavailable."""
    found = shutil.which("ptxas")
    if found:
        return found
    kept = cache_directory() / "ptxas-12.9"
    if not kept.exists():
        if platform.system() != "Linux":
            raise Unavailable(f"ptxas: {WHEEL} is for Linux")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            with zipfile.ZipFile(_download(Path(scratch))) as archive:
                built = Path(archive.extract(INSIDE, scratch))
            built.chmod(0o755)
            os.replace(built, kept)
    return str(kept)


def _download(scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        scratch,
    ]
    try:
        done = subprocess.run([*command, WHEEL], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"ptxas: fetching {WHEEL} took more than five minutes") from None
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip said nothing")
        raise Unavailable(f"ptxas: {WHEEL} cannot be fetched: {reason}")
    return wheels[0]


def assembled(path: Path, gpu: str) -> str:
    """What ptxas says of a file of PTX; raises AssertionError with its words if it refuses."""
    done = subprocess.run([ptxas(), "-v", f"-arch={gpu}", str(path), "-o", "/dev/null"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr
