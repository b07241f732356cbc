"""Calls that the built-in keeps by a rule are remembered: they cost a few Python calls, and none that differs in what
the rules look at is taken for one of them."""

import sys

import mlx.core as mx
import pytest
from tiny_models import close

import mlx_flash
from mlx_flash import use_backend
from mlx_flash.integrations import kept

pytestmark = pytest.mark.simulator
# call, _current, call_key, kept_reason, current_backend, _count: a model has one such call a layer and token.
MOST_PYTHON_CALLS = 7


def arrays(queries=40, width=64, dtype=mx.float32):
    return [mx.random.normal((1, 2, n, width), key=mx.random.key(n)).astype(dtype) for n in (queries, 48, 48)]


def attend(q, k, v, **options):
    return mx.fast.scaled_dot_product_attention(q, k, v, **{"scale": 0.125} | options)


@pytest.fixture(autouse=True)
def forgotten():
    kept._reasons.clear()
    with use_backend("simulator", "apple9"):
        yield
    kept._reasons.clear()


def python_calls(function) -> int:
    """The number of Python functions that are called."""
    count = 0

    def count_calls(frame, event, _):
        nonlocal count
        count += event == "call"

    sys.setprofile(count_calls)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count - 1


def test_a_call_that_was_kept_before_costs_little():
    qkv, built_in = arrays(), mx.fast.scaled_dot_product_attention
    with mlx_flash.patch(policy="fastest") as report:
        first = python_calls(lambda: attend(*qkv))
        again = [python_calls(lambda: attend(*qkv)) for _ in range(3)]
    # The lambda's own call of `attend` is one of the test's.
    assert max(again) - 1 <= MOST_PYTHON_CALLS < first, (first, again)
    assert sum(report.built_in.values()) == 4 and len(report.built_in) == 1 and report.ours == 0
    close(attend(*qkv), built_in(*qkv, scale=0.125))


def test_another_patch_remembers_too():
    qkv = arrays()
    with mlx_flash.patch(policy="fastest"):
        attend(*qkv)
    with mlx_flash.patch(policy="fastest") as report:
        first = python_calls(lambda: attend(*qkv)) - 1
    assert first <= MOST_PYTHON_CALLS + 1  # Counter.__missing__, of a new count
    assert sum(report.built_in.values()) == 1


DIFFERENT = {
    "array mask": (arrays(), {"mask": mx.ones((40, 48), mx.bool_)}),
    "width": (arrays(width=40), {}),
    "value width": ([*arrays()[:2], arrays(width=40)[2]], {}),
    "no key for the last queries": (arrays(queries=56), {"mask": "causal"}),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_call_that_differs_is_decided_by_itself(name):
    qkv, options = DIFFERENT[name]
    want = attend(*qkv, **options) if name != "no key for the last queries" else None
    with mlx_flash.patch(policy="fastest") as report:
        attend(*arrays()), attend(*arrays(), mask="causal")
        got = attend(*qkv, **options)
    assert report.ours == 1 and sum(report.built_in.values()) == 2, name
    if want is not None:
        close(got, want)


def test_a_gradient_is_decided_by_itself():
    """There are 3 queries: the built-in's kernel for few queries has no gradient."""
    q, k, v = arrays(queries=3)
    with mlx_flash.patch(policy="fastest") as report:
        attend(q, k, v)
        mx.eval(mx.grad(lambda q: attend(q, k, v).astype(mx.float32).sum())(q))
        attend(q, k, v)
    assert report.ours >= 1 and sum(report.built_in.values()) == 2


def test_types_that_promote_to_another_are_decided_by_themselves():
    """Two types of 16 bits make float32, which cuDNN does not take."""
    (q, *_), (_, k, v) = arrays(dtype=mx.float16), arrays(dtype=mx.bfloat16)
    with use_backend("simulator", "sm90"), mlx_flash.patch(policy="fastest") as report:
        attend(*arrays(dtype=mx.float16))
        attend(q, k, v)
    assert report.ours == 1 and sum(report.built_in.values()) == 1


def test_other_policies_and_backends_decide_by_themselves():
    qkv = arrays()
    with mlx_flash.patch(policy="fastest") as first:
        attend(*qkv)
        with use_backend("reference"):
            attend(*qkv)
    with mlx_flash.patch(policy="always") as always:
        attend(*qkv)
    assert (first.ours, always.ours) == (1, 1) and sum(first.built_in.values()) == 1


def test_calls_of_a_growing_cache_are_bounded(monkeypatch):
    monkeypatch.setattr(kept, "MOST_CALLS", 8)
    q, k, v = arrays(queries=1)
    with mlx_flash.patch(policy="fastest") as report:
        for length in range(9, 49):
            attend(q, k[:, :, :length], v[:, :, :length])
    assert sum(report.built_in.values()) == 40 and len(kept._reasons) <= 8


def test_wrong_calls_get_the_built_in_s_own_error():
    """This holds also after a right call of the same form was cached."""
    q, k, v = arrays()
    with mlx_flash.patch(policy="fastest"):
        attend(q, k, v)
        with pytest.raises(ValueError, match="n_heads|heads|dim"):
            attend(q, k[:, :, :, :32], v)
        with pytest.raises(TypeError):
            mx.fast.scaled_dot_product_attention(q, k, v, scale="wrong")


def test_mapped_calls_are_others():
    """The rules look at mx.vmap, where grouped heads are ours."""
    keys = []

    def note(q, k, v):
        keys.append(kept.call_key("fastest", (q, k, v), {}))
        return q

    with mlx_flash.patch():
        note(*arrays())
        mx.vmap(note)(*(array[None] for array in arrays()))
    assert len(set(keys)) == 2 and None not in keys
    assert keys[0][:5] == keys[1][:5]  # shapes and dtypes are the same
