"""A built kernel whose file was cut off, emptied or overwritten is built again, in the process that finds it so."""

import subprocess
import sys

from mlx_flash.metal.cpu.target import here

RUN = """
import mlx.core as mx
from mlx_flash.simulator import MetalLibrary, metal_kernel
call = [((1,), mx.float32)], (1, 1, 1), (1, 1, 1)
text = "kernel void f(device float* y [[buffer(0)]]) { y[0] = 3; }"
one = metal_kernel("one", [], ["y"], "y[0] = 2;")(
    inputs=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])[0]
print(one.item(), MetalLibrary(text).kernel("f")(*call)[0].item())
"""


def run(monkeypatch, folder) -> str:
    monkeypatch.setenv("MLX_FLASH_CACHE", str(folder))
    return subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True).stdout


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
