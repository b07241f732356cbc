"""A call is what it is on empty caches, whatever call came before it: nothing that a result depends on is missing from
the key of a cache."""

import pytest
from arrays import bits
from call_pairs import PAIRS, QUANTIZED_PAIRS, call, forget, quantized_call
from machines import across_backends


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
