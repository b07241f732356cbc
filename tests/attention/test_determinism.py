"""Results repeat bit for bit, and a batch entry does not depend on its neighbours."""

from pathlib import Path

import pytest
from arrays import bits
from cases import Case, backward
from machines import each_simulated_family

from mlx_flash import use_backend
from mlx_flash.simulator import schedule

TEMPLATES = sorted((Path(__file__).parents[2] / "templates").rglob("*.metal"))
CASE = Case(65, 129, 64, "float32", True, group=2, key_heads=2, batch=3)
HALF = Case(33, 65, 64, "bfloat16", False, group=4, batch=2)


@pytest.mark.parametrize("case", [CASE, HALF], ids=str)
def test_repeats_bit_for_bit(backend, case):
    arrays = case.arrays()
    first = {name: bits(array) for name, array in backward(case, arrays).items()}
    for _ in range(3):
        assert {name: bits(array) for name, array in backward(case, arrays).items()} == first


@pytest.mark.parametrize("order", [("reversed", 0), ("random", 1), ("random", 2)], ids=str)
@each_simulated_family
def test_every_order_of_threads_gives_the_same_bits(family, order):
    """Lanes, simdgroups and threadgroups in other orders: a missing barrier would show, as would two writers."""
    arrays = CASE.arrays()
    with use_backend("simulator", family):
        want = {name: bits(array) for name, array in backward(CASE, arrays).items()}
        with schedule(*order):
            got = {name: bits(array) for name, array in backward(CASE, arrays).items()}
    assert got == want


@each_simulated_family
def test_a_hundred_orders(family):
    """Several threadgroups in every axis, several simdgroups in each."""
    case = Case(33, 45, 16, "float32", True, group=2, key_heads=2)
    arrays, seen = case.arrays(), set()
    with use_backend("simulator", family):
        for number in range(100):
            with schedule("random", number):
                seen.add(tuple(map(bits, backward(case, arrays).values())))
    assert len(seen) == 1


def test_batch_invariance(kernels):
    arrays = CASE.arrays()
    together = backward(CASE, arrays)
    for b in range(CASE.batch):
        alone = backward(CASE, {name: array[b : b + 1] for name, array in arrays.items()})
        for name, array in alone.items():
            assert bits(array) == bits(together[name][b : b + 1]), f"{name} of batch entry {b}"


def test_heads_are_independent(kernels):
    """Heads too: nothing is summed across key heads, and the group's order is fixed."""
    arrays = CASE.arrays()
    together = backward(CASE, arrays)
    for h in range(CASE.key_heads):
        queries, keys = slice(h * CASE.group, (h + 1) * CASE.group), slice(h, h + 1)
        alone = backward(CASE, {name: a[:, keys if name in "kv" else queries] for name, a in arrays.items()})
        for name, array in alone.items():
            assert bits(array) == bits(together[name][:, keys if name in ("dK", "dV") else queries]), f"{name} {h}"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_no_atomics(template):
    code = [line.split("//")[0] for line in template.read_text(encoding="ascii").splitlines()]
    assert "atomic" not in "\n".join(code)


def test_there_are_templates():
    assert {"forward", "backward_query", "backward_key_value", "delta"} <= {path.stem for path in TEMPLATES}
