"""The default run leaves no value of a parameter out, and no killer of a mutant."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import covering
import pytest
from machines import SIMULATED
from mutants import MUTANTS

LAYERS = list(itertools.product(("mma", "wgmma"), ("narrow", "wide")))


def collected(test: str, **parameters) -> list:
    """The product of the parameters as collected tests."""
    found = []
    for values in itertools.product(*parameters.values()):
        name = f"{test}[{'-'.join(map(str, values))}]"
        callspec = SimpleNamespace(params=dict(zip(parameters, values)))
        found.append(
            SimpleNamespace(nodeid=name, path=Path("a.py"), callspec=callspec, get_closest_marker=lambda _: None)
        )
    return found


def taken(items: list) -> list[tuple]:
    left = [item.nodeid for item in covering.waiting(items)]
    return [tuple(item.callspec.params.values()) for item in items if item.nodeid not in left]


def test_of_one_parameter_few_values_are_all_taken_and_the_families_by_turns():
    items = collected("test", name="abc", backend=[*SIMULATED, ("reference", None)])
    some = [(name, backend) for name, backend in taken(items) if backend in SIMULATED]
    assert sorted(name for name, _ in some) == list("abc")
    assert {backend for _, backend in some} == set(SIMULATED)
    assert taken(items).count(("a", ("reference", None))) == 1 and len(taken(items)) == 6


def test_of_many_values_every_second_one_by_turns_of_tests_and_families():
    items = [
        *collected("first", name="abcdefg", backend=SIMULATED),
        *collected("second", name="abcdefg", backend=SIMULATED),
    ]
    found = taken(items)
    assert [name for name, _ in found] == list("acegbdf")
    assert [family for _, family in found[:4]] == (2 * SIMULATED)[:4]


def test_of_a_product_in_one_parameter_every_part_is_taken():
    pairs = list(itertools.product("abcd", range(6)))
    found = [pair for pair, _ in taken(collected("test", case=pairs, backend=SIMULATED))]
    assert len(found) == 8 and {name for name, _ in found} == set("abcd") and {n for _, n in found} == set(range(6))


def test_values_that_show_something_only_together_are_all_taken():
    items = collected("test", name="abcdef", backend=SIMULATED)
    for item in items:
        item.get_closest_marker = lambda name: name == "all_values"
    assert sorted(name for name, _ in taken(items)) == list("abcdef")


@pytest.mark.parametrize("sizes", [(2, 2), (3, 2), (4, 3), (3, 3, 3)], ids=str)
def test_of_more_every_two_values_meet(sizes):
    names = {f"p{number}": range(size) for number, size in enumerate(sizes)}
    items = collected("test", backend=SIMULATED, **names)
    found = taken(items)
    for one, other in itertools.combinations(range(len(sizes) + 1), 2):
        every = {(item[one], item[other]) for item in (tuple(i.callspec.params.values()) for i in items)}
        assert {(values[one], values[other]) for values in found} == every
    assert len(found) < len(items)


def test_tests_for_every_family_alone_run_on_one_by_turns():
    items = [*collected("first", backend=SIMULATED), *collected("second", backend=SIMULATED)]
    assert taken(items) == [(backend,) for backend in SIMULATED[:2]]


def test_parameters_given_together_count_as_one():
    items = collected("test", backend=SIMULATED, both=[(1, 0), (2, 0), (3, 7)])
    for item in items:
        item.callspec.params["left"], item.callspec.params["right"] = item.callspec.params.pop("both")
    assert sorted(values[1:] for values in taken(items)) == [(1, 0), (2, 0), (3, 7)]


def test_steps_of_one_run_are_taken_together():
    assert taken(collected("test", backend=SIMULATED[:2], step="qkv")) == [(SIMULATED[0], step) for step in "qkv"]


def test_layers_of_tensor_cores_take_turns_in_both_widths():
    assert taken(collected("test", layer=LAYERS)) == [(("mma", "narrow"),), (("wgmma", "wide"),)]


def test_a_case_that_a_mutant_names_is_taken():
    file, _, name = next(one.killed_by for one in MUTANTS if "[simulator-apple7-" in one.killed_by).partition("::")
    items = collected(f"a.py::{name.partition('[')[0]}", backend=SIMULATED, number=range(4))
    waits = covering.waiting(items)[0]
    waits.path, waits.nodeid = Path(file), f"a.py::{name}"
    assert covering.is_killer(waits) and waits not in covering.waiting(items)


def test_the_rest_is_no_concern():
    """Tests without a simulated family, and tests that wait already."""
    waits = collected("test", backend=SIMULATED, name="ab")
    for item in waits:
        item.get_closest_marker = lambda name: name == "slow"
    assert covering.waiting([*waits, *collected("test", name="ab", number=range(3))]) == []
