"""The shim's headers, precompiled once for each set of flags: parsing them is most of the compile time of a small
kernel.

A precompiled header remembers the paths of its sources. They are copied into the cache, so that one precompiled header
serves every installation with the same headers, including read-only ones.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..frontend.errors import ToolchainError

INCLUDE = Path(__file__).parent / "include"
_DAMAGED = re.compile(r"^(?:fatal )?error: .*(?:PCH|\.pch|precompiled|AST)", re.M)  # at no place of a text


def arguments(compiler: tuple[str, ...], flags: list[str], prelude: str, folder: Path, identity: str) -> list[str]:
    """The compiler's arguments to start from the precompiled header `prelude` of the shim, built with these flags.

    folder: the cache. identity: a hash of the compiler and of the contents of the headers.
    """
    headers = _copied(_shim(folder, identity))
    key = hashlib.sha256(os.fsencode("\0".join([*flags, str(headers)]))).hexdigest()[:24]
    precompiled = headers.parent / f"{Path(prelude).stem}-{key}.pch"
    if not precompiled.exists():
        _precompile([*compiler, *flags, "-I", str(headers)], headers / "shim" / prelude, precompiled)
    return ["-I", str(headers), "-include-pch", str(precompiled)]


def damaged(done: subprocess.CompletedProcess) -> bool:
    """Whether the compiler failed because of a precompiled header, or of its sources, or did not come to an end."""
    return done.returncode not in (0, 1) or (done.returncode == 1 and bool(_DAMAGED.search(done.stderr)))


def discard(folder: Path, identity: str):
    """Removes the copied headers and what was built from them, as far as they can be removed."""
    shutil.rmtree(_shim(folder, identity), ignore_errors=True)


def _shim(folder: Path, identity: str) -> Path:
    return folder / f"shim-{identity[:24]}"


def _copied(shim: Path) -> Path:
    """Copies the headers below the folder `shim`; the first process to finish publishes the whole folder at once."""
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
        done = subprocess.run([*command, *emit], capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise ToolchainError(f"The simulator's headers do not compile:\n{done.stderr}")
        os.replace(built, target)
