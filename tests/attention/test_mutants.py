"""Would the suite notice? Each mistake of mutants.py is made in memory, and the test it names must fail."""

from collections import defaultdict
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant

from mlx_flash.autodiff import call as calls
from mlx_flash.kernels import source
from mlx_flash.kernels.plan import plan
from mlx_flash.simulator import SimulatorError, mode

TESTS = Path(__file__).parents[1]
# Every sixteenth; the others wait for `pytest -m ""`: together they take minutes.
FEW = MUTANTS[::16]
IN_TURNS = [
    pytest.param(mutant, id=mutant.name, marks=[] if mutant in FEW else [pytest.mark.slow]) for mutant in MUTANTS
]


def forget():
    """Texts built from templates."""
    source.build.cache_clear()
    plan.cache_clear()
    calls.clear_cache()


def _id(item) -> str:
    """The id of a test without the folder of its file, as mutants name it."""
    return f"{item.path.name}::{item.nodeid.partition('::')[2]}"


class Outcome:
    """The outcome of some tests: which of them ran, and the exceptions that ended them."""

    def __init__(self):
        self.ran, self.exceptions = set(), []

    def pytest_runtest_call(self, item):
        self.ran.add(_id(item))

    def pytest_exception_interact(self, call):
        self.exceptions.append(call.excinfo.value)


def _path(test: str) -> str:
    """The id of a test with the folder of its file, whose name is unique below tests/."""
    file, _, rest = test.partition("::")
    (path,) = TESTS.rglob(file)
    return f"{path}::{rest}"


# Those that collect garbage at the end of every run watch already, around this one.
WITHOUT = ("cacheprovider", "xdist", "unraisableexception", "threadexception")
LEFT_OUT = [word for name in WITHOUT for word in ("-p", f"no:{name}")]


def outcome(*tests: str) -> Outcome:
    """Runs tests of the suite, by their ids, inside this process: templates are as they are here."""
    watched = Outcome()
    pytest.main([*map(_path, tests), "-q", "--no-header", *LEFT_OUT], plugins=[watched])
    return watched


@pytest.fixture
def mutated(monkeypatch):
    """A function that puts a mutant in the place of its template."""
    original = source.template

    def apply(mutant: Mutant):
        text = original(mutant.template).replace(mutant.old, mutant.new)
        monkeypatch.setattr(source, "template", lambda name: text if name == mutant.template else original(name))

    forget()
    yield apply
    forget()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_one_change(mutant):
    """So that none rots: its text stands in the template, once."""
    assert source.template(mutant.template).count(mutant.old) == 1
    assert mutant.old != mutant.new


def test_names_of_mutants_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40


class Collected:
    """The ids of the tests that pytest finds, without running them."""

    def __init__(self):
        self.ids = set()

    def pytest_collection_finish(self, session):
        self.ids |= {_id(item) for item in session.items}


@pytest.mark.long
@pytest.mark.parametrize("file", sorted({mutant.killed_by.partition("::")[0] for mutant in MUTANTS}))
def test_every_killer_is_a_test(file):
    """The killer is in the default run under its present name: a test that was renamed, or made slow, is noticed
    here and not only when its mutant runs."""
    collected = Collected()
    (path,) = TESTS.rglob(file)
    pytest.main([str(path), "-q", "--collect-only", *LEFT_OUT], plugins=[collected])
    wanted = {mutant.killed_by for mutant in MUTANTS if mutant.killed_by.startswith(f"{file}::")}
    assert wanted - collected.ids == set()


@pytest.mark.simulator
@pytest.mark.parametrize("mutant", IN_TURNS)
def test_a_mutant_is_killed(mutant, mutated):
    """The test fails by an assertion or a report of the simulator, not because a text does not compile or a test is
    missing."""
    mutated(mutant)
    with mode(mutant.mode):
        watched = outcome(mutant.killed_by)
    assert watched.ran == {mutant.killed_by}, f"no test {mutant.killed_by}"
    assert watched.exceptions, f"{mutant.name} survives {mutant.killed_by}"
    assert all(isinstance(found, (AssertionError, SimulatorError)) for found in watched.exceptions), watched.exceptions


def unchanged() -> list:
    """(mode of the simulator, killers of one file)."""
    killers = defaultdict(set)
    for mutant in MUTANTS:
        killers[mutant.killed_by.partition("::")[0], mutant.mode].add(mutant.killed_by)
    return [pytest.param(how, tests, id=f"{file}-{how}") for (file, how), tests in sorted(killers.items())]


# In mode "check" they are tests of the default run anyway.
@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.parametrize("how, tests", unchanged())
def test_unchanged_templates_pass(how, tests, mutated):
    with mode(how):
        watched = outcome(*sorted(tests))
    assert watched.ran == tests and not watched.exceptions, watched.exceptions
