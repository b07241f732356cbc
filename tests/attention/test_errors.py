"""Every wrong argument is refused by a message that names it, what was expected, what came, and what to do."""

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from refusals import GOOD, call, zeros

import mlx_flash
from mlx_flash import UnsupportedProblem, backends, use_backend
from mlx_flash.kernels.devices import FAMILIES, family_of

# name: (arguments that replace good ones, the argument blamed, what was expected, what came, what to do)
WRONG = {
    "q-no-array": ({"q": np.zeros(GOOD["q"])}, "q", "an mlx.core.array", "ndarray", "mx.array"),
    "v-no-array": ({"v": None}, "v", "an mlx.core.array", "NoneType", "mx.array"),
    "q-rank-3": ({"q": zeros(4, 5, 16)}, "q", "4 axes [batch, heads, length, dimension]", "(4, 5, 16)", "Reshape"),
    "k-rank-5": ({"k": zeros(1, 2, 2, 6, 16)}, "k", "4 axes", "(1, 2, 2, 6, 16)", "Reshape"),
    "v-rank-0": ({"v": mx.array(1.0)}, "v", "4 axes", "()", "Reshape"),
    "k-batch": ({"k": zeros(3, 2, 6, 16)}, "k", "batch 2 as in q", "batch 3", "Match axis 0"),
    "k-dimension": ({"k": zeros(2, 2, 6, 8)}, "k", "head dimension 16 as in q", "8", "Match the last axis"),
    "v-batch": ({"v": zeros(1, 2, 6, 24)}, "v", "batch, heads and length (2, 2, 6)", "(1, 2, 6)", "first three axes"),
    "v-heads": ({"v": zeros(2, 4, 6, 24)}, "v", "batch, heads and length (2, 2, 6)", "(2, 4, 6)", "first three axes"),
    "v-length": ({"v": zeros(2, 2, 7, 24)}, "v", "batch, heads and length (2, 2, 6)", "(2, 2, 7)", "first three axes"),
    "q-heads": ({"q": zeros(2, 3, 5, 16)}, "q", "a multiple of k's 2", "3", "Repeat or drop heads"),
    "q-fewer-heads": ({"q": zeros(2, 1, 5, 16)}, "q", "a multiple of k's 2", "1", "Repeat or drop heads"),
    "no-key-heads": (
        {"k": zeros(2, 0, 6, 16), "v": zeros(2, 0, 6, 24)}, "q", "a multiple of k's 0", "4", "Repeat or drop heads",
    ),
    "empty-q-dimension": (
        {"q": zeros(2, 4, 5, 0), "k": zeros(2, 2, 6, 0)}, "q", "a head dimension of at least 1", "(2, 4, 5, 0)", "Drop",
    ),
    "empty-v-dimension": ({"v": zeros(2, 2, 6, 0)}, "v", "a head dimension of at least 1", "(2, 2, 6, 0)", "Drop"),
    "q-integers": (
        {"q": zeros(*GOOD["q"], dtype=mx.int32)}, "q", "float32, float16 or bfloat16", "int32", "Cast",
    ),
    "q-float64": ({"q": mx.zeros(GOOD["q"], mx.float64)}, "q", "float32, float16 or bfloat16", "float64", "Cast"),
    "k-complex": (
        {"k": zeros(*GOOD["k"], dtype=mx.complex64)}, "k", "float32, float16 or bfloat16", "complex64", "Cast",
    ),
    "k-mixed": ({"k": zeros(*GOOD["k"], dtype=mx.float16)}, "k", "q's dtype", "float16", "one dtype"),
    "v-mixed": ({"v": zeros(*GOOD["v"], dtype=mx.bfloat16)}, "v", "q's dtype", "bfloat16", "one dtype"),
    "scale-nan": ({"scale": float("nan")}, "scale", "a finite number or None", "nan", "Pass a float"),
    "scale-inf": ({"scale": -float("inf")}, "scale", "a finite number or None", "-inf", "Pass a float"),
    "scale-huge": ({"scale": 10**400}, "scale", "a finite number or None", "1000", "Pass a float"),
    "scale-word": ({"scale": "half"}, "scale", "a finite number or None", "'half'", "Pass a float"),
    "scale-list": ({"scale": [1.0]}, "scale", "a finite number or None", "[1.0]", "Pass a float"),
    "mask-word": ({"mask": "casual"}, "mask", 'None, "causal", an array or a BlockMask', "'casual'", "spelling"),
    "causal-word": ({"causal": "yes"}, "causal", "True or False", "'yes'", "Pass a bool"),
    "causal-number": ({"causal": 1}, "causal", "True or False", "1", "Pass a bool"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument(name):
    replaced, argument, expected, got, remedy = WRONG[name]
    pattern = r"\[mlx_flash\.attention\] {}: expected .*{}.*, got .*{}.*\. .*{}".format(
        *map(re.escape, (argument, expected, got, remedy))
    )
    with pytest.raises(ValueError, match=pattern) as raised:
        call(**replaced)
    assert not isinstance(raised.value, UnsupportedProblem)


def test_numbers_that_are_scales():
    """Every finite number that float() accepts is a scale."""
    for scale in (1, np.float32(1), mx.array(1.0), Fraction(1, 1), True):
        assert call(scale=scale).shape == (2, 4, 5, 24)


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"expected one of metal, cuda, simulator, reference, got 'rocm'\. Check"):
        use_backend("rocm")


def test_unknown_family():
    with pytest.raises(ValueError, match=r"family: expected one of apple7, .*apple10, sm80, sm90, got 'm4'\. "):
        use_backend("simulator", "m4")


def test_unknown_names_in_the_environment(monkeypatch):
    monkeypatch.setenv("MLX_FLASH_BACKEND", "metla")
    with pytest.raises(ValueError, match="backend: expected one of .* got 'metla'"):
        call()
    monkeypatch.setenv("MLX_FLASH_BACKEND", "simulator")
    monkeypatch.setenv("MLX_FLASH_FAMILY", "m1")
    with pytest.raises(ValueError, match="family: expected one of .* got 'm1'"):
        call()


def test_metal_without_a_metal_gpu(monkeypatch):
    monkeypatch.setattr(backends.mx.metal, "is_available", lambda: False)
    backends.forget()
    with pytest.raises(UnsupportedProblem, match='backend "metal": this machine has no Metal GPU. Use "simulator"'):
        use_backend("metal")


NO_COMPILER = """
import sys
sys.modules["ziglang"] = None
import mlx.core as mx, mlx_flash
try:
    with mlx_flash.use_backend("simulator"):
        one = mx.ones((1, 1, 1, 8))
        mlx_flash.attention(one, one, one)
except mlx_flash.UnsupportedProblem as error:
    print(error)
"""


@pytest.mark.process
def test_simulator_without_a_compiler(tmp_path):
    """The test runs in a process of its own without ziglang, without clang on the path, and with an empty cache."""
    root = Path(mlx_flash.__file__).parent.parent
    environment = {"PATH": "", "MLX_FLASH_CACHE": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", NO_COMPILER], capture_output=True, text=True, env=environment)
    assert re.search(r'simulator.* needs .*clang.*pip install "mlx-flash-attention\[simulator\]"', done.stdout), done


def test_backend_choice_is_scoped():
    with use_backend("reference") as outer:
        with use_backend("simulator", "apple7") as inner:
            assert (inner.name, inner.family.name) == ("simulator", "apple7")
        assert backend_now() is outer


def backend_now():
    return backends.current_backend()


def test_families_of_architectures():
    """Architectures have MLX's names; an unknown newer GPU counts as the newest."""
    named = {
        "applegpu_g13s": "apple7", "applegpu_g14p": "apple8", "applegpu_g15d": "apple9", "applegpu_g16s": "apple9",
        "applegpu_g17g": "apple10", "applegpu_g23x": "apple10", "": "apple7",
        "air64_v27": "apple7",  # of a virtual Mac
    }  # fmt: skip
    for architecture, name in named.items():
        assert family_of(architecture) is FAMILIES[name]
