"""bench/scaling.py: the committed numbers are what it finds, its count of tiles is what a kernel does."""

import importlib.util
import json
from pathlib import Path

import bounds
import mlx.core as mx
import pytest

from mlx_flash import attention, use_backend
from mlx_flash.simulator import mode, profile

BENCH = Path(__file__).parents[2] / "bench"
MEASURED = json.loads((BENCH / "results" / "cuda_memory.json").read_text(encoding="utf-8"))
KEPT = json.loads((BENCH / "results" / "scaling.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("bench_scaling", BENCH / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("length", (1024, 65536))
def test_the_kept_numbers_are_found_again(scaling, length):
    assert KEPT["memory"][str(length)] == scaling.memory(length)
    assert KEPT["work"][str(length)] == scaling.work(length)


@pytest.mark.simulator
@pytest.mark.parametrize("window", (None, 40))
def test_tiles_are_those_that_a_kernel_multiplies(scaling, window):
    x = mx.zeros((1, 1, 256, scaling.D), mx.float16)
    options = {"causal": True} | ({"window": (window - 1, None)} if window else {})
    with use_backend("simulator", scaling.FAMILY), mode("fast"), profile() as profiled:
        mx.eval(attention(x, x, x, **options))
    products = profiled.matmuls // (2 * scaling.D // 8)
    assert products == scaling.tiles(256, window - 1 if window else 256, 0)


def test_a_gpu_measured_what_is_planned(scaling):
    """From 1k to 64k, by MLX's counters on an H200; and the kept plan is the present one."""
    lengths = sorted(map(int, MEASURED["memory"]))
    assert (lengths[0], lengths[-1]) == (1024, 65536)
    for name in ("forward", "forward and backward"):
        sizes = [MEASURED["memory"][str(length)][f"mlx_flash, {name}"] for length in lengths]
        assert sizes == [MEASURED["memory"][str(length)][f"planned {name}"] for length in lengths]
        assert abs(bounds.slope(lengths, sizes) - 1) <= bounds.SLOPE
    for length in (1024, 65536):
        told = scaling.planned(length, MEASURED["family"], "cuda")
        assert {name: MEASURED["memory"][str(length)][name] for name in told} == told


@pytest.mark.simulator
def test_memory_is_measured_with_the_counters(scaling, monkeypatch):
    monkeypatch.setattr(scaling, "HEADS", 1)
    with use_backend("simulator", scaling.FAMILY), mode("fast"):
        found = scaling.measured_memory(64)
    assert 0 <= found["mlx_flash, forward"] - found["planned forward"] <= 64
    assert found["built-in, forward"] > 0 and found["mlx_flash, forward and backward"] > found["mlx_flash, forward"]


def test_what_the_picture_says():
    """Memory grows with the length, causal work is half of the dense, and the kernels' errors do not grow with S."""
    lengths = sorted(map(int, KEPT["memory"]))
    for name in ("forward", "forward and backward"):
        assert abs(bounds.slope(lengths, [KEPT["memory"][str(n)][name] for n in lengths]) - 1) <= bounds.SLOPE
    assert KEPT["work"]["8192"]["causal"] <= 0.52 * KEPT["work"]["8192"]["dense"]
    for found in KEPT["error"].values():
        assert found["mlx_flash: O"] < found["unfused, float16: O"]
        assert found["mlx_flash: gradients"] < found["unfused, float16: gradients"]
