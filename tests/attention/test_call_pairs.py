"""A call is what it is on empty caches, whatever call came before it: nothing that a result depends on is missing from
the key of a cache."""

import pytest
from arrays import bits
from call_pairs import PAIRS, QUANTIZED_PAIRS, call, forget, quantized_call
from machines import across_backends
from problems import make_problem, plan_of

from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.problem.kinds import DECODE, TRAINING


@pytest.fixture(autouse=True)
def forgotten():
    yield
    forget()


def check(call, one: dict, other: dict):
    """Each of the two calls alone, then after the other one."""
    alone = []
    for options in (one, other):
        forget()
        alone.append(list(map(bits, call(options))))
    assert alone[0] != alone[1], "the pair would not tell one from the other"
    for order in ((0, 1), (1, 0)):
        forget()
        for number in order:
            assert list(map(bits, call((one, other)[number]))) == alone[number]


ONLY_OF_MANY_QUERIES = {"number-of-queries", "dropout", "key-of-dropout", "causal"}
OF_ONE = [name for name in PAIRS if name not in ONLY_OF_MANY_QUERIES]
MANY_AT_ONCE = {*ONLY_OF_MANY_QUERIES, *OF_ONE[::2], "batch"}  # the others' kernels are compiled for one query at once


@pytest.mark.parametrize(
    "backend, name", across_backends(PAIRS, lambda index: list(PAIRS)[index] not in MANY_AT_ONCE), indirect=["backend"]
)
def test_calls_that_differ_in_one_thing(backend, name):
    check(call, *PAIRS[name])


@pytest.mark.parametrize("backend, name", across_backends(OF_ONE, lambda index: index % 2 == 0), indirect=["backend"])
def test_decoding_calls_that_differ_in_one_thing(backend, name):
    check(lambda options: call(options, decode=True), *PAIRS[name])


@pytest.mark.parametrize("backend, name", across_backends(QUANTIZED_PAIRS), indirect=["backend"])
def test_quantized_calls_that_differ_in_one_thing(backend, name):
    check(quantized_call, *QUANTIZED_PAIRS[name])


HEADS = {"query_heads": 4, "key_heads": 2, "variants": {"mask": "float32"}}
LENGTHS = {"batch": 2, "query_length": 20, "key_length": 700, "mask_shape": (2, 4, 20, 700)}
OTHER_LENGTHS = {
    "batch": {"batch": 3, "mask_shape": (1, 4, 20, 700)},
    "number-of-queries": {"query_length": 31, "mask_shape": (2, 4, 1, 700)},
    "number-of-keys": {"key_length": 1400, "mask_shape": (2, 4, 20, 1)},
    "batch-of-mask": {"mask_shape": (1, 4, 20, 700)},
    "heads-of-mask": {"mask_shape": (2, 1, 20, 700)},
    "rows-of-mask": {"mask_shape": (2, 4, 1, 700)},
    "columns-of-mask": {"mask_shape": (2, 4, 20, 1)},
}


@pytest.mark.parametrize("kind", [*TRAINING, DECODE], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", OTHER_LENGTHS)
def test_launches_that_differ_in_one_length(name, kind):
    """A plan keeps launches: each is what a new plan makes of the same lengths."""
    problems = [make_problem(**HEADS | LENGTHS | more) for more in ({}, OTHER_LENGTHS[name])]
    family, alone = FAMILIES["apple9"], []
    for problem in problems:
        forget()
        alone.append(plan_of(kind, problem, family).launch(problem))
    for order in ((0, 1), (1, 0)):
        forget()
        assert [plan_of(kind, problems[n], family).launch(problems[n]) for n in order] == [alone[n] for n in order]
