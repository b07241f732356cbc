"""Memory is linear in the length: no launch allocates anything of size Lq x Lk, and the reference holds none either."""

import bounds
import mlx.core as mx
import numpy as np
import pytest
from bounds import slope
from problems import launch_of, make_problem

from mlx_flash import attention, explain, use_backend
from mlx_flash.backends.reference import kernels
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.problem.kinds import BACKWARD_MASK, TRAINING
from mlx_flash.problem.problem import Problem
from mlx_flash.simulator import mode

KINDS = [step for step in TRAINING if step is not BACKWARD_MASK]  # its output is the mask's size, by definition

SMALL = 64  # bytes of scalars


def problem(length: int, dtype="float16", head_dim=64, key_length=None) -> Problem:
    return make_problem(2, 4, 2, length, key_length or length, head_dim, head_dim, dtype, causal=True)


def allocated(length: int, family: str, dtype: str, head_dim: int) -> int:
    return sum(launch_of(step, problem(length, dtype, head_dim), FAMILIES[family]).output_bytes for step in KINDS)


@pytest.mark.parametrize("head_dim", [64, 512])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("family", ["apple7", "apple9"])
def test_launches_allocate_linearly(family, dtype, head_dim):
    lengths = [1024, 4096, 16384, 65536]
    sizes = [allocated(length, family, dtype, head_dim) for length in lengths]
    assert abs(slope(lengths, sizes) - 1) <= bounds.SLOPE


@pytest.mark.parametrize("step", KINDS, ids=str)
def test_no_output_has_both_lengths(step):
    """Lengths that are primes: no output may hold a multiple of both."""
    launch = launch_of(step, problem(1009, key_length=2003), FAMILIES["apple9"])
    for shape in launch.output_shapes:
        assert not {1009, 2003} <= set(shape)
        assert np.prod(shape) % (1009 * 2003) != 0


def test_output_bytes_by_hand():
    """O, L (two numbers a row), delta, dQ, dK, dV. At 32 columns dK and dV are paged, in float32, and O and dQ are not;
    beyond the table everything is."""
    length, query, key = 128, 2 * 4 * 128, 2 * 2 * 128
    statistics = 3 * 4 * query
    assert allocated(length, "apple9", "float16", 32) == statistics + 32 * (2 * 2 * query + 4 * 2 * key)
    assert allocated(length, "apple9", "float16", 512) == statistics + 4 * 512 * (2 * query + 2 * key)


def peak(length: int, dtype=mx.float32) -> int:
    """Peak bytes of a forward and backward pass beyond its operands, by MLX's counters."""
    q, k, v, d_o = (mx.random.normal((1, 1, length, 8)).astype(dtype) for _ in range(4))
    mx.eval(q, k, v, d_o)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.vjp(lambda *x: attention(*x, causal=True), [q, k, v], [d_o]))
    return mx.get_peak_memory() - before


@pytest.mark.simulator
@pytest.mark.parametrize("length", [1024, pytest.param(8192, marks=pytest.mark.slow)])
def test_mlx_counts_what_launches_allocate(length):
    told = explain(head_dim=8, heads=1, length=length, dtype="float16", family="apple7", backend="simulator")
    with use_backend("simulator", "apple7"), mode("fast"):
        found = peak(length, mx.float16)
    assert 0 <= found - sum(kernel.output_bytes for kernel in told.kernels) <= SMALL


@pytest.mark.long
def test_reference_peak_is_linear(reference, monkeypatch):
    """Forward and backward, in small blocks so that the constant is small: MLX must not hold many blocks at once."""
    monkeypatch.setattr(kernels, "BLOCK", 128)
    lengths = [1024, 2048, 4096]
    peaks = [peak(length) for length in lengths]
    assert slope(lengths, peaks) <= bounds.PEAK_SLOPE, f"peaks {peaks}"
    assert peaks[-1] < 4 * lengths[-1] ** 2 / 8, "an eighth of the scores of one head"


def test_the_slope_can_fail():
    lengths = [1024, 4096]
    assert abs(slope(lengths, [length**2 for length in lengths]) - 1) > bounds.SLOPE
