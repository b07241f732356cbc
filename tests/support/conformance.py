"""The cases of `python -m mlx_flash.simulator conformance`, as parameters of tests."""

import pytest
from metal_conformance import cases

# Of these the default run takes the first alone.
_FIRST = ("gathered gemm", "segmented gemm", "masked gemm", "convolution", "fft", "arg_reduce", "random")


def parameters(chosen: list) -> list:
    """Cases as parameters; of some families the first alone is not slow."""
    seen, found = set(), []
    for case in chosen:
        slow = case.family in seen and case.family in (*_FIRST, "rms_norm vjp", "layer_norm vjp")
        found.append(pytest.param(case, marks=pytest.mark.slow if slow else ()))
        seen.add(case.family)
    return found


def only(wanted) -> list:
    """The cases for which `wanted` is true."""
    return [case for case in cases() if wanted(case)]
