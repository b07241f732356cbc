"""Which of many like cases on the simulator the default run takes: enough for every two values to meet.

A test runs for the product of its parameters and for every simulated family, and nearly each case has kernels of its
own to compile. The default run takes

- of a product of two parameters or more as many cases as let every two values meet, the family's among them,
- of one parameter every value of a few; of more every second one, of many more every third, by turns of the tests in a
  file, so that each of a product's values is there with some of the others; the families by turns,
- all values of a test that is marked `all_values`, since only together they show what it is about,
- of a test for every family alone one of them, by turns of the tests in a file,
- and each case that a mutant names as its killer.

The others are marked slow.
"""

import itertools
from collections import Counter, defaultdict

from host_mutants import HOST_MUTANTS
from machines import BACKENDS, SIMULATED
from mutants import MUTANTS

FEW, MANY = 3, 8  # most values of one parameter that are all taken; and of which every second one is
_FAMILIES = {name for _, name in SIMULATED}
_KILLERS = {mutant.killed_by for mutant in (*MUTANTS, *HOST_MUTANTS)}


def is_killer(item) -> bool:
    """Does a mutant name this test? As it names them: without the folder of their file."""
    return f"{item.path.name}::{item.nodeid.partition('::')[2]}" in _KILLERS


def waiting(items: list) -> list:
    """The collected tests that may wait for `pytest -m ""`."""
    tests = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and "family" in _values(item) and not item.get_closest_marker("slow"):
            tests[item.nodeid.partition("[")[0]].append(item)
    places, left = Counter(), []
    for like in tests.values():
        left += _left_out(like, places[like[0].path])
        places[like[0].path] += 1
    return left


def seldom(items: list, left: list) -> list:
    """Cases on other backends that the quick run does without: their values are in no case on the simulator but those
    that `waiting` found."""
    tests = defaultdict(lambda: (set(), set(), []))
    waits = set(map(id, left))
    for item in items:
        if hasattr(item, "callspec"):
            values = _values(item)
            family = values.pop("family", None)
            met, missed, others = tests[item.nodeid.partition("[")[0]]
            if family is None:
                others.append(item)
            else:
                (missed if id(item) in waits else met).add(frozenset(values.items()))
    return [
        item for met, missed, others in tests.values() for item in others
        if missed and frozenset(_values(item).items()) in missed - met
    ]  # fmt: skip


def _values(item) -> dict[str, str]:
    """What tells a case from the others of its test; "family" is the simulated one, or a layer of tensor cores."""
    found = {}
    for name, value in item.callspec.params.items():
        if isinstance(value, tuple) and value in SIMULATED:
            found["family"] = value[1]
        elif isinstance(value, tuple) and value in BACKENDS:
            continue
        elif name == "family" and value in _FAMILIES:
            found[name] = value
        elif name == "layer" and isinstance(value, tuple):
            found["family"], found["width="] = value  # tensor_rows.LAYERS
        elif name != "step":  # one run of all kernels is looked at for each
            found[f"{name}="] = repr(value)
    return found


def _left_out(items: list, place: int) -> list:
    """Those of one test that are not taken. place: of the test among those of its file."""
    values = _apart([_values(item) for item in items])
    ranks = _ranks(values)
    (many,) = {name for name in ranks if name != "family"} if len(ranks) == 2 else {""}
    stride = 1 + (len(ranks.get(many, ())) > FEW) + (len(ranks.get(many, ())) > MANY)
    if items[0].get_closest_marker("all_values"):
        stride = 1
    turns = []  # is it the turn of the case's family?
    for one in values:
        turn = sum(ranks[name][value] for name, value in one.items() if name != "family") if len(one) > 1 else place
        turns.append(ranks["family"][one["family"]] == turn // stride % len(ranks["family"]))
    missing, left = list(map(_meetings, values)), dict(enumerate(items))
    if stride > 1:
        steps = _steps(items, [ranks[many][one[many]] for one in values], many[:-1], stride)
        missing = [met if step % stride == place % stride else set() for met, step in zip(missing, steps)]

    def take(index: int):
        met = missing[index]
        for other in list(left):
            missing[other] = missing[other] - met
            if values[other] == values[index]:
                del left[other]

    for index, item in enumerate(items):
        if is_killer(item) and index in left:
            take(index)
    while any(missing[index] for index in left):
        take(max(left, key=lambda index: (len(missing[index]), turns[index], -index)))
    return list(left.values())


def _steps(items: list, places: list[int], name: str, stride: int) -> list[int]:
    """Numbers of which every second or third is taken: the places of the values, or, of tuples, of their parts
    together, so that a product is taken along its diagonals."""
    parts = [item.callspec.params.get(name) for item in items]
    if all(type(part) is tuple for part in parts) and len(set(map(len, parts))) == 1:
        columns = [list(dict.fromkeys(map(repr, column))) for column in zip(*parts)]
        sums = [sum(column.index(repr(one)) for column, one in zip(columns, part)) for part in parts]
        if len({one % stride for one in sums}) == stride:
            return sums
    return places


def _apart(values: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without parameters that follow from another: those that are given together count as one."""
    names = list(values[0])
    for name in values[0]:
        for other in names:
            pairs = {(one[other], one[name]) for one in values}
            if name not in ("family", other) and other != "family" and len(pairs) == len({pair[0] for pair in pairs}):
                names.remove(name)
                break
    return [{name: one[name] for name in names} for one in values]


def _ranks(values: list[dict[str, str]]) -> dict[str, dict[str, int]]:
    """The place of every value among those of its parameter."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for one in values:
        for name, value in one.items():
            found[name].setdefault(value, len(found[name]))
    return found


def _meetings(values: dict[str, str]) -> set[frozenset]:
    """What a case adds to those taken."""
    others = [one for one in values.items() if one[0] != "family"]
    if len(others) < 2:
        return {frozenset(others)}
    return {frozenset(pair) for pair in itertools.combinations(values.items(), 2)}
