"""Compiles MLX's kernel headers and kernel files and lists the failures."""

import os
from pathlib import Path

from metal_conformance.case import TENSOR_LANGUAGE
from metal_conformance.headers import KERNELS, include_directory
from mlx_flash.metal import CompileError, MetalLibrary

# Text that MLX includes or inserts before a header that does not include it itself. Headers of tensor operations first.
_BEFORE = {
    "steel/gemm/kernels/steel_gemm_fused_nax": ("steel/gemm/gemm_nax.h",),
    "steel/gemm/kernels/steel_gemm_gather_nax": ("steel/gemm/gemm_nax.h",),
    "steel/gemm/kernels/steel_gemm_segmented_nax": ("steel/gemm/gemm_nax.h",),
    "steel/gemm/kernels/steel_gemm_splitk_nax": ("steel/gemm/gemm_nax.h",),
    "steel/gemm/kernels/steel_gemm_thin_nax": ("steel/gemm/gemm_nax.h",),
    "quantized_nax.h": ("steel/gemm/gemm_nax.h", "quantized_utils.h"),
    "fp_quantized_nax.h": ("steel/gemm/gemm_nax.h", "quantized_utils.h"),
    "steel/gemm/kernels/": ("steel/gemm/gemm.h",),
    "steel/conv/kernels/": ("steel/conv/conv.h", "steel/conv/params.h", "steel/utils.h"),
    "steel/conv/loaders/": ("steel/conv/conv.h",),
    "steel/conv/loader.h": ("steel/conv/conv.h",),
    "steel/gemm/": ("steel/utils.h",),
    "steel/attn/": ("steel/utils.h",),
    "reduction/": ("atomic.h", "reduction/ops.h"),
    "reduce.h": ("atomic.h", "reduction/ops.h"),
    "indexing/": ("indexing/indexing.h", "atomic.h", "reduction/ops.h"),
    "binary.h": ("binary_ops.h",), "binary_two.h": ("binary_ops.h",), "ternary.h": ("ternary_ops.h",), "unary.h": (
        "unary_ops.h",),
    "quantized.h": ("steel/gemm/gemm.h", "quantized_utils.h"), "fp_quantized.h": ("steel/gemm/gemm.h",
        "quantized_utils.h"),
    "searchsorted.h": ("sort.h",), "gemv_masked.h": ("steel/utils.h",),
}  # fmt: skip


def headers() -> list[str]:
    """The kernel headers of the wheel, relative to MLX's kernel folder."""
    root = include_directory() / KERNELS
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.h"))


def compile_header(name: str):
    """Raises CompileError if a header does not compile."""
    before = next((files for start, files in _BEFORE.items() if name.startswith(start)), ())
    text = "".join(f'#include "{KERNELS}/{file}"\n' for file in ("utils.h", *(f for f in before if f != name), name))
    MetalLibrary(text, [include_directory()], _language(name), name=name).check([])


def _language(name: str) -> str:
    """The first version of Metal in which a file compiles: 4.0 for files with tensor operations, and 3.2 for files with
    fences across devices, which MLX builds with 3.2 only.
    """
    return TENSOR_LANGUAGE if "nax" in name else "3.2" if name == "fence.metal" else "3.1"


def source_directory() -> Path | None:
    """The checkout of MLX named by $MLX_SOURCE: it has kernel files that the wheel contains in compiled form only."""
    given = os.environ.get("MLX_SOURCE")
    return Path(given) if given else None


def kernel_files() -> list[str]:
    """The .metal files of the checkout, relative to the kernel folder; empty without a checkout."""
    if source_directory() is None:
        return []
    root = source_directory() / KERNELS
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.metal"))


def compile_file(name: str):
    """Raises CompileError if a kernel file does not compile; tries three instances of every kernel."""
    root = source_directory()
    source = MetalLibrary((root / KERNELS / name).read_text(), [root], _language(name), name=name)
    instances: dict[str, list[str]] = {}
    for host_name in source.kernel_names:
        instances.setdefault(source.translation.function(host_name), []).append(host_name)
    source.check(
        list(dict.fromkeys(n for names in instances.values() for n in (names[0], names[len(names) // 2], names[-1])))
    )


def sweep(names: list[str], compile_one) -> dict[str, str]:
    """{name: "" or the first line that does not compile}"""
    found = {}
    for name in names:
        try:
            compile_one(name)
        except CompileError as error:
            lines = str(error).splitlines()
            found[name] = next((line for line in lines if "error:" in line), lines[-1])
        else:
            found[name] = ""
    return found
