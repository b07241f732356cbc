"""The cases of `python -m mlx_flash.simulator conformance`, as parameters of tests."""

from mlx_flash.simulator.conformance import cases


def only(wanted) -> list:
    """The cases for which `wanted` is true."""
    return [case for case in cases() if wanted(case)]
