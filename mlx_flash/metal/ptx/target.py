"""How a Metal kernel is compiled for an NVIDIA GPU: compiler flags, the entry function, additions to the PTX.

This file is part of the key of a stored kernel; the storing itself is in ptx.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..frontend.translation import POSITIONS, Translation

INCLUDE = Path(__file__).parent / "include"
# Loops are unrolled as by Apple's compiler, so that no array of a thread is indexed and all arrays stay in registers.
# Loop strength reduction would keep a separate address for every access of a loop.
FLAGS = (
    "-x", "clcpp", "-cl-std=CLC++2021", "-cl-no-stdinc", "-cl-single-precision-constant", "-fdeclspec",
    "-target", "nvptx64-nvidia-cuda",
    "-Xclang", "-cl-ext=+cl_khr_fp16,-cl_khr_fp64,-__opencl_c_fp64,+__opencl_c_generic_address_space",
    "-cl-fp32-correctly-rounded-divide-sqrt", "-ffp-contract=fast", "-fno-math-errno", "-fno-builtin", "-O3",
    "-mllvm", "-unroll-threshold=4000", "-mllvm", "-disable-lsr",
    "-fno-color-diagnostics", "-fno-caret-diagnostics", "-ferror-limit=20", "-Wno-everything",
    "-Wimplicit-float-conversion", "-I", str(INCLUDE),
)  # fmt: skip
# The oldest PTX version that supports the target: the driver has to support it too.
_VERSIONS = {"sm_80": "ptx71", "sm_90a": "ptx80"}
# A launch has to request threadgroup memory beyond this size.
STATIC_BYTES = 48 * 1024


@dataclass(frozen=True)
class Variant:
    """Facts that a kernel is compiled for, besides its text. `threadgroup`: threads along each axis.

    `folded`: the grid has more threadgroups along y or z than a launch may have, so that both axes are rearranged.
    `swapped`: threadgroups along y come first, before those along x.
    `ragged`: the grid is not a multiple of the threadgroup. `converged`: simdgroup functions are called only where all
    lanes are active, so that they need not check. `fast_math`: the value of __FAST_MATH__ that the text sees.
    `facts`: (index of a buffer, offset in bytes) of the buffers that lie together in one array of facts, which is
    parameter number `facts_at`. `values`: (index of a buffer, type, number) of the shapes and strides that a launch
    passes by value; the launch then passes no grid, which is neither folded nor ragged. `producers`: the number of
    producer threads, the last ones of the threadgroup, which only copy blocks for the consumers. `registers`:
    (registers of a producer thread, registers of a consumer thread) after setmaxnreg (Hopper), or None. `resident`:
    threadgroups that a core holds at a time, if `registers` are given.
    """

    threadgroup: tuple[int, int, int]
    folded: bool = False
    swapped: bool = False
    ragged: bool = False
    target: str = "sm_80"
    converged: bool = False
    fast_math: bool = False
    producers: int = 0
    registers: tuple[int, int] | None = None
    resident: int = 1
    facts: tuple[tuple[int, int], ...] = ()
    facts_at: int = 0
    values: tuple[tuple[int, str, int], ...] = ()

    def flags(self) -> list[str]:
        sizes = [f"-DMSL_THREADS_{axis}={size}" for axis, size in zip("XYZ", self.threadgroup)]
        sizes.append(f"-DMSL_SM={re.sub('[^0-9]', '', self.target)}")
        facts = {"FOLDED": self.folded, "SWAPPED": self.swapped, "RAGGED": self.ragged, "CONVERGED": self.converged}
        options = [f"-DMSL_{name}" for name, on in facts.items() if on]
        options += ["-D__FAST_MATH__=1"] if self.fast_math else []
        options += [f"-DMSL_FACT_{buffer}={offset}" for buffer, offset in self.facts]
        options += [f"-DMSL_VALUE_{buffer}={kind}{count}" for buffer, kind, count in self.values]
        return [*sizes, *options, f"-march={self.target}", f"--cuda-feature=+{_VERSIONS[self.target]}"]


def entry(translation: Translation, name: str, variant: Variant) -> str:
    """The function that a launch calls: buffers in the order of their numbers, with the array of facts before the
    outputs, then the grid in threads.

    Producer threads get a body of their own, which the compiler reduces to the copies.
    """
    function = translation.function()
    parameters = translation.kernels[function]
    buffers = sorted((p for p in parameters if p.attribute == "buffer"), key=lambda p: p.index)
    offsets = dict(variant.facts)
    values = {index: _vector(kind, count) for index, kind, count in variant.values}
    declared = [f"{values.get(p.index) or _space(p) + ' char*'} b{p.index}" for p in buffers if p.index not in offsets]
    if offsets:
        declared.insert(variant.facts_at, "const __constant char* facts")
    declared += [] if values else [f"uint grid_{axis}" for axis in "xyz"]
    grid = ", ".join(f"msl_grid::launched_threads({axis})" if values else f"grid_{'xyz'[axis]}" for axis in range(3))
    call = f"{translation.callee()}({', '.join(_argument(p, offsets.get(p.index), values) for p in parameters)});"
    return (
        "#pragma clang attribute pop\n"
        # A name of its own in C++: by the kernel's name the call below could mean the entry itself.
        f'extern "C" __attribute__((flatten, nvptx_kernel)) void msl_entry({", ".join(declared)}) __asm__("{name}");\n'
        f'extern "C" void msl_entry({", ".join(declared)}) {{\n'
        f"  const msl_grid grid = {{{{{grid}}}, msl_thread_index()}};\n"
        "  if (grid.outside()) return;\n"
        f"{_bodies(call, variant)}}}\n"
    )


def in_threads(text: str) -> str:
    """The translated text of a kernel that is passed shapes and strides by value, as each thread's own."""
    text = re.sub(r"\bconst constant (int64_t\s*\*)", r"const thread \1", text)
    return re.sub(r"\bconst constant (int\s*[*&]\s*\w+_(?:shape|ndim)\b)", r"const thread \1", text)


def _vector(kind: str, count: int) -> str:
    """A type that a kernel can be passed by value, with at least so many numbers. MLX passes ten."""
    return kind if count == 1 else f"{kind} __attribute__((ext_vector_type({4 if count <= 4 else 8})))"


def _bodies(call: str, variant: Variant) -> str:
    total = prod(variant.threadgroup)
    if not variant.producers:
        return f"  {call}\n"
    fewer = more = ""
    if variant.registers:
        fewer = f'__asm__ volatile("setmaxnreg.dec.sync.aligned.u32 {variant.registers[0]};"); '
        more = f'__asm__ volatile("setmaxnreg.inc.sync.aligned.u32 {variant.registers[1]};"); '
    return f"  if (grid.own < {total - variant.producers}) {{ {more}{call} }}\n  else {{ {fewer}{call} }}\n"


def _space(parameter) -> str:
    return "const __constant" if parameter.constant else "__global"


def _argument(parameter, offset: int | None, values: dict[int, str]) -> str:
    if parameter.attribute == "buffer" and parameter.index in values:
        return f"msl_value_argument<{values[parameter.index]}>{{b{parameter.index}}}"
    if parameter.attribute == "buffer" and offset is not None:
        return f"msl_constant_argument{{facts + {offset}}}"
    if parameter.attribute == "buffer":
        kind = "constant" if parameter.constant else "device"
        return f"msl_{kind}_argument{{b{parameter.index}}}"
    return f"msl_attribute_argument<{POSITIONS.index(parameter.attribute)}>{{grid}}"


_THREADGROUP = re.compile(r"msl_threadgroup_(\d+)_(\d+)_(\d+)")


def finish(text: str, name: str, variant: Variant) -> str:
    """The compiler's PTX, completed with threadgroup memory and the size of the threadgroup.

    The constant address space becomes the global one, which holds MLX's arrays.
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
    threads = f".reqntid {prod(variant.threadgroup)}\n"
    # setmaxnreg works only in kernels that fix their number of registers at the launch. Other kernels with producer
    # warps would get so few registers that two threadgroups fit a core, and spill.
    threads += f".minnctapersm {variant.resident}\n" if variant.registers or variant.producers else ""
    text = re.sub(r"(\.entry " + re.escape(name) + r"\s*\([^)]*\)\s*)", lambda found: found[1] + threads, text)
    text = re.sub(r"^(\.address_size.*\n)", lambda found: found[1] + declared, text, flags=re.M)
    return "//" + json.dumps({"shared_memory": dynamic}) + "\n" + text


def _offsets(text: str) -> dict[str, int]:
    """The offset of each threadgroup variable in bytes, by its name in the text; the total under ""."""
    offsets, end = {}, 0
    for found in sorted(_THREADGROUP.finditer(text), key=lambda found: int(found[1])):
        if found[0] not in offsets:
            size, align = int(found[2]), int(found[3])
            offsets[found[0]] = end = -(-end // align) * align
            end += size
    return offsets | {"": end}


def _threadgroup_memory(text: str) -> tuple[str, int]:
    """(declarations, bytes of dynamic threadgroup memory that a launch requests)."""
    offsets = _offsets(text)
    if offsets[""] > STATIC_BYTES:
        return ".extern .shared .align 1024 .b8 msl_threadgroup[];\n", offsets[""]
    lines = []
    for variable in offsets:
        if variable:
            size = _THREADGROUP.fullmatch(variable).group(2)
            # Swizzled panels need the alignment, because the hardware swizzles by address.
            lines.append(f".shared .align 1024 .b8 {variable}[{size}];\n")
    return "".join(lines), 0
