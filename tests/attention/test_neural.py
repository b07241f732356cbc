"""Which Macs use the kernels for neural accelerators, by GPU, macOS and a probe; all others get 8x8 matrices and a
reason.

The machine is the pretended Mac.
"""

import re
import warnings

import mlx.core as mx
import numpy as np
import pretend_mac
import pytest
from cases import Case, expected
from pretend_mac.kernel import FAULT

import mlx_flash
from mlx_flash import attention, explain
from mlx_flash.backends import current_backend
from mlx_flash.backends.neural import reason_against
from mlx_flash.common.errors import UnsupportedProblem
from mlx_flash.kernels import neural_probe

M5 = "applegpu_g17s"

MACHINES = {
    (M5, "26.2"): "",
    ("applegpu_g17g", "26.2.1"): "",
    ("applegpu_g18p", "26.4"): "",
    ("applegpu_g18g", "27.0"): "",
    ("applegpu_g17p", "26.2"): "applegpu_g17p has no neural accelerators",
    ("applegpu_g16s", "26.2"): "applegpu_g16s has no neural accelerators",
    ("", "26.2"): "this GPU has no neural accelerators",
    (M5, "26.1"): "need macOS 26.2, and this is 26.1",
    (M5, "15.5"): "need macOS 26.2, and this is 15.5",
    (M5, "26"): "need macOS 26.2, and this is 26",
    (M5, ""): "need macOS 26.2, and this system says ''",
    (M5, "Tahoe"): "need macOS 26.2, and this system says 'Tahoe'",
}


@pytest.mark.parametrize("architecture, macos", MACHINES)
def test_which_machines_are_tried(architecture, macos):
    reason = reason_against(architecture, macos)
    assert bool(reason) == bool(MACHINES[architecture, macos]) and MACHINES[architecture, macos] in reason


@pytest.fixture
def machine(mac, monkeypatch):
    """A function that makes the pretended Mac one with that GPU and macOS."""

    def become(architecture: str = M5, macos: str = "26.2", **environment):
        facts = mx.device_info
        monkeypatch.setattr(mx, "device_info", lambda device=None: {**facts(device), "architecture": architecture})
        monkeypatch.setenv(pretend_mac.VARIABLE, architecture)
        monkeypatch.setenv(pretend_mac.MACOS, macos)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        pretend_mac.forget()

    return become


CASE = Case(40, 45, 16, "float16")


def served(reason: str = "") -> None:
    """Attention is right, by the kernels that it should have, and explain says why."""
    arrays = CASE.arrays()
    q, k, v = (arrays[name] for name in "qkv")
    with warnings.catch_warnings(action="error"):
        out = attention(q, k, v, scale=CASE.scale)
    expected(CASE, arrays).check(O=out)
    told = explain(q, k, v)
    assert told.kernels[0].tiles == ("simdgroup" if reason else "nax")
    assert reason in told.why and ("8x8 matrices, since" in told.why) == bool(reason), told.why


@pytest.mark.simulator
def test_an_m5_gets_them(machine):
    machine()
    assert current_backend().family.tensor == "nax"
    served()


@pytest.mark.simulator
@pytest.mark.parametrize("architecture, macos", (("applegpu_g17p", "26.2"), (M5, "26.1"), (M5, "Tahoe")))
def test_others_get_8x8_matrices_and_a_reason(machine, architecture, macos):
    machine(architecture, macos)
    served(MACHINES[architecture, macos])


@pytest.mark.simulator
def test_a_unit_that_holds_its_operands_otherwise(machine):
    """The same kernels would be wrong on such a unit, as MLX's own are: test_simulator_conformance.py."""
    machine(MLX_FLASH_TENSOR_LAYOUT="opaque")
    served("its matrix unit keeps element 1 of lane 0 of a left factor at column and row 2, 0, not 1, 0")


@pytest.mark.simulator
@pytest.mark.parametrize(
    "fault, reason",
    (
        ("refuse", "RuntimeError: .*Unable to build metal library"),
        ("crash", "the process that ran it ended"),
        ("wrong", "its matrix unit"),
    ),
)
def test_a_probe_that_fails(machine, fault, reason):
    machine(**{FAULT: f"{fault}:neural_probe"})
    with warnings.catch_warnings(action="error"):
        note = current_backend().note
    assert mlx_flash.backends.current_backend().family.tensor == ""
    assert re.search(reason, note), note
    served(note)


@pytest.mark.simulator
def test_the_answer_of_a_probe_is_kept(machine, mac, monkeypatch):
    """Another process asks no more, until MLX, macOS or the probe's text is another."""
    machine()
    assert current_backend().family.tensor == "nax" and len(list(mac.glob("*.json"))) == 1
    monkeypatch.setenv(FAULT, "refuse:neural_probe")
    pretend_mac.forget()
    assert current_backend().family.tensor == "nax"
    machine(macos="26.3")
    assert current_backend().family.tensor == ""


def test_without_probes_nothing_is_trusted(machine):
    machine(MLX_FLASH_PROBE="0")
    assert current_backend().family.tensor == ""
    assert current_backend().note == "it was not tried, as MLX_FLASH_PROBE=0 says"


def test_exports_assume_no_unit():
    """An exported function may run on machines that nobody has probed."""
    if mx.metal.is_available():
        pytest.skip("this machine has a Metal GPU")
    try:
        with mlx_flash.use_backend("metal", family="apple10") as chosen:
            assert chosen.family.name == "apple10" and chosen.family.tensor == ""
    except UnsupportedProblem as error:
        pytest.fail(str(error))


def test_every_difference_of_a_unit_is_told():
    """One element out of place, one wrong product: each changes the answer."""
    places = np.broadcast_to(neural_probe.wanted_places(), neural_probe.PLACES).copy()
    a0, a1, b0, b1 = neural_probe.matrices()
    right = neural_probe.in_lanes(np.stack([a0 @ b0, a0 @ b1, a0 @ b0.T, a0 @ b1.T, a0 @ b0 + a1 @ b1]))
    products = np.broadcast_to(right, neural_probe.PRODUCTS).copy()
    assert neural_probe.difference(places, products) == ""
    for spot in ((0, 0, 0, 5, 3, 1), (1, 1, 1, 31, 15, 0), (3, 2, 2, 0, 7, 0)):
        moved = places.copy()
        moved[spot] += 1
        assert "keeps element" in neural_probe.difference(moved, products)
    for spot, words in (((0, 0, 0, 0), "half by half"), ((3, 4, 31, 7), "float by bfloat")):
        wrong = products.copy()
        wrong[spot] += 1
        assert f"multiplies {words} wrongly" in neural_probe.difference(places, wrong)
