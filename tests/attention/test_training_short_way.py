"""The short way of training on short sequences: it launches what the long way launches, with arrays of the same bytes,
and only where the long way needs nothing that it leaves out."""

import mlx.core as mx
import pytest
from arrays import bits
from cases import Case, expected
from views import odd_start, strided_columns
from watched import chosen, kinds, watched

from mlx_flash import UnsupportedProblem, attention, transforms, use_backend, vmap
from mlx_flash.autodiff import call as calls
from mlx_flash.autodiff import vjp as rules
from mlx_flash.autodiff.training import ShortSteps
from mlx_flash.autodiff.vjp import Attention
from mlx_flash.backends import backend as backend_of

pytestmark = pytest.mark.simulator

CASE = Case(41, 70, 24, "float16", True, value_dim=40, group=2, key_heads=2, batch=2)


def drawn(case: Case = CASE) -> list[mx.array]:
    arrays = case.arrays()
    return [arrays[name] for name in ("q", "k", "v", "d_o")]


@pytest.fixture
def taken(monkeypatch):
    """The steps that took the short way."""
    found, forward, gradients = [], ShortSteps.forward, ShortSteps.gradients
    monkeypatch.setattr(ShortSteps, "forward", lambda *given: found.append("forward") or forward(*given))
    monkeypatch.setattr(ShortSteps, "gradients", lambda *given: found.append("gradients") or gradients(*given))
    calls.clear_cache()
    yield found
    calls.clear_cache()


def step(q, k, v, d_o, **options) -> list[bytes]:
    outputs, gradients = mx.vjp(lambda q, k, v: attention(q, k, v, **{"causal": True} | options), [q, k, v], [d_o])
    return [bits(one) for one in (*outputs, *gradients)]


@pytest.mark.parametrize("family", ["apple7", "apple9"])
@pytest.mark.parametrize("view", [mx.array, odd_start, strided_columns], ids=lambda view: view.__name__)
def test_launches_are_those_of_the_long_way(taken, monkeypatch, family, view):
    """Views start anywhere; those whose columns are strided have to be copied."""
    arrays = [view(one) for one in drawn()]
    simulated, given = backend_of("simulator", family), []

    def run(kind, plan, problem, inputs, stream):
        read = plan.launch(problem).arguments(inputs)
        given.append((kind.name, plan, problem, [(one.shape, one.dtype, bits(one)) for one in read], stream))
        return simulated.run(kind, plan, problem, inputs, stream)

    with watched(simulated, run):
        short = step(*arrays)
        monkeypatch.setattr(Attention, "_short_of", lambda *_: None)
        long = step(*arrays)
    assert taken == ["forward", "gradients"] and short == long
    assert [kind for kind, *_ in given[:3]] == ["forward", "backward_query_delta", "backward_key_value"]
    assert given[:3] == given[3:]


def test_each_view_is_made_once(taken):
    """Both kernels of the backward pass read the same arrays: Q, K, V and dO."""
    read = []

    def run(kind, plan, problem, inputs, stream):
        read.append(inputs)
        launch = plan.launch(problem)
        return [mx.zeros(shape, dtype) for shape, dtype in zip(launch.output_shapes, launch.output_dtypes)]

    with watched(backend_of("simulator", "apple9"), run):
        q, k, v, d_o = drawn()
        mx.vjp(attention, [q, k, v], [d_o])
    _, query, key_value = read
    assert all(query[name] is key_value[name] for name in ("Q", "K", "V", "dO", "L"))
    assert all(query[name].dtype == mx.uint8 for name in ("Q", "K", "V", "dO"))


OTHERS = {
    "statistics": {"return_lse": True},
    "window": {"window": (9, 0)},
    "mask": {"mask": mx.ones((41, 70), mx.bool_)},
    "sinks": {"sinks": mx.zeros(4, mx.float16)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_options_take_the_long_way(taken, name):
    q, k, v, d_o = drawn()

    def call(q, k, v):
        result = attention(q, k, v, causal=True, **OTHERS[name])
        return result[0] if isinstance(result, tuple) else result

    with use_backend("simulator"):
        for _ in range(2):
            mx.eval(mx.vjp(call, [q, k, v], [d_o]))
    assert not taken


def test_other_traces_take_the_long_way(taken):
    """Of a map there is a stand-in, and the built-in answers for derivatives under patch()."""
    q, k, v, d_o = drawn()
    with use_backend("simulator"):
        want = step(q, k, v, d_o)
        assert taken == ["forward", "gradients"]
        mapped = vmap(lambda q, d_o: mx.vjp(lambda q: attention(q, k, v, causal=True), [q], [d_o])[1][0])
        with transforms.installed():
            rows = mapped(q[None], d_o[None])[0]
        with rules.changed(beyond=True):
            beyond = step(q, k, v, d_o)
        assert taken == ["forward", "gradients"]
        assert bits(rows) == want[1] and beyond == want and step(q, k, v, d_o) == want
    assert len(taken) == 4


def test_lengths_are_told_apart(taken):
    with use_backend("simulator"):
        for queries, keys in ((41, 70), (40, 70), (41, 33), (41, 70)):
            case = Case(queries, keys, 24, "float16", True, value_dim=40, group=2, key_heads=2, batch=2)
            q, k, v, d_o = drawn(case)
            out, gradients = mx.vjp(lambda q, k, v: attention(q, k, v, causal=True), [q, k, v], [d_o])
            expected(case, case.arrays()).check(**dict(zip(("O", "dQ", "dK", "dV"), (*out, *gradients))))
    assert taken == ["forward", "gradients"] * 4


def test_a_kernel_that_failed_its_test_has_no_short_way(taken):
    """The forward kernel serves, and a gradient of it does not: the reference takes its place."""
    from mlx_flash.backends.guard import Verdict

    def guard(plan):
        return Verdict("it is wrong" if plan.kind.name == "backward_query_delta" else "")

    q, k, v, d_o = drawn()
    with watched(backend_of("simulator", "apple9"), guard=guard, falls_back=True) as ran:
        for _ in range(2):
            got = mx.vjp(lambda q, k, v: attention(q, k, v, causal=True), [q, k, v], [d_o])
            expected(CASE, CASE.arrays()).check(**dict(zip(("O", "dQ", "dK", "dV"), (*got[0], *got[1]))))
    assert not taken and kinds(ran) == ["forward", "backward_key_value"] * 2


@pytest.mark.parametrize("length", [41, 1100], ids=["short", "long"])
def test_derivatives_of_gradients_refuse_whichever_array_is_followed(length):
    """The custom function that refuses stands in front of every kernel of both passes, through all arrays."""

    def lazy(kind, plan, problem, inputs, stream):
        """As a GPU's kernel, an operation that MLX can neither map nor differentiate forwards."""
        launch = plan.launch(problem)
        outputs = [mx.zeros(shape, dtype) for shape, dtype in zip(launch.output_shapes, launch.output_dtypes)]
        return mx.depends(outputs, launch.arguments(inputs))

    q, k, v, d_o = (mx.zeros((1, heads, length, 16)) for heads in (4, 2, 2, 4))

    def gradient(number, of):
        given = [q, k, v, d_o]

        def function(one):
            given[number] = one
            return mx.vjp(attention, given[:3], given[3:])[1][of]

        return function

    def total(number, of):
        return lambda one: gradient(number, of)(one).sum()

    with watched(backend_of("simulator", "apple9"), lazy):
        for number, array in enumerate((q, k, v, d_o)):
            for of in range(3):
                with pytest.raises(UnsupportedProblem, match="forward-mode derivatives"):
                    mx.eval(mx.jvp(gradient(number, of), [array], [array]))
                with pytest.raises(UnsupportedProblem, match=r"mx\.vmap cannot map attention by itself"):
                    mx.eval(mx.vmap(gradient(number, of))(mx.stack([array] * 2)))
                if number != 3:
                    with pytest.raises(UnsupportedProblem, match="gradients of gradients are not available"):
                        mx.eval(mx.grad(total(number, of))(array))


def test_statistics_from_elsewhere_are_laid_out():
    """Kernels index L and delta without strides; others than our own backward pass may hand them over in any layout."""
    q, k, v, d_o = drawn()
    simulated = backend_of("simulator", "apple9")
    with chosen(simulated):
        signature = calls.prepared(q, k, v, simulated, None, True, {"causal": True}).inner
        own = rules.attend(signature, (), simulated, None, True)
        out, L = own.run(rules.FORWARD, q, k, v)
        (delta,) = own.run(rules.DELTA, d_o, out)
        want = [bits(one) for one in own.key_value((q, k, v, d_o, L, delta))]
        spread = [mx.stack([one, mx.full(one.shape, mx.nan)], axis=-1)[..., 0] for one in (L, delta)]
        assert [bits(one) for one in own.key_value((q, k, v, d_o, *spread))] == want


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("options", [{}, {"window": (8, 0)}], ids=["plain", "window"])
def test_an_export_is_looked_for_where_it_is_of_use(monkeypatch, options, asks):
    """What MLX records of CUDA's kernels runs nowhere else, and to ask costs as much as two launches."""
    asked = []
    monkeypatch.setattr(rules, "in_export_trace", lambda: asked.append(1) and False)
    q, k, v, d_o = drawn()
    with watched(backend_of("simulator", "apple9"), exported=asks):
        step(q, k, v, d_o, **options)
    assert len(asked) == asks
