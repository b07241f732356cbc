"""MLX's steel attention, from its macOS wheel: every head dimension, dtype and mask, against float64 numpy."""

import itertools

import mlx.core as mx
import pytest
from conformance import only
from metal_conformance import attention
from metal_conformance.case import FLOATS
from metal_conformance.suite import outcome

from mlx_flash.simulator import SimulatorError, mode

pytestmark = pytest.mark.usefixtures("metal_headers")


def cases() -> list:
    """A third of the product is not slow: every two of a head dimension, a dtype and a mask meet in it."""
    places = itertools.product(range(len(attention.HEAD_DIMS)), range(len(FLOATS)), range(len(attention.MASKS)))
    return [
        pytest.param(case, marks=pytest.mark.slow if sum(place) % len(FLOATS) else ())
        for case, place in zip(only(lambda case: case.family == "steel attention"), places, strict=True)
    ]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_steel_attention(case):
    assert not outcome(case, checked=False)


def test_there_is_a_case_for_each():
    assert len(only(lambda case: case.family == "steel attention")) == 7 * 3 * 4


def test_an_instance_of_mlx_that_no_gpu_can_run():
    """D192 in float32 with MLX's block sizes needs more threadgroup memory than there is."""
    with mode("check"), pytest.raises(SimulatorError, match="40448 bytes of threadgroup memory"):
        attention.run_steel(192, mx.float32, "no", (32, 16, 4, 1))
