"""The cases of `python -m mlx_flash.simulator conformance`, as parameters of tests."""

from collections import Counter

import pytest
from metal_conformance import cases

# Of these the default run takes the first alone.
_FIRST = ("gathered gemm", "segmented gemm", "masked gemm", "convolution", "fft", "arg_reduce", "random")
# Products of types, kernels and options, of which the default run takes two of seven: each value is among them, as
# nothing in them repeats every seven. Of the other families it takes every third case.
_PRODUCTS = ("steel attention", "reduce", "quantized", "scan")
# Families that multiply with tensor operations begin so; the default run takes the first case of these.
_TENSORS, _FEW_TENSORS = "tensor ", ("tensor attention", "tensor gemm", "tensor thin gemm", "tensor fp quantized")


def slow(case, place: int) -> bool:
    """Does a case wait for `pytest -m ""`? place: among the cases of its family."""
    if case.family.startswith(_TENSORS):
        return place > 0 or case.family not in _FEW_TENSORS
    if case.family in _PRODUCTS:
        return place % 7 not in (0, 3)
    return place > 0 if case.family in (*_FIRST, "rms_norm vjp", "layer_norm vjp") else place % 3 > 0


def parameters(chosen: list) -> list:
    """Cases as parameters, some of them slow."""
    places, found = Counter(), []
    for case in chosen:
        found.append(pytest.param(case, marks=pytest.mark.slow if slow(case, places[case.family]) else ()))
        places[case.family] += 1
    return found


def only(wanted) -> list:
    """The cases for which `wanted` is true."""
    return [case for case in cases() if wanted(case)]
