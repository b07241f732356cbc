"""Compiles translated Metal text to PTX, the assembler text of NVIDIA GPUs, and keeps it on disk by its content."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..simulator import compiler
from ..simulator.errors import ToolchainError
from ..simulator.translate import translate
from ..simulator.translation import POSITIONS, Translation

INCLUDE = Path(__file__).parent / "include"
# Loops are unrolled as Apple's compiler does it, so that no array of a thread is indexed and all stay in registers.
_FLAGS = (
    "-x", "clcpp", "-cl-std=CLC++2021", "-cl-no-stdinc", "-cl-single-precision-constant", "-fdeclspec",
    "-target", "nvptx64-nvidia-cuda",
    "-Xclang", "-cl-ext=+cl_khr_fp16,-cl_khr_fp64,-__opencl_c_fp64,+__opencl_c_generic_address_space",
    "-cl-fp32-correctly-rounded-divide-sqrt", "-ffp-contract=fast", "-fno-math-errno", "-fno-builtin", "-O3",
    "-mllvm", "-unroll-threshold=4000",
    "-fno-color-diagnostics", "-fno-caret-diagnostics", "-ferror-limit=20", "-Wno-everything",
    "-Wimplicit-float-conversion", "-I", str(INCLUDE),
)  # fmt: skip
# The oldest PTX that knows the target: the driver has to know it too.
_VERSIONS = {"sm_80": "ptx70", "sm_90a": "ptx80"}
# More threadgroup memory than this has to be asked for at the launch.
STATIC_BYTES = 48 * 1024


@dataclass(frozen=True)
class Variant:
    """What a kernel is compiled for besides its text. `threadgroup`: threads along each axis.

    `folded`: the launch has more threadgroups along y or z than a GPU takes, so that they come in one row.
    `ragged`: the grid is no multiple of the threadgroup. `converged`: simdgroup functions are called only where all
    lanes come, and so need not ask which are there. `fast_math`: the text may ask which mathematics is meant.
    """

    threadgroup: tuple[int, int, int]
    folded: bool = False
    ragged: bool = False
    target: str = "sm_80"
    converged: bool = False
    fast_math: bool = False

    def flags(self) -> list[str]:
        sizes = [f"-DMSL_THREADS_{axis}={size}" for axis, size in zip("XYZ", self.threadgroup)]
        facts = {"FOLDED": self.folded, "RAGGED": self.ragged, "CONVERGED": self.converged}
        options = [f"-DMSL_{name}" for name, on in facts.items() if on]
        options += ["-D__FAST_MATH__=1"] if self.fast_math else []
        target = ["-target-cpu", self.target, "-target-feature", f"+{_VERSIONS[self.target]}"]
        return [*sizes, *options, *(word for flag in target for word in ("-Xclang", flag))]


@dataclass(frozen=True)
class Ptx:
    """A compiled kernel. `shared_memory`: bytes of threadgroup memory its launch has to ask for."""

    name: str
    code: bytes
    shared_memory: int


def entry(translation: Translation, name: str) -> str:
    """The function a launch calls: buffers in the order of their numbers, then the grid in threads."""
    function = translation.function()
    parameters = translation.kernels[function]
    buffers = sorted((p for p in parameters if p.attribute == "buffer"), key=lambda p: p.index)
    declared = [f"{_space(p)} char* b{p.index}" for p in buffers]
    declared += [f"uint grid_{axis}" for axis in "xyz"]
    return (
        "#pragma clang attribute pop\n"
        f'extern "C" __attribute__((flatten, nvptx_kernel)) void {name}({", ".join(declared)}) {{\n'
        "  const msl_grid grid = {{grid_x, grid_y, grid_z}};\n"
        "  if (grid.outside()) return;\n"
        f"  {translation.callee()}({', '.join(map(_argument, parameters))});\n}}\n"
    )


def _space(parameter) -> str:
    return "const __constant" if parameter.constant else "__global"


def _argument(parameter) -> str:
    if parameter.attribute == "buffer":
        kind = "constant" if parameter.constant else "device"
        return f"msl_{kind}_argument{{b{parameter.index}}}"
    return f"msl_attribute_argument<{POSITIONS.index(parameter.attribute)}>{{grid}}"


def cache_directory() -> Path:
    """Where PTX is kept: beside the simulator's kernels, in $MLX_FLASH_CACHE/cuda or ~/.cache/mlx_flash/cuda."""
    return compiler.cache_directory().parent / "cuda"


# What the headers of tile layers declare concerns only those who include them.
_NAMED_HEADERS = {"nv": ("nv", "nv.h", "wgmma.h")}
_TRANSLATING = ("translate", "translation", "tokens", "constructors", "function_pointers", "loops")


@functools.cache
def _sources_hash(included: tuple[str, ...]) -> str:
    """Of all that turns a text into PTX but the text itself."""
    unseen = {file for name, files in _NAMED_HEADERS.items() if name not in included for file in files}
    headers = [path for path in (*INCLUDE.rglob("*"), *compiler.INCLUDE.rglob("*")) if path.name not in unseen]
    modules = [Path(compiler.__file__).parent / f"{name}.py" for name in _TRANSLATING]
    digest = hashlib.sha256()
    for path in sorted([*headers, *modules, Path(__file__)]):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def build(text: str, name: str, variant: Variant, gpu: str | None = None) -> Ptx:
    """The PTX of a Metal text, whose entry will be `name`; compiled at most once per content.

    gpu: where what `assemble` made for this one ("sm_90") lies beside the PTX, that is returned.
    Raises CompileError for text that is no Metal, ToolchainError where there is no compiler and nothing is cached.
    """
    included = tuple(name for name in _NAMED_HEADERS if f"#include <{name}>" in text)
    parts = [_sources_hash(included), text, name, *variant.flags()]
    stored = cache_directory() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:40]}.ptx"
    if not stored.exists():
        stored.parent.mkdir(parents=True, exist_ok=True)
        translation = translate(text, unrolled=True)
        with tempfile.TemporaryDirectory(dir=stored.parent) as scratch:
            raw, built = Path(scratch) / "raw.ptx", Path(scratch) / "kernel.ptx"
            compiler.compile_text(
                [*_FLAGS, *variant.flags()], ["-S", "-o", str(raw)], translation.text, entry(translation, name),
                INCLUDE / "nvptx" / "mlx.h", Path(scratch),
            )  # fmt: skip
            built.write_text(finish(raw.read_text(encoding="utf-8"), name, variant.threadgroup), encoding="ascii")
            os.replace(built, stored)
    code = stored.read_bytes()
    assembled = stored.with_suffix(f".{gpu}.cubin")
    return Ptx(name, assembled.read_bytes() if assembled.exists() else code, _facts(code)["shared_memory"])


def assemble(stored: Path, gpu: str, assembler: str) -> str:
    """Assembles stored PTX for one GPU with NVIDIA's ptxas, so that the driver need not; returns what ptxas says.

    Raises ToolchainError with its words.
    """
    target = re.search(rb"^\.target (\w+)", stored.read_bytes(), re.M)[1].decode()
    with tempfile.TemporaryDirectory(dir=stored.parent) as scratch:
        built = Path(scratch) / "kernel.cubin"
        architecture = target if target.endswith("a") else gpu
        command = [assembler, "-v", f"-arch={architecture}", str(stored), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ToolchainError(f"ptxas refuses {stored.name}:\n{done.stderr}")
        os.replace(built, stored.with_suffix(f".{gpu}.cubin"))
    return done.stderr


def _facts(code: bytes) -> dict:
    """What the first line of a stored kernel says about its launch."""
    return json.loads(code[: code.index(b"\n")].removeprefix(b"//"))


_THREADGROUP = re.compile(r"msl_threadgroup_(\d+)_(\d+)_(\d+)")


def finish(text: str, name: str, threadgroup: tuple[int, int, int]) -> str:
    """The compiler's text with what it cannot say: threadgroup memory, the size of the threadgroup.

    The constant address space becomes the global one, where MLX's arrays lie.
    """
    text = re.sub(r"\b(ld|cvta|cvta\.to)\.const\b", r"\1.global", text)
    text = re.sub(r"^(\s*(?:\.visible |\.extern |\.weak )?)\.const\b", r"\1.global", text, flags=re.M)
    text = text.replace(" .ptr .const ", " .ptr .global ").replace(f"{name}_param_", "p")
    text = re.sub(r"[ \t]*//.*", "", text)
    text = re.sub(r"\n\s*", "\n", text)
    declared, dynamic = _threadgroup_memory(text)
    if dynamic:
        offsets = _offsets(text)
        text = _THREADGROUP.sub(lambda found: f"msl_threadgroup+{offsets[found[0]]}", text)
    threads = f".reqntid {prod(threadgroup)}\n"
    text = re.sub(r"(\.entry " + re.escape(name) + r"\s*\([^)]*\)\s*)", lambda found: found[1] + threads, text)
    text = re.sub(r"^(\.address_size.*\n)", lambda found: found[1] + declared, text, flags=re.M)
    return "//" + json.dumps({"shared_memory": dynamic}) + "\n" + text


def _offsets(text: str) -> dict[str, int]:
    """Where each threadgroup variable lies, by its name in the text."""
    offsets, end = {}, 0
    for found in sorted(_THREADGROUP.finditer(text), key=lambda found: int(found[1])):
        if found[0] not in offsets:
            size, align = int(found[2]), int(found[3])
            offsets[found[0]] = end = -(-end // align) * align
            end += size
    return offsets | {"": end}


def _threadgroup_memory(text: str) -> tuple[str, int]:
    """(declarations, bytes the launch has to ask for)."""
    offsets = _offsets(text)
    if offsets[""] > STATIC_BYTES:
        return ".extern .shared .align 1024 .b8 msl_threadgroup[];\n", offsets[""]
    lines = []
    for variable in offsets:
        if variable:
            _, size, align = _THREADGROUP.fullmatch(variable).groups()
            lines.append(f".shared .align {align} .b8 {variable}[{size}];\n")
    return "".join(lines), 0
