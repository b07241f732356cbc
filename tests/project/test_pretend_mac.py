"""The disguise of `pytest --pretend-mac`: a process in it, and those it starts, go the way of a Mac."""

import os
import subprocess
import sys
from pathlib import Path

import pretend_mac
import pytest

pytestmark = pytest.mark.simulator
PROJECT = Path(__file__).parents[2]
SCRIPT = """
import platform, subprocess, sys
import mlx.core as mx
import mlx_flash
from mlx_flash.backends import current_backend

backend = current_backend()
print(platform.system(), backend.name, backend.family.name, mx.metal.is_available())
q = mx.random.normal((1, 2, 9, 16))
built_in = mx.fast.scaled_dot_product_attention(q, q, q, scale=0.25, mask="causal")
ours = mx.compile(lambda q: mlx_flash.attention(q, q, q, causal=True))(q)
print(mx.abs(ours - built_in).max().item() < 1e-6)
with mlx_flash.use_backend("reference"):
    traced = []
    step = mx.compile(lambda q: traced.append(1) or mlx_flash.attention(q, q, q))
    step(q), step(q)
    print(len(traced))
if len(sys.argv) > 1:
    print(subprocess.run([sys.executable, __file__], capture_output=True, text=True).stdout)
"""


@pytest.mark.simulator
@pytest.mark.parametrize(("architecture", "family"), (("applegpu_g13g", "apple7"), ("applegpu_g16s", "apple9")))
def test_a_process_in_disguise_and_its_child_run_kernels_as_on_a_mac(tmp_path, architecture, family):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join((str(pretend_mac.STARTUP), str(PROJECT)))
    environment = {**os.environ, "PYTHONPATH": paths, pretend_mac.VARIABLE: architecture}
    done = subprocess.run([sys.executable, script, "parent"], capture_output=True, text=True, env=environment)
    told = [f"Darwin metal {family} True", "True", "1"]
    assert done.stdout.split("\n")[:6] == [*told, *told], done.stderr


@pytest.mark.simulator
def test_the_simulator_gets_the_text_that_mlx_generates(monkeypatch):
    import mlx.core as mx
    from pretend_mac import kernel

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)  # as on the pretended Mac
    made = kernel.Kernel(mx.fast.metal_kernel, ("copy", ["x"], ["y"], "y[thread_position_in_grid.x] = x_shape[0];"), {})
    call = {"grid": (3, 1, 1), "threadgroup": (3, 1, 1), "output_shapes": [(3,)], "output_dtypes": [mx.int32]}
    asked, generated = [], kernel.generated
    monkeypatch.setattr(kernel, "generated", lambda *a: asked.append(generated(*a)) or asked[-1])
    (y,) = made(inputs=[mx.ones((3, 2))], **call)
    assert y.tolist() == [3, 3, 3]
    assert "[[kernel]] void custom_kernel_copy" in asked[0] and "x_shape [[buffer(1)]]" in asked[0]
