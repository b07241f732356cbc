"""Whole public libraries compile: llama.cpp's, candle's, mistral.rs', vLLM's attention, rasterisers of Gaussian splats.

They are not kept here. Each is fetched from its repository, at one commit, into the user's cache, or read from the
folder that MLX_FLASH_METAL_LIBRARIES names, which holds checkouts as OWNER+NAME. Without either a library is skipped.
"""

import os
import re
import urllib.request
from pathlib import Path
from typing import NamedTuple

import needs
import pytest

from mlx_flash.metal.cpu.compiler import cache_directory
from mlx_flash.simulator import MetalLibrary

ADDRESS = "https://raw.githubusercontent.com/{repository}/{commit}/{path}"
VARIABLE = "MLX_FLASH_METAL_LIBRARIES"


class Library(NamedTuple):
    """`files`: joined, as the package that owns them joins them before it compiles. `headers`: what they include.
    `defines`: macros that a host defines. `kernels`: how many there are at this commit."""

    repository: str
    commit: str
    files: tuple[str, ...]
    kernels: int
    headers: tuple[str, ...] = ()
    defines: str = ""


def _vllm(kernels: int, *names: str) -> Library:
    files = tuple(f"vllm_metal/metal/kernels_v2/{name}.metal" for name in ("float8", "utils", *names))
    partition = "#define VLLM_METAL_PARTITION_SIZE 512\n"
    return Library("vllm-project/vllm-metal", "211a1e4bc976cd6c0c961cad8da59d649ea9bd65", files, kernels, (), partition)


def _splats(repository: str, commit: str, folder: str, **names: int) -> dict[str, Library]:
    return {
        f"{repository.split('/')[1]} {name}": Library(repository, commit, (f"{folder}/{name}.metal",), kernels)
        for name, kernels in names.items()
    }


def _candle(**kernels: int) -> dict[str, Library]:
    repository, commit = "huggingface/candle", "2a13b0f3ff62f7e67013597f2996f764c5735e21"
    folder = "candle-metal-kernels/src/metal_src"
    return {
        f"candle {name}": Library(repository, commit, (f"{folder}/{name}.metal",), count)
        for name, count in kernels.items()
    }


def _mistral(
    included: tuple[str, ...], folder: str = "mistralrs-quant/src/metal_kernels", **kernels: int
) -> dict[str, Library]:
    repository, commit = "EricLBuehler/mistral.rs", "9e922623f24b32d41f3892b74f0eed18707f4e6c"
    headers = tuple(f"{folder}/{name}.metal" for name in included)
    return {
        f"mistral.rs {name}": Library(repository, commit, (f"{folder}/{name}.metal",), count, headers)
        for name, count in kernels.items()
    }


LIBRARIES = {
    "llama.cpp": Library(
        "ggml-org/ggml", "d99724f2b141fed9e1a9f402213506c081433465", ("src/ggml-metal/ggml-metal.metal",), 689,
        ("src/ggml-common.h", "src/ggml-metal/ggml-metal-impl.h"), "#define GGML_METAL_HAS_BF16\n",
    ),
    "vllm paged attention": _vllm(504, "turboquant", "reshape_and_cache", "pagedattention", "pagedattention_tiled"),
    "vllm latent attention": _vllm(8, "mla"),
    "vllm linear attention": _vllm(9, "gdn_linear_attention", "gdn_state_scatter"),
    "vllm caches": _vllm(13, "copy_blocks", "gather_kv_cache", "kv_scale_update"),
    **_splats(
        "qgli/Metal-GS", "241ec8f9b6c50a13ec33cf26689b1ea6af2d0745", "csrc/kernels", binning=2, preprocess=1,
        preprocess_backward=1, radix_sort=5, rasterize=1, rasterize_backward=1, sh_backward=1, sh_forward=1,
        simple_knn=2, tile_count=2,
    ),
    **_splats(
        "a1091150/gsplat-mlx", "cfae9984e1d22afe30a8d2f94019ad76aa40612f", "gsplat_core/metal", gsplat_intersect=3,
        gsplat_projection=3, gsplat_quat_scale_to_covar=2, gsplat_rasterize=2, gsplat_spherical_harmonics=2,
    ),
    **_candle(
        affine=24, binary=648, cast=72, conv=43, fill=6, gemv=144, indexing=70, mlx_gemm=60, mlx_sort=86, quantized=185,
        random=6, reduce=90, scaled_dot_product_attention=118, sort=12, ternary=18, unary=152,
    ),
    **_mistral(("float8", "utils"), blockwise_fp8=3, scalar_fp8=12),
    **_mistral(("utils", "copy_impl"), copy=1920),
    **_mistral(("utils", "float4"), mxfp4=8, quantized=2688, sdpa_with_sinks=87),
    **_mistral(
        ("utils", "float8"), "mistralrs-paged-attn/src/metal/kernels", copy_blocks=4, gather_kv_cache=6,
        kv_scale_update=3, pagedattention=312, reshape_and_cache=6,
    ),
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.filterwarnings("ignore:.*not ASCII")]


def kept(library: Library, path: str) -> Path:
    """The file on this machine; skips the test where it is not and cannot be had."""
    named = os.environ.get(VARIABLE)
    if named:
        file = Path(named) / library.repository.replace("/", "+") / path
        if not file.exists():
            pytest.skip(needs.unmet("network", f"{VARIABLE} has no {file}"))
        return file
    file = cache_directory().parent / "metal-libraries" / library.repository.replace("/", "+") / library.commit / path
    if not file.exists():
        address = ADDRESS.format(repository=library.repository, commit=library.commit, path=path)
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                text = answer.read()
        except OSError as error:
            pytest.skip(needs.unmet("network", f"{library.repository}'s {path} cannot be fetched: {error}"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
    return file


@pytest.mark.parametrize("name", LIBRARIES)
def test_all_kernels_compile(name):
    library = LIBRARIES[name]
    folders = {kept(library, path).parent for path in library.headers}
    texts = [kept(library, path).read_text(encoding="utf-8") for path in library.files]
    if len(texts) > 1:  # joined texts do not include each other
        texts = [re.sub(r'#include "[^"]*"', "", text) for text in texts]
    compiled = MetalLibrary(library.defines + "".join(texts), sorted(folders))
    compiled.check()
    known = len(compiled.kernel_names)
    # A folder may hold another commit, whose kernels are as many as they are.
    assert known == library.kernels or (os.environ.get(VARIABLE) and known)
