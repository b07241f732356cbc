"""Calls that the built-in keeps by a rule are remembered: such a call costs a single Python call more, and none that
differs in what the rules look at is taken for one of them."""

import itertools
import sys
import threading
from dataclasses import replace
from functools import partial

import mlx.core as mx
import pytest
from patch_threads import reports_of_two
from tiny_models import close
from watched import chosen

import mlx_flash
from mlx_flash import backends, use_backend
from mlx_flash.backends import current_backend
from mlx_flash.integrations import kept
from mlx_flash.integrations.policy import RULES, Asked, rule_of
from mlx_flash.kernels.devices import Tuned, TunedCall
from mlx_flash.transforms.trace import BUSY, GRADIENT, changed, trace

pytestmark = pytest.mark.simulator
KEPT_BEFORE = 1  # Python calls: the replacement itself. A model makes such a call in every layer


def arrays(queries=40, width=64, dtype=mx.float32, heads=2):
    return [mx.random.normal((1, heads, n, width), key=mx.random.key(n)).astype(dtype) for n in (queries, 48, 48)]


def attend(q, k, v, **options):
    return mx.fast.scaled_dot_product_attention(q, k, v, **{"scale": 0.125} | options)


@pytest.fixture(autouse=True)
def forgotten():
    kept.calls.clear()
    with use_backend("simulator", "apple9"):
        yield
    kept.calls.clear()


def kept_twice(*qkv, **options):
    """Has the built-in keep a call, and remember it."""
    attend(*qkv, **options)
    assert python_calls(lambda: attend(*qkv, **options)) - 1 <= KEPT_BEFORE


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
    qkv, built_in = arrays(), [mx.fast.scaled_dot_product_attention]
    with mlx_flash.patch(policy="fastest") as report:
        first, *again = [python_calls(lambda: attend(*qkv)) - 1 for _ in range(4)]
    # The lambda's own call of `attend` is one of the test's.
    assert max(again) <= KEPT_BEFORE < first, (first, again)
    assert sum(report.built_in.values()) == 4 and len(report.built_in) == 1 and report.ours == 0
    close(attend(*qkv), built_in[0](*qkv, scale=0.125))


def test_calls_by_turns_cost_little_too():
    """Layers that differ: a window's cache and a whole one; masks and sinks of decoding."""
    mask = mx.ones((1, 48), mx.bool_)
    calls = [
        (arrays(), {"mask": "causal"}), (arrays(), {}), (arrays(queries=1), {"sinks": mx.zeros(2)}),
        (arrays(queries=1), {"mask": mask, "sinks": None}),
    ]  # fmt: skip

    def turn() -> list[int]:
        return [python_calls(partial(attend, *qkv, **named)) for qkv, named in calls]

    with mlx_flash.patch(policy="fastest") as report:
        first, again = turn(), [*turn(), *turn()]
    assert max(again) <= KEPT_BEFORE < min(first), (first, again)
    assert sum(report.built_in.values()) == 12 and report.ours == 0


def test_a_call_like_the_one_before_is_not_looked_up(monkeypatch):
    """It is compared with that one, of the same situation. Calls with sinks or with an array mask are looked up."""
    looked_up = []

    class Watched(dict):
        def get(self, key):
            looked_up.append(key)
            return super().get(key)

    monkeypatch.setattr(kept, "calls", Watched())
    monkeypatch.setattr(sys.modules["mlx_flash.integrations.patch"], "calls", kept.calls)
    qkv = arrays()
    others = [(arrays(queries=9), {}), (qkv, {"mask": "causal"}), (qkv, {"sinks": mx.zeros(2)})]
    with mlx_flash.patch(policy="fastest") as report:
        attend(*qkv), attend(*qkv)
        seen = len(looked_up)
        for _ in range(3):
            attend(*qkv)
        assert len(looked_up) == seen
        for other, options in others:
            attend(*other, **options)
        assert len(looked_up) == seen + len(others)
        attend(*qkv)
        mx.grad(lambda q: attend(q, *qkv[1:]).sum())(qkv[0])
        assert trace.situation == 0 and not BUSY and looked_up[-1][-1] == GRADIENT
        mx.grad(lambda q: attend(q, *qkv[1:]).sum())(qkv[0])
        seen = len(looked_up)
        mx.grad(lambda q: attend(q, *qkv[1:]).sum())(qkv[0])
        attend(*qkv)
        assert len(looked_up) == seen
    assert sum(report.built_in.values()) == 13 and report.ours == 0


def test_each_patch_counts_its_own():
    """This holds for a patch inside another and after another; a thread without one counts in the innermost of all."""
    qkv = arrays()

    def elsewhere():
        with use_backend("simulator", "apple9"):
            attend(*qkv), attend(*qkv)

    with mlx_flash.patch(policy="fastest") as outer:
        kept_twice(*qkv)
        with mlx_flash.patch(policy="fastest") as inner:
            kept_twice(*qkv)
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            kept_twice(*qkv)
        kept_twice(*qkv)
    with mlx_flash.patch(policy="fastest") as later:
        kept_twice(*qkv)
    assert [sum(report.built_in.values()) for report in (outer, inner, later)] == [4, 6, 2]


def test_each_thread_counts_in_its_own_patch():
    """While both threads make the same call."""
    qkv = arrays()
    reports = reports_of_two("fastest", lambda: kept_twice(*qkv), lambda: kept_twice(*qkv))
    assert [sum(report.built_in.values()) for report in reports] == [2, 2]


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
        kept_twice(*arrays(), mask="causal"), kept_twice(*arrays())
        got = attend(*qkv, **options)
    assert report.ours == 1 and sum(report.built_in.values()) == 4, name
    if want is not None:
        close(got, want)


def test_a_gradient_is_decided_by_itself():
    """There are 3 queries: the built-in's kernel for few queries has no gradient."""
    q, k, v = arrays(queries=3)
    with mlx_flash.patch(policy="fastest") as report:
        kept_twice(q, k, v)
        mx.eval(mx.grad(lambda q: attend(q, k, v).astype(mx.float32).sum())(q))
        attend(q, k, v)
    assert report.ours >= 1 and sum(report.built_in.values()) == 3


def test_types_that_promote_to_another_are_decided_by_themselves():
    """Two types of 16 bits make float32, which cuDNN does not take."""
    (q, *_), (_, k, v) = arrays(dtype=mx.float16), arrays(dtype=mx.bfloat16)
    with use_backend("simulator", "sm90"), mlx_flash.patch(policy="fastest") as report:
        half = arrays(dtype=mx.float16)
        kept_twice(*half, mask="causal")
        out = [attend(*qkv, mask="causal") for qkv in ((q, k, v), (*half[:2], v), (q, k, half[2]))]
    assert report.ours == 3 and sum(report.built_in.values()) == 2
    assert {one.dtype for one in out} == {mx.float32}


def test_other_policies_and_backends_decide_by_themselves():
    qkv = arrays()
    with mlx_flash.patch(policy="fastest") as first:
        kept_twice(*qkv)
        with use_backend("reference"):
            attend(*qkv)
        attend(*qkv)
        with mlx_flash.patch(policy="always") as always:
            attend(*qkv)
        attend(*qkv)
    with mlx_flash.patch(min_queries=41) as least:
        attend(*qkv)
    assert (first.ours, always.ours) == (1, 1) and sum(first.built_in.values()) == 4
    assert dict(least.built_in) == {"fewer than 41 queries": 1}


def test_variables_of_the_environment_decide_anew(monkeypatch):
    """They are read with every call, where no use_backend is in force."""
    qkv = arrays()
    monkeypatch.delenv("MLX_FLASH_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_unnamed", lambda on_cpu: backends.backend("simulator"))
    token = backends._choices.set(())
    try:
        with mlx_flash.patch(policy="fastest") as report:
            kept_twice(*qkv)
            monkeypatch.setenv("MLX_FLASH_BACKEND", "reference")
            attend(*qkv)
            monkeypatch.delenv("MLX_FLASH_BACKEND")
            attend(*qkv)
    finally:
        backends._choices.reset(token)
    assert report.ours == 1 and sum(report.built_in.values()) == 3


def test_times_of_this_machine_tell_the_two_types_of_16_bits_apart():
    """`tune` measures each, and may find the one faster here and the other there."""
    halves, times = arrays(dtype=mx.bfloat16), arrays(dtype=mx.float16)
    measured = TunedCall("float16", 64, 40, 48, mask=None, training=False, ms=0.1, built_in_ms=0.2)
    own = current_backend()
    tuned = replace(own, family=replace(own.family, tuned=Tuned(calls=(measured,))))
    with chosen(tuned), mlx_flash.patch(policy="fastest") as report:
        kept_twice(*halves)
        attend(*times)
    assert report.ours == 1 and sum(report.built_in.values()) == 2


@pytest.mark.parametrize("family", RULES)
def test_rules_do_not_tell_the_two_types_of_16_bits_apart(family):
    """A remembered call is known by the size of its result's elements, where nothing was measured."""
    sizes = itertools.product((64, 72, 96, 256), (64, 256), (1, 9, 4096), (9, 4096), (1, 8), (None, "causal", "array"))
    for (width, value_width, queries, keys, group, mask), training in itertools.product(sizes, (False, True)):
        facts = (width, value_width, queries, keys, group, mask, False, training)
        assert rule_of(family, Asked(mx.float16, *facts)) is rule_of(family, Asked(mx.bfloat16, *facts))


def test_threads_decide_by_themselves():
    """Another thread may have another backend."""
    qkv = arrays()

    def elsewhere():
        with use_backend("reference"):
            attend(*qkv)

    with mlx_flash.patch(policy="fastest") as report:
        kept_twice(*qkv)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert report.ours == 1 and sum(report.built_in.values()) == 2


def test_calls_from_functions_that_were_left_are_not_counted():
    """A function of models that is replaced as a whole may call the built-in itself."""
    with mlx_flash.patch(policy="fastest") as report:
        kept_twice(*arrays())
        with changed(kept=True):
            attend(*arrays())
    assert report.ours == 0 and sum(report.built_in.values()) == 2


def test_calls_of_a_growing_cache_are_bounded(monkeypatch):
    monkeypatch.setattr(kept, "MOST_CALLS", 8)
    q, k, v = arrays(queries=1)
    with mlx_flash.patch(policy="fastest") as report:
        for length in range(9, 49):
            attend(q, k[:, :, :length], v[:, :, :length])
    assert sum(report.built_in.values()) == 40 and len(kept.calls) <= 8


def test_wrong_calls_get_the_built_in_s_own_error():
    """This holds also after a right call of the same form was cached."""
    q, k, v = arrays()
    with mlx_flash.patch(policy="fastest"):
        kept_twice(q, k, v)
        with pytest.raises(ValueError, match="n_heads|heads|dim"):
            attend(q, k[:, :, :, :32], v)
        for wrong in ({"scale": "wrong"}, {}, {"scale": 0.1, "mask": 3}, {"scale": 0.1, "window": 3}):
            with pytest.raises(TypeError):
                mx.fast.scaled_dot_product_attention(q, k, v, **wrong)


def test_mapped_calls_are_others():
    """The rules look at mx.vmap, where grouped heads are ours."""
    (q, *_), (_, k, v) = arrays(heads=4), arrays()
    with mlx_flash.patch(policy="fastest") as report:
        kept_twice(q, k, v)
        mx.vmap(attend)(*(array[None] for array in (q, k, v)))
        attend(q, k, v)
    assert report.ours == 1 and sum(report.built_in.values()) == 3
