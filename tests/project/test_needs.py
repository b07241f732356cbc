"""The needs of tests are found by rule, and a test that hides a need fails."""

import subprocess
from types import SimpleNamespace

import mlx.core as mx
import needs
import pytest
from machines import KERNELS

from mlx_flash.simulator import metal_kernel


def item(*markers: str, parameters=None, fixtures=()):
    """A collected test as far as needs.py looks at it."""
    callspec = {"callspec": SimpleNamespace(params=parameters)} if parameters else {}
    marks = [SimpleNamespace(name=name) for name in markers]
    return SimpleNamespace(nodeid="test", iter_markers=lambda: marks, fixturenames=fixtures, **callspec)


def test_markers_parameters_and_fixtures_tell_the_needs():
    assert needs.of(item()) == needs.of(item("slow", parameters={"backend": ("reference", None)})) == set()
    assert needs.of(item("simulator", "slow")) == {"simulator"}
    assert needs.of(item("kernels")) == {KERNELS[0][0]}
    assert {need for choice in KERNELS for need in needs.of(item(parameters={"choice": choice}))} == {
        name for name, _ in KERNELS
    }
    assert needs.of(item(parameters={"family": "apple7", "step": 3}, fixtures=("metal_headers",))) == {"network"}


def run_a_kernel():
    kernel = metal_kernel(name="one", input_names=["x"], output_names=["y"], source="y[0] = x[0] + 1;")
    kernel(
        inputs=[mx.zeros(1)], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32]
    )


@pytest.mark.simulator
@pytest.mark.skipif(bool(needs.METAL or needs.CUDA), reason="calls that choose no backend run kernels here")
def test_a_hidden_need_fails():
    run_a_kernel()
    with (
        needs.enforced(item("process")),
        pytest.raises(AssertionError, match="a kernel: it needs the marker simulator"),
    ):
        run_a_kernel()
    with needs.enforced(item()), pytest.raises(AssertionError, match="starts a process: it needs the marker process"):
        subprocess.run(["true"])


def test_skips_are_counted_by_need():
    reasons = ["Skipped: " + needs.unmet("network", "no answer")] * 2 + [
        "Skipped: " + needs.unmet("metal", "none"),
        "x",
    ]
    assert needs.skipped(reasons) == {"network": 2, "metal": 1}
