"""Whole public libraries compile. They are not kept here: $MLX_FLASH_METAL_LIBRARIES names a folder that holds them.

There: ggml-metal.metal with ggml-common.h and ggml-metal-impl.h (llama.cpp), and any other *.metal file that compiles
by itself, such as the rasterisers of Metal-GS and gsplat-mlx.
"""

import os
from pathlib import Path

import pytest

from mlx_flash.simulator import MetalLibrary

FOLDER = os.environ.get("MLX_FLASH_METAL_LIBRARIES")
LIBRARIES = sorted(Path(FOLDER).rglob("*.metal")) if FOLDER else []

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="MLX_FLASH_METAL_LIBRARIES names no folder of public Metal libraries"),
    pytest.mark.filterwarnings("ignore:.*not ASCII"),
]


@pytest.mark.parametrize("path", LIBRARIES or [None], ids=lambda path: path.name if path else "none")
def test_all_kernels_compile(path):
    text = path.read_text(encoding="utf-8")
    library = MetalLibrary("#define GGML_METAL_HAS_BF16\n" + text, [path.parent])
    library.check()
    assert library.kernel_names
