"""The cases of `python tests/support/metal_conformance`, as parameters of tests."""

from collections import Counter

import pytest
from metal_conformance import cases

# The default run takes only the first case of each of these families.
_FIRST = ("gathered gemm", "segmented gemm", "masked gemm", "convolution", "fft", "arg_reduce", "random")
# Families that are products of types, kernels and options. The default run takes two cases of seven: all values occur,
# because nothing in these lists repeats every seven cases. Of other families it takes every third case.
_PRODUCTS = ("steel attention", "reduce", "quantized", "scan")
# Families that multiply with tensor operations start with this; the default run takes the first case of some.
_TENSORS, _FEW_TENSORS = "tensor ", ("tensor attention", "tensor gemm", "tensor thin gemm", "tensor fp quantized")


def slow(case, place: int) -> bool:
    """Whether a case runs only with `pytest -m ""`. place: its number within its family."""
    if case.family.startswith(_TENSORS):
        return place > 0 or case.family not in _FEW_TENSORS
    if case.family in _PRODUCTS:
        return place % 7 not in (0, 3)
    return place > 0 if case.family in (*_FIRST, "rms_norm vjp", "layer_norm vjp") else place % 3 > 0


def parameters(chosen: list) -> list:
    """The cases as parameters; some are marked slow."""
    places, found = Counter(), []
    for case in chosen:
        found.append(pytest.param(case, marks=pytest.mark.slow if slow(case, places[case.family]) else ()))
        places[case.family] += 1
    return found


def only(wanted) -> list:
    """The cases for which `wanted` is true."""
    return [case for case in cases() if wanted(case)]
