"""The cases of `python -m mlx_flash.simulator conformance`, as parameters of tests."""

import pytest
from metal_conformance import cases

# Of these the default run takes the first alone.
_FIRST = ("gathered gemm", "segmented gemm", "masked gemm", "convolution", "fft", "arg_reduce", "random")
# Families that multiply with tensor operations begin so; the default run takes the first case of these.
_TENSORS, _FEW_TENSORS = "tensor ", ("tensor attention", "tensor gemm", "tensor thin gemm", "tensor fp quantized")


def slow(case, first: bool) -> bool:
    """Does a case wait for `pytest -m ""`? first: of its family."""
    if case.family.startswith(_TENSORS):
        return not first or case.family not in _FEW_TENSORS
    return not first and case.family in (*_FIRST, "rms_norm vjp", "layer_norm vjp")


def parameters(chosen: list) -> list:
    """Cases as parameters; of some families the first alone is not slow."""
    seen, found = set(), []
    for case in chosen:
        found.append(pytest.param(case, marks=pytest.mark.slow if slow(case, case.family not in seen) else ()))
        seen.add(case.family)
    return found


def only(wanted) -> list:
    """The cases for which `wanted` is true."""
    return [case for case in cases() if wanted(case)]
