"""Short backward passes: the kernel of dQ makes delta, in a launch less, with the bits of the kernel of its own."""

from contextlib import contextmanager
from dataclasses import replace

import feature_cases
import mlx.core as mx
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from tensor_rows import small_rows
from views import odd_start
from watched import kinds, watched

from mlx_flash import attention, backends, explain, use_backend
from mlx_flash.kernels.devices import FAMILIES

pytestmark = pytest.mark.simulator
APART = ["forward", "delta", "backward_query", "backward_key_value"]
INSIDE = ["forward", "backward_query_delta", "backward_key_value"]
CASES = {  # rows that end within a fragment; head dimensions that differ, and where values have a last part of four
    "apple7": Case(41, 70, 24, "float16", True, value_dim=40, group=2, key_heads=1, batch=2),
    "apple9": Case(41, 70, 16, "float32", True, group=2, key_heads=1, batch=2),
    "apple10": Case(41, 70, 40, "bfloat16", True, group=2, key_heads=1, batch=2),
    "sm80": Case(41, 70, 40, "float16", True, group=2, key_heads=1, batch=2),
    "sm90": Case(41, 70, 64, "bfloat16", True, group=2, key_heads=1, batch=2),
}


@contextmanager
def kernels_of(family: str):
    if family.startswith("sm"):
        with small_rows({"sm80": "mma", "sm90": "wgmma"}[family], "narrow") as backend:
            yield backend
    else:
        with use_backend("simulator", family) as backend:
            yield backend


def both(backend, gradients) -> tuple[list, list]:
    """The kernels that ran, and dQ, dK and dV, with delta computed inside dQ's kernel and in its own."""
    found = []
    for limit in (backend.family.separate_delta, 0):
        with watched(backend, family=replace(backend.family, separate_delta=limit)) as ran:
            made = [bits(one) for one in gradients()]
        found.append((kinds(ran), made))
    return found


@pytest.mark.parametrize("family", CASES)
def test_the_bits_of_the_separate_kernels(family):
    """Keys and values have the same bits too: their kernel reads the delta that was written."""
    case = CASES[family]
    arrays = case.arrays()
    with kernels_of(family) as backend:
        (ran, inside), (ran_apart, apart) = both(
            backend, lambda: feature_cases.backward(Variant(case, ()), arrays, {"causal": True}).values()
        )
    assert (ran, ran_apart) == (INSIDE, APART) and inside == apart


def test_views_and_options_whose_gradients_read_delta():
    """Operands that start anywhere, an added mask and sinks."""
    case = CASES["apple9"]
    q, k, v, d_o = (odd_start(case.arrays()[name]) for name in ("q", "k", "v", "d_o"))
    mask, sinks = mx.random.normal((41, 70), key=mx.random.key(1)), mx.array([0.5, -1.0])

    def gradients():
        def loss(q, k, v, mask, sinks):
            return (attention(q, k, v, mask=mask, sinks=sinks) * d_o).sum()

        return mx.grad(loss, argnums=(0, 1, 2, 3, 4))(q, k, v, mask, sinks)

    with kernels_of("apple9") as backend:
        (ran, inside), (ran_apart, apart) = both(backend, gradients)
    assert inside == apart
    assert sorted(ran) == sorted([*INSIDE, "backward_mask"]) and sorted(ran_apart) == sorted([*APART, "backward_mask"])


@pytest.mark.parametrize("family", FAMILIES)
def test_up_to_1024_queries(family):
    """Counted where nothing is computed; a caller who sees the LSE adds to delta, which is then apart."""
    own = replace(backends.backend("simulator"), family=FAMILIES[family])

    def nothing(kind, plan, problem, inputs, stream):
        launch = plan.launch(problem)
        outputs = [mx.zeros(shape, dtype) for shape, dtype in zip(launch.output_shapes, launch.output_dtypes)]
        return launch.results(outputs, stream)

    def ran(queries: int, **options) -> list[str]:
        q = mx.zeros((1, 1, queries, 64), mx.float16)
        with watched(own, run=nothing) as ran:
            mx.grad(lambda q: mx.array(0.0) + sum(one.sum() for one in [*flat(attention(q, q, q, **options))]))(q)
        return kinds(ran)

    def flat(result):
        return result if isinstance(result, tuple) else (result,)

    assert ran(1024) == INSIDE and ran(1025) == APART
    assert ran(100, return_lse=True) == APART
    for queries, want in ((1024, INSIDE), (1025, APART)):
        told = explain(head_dim=64, heads=1, length=queries, family=family)
        assert [step.name for step in told.kernels] == want
