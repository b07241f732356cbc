"""Compiles translated Metal text to PTX, the assembly language of NVIDIA GPUs, and caches it on disk by content."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..cpu import compiler
from ..frontend.errors import ToolchainError
from ..frontend.translate import translate
from . import driver, fatbin, target
from .target import FLAGS, INCLUDE, Variant, entry, finish, in_threads


@dataclass(frozen=True)
class Ptx:
    """A compiled kernel. `shared_memory`: bytes of dynamic threadgroup memory that a launch requests."""

    name: str
    code: bytes
    shared_memory: int


def cache_directory() -> Path:
    """The folder of cached PTX, beside the simulator's kernels: $MLX_FLASH_CACHE/cuda or ~/.cache/mlx_flash/cuda."""
    return compiler.cache_directory().parent / "cuda"


# Headers of tile layers affect only the texts that include them.
_NAMED_HEADERS = {"nv": ("nv", "nv.h", "wgmma.h")}


@functools.cache
def _sources_hash(included: tuple[str, ...]) -> str:
    """The hash of everything that turns a text into PTX, except the text itself."""
    unseen = {file for name, files in _NAMED_HEADERS.items() if name not in included for file in files}
    shared = (path for path in compiler.INCLUDE.rglob("*") if path.parent.name != "target")  # the CPU's own versions
    headers = [path for path in (*INCLUDE.rglob("*"), *shared) if path.name not in unseen]
    digest = hashlib.sha256()
    for path in sorted([*headers, *compiler.modules(), Path(target.__file__)]):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def build(text: str, name: str, variant: Variant, gpu: str | None = None) -> Ptx:
    """The PTX of a Metal text, with an entry called `name`; compiled at most once for each content.

    gpu: the architecture of this machine's GPU ("sm_90"), whose driver then checks a new kernel; None without one.
    Raises CompileError for text that is not valid Metal, ToolchainError if there is no compiler and no cached kernel.
    """
    included = tuple(name for name in _NAMED_HEADERS if f"#include <{name}>" in text)
    registers = [str((variant.registers, variant.resident))] if variant.registers else []
    parts = [_sources_hash(included), text, name, *variant.flags(), *registers]
    stored = cache_directory() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:40]}.ptx"
    if not stored.exists():
        stored.parent.mkdir(parents=True, exist_ok=True)
        translation = translate(text, unrolled=True)
        translated = in_threads(translation.text) if variant.values else translation.text
        with tempfile.TemporaryDirectory(dir=stored.parent) as scratch:
            raw, built = Path(scratch) / "raw.ptx", Path(scratch) / "kernel.ptx"
            compiler.compile_text(
                [*FLAGS, *variant.flags()], ["-S", "-o", str(raw)], translated, entry(translation, name, variant),
                INCLUDE / "mlx.h", Path(scratch),
            )  # fmt: skip
            built.write_text(finish(raw.read_text(encoding="utf-8"), name, variant), encoding="ascii")
            if gpu and not _compressed(stored, built.read_bytes(), name):
                driver.takes(built.read_bytes(), name)
            os.replace(built, stored)
    code = stored.read_bytes()
    return Ptx(name, _for_gpu(stored, code, gpu, name), _facts(code)["shared_memory"])


def _for_gpu(stored: Path, code: bytes, gpu: str | None, name: str) -> bytes:
    """The code to launch: machine code if `assemble` stored some for this GPU, else compressed PTX if the driver loads
    it, else PTX.

    The driver's linker could produce machine code too, but it was 15 % slower on an H200 than the code that the same
    driver makes when it loads PTX.
    """
    assembled, fat = stored.with_suffix(f".{gpu}.cubin"), stored.with_suffix(".fatbin")
    if gpu is None:
        return code
    if assembled.exists():
        return assembled.read_bytes()
    return (fat.exists() and fat.read_bytes()) or _compressed(stored, code, name) or code


def _compressed(stored: Path, code: bytes, name: str) -> bytes | None:
    """The code as a fatbin, stored beside the PTX, or None if the driver does not load it."""
    image = fatbin.compressed(code)
    try:
        if image is None or not driver.takes(image, name):
            return None
    except driver.AssemblerError:
        return None  # if the PTX is refused too, its error tells why
    with suppress(OSError):  # the folder may be read-only
        with tempfile.TemporaryDirectory(dir=stored.parent) as scratch:
            written = Path(scratch) / "kernel.fatbin"
            written.write_bytes(image)
            os.replace(written, stored.with_suffix(".fatbin"))
    return image


def assemble(stored: Path, gpu: str, assembler: str) -> str:
    """Assembles stored PTX for one GPU with NVIDIA's ptxas, in place of the driver; returns the output of ptxas.

    Raises ToolchainError with that output if ptxas refuses the PTX.
    """
    compiled_for = re.search(rb"^\.target (\w+)", stored.read_bytes(), re.M)[1].decode()
    with tempfile.TemporaryDirectory(dir=stored.parent) as scratch:
        built = Path(scratch) / "kernel.cubin"
        architecture = compiled_for if compiled_for.endswith("a") else gpu
        command = [assembler, "-v", f"-arch={architecture}", str(stored), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ToolchainError(f"ptxas refuses {stored.name}:\n{done.stderr}")
        os.replace(built, stored.with_suffix(f".{gpu}.cubin"))
    return done.stderr


def _facts(code: bytes) -> dict:
    """Facts about the launch, from the first line of a stored kernel."""
    return json.loads(code[: code.index(b"\n")].removeprefix(b"//"))
