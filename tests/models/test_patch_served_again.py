"""Plain calls that patch() serves are remembered: one like them is served in few steps, and none that differs in what
decides is taken for one of them."""

import sys
from collections import Counter

import mlx.core as mx
import pytest
from arrays import bits
from patch_threads import reports_of_two
from tiny_models import close
from watched import watched

import mlx_flash
from mlx_flash import attention, backends, use_backend
from mlx_flash.backends import backend as backend_of
from mlx_flash.integrations import kept, serve
from mlx_flash.transforms.trace import trace

pytestmark = pytest.mark.simulator
SERVED_AGAIN, GRADIENT_AGAIN = 25, 48  # Python calls: today's and a few more


def arrays(queries=40, dtype=mx.float32, heads=2, width=16):
    shapes = ((heads, queries), (2, 48), (2, 48))
    return [mx.random.normal((1, h, n, width), key=mx.random.key(n)).astype(dtype) for h, n in shapes]


def attend(q, k, v, **options):
    return mx.fast.scaled_dot_product_attention(q, k, v, **{"scale": 0.25} | options)


@pytest.fixture(autouse=True)
def decided(monkeypatch):
    """The calls that were decided, in the place of those that were remembered."""
    found, asked = [], serve._asked
    monkeypatch.setattr(serve, "_asked", lambda *given: found.append(given) or asked(*given))
    kept.plain.clear()
    trace.asks = 0
    with use_backend("simulator", "apple9"):
        yield found
    kept.plain.clear()
    trace.asks = 0


@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("queries", [1, 40])
def test_the_result_and_the_report(decided, queries, mask):
    q, k, v = arrays(queries)
    want = bits(attention(q, k, v, scale=0.25, mask=mask))
    with mlx_flash.patch(policy="always") as report:
        assert [bits(attend(q, k, v, mask=mask)) for _ in range(4)] == [want] * 4
    assert len(decided) == 1 and report.ours == 4 and not report.built_in
    what = "decode" if queries == 1 else "prefill"
    assert report.served == Counter({what: 4}) and report.rules == Counter({(what, "always"): 4})


def test_python_calls():
    """Up to the kernel, forward and with gradients: the wrappers, one look at what was kept, and the short way."""
    qkv, counts = arrays(), []

    def run(kind, plan, problem, inputs, stream):
        launch = plan.launch(problem)
        return launch.results([mx.zeros(*one) for one in zip(launch.output_shapes, launch.output_dtypes)])

    def counted(function) -> int:
        counts.append(0)

        def count(frame, event, _):
            counts[-1] += event == "call"

        sys.setprofile(count)
        try:
            function()
        finally:
            sys.setprofile(None)
        return counts[-1]

    with watched(backend_of("simulator", "apple9"), run), mlx_flash.patch(policy="always"):
        step = mx.grad(lambda *qkv: attend(*qkv, mask="causal").sum(), argnums=(0, 1, 2))
        first, *_, again = [counted(lambda: attend(*qkv)) for _ in range(4)]
        assert again <= SERVED_AGAIN < first, (first, again)
        first, *_, again = [counted(lambda: step(*qkv)) for _ in range(4)]
        assert again <= GRADIENT_AGAIN < first, (first, again)


DIFFERENT = {
    "type": (lambda: arrays(dtype=mx.float16), {}),
    "types": (lambda: [*arrays(dtype=mx.float16)[:2], arrays()[2]], {}),
    "heads": (lambda: arrays(heads=4), {}),
    "array mask": (arrays, {"mask": mx.ones((40, 48), mx.bool_)}),
    "causal": (arrays, {"mask": "causal"}),
    "sinks": (arrays, {"sinks": mx.zeros(2)}),
    "scale": (arrays, {"scale": 1}),
    "stream": (arrays, {"stream": mx.cpu}),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_call_that_differs_is_decided_by_itself(decided, name):
    made, options = DIFFERENT[name]
    with mlx_flash.patch(policy="always"):
        want = bits(attend(*made(), **options))
    decided.clear()
    with mlx_flash.patch(policy="always") as report:
        attend(*arrays()), attend(*arrays())
        assert len(decided) == 1
        assert bits(attend(*made(), **options)) == want
        attend(*arrays())
    assert len(decided) == 2 and report.ours == 4


def test_what_is_around_a_call_decides_anew(decided):
    """Other patches, policies, backends and derivatives."""
    qkv = arrays()
    with mlx_flash.patch(policy="always") as first:
        attend(*qkv), attend(*qkv)
        with use_backend("reference"):
            attend(*qkv)
        with mlx_flash.patch(policy="fastest") as fastest:
            attend(*qkv)
        attend(*qkv), attend(*qkv)
        mx.jvp(lambda q: attend(q, *qkv[1:]), [qkv[0]], [qkv[0]])
    with mlx_flash.patch(min_queries=41) as least:
        attend(*qkv)
    assert len(decided) == 4 and first.ours == 5 and fastest.ours == 1 and least.ours == 0
    assert first.built_in == Counter({"a forward-mode derivative (mx.jvp)": 1})


def test_variables_of_the_environment_decide_anew(decided, monkeypatch):
    qkv = arrays()
    monkeypatch.delenv("MLX_FLASH_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_unnamed", lambda on_cpu: backends.backend("simulator", None, False))
    token = backends._choices.set(())
    try:
        with mlx_flash.patch(policy="always") as report:
            attend(*qkv), attend(*qkv)
            monkeypatch.setenv("MLX_FLASH_BACKEND", "simulator")
            attend(*qkv)
            monkeypatch.delenv("MLX_FLASH_BACKEND")
            attend(*qkv)
    finally:
        backends._choices.reset(token)
    assert report.ours == 4 and len(decided) == 3


def test_the_default_device_decides_anew(decided, monkeypatch):
    """On a Mac a call belongs to the CPU after mx.set_default_device(mx.cpu)."""
    here, qkv = ["simulator"], arrays()
    monkeypatch.delenv("MLX_FLASH_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_unnamed", lambda on_cpu: backends.backend(here[0]))
    token = backends._choices.set(())
    try:
        with mlx_flash.patch(policy="always") as report:
            attend(*qkv), attend(*qkv)
            here[0] = "reference"
            attend(*qkv)
    finally:
        backends._choices.reset(token)
    assert report.ours == 3 and len(decided) == 2


def test_each_thread_counts_in_its_own_patch():
    """While both threads make the same call."""
    qkv = arrays()
    mx.eval(qkv)

    def call(times: int):
        for _ in range(times):
            attend(*qkv)

    reports = reports_of_two("always", lambda: call(3), lambda: call(2))
    assert [report.ours for report in reports] == [3, 2]


def test_a_rule_that_left_such_calls_before_holds_nothing_up(decided):
    """Two patches one after another may decide differently."""
    qkv = arrays(width=64)
    with mlx_flash.patch(policy="fastest") as fastest:
        attend(*qkv), attend(*qkv)
    decided.clear()
    with mlx_flash.patch(policy="always") as always:
        attend(*qkv), attend(*qkv), attend(*qkv)
    assert fastest.ours == 0 and always.ours == 3 and len(decided) == 1


def test_wrong_calls_get_the_built_in_s_own_error():
    q, k, v = arrays()
    with mlx_flash.patch(policy="always") as report:
        attend(q, k, v), attend(q, k, v)
        with pytest.raises(ValueError, match="n_heads|heads|dim"):
            attend(q, k[..., :8], v)
        for wrong in ({"scale": "wrong"}, {"mask": 3}, {"mask": "causl"}, {"window": 3}):
            with pytest.raises((TypeError, ValueError)):
                attend(q, k, v, **wrong)
    assert report.ours == 2


def test_calls_of_a_growing_cache_are_bounded(monkeypatch):
    monkeypatch.setattr(kept, "MOST_CALLS", 8)
    q, k, v = arrays(queries=1)
    with mlx_flash.patch(policy="always") as report:
        for length in range(9, 49):
            attend(q, k[:, :, :length], v[:, :, :length])
    assert report.ours == 40 and len(kept.plain) <= 8


GRADIENTS = {"seen": lambda: mx, "taken before": lambda: OWN}


class OWN:
    grad, jvp = mx.grad, mx.jvp


@pytest.mark.parametrize("inner", GRADIENTS)
@pytest.mark.parametrize("outer", GRADIENTS)
@pytest.mark.parametrize("name", ["grad", "jvp"])
def test_second_derivatives_after_gradients_that_were_alone(name, outer, inner):
    """Also where patch() sees only one of the two transformations."""
    q, k, v = arrays()

    def loss(q):
        return mx.sin(attend(q, k, v, mask="causal")).sum()

    def second():
        if name == "grad":
            return GRADIENTS[outer]().grad(lambda q: mx.cos(GRADIENTS[inner]().grad(loss)(q)).sum())(q)
        if outer == "seen":  # a forward-mode derivative inside of a gradient
            return mx.grad(lambda q: GRADIENTS[inner]().jvp(loss, [q], [k[:, :, :40]])[1][0])(q)
        return OWN.jvp(GRADIENTS[inner]().grad(loss), [q], [k[:, :, :40]])[1][0]

    want = second()
    with mlx_flash.patch(policy="always") as report:
        for _ in range(3):
            mx.eval(mx.grad(loss)(q))
        assert trace.asks and report.ours == 3
        close(second(), want)
