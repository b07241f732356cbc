"""MLX's own test of its function, python/tests/test_fast_sdpa.py, with ours in its place.

The file is MLX's: it is fetched from its repository at the installed version's tag and kept in the user's cache, or
read from the folder that MLX_FLASH_MLX_TESTS names (python/tests of a checkout). Without either they are skipped.
"""

import importlib
import os
import sys
import unittest
import urllib.request
from pathlib import Path

import mlx.core as mx
import needs
import pytest
from machines import CUDA, METAL, SIMULATED, label

import mlx_flash
from mlx_flash import use_backend
from mlx_flash.integrations import serve as serving
from mlx_flash.metal.cpu.compiler import cache_directory

ADDRESS = "https://raw.githubusercontent.com/ml-explore/mlx/v{version}/python/tests/{name}"
FILES = ("test_fast_sdpa.py", "mlx_tests.py")
LONG = ("attention_sinks", "grad", "sliced", "vector_gqa_long")  # a minute each on the simulator


def folder() -> Path:
    named = os.environ.get("MLX_FLASH_MLX_TESTS")
    if named:
        return Path(named)
    version = mx.__version__.split("+")[0]
    kept = cache_directory().parent / f"mlx-tests-{version}"
    for name in FILES:
        if not (kept / name).exists():
            try:
                with urllib.request.urlopen(ADDRESS.format(version=version, name=name), timeout=10) as answer:
                    text = answer.read()
            except OSError as error:
                pytest.skip(needs.unmet("network", f"MLX's {name} cannot be fetched: {error}"))
            kept.mkdir(parents=True, exist_ok=True)
            (kept / name).write_bytes(text)
    return kept


@pytest.fixture(scope="module")
def upstream():
    """The module, with what it changes in the environment undone afterwards."""
    place, before = str(folder()), dict(os.environ)
    sys.path.insert(0, place)
    try:
        yield importlib.import_module("test_fast_sdpa")
    finally:
        sys.path.remove(place)
        os.environ.clear()
        os.environ.update(before)


def run(module, short: bool) -> unittest.TestResult:
    suite = unittest.TestSuite(
        test
        for group in unittest.defaultTestLoader.loadTestsFromModule(module)
        for test in group
        if not (short and test.id().endswith(LONG))
    )
    result = unittest.TestResult()
    suite.run(result)
    return result


def passes(module, choice, short: bool):
    with use_backend(*choice), mlx_flash.patch() as report:
        result = run(module, short)
    assert result.wasSuccessful(), "\n".join(text for _, text in result.failures + result.errors)
    # Those it sends back are wrong on purpose, or ask for MLX's own kernel.
    assert report.ours > 50 and all("expected" in why or "force_fused" in why for why in report.built_in), str(report)


@pytest.mark.parametrize("choice", [*SIMULATED[1:], *METAL, *CUDA], ids=label)
def test_short_ones_on_kernels(upstream, choice):
    passes(upstream, choice, short=True)


@pytest.mark.slow
@pytest.mark.parametrize("choice", [*SIMULATED[1:], *METAL, *CUDA, ("reference", None)], ids=label)
def test_all(upstream, choice):
    passes(upstream, choice, short=False)


def test_they_notice_a_wrong_function(upstream, reference, monkeypatch):
    right = serving.attention
    monkeypatch.setattr(serving, "attention", lambda *qkv, **options: right(*qkv, **options) * 1.05)
    with mlx_flash.patch():
        assert len(run(upstream, short=True).failures) > 3
