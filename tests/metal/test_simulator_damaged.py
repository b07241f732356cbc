"""What the simulator keeps on disk is built again where it was cut off, emptied or overwritten, by the process that
finds it so."""

import subprocess
import sys

import pytest

from mlx_flash.metal.cpu.target import here

RUN = """
import mlx.core as mx
from mlx_flash.simulator import MetalLibrary, metal_kernel
call = [((1,), mx.float32)], (1, 1, 1), (1, 1, 1)
text = "kernel void f(device float* y [[buffer(0)]]) {{ y[0] = 3; }}"
one = metal_kernel("one", [], ["y"], "y[0] = {number};")(
    inputs=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])[0]
print(one.item(), MetalLibrary(text).kernel("f")(*call)[0].item())
"""


def run(monkeypatch, folder, number: int = 2) -> str:
    monkeypatch.setenv("MLX_FLASH_CACHE", str(folder))
    command = [sys.executable, "-c", RUN.format(number=number)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_damaged_kernels_are_built_again(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path) == "2.0 3.0\n"
    kernels = sorted((tmp_path / "simulator").glob(f"*{here().suffix}"))
    assert len(kernels) == 2
    whole = [path.read_bytes() for path in kernels]
    for damage in (lambda data: b"", lambda data: data[: len(data) // 2], lambda data: bytes(len(data))):
        for path, data in zip(kernels, whole):
            path.write_bytes(damage(data))
        assert run(monkeypatch, tmp_path) == "2.0 3.0\n"
        assert [path.stat().st_size for path in kernels] == [len(data) for data in whole]


DAMAGES = {
    "precompiled header cut off": ("*.pch", lambda path: path.write_bytes(path.read_bytes()[:100000])),
    "header overwritten": ("include/shim/mlx.h", lambda path: path.write_text("no header")),
    "header gone": ("include/shim/types.h", lambda path: path.unlink()),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_headers_are_made_again(monkeypatch, tmp_path, name):
    assert run(monkeypatch, tmp_path) == "2.0 3.0\n"
    files, damage = DAMAGES[name]
    (shim,) = (tmp_path / "simulator").glob("shim-*")
    found = sorted(shim.glob(files))
    assert found
    for path in found:
        damage(path)
    for number in (4, 5):  # texts that were not built before; the second one starts from a precompiled header again
        assert run(monkeypatch, tmp_path, number) == f"{number}.0 3.0\n"
    assert list(shim.glob("*.pch"))
