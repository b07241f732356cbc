"""NVIDIA's PTX assembler: the installed one, or the one from the package index, kept in the user's cache."""

import functools
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from metal_conformance.headers import Unavailable, fetched

from mlx_flash.metal.ptx.ptx import cache_directory

WHEEL = "nvidia-cuda-nvcc-cu12==12.9.86"
INSIDE = "nvidia/cuda_nvcc/bin/ptxas"


@functools.cache
def ptxas() -> str:
    """The path of the command. Raises Unavailable."""
    found = shutil.which("ptxas")
    if found:
        return found
    kept = cache_directory() / "ptxas-12.9"
    if not kept.exists():
        if platform.system() != "Linux":
            raise Unavailable(f"ptxas: {WHEEL} is for Linux")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            with zipfile.ZipFile(fetched(WHEEL, Path(scratch))) as archive:
                built = Path(archive.extract(INSIDE, scratch))
            built.chmod(0o755)
            os.replace(built, kept)
    return str(kept)


def assembled(path: Path, gpu: str) -> str:
    """The output of ptxas for a PTX file; raises AssertionError with that output if it refuses the file."""
    done = subprocess.run([ptxas(), "-v", f"-arch={gpu}", str(path), "-o", "/dev/null"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr
