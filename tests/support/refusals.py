"""Calls and command lines with one bad argument, and the error message that they produce."""

import mlx.core as mx
import numpy as np

from mlx_flash import UnsupportedProblem, attention
from mlx_flash.cli import main as cli

SENSELESS = [
    None, -1, 0, 1.5, float("nan"), float("inf"), "x", b"x", [], {}, [[1], [1, 2]], (None, None), object(), True,
    10**30, 1 + 2j, np.array([1, 2]), np.array(["a"]), np.array(None), np.zeros((2, 2)), mx.array(1.5),
    mx.zeros((0,)), mx.zeros((2,)), mx.zeros((1, 1, 1, 1, 1)), mx.array([1 + 2j]), mx.zeros((9, 9), mx.bool_),
]  # fmt: skip


def zeros(*shape, dtype=mx.float32):
    return mx.zeros(shape, dtype)


GOOD = {"q": (2, 4, 5, 16), "k": (2, 2, 6, 16), "v": (2, 2, 6, 24)}


def call(**replaced):
    """Calls attention with good arguments, except those replaced."""
    arguments = {name: zeros(*shape) for name, shape in GOOD.items()} | replaced
    return attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def status_of(arguments: list[str]) -> int:
    """The exit status of `python -m mlx_flash ARGUMENTS`, run in this process."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:  # raised by argparse
        return stop.code


def refused(capsys, arguments: list[str]) -> str:
    """The single sentence printed for a bad command line."""
    assert status_of(arguments) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("python -m mlx_flash"), said.err
    return lines[0]


def taken_or_refused(function, right: dict) -> None:
    """Calls the function with the right arguments, and with every senseless value in the place of each: it takes the
    value, or refuses it in one sentence of this package."""
    function(**right)
    for argument in right:
        for value in SENSELESS:
            try:
                function(**right | {argument: value})
            except (ValueError, UnsupportedProblem) as error:
                assert str(error).startswith("[mlx_flash"), f"{argument}={value!r}: {error}"


def refused_call(function, words: list[str], error=ValueError) -> None:
    """Checks that the call raises an error of one sentence that contains these words."""
    try:
        function()
    except error as caught:
        message = str(caught)
    else:
        raise AssertionError(f"nothing was raised: {words}")
    missing = [word for word in words if word not in message]
    assert not missing and "\n" not in message, (missing, message)
