"""Code written for `mx.fast.metal_kernel` runs on the simulator unchanged, other people's kernels too."""

import importlib
import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_flash.simulator import SimulatorError, metal_kernel, mode, replace_metal_kernel

SCRIPT = """
import sys
import mlx.core as mx

assert mx.metal.is_available()
kernel = mx.fast.metal_kernel(
    name="twice", input_names=["x"], output_names=["y"],
    source="uint i = thread_position_in_grid.x; y[i] = 2 * x[i + OFFSET];".replace("OFFSET", sys.argv[1]),
)
x = mx.arange(64, dtype=mx.float32)
(y,) = kernel(inputs=[x], grid=(64, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(64,)], output_dtypes=[mx.float32])
print("sum", y.sum().item())
"""


def run_script(path, *arguments):
    command = [sys.executable, "-m", "mlx_flash.simulator", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_script_runs(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run_script(script, "--profile", str(script), "0")
    assert done.returncode == 0, done.stderr
    assert "sum 4032.0" in done.stdout and "twice" in done.stdout


def test_a_script_is_reported(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run_script(script, str(script), "1")
    assert done.returncode == 1
    assert "SimulatorError: read of 4 bytes out of bounds: 'x' at index 64" in done.stderr
    assert "Traceback" not in done.stderr


def test_everything_is_put_back():
    kernel, available = mx.fast.metal_kernel, mx.metal.is_available
    with replace_metal_kernel():
        assert mx.fast.metal_kernel is not kernel and mx.metal.is_available()
    assert mx.fast.metal_kernel is kernel and mx.metal.is_available is available


def imported(name: str):
    """A module of mlx-lm whose kernels are made on the simulator."""
    pytest.importorskip("mlx_lm")
    sys.modules.pop(name, None)
    try:
        with replace_metal_kernel():
            return importlib.import_module(name)
    finally:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("dtype", (mx.float32, mx.bfloat16))
def test_mlx_lm_qk_norm(dtype):
    module = imported("mlx_lm.kernels.qk_norm")
    heads, kv_heads, dim, tokens = 4, 2, 80, 3
    x = mx.random.normal((1, tokens, 2 * (heads + kv_heads) * dim), key=mx.random.key(0)).astype(dtype)
    with mode("fast"):
        q, k = module.qk_norm(x, n_heads=heads, n_kv_heads=kv_heads, head_dim=dim, eps=1e-5, query_scale=0.5)
    rows = x[..., : (heads + kv_heads) * dim].reshape(1, tokens, heads + kv_heads, dim).astype(mx.float32)
    normal = mx.fast.rms_norm(rows, None, 1e-5)
    tolerance = 1e-5 if dtype == mx.float32 else 3e-2
    assert mx.allclose(q.astype(mx.float32), 0.5 * normal[:, :, :heads], atol=tolerance)
    assert mx.allclose(k.astype(mx.float32), normal[:, :, heads:], atol=tolerance)


def kl_kernel():
    losses = pytest.importorskip("mlx_lm.tuner.losses")
    saved = losses.can_run_metal
    losses.can_run_metal = lambda: True
    try:
        with replace_metal_kernel():
            return losses._make_kl_forward_kernel()
    finally:
        losses.can_run_metal = saved


def test_mlx_lm_kl_forward_is_reported_as_a_race():
    kernel = kl_kernel()
    vocabulary = 4096
    q, p = (mx.random.normal((2, vocabulary), key=mx.random.key(seed)) for seed in (1, 2))
    call = dict(
        inputs=[q, p], output_shapes=[(2,)], output_dtypes=[mx.float32], template=[("T", mx.float32), ("V",
            vocabulary)],
        grid=(1024, 2, 1), threadgroup=(1024, 1, 1),
    )  # fmt: skip
    with mode("check"), pytest.raises(SimulatorError, match="race in threadgroup memory: .*'shared'"):
        kernel(**call)
    # With the missing fences it is right, and silent.
    fence = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    source = kernel.source.replace("mem_none", "mem_threadgroup")
    source = source.replace("// Share the sum_exp", f"{fence} // Share the sum_exp")
    kernel = metal_kernel("kl_fixed", ["logits_q", "logits_p"], ["out"], source)
    with mode("check"):
        (out,) = kernel(**call)
    log_q, log_p = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (q, p))
    assert mx.allclose(out, (mx.exp(log_p) * (log_p - log_q)).sum(axis=-1), rtol=1e-4)
