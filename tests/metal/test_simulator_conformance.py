"""Kernels nobody here wrote: MLX's own, from the headers in its macOS wheel, agree with float64 numpy on the simulator.

Where the wheel cannot be fetched these tests are skipped and say why. $MLX_SOURCE, a checkout of MLX, adds the kernels
that the wheel carries compiled only. The steel attention kernels are in test_simulator_conformance_steel.py.
"""

import mlx.core as mx
import numpy as np
import pytest
from conformance import only, parameters
from metal_conformance import matmul, norms, tensor_attention
from metal_conformance.case import Mismatch, agree
from metal_conformance.suite import REPORTED, expected_report, outcome
from metal_conformance.sweep import compile_file, compile_header, headers, kernel_files, sweep

from mlx_flash.simulator import CompileError, MetalLibrary, SimulatorError, mode, tensor_unit

pytestmark = pytest.mark.usefixtures("metal_headers")


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 8))])
def test_every_header_compiles(metal_headers, part):
    """Each header compiles by itself; most are also part of others."""
    every = sorted(headers())
    assert len(every) >= 95 and sum("nax" in str(name) for name in every) >= 14
    assert not {name: why for name, why in sweep(every[part::8], compile_header).items() if why}


def test_every_kernel_file_of_a_checkout_compiles(metal_headers):
    if not kernel_files():
        pytest.skip("no checkout of MLX: $MLX_SOURCE is not set")
    assert not {name: why for name, why in sweep(kernel_files(), compile_file).items() if why}


@pytest.mark.parametrize("case", parameters(only(lambda case: case.family != "steel attention")), ids=str)
def test_kernel_computes_what_numpy_computes(case):
    assert not outcome(case, checked=False)


def one_of_each() -> list:
    """The first case of every family, and everything that is expected to be reported once."""
    found = {}
    for case in only(lambda case: True):
        report = next((start for start in REPORTED if str(case).startswith(start)), "")
        found.setdefault((case.family, report), case)
    return list(found.values())


def in_turns() -> list:
    """Every second family of which nothing is reported runs in `pytest -m ""` only."""
    found = parameters(one_of_each())
    waits = [place % 2 and not str(one.values[0]).startswith(tuple(REPORTED)) for place, one in enumerate(found)]
    return [pytest.param(*one.values, marks=pytest.mark.slow) if wait else one for one, wait in zip(found, waits)]


@pytest.mark.parametrize("case", in_turns(), ids=str)
def test_checked_run_reports_what_is_there_and_nothing_else(case):
    assert not outcome(case, checked=True), expected_report(case)


def test_a_wrong_result_is_a_mismatch():
    """The comparison can fail: by a value, by a NaN and by a shape."""
    right = np.ones((2, 2))
    agree(mx.array(right), right, 0)
    for wrong in (mx.array([[1, 1], [1, 1.1]]), mx.array([[1, 1], [float("nan"), 1]]), mx.ones((4,))):
        with pytest.raises(Mismatch):
            agree(wrong, right, 1e-3)


def test_attention_that_relies_on_the_layout_of_m5(metal_headers):
    """MLX's kernel never asks where its elements are: under another layout its numbers are wrong."""
    with mode("fast"), tensor_unit("opaque"), pytest.raises(Mismatch):
        tensor_attention.run(64, mx.float16, "no")


def test_a_wrong_parameter_is_a_mismatch(metal_headers, monkeypatch):
    """One row too few in a structure that only the kernel reads: a GEMM that passes for other reasons misses it."""
    correct = matmul.structure
    monkeypatch.setattr(
        matmul, "structure", lambda fields, **values: correct(fields, **{**values, "K": values["K"] - 1})
    )
    with mode("fast"), pytest.raises(Mismatch):
        matmul.run_gemm(mx.float32, "nn")


def test_an_error_names_the_file(metal_headers):
    text = '#include "mlx/backend/metal/kernels/utils.h"\n'
    text += "kernel void f(device float* x [[buffer(0)]]) { x[0] = ceildiv(3); }\n"
    with pytest.raises(CompileError, match="line 2"):
        MetalLibrary(text, [metal_headers]).check()
    with pytest.raises(CompileError, match="'mlx/missing.h' file not found"):
        MetalLibrary('#include "mlx/missing.h"\n', [metal_headers])


def test_layer_norm_writes_before_its_array():
    """A row that leaves whole threads of MLX's layer_norm_single_row without elements: a negative `n` is an index."""
    if not kernel_files():
        pytest.skip("no checkout of MLX: $MLX_SOURCE is not set")
    with (
        mode("check"),
        pytest.raises(SimulatorError, match="index -[0-9]+ is outside an array or a vector"),
    ):
        norms.run_layer_norm(mx.float32, False, 333)
