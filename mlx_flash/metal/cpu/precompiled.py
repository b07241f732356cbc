"""The shim's headers, parsed once for each set of flags: most of what a small kernel takes to compile is their parsing.

A precompiled header remembers where its sources lie. They are copied into the cache, so that it serves every
installation with the same headers, read-only ones among them.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..frontend.errors import ToolchainError

INCLUDE = Path(__file__).parent / "include"


def arguments(compiler: tuple[str, ...], flags: list[str], prelude: str, folder: Path, identity: str) -> list[str]:
    """The compiler's arguments to start from `prelude` of the shim, compiled with these flags.

    folder: the cache. identity: what names the compiler and the contents of the headers.
    """
    headers = _copied(folder / f"shim-{identity[:24]}")
    key = hashlib.sha256("\0".join(flags).encode()).hexdigest()[:24]
    precompiled = headers.parent / f"{Path(prelude).stem}-{key}.pch"
    if not precompiled.exists():
        _precompile([*compiler, *flags, "-I", str(headers)], headers / "shim" / prelude, precompiled)
    return ["-I", str(headers), "-include-pch", str(precompiled)]


def _copied(shim: Path) -> Path:
    """The headers below the folder `shim`, put there as a whole by whichever process comes first."""
    headers = shim / "include"
    if not headers.is_dir():
        shim.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=shim.parent) as scratch:
            shutil.copytree(INCLUDE, Path(scratch) / "shim" / "include", copy_function=shutil.copyfile)
            try:
                os.rename(Path(scratch) / "shim", shim)
            except OSError:
                if not headers.is_dir():
                    raise
    return headers


def _precompile(command: list[str], header: Path, target: Path):
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / target.name
        emit = ["-Xclang", "-emit-pch", "-Xclang", "-fno-pch-timestamp", "-c", str(header), "-o", str(built)]
        done = subprocess.run([*command, *emit], capture_output=True, text=True)
        if done.returncode:
            raise ToolchainError(f"The simulator's headers do not compile:\n{done.stderr}")
        os.replace(built, target)
