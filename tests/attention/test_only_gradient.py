"""A gradient that began where nothing else traced, as the wrappers of mlx_flash.transforms see it, leaves out the
custom functions that refuse other transformations: the same bits, and the same refusals where they did not see all."""

import re
from collections import Counter

import mlx.core as mx
import pytest
from arrays import bits
from cases import Case
from watched import chosen, kinds, watched

from mlx_flash import UnsupportedProblem, attention, transforms
from mlx_flash.autodiff import call as calls
from mlx_flash.autodiff.training import ShortSteps
from mlx_flash.backends import backend as backend_of
from mlx_flash.transforms import wrappers
from mlx_flash.transforms.trace import ASKING, trace

pytestmark = pytest.mark.simulator

OWN = {name: getattr(mx, name) for name in ("grad", "vjp", "jvp", "vmap", "checkpoint")}
ARRAYS = [mx.random.normal((1, heads, 40, 16), key=mx.random.key(heads + n)) for n, heads in enumerate((4, 2, 2, 4))]


def lazy(kind, plan, problem, inputs, stream):
    """As a GPU's kernel, an operation that MLX can neither map nor differentiate forwards."""
    launch = plan.launch(problem)
    outputs = [mx.zeros(shape, dtype) for shape, dtype in zip(launch.output_shapes, launch.output_dtypes)]
    return mx.depends(outputs, launch.arguments(inputs))


@pytest.fixture
def taken(monkeypatch):
    """Whether each gradient was alone, of those that take the short way."""
    found, gradients = [], ShortSteps.gradients

    def noted(*given):
        found.append(trace.alone is not None)
        return gradients(*given)

    monkeypatch.setattr(ShortSteps, "gradients", noted)
    calls.clear_cache()
    trace.asks = 0
    with transforms.installed():
        yield found
    trace.asks = 0
    calls.clear_cache()


def loss(q, k, v):
    return (attention(q, k, v, causal=True) * ARRAYS[3]).sum()


def step() -> list[bytes]:
    value, gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(*ARRAYS[:3])
    return [bits(one) for one in (value, *gradients)]


@pytest.mark.parametrize("width, family", [(24, "apple9"), (24, "apple7"), (136, "sm90")])
def test_the_same_kernels_and_bits(taken, width, family):
    """Beyond 128 columns Hopper has a kernel each for dK and dV. The first gradient finds out that it pays to ask."""
    group = 1 if family == "sm90" else 2
    case = Case(41, 70, width, "float16", True, group=group, key_heads=group, batch=group)
    q, k, v, d_o = [case.arrays()[name] for name in ("q", "k", "v", "d_o")]
    found = []
    with watched(backend_of("simulator", family)) as ran:
        for _ in range(3):
            outputs, gradients = mx.vjp(lambda q, k, v: attention(q, k, v, causal=True), [q, k, v], [d_o])
            found.append([bits(one) for one in (*outputs, *gradients)])
    assert found[0] == found[1] == found[2] and taken == [False, True, True]
    own = ["backward_key", "backward_value"] if family == "sm90" else ["backward_key_value"]
    assert kinds(ran) == ["forward", "backward_query_delta", *own] * 3


def test_operations(taken, tmp_path):
    """A custom function and kernels remain, and of these the ones whose results are asked for."""
    with watched(backend_of("simulator", "apple9"), lazy):
        for arguments, launches in ((0, 2), ((0, 1, 2), 3)):
            for _ in range(2):
                found = mx.grad(loss, argnums=arguments)(*ARRAYS[:3])
            mx.export_to_dot(str(tmp_path / "graph"), *(found if type(found) is tuple else [found]))
            operations = Counter(re.findall(r'label ="(\w+)', (tmp_path / "graph").read_text()))
            assert operations["CustomTransforms"] == 1 and operations["Depends"] == launches, operations
    assert taken == [False, True, True, True]


def of_traces() -> dict:
    """What traces inside of a gradient that the wrappers see, by names taken before them, or outside of it."""
    q, k, v, d_o = ARRAYS

    def total(function):
        return lambda q: sum(one.sum() for one in function(q))

    def one(q):
        return attention(q, k, v)

    return {
        "map": lambda: mx.grad(total(lambda q: [OWN["vmap"](one)(q[None])]))(q),
        "forward derivative": lambda: mx.grad(total(lambda q: OWN["jvp"](one, [q], [q])[1]))(q),
        "gradient": lambda: mx.grad(total(lambda q: OWN["vjp"](one, [q], [d_o])[1]))(q),
        "gradient seen": lambda: mx.grad(total(lambda q: mx.vjp(one, [q], [d_o])[1]))(q),
        "gradient around": lambda: OWN["grad"](total(lambda q: mx.vjp(one, [q], [d_o])[1]))(q),
        "map around": lambda: OWN["vmap"](lambda q: mx.vjp(one, [q], [d_o])[1][0])(q[None]),
        "forward around": lambda: OWN["jvp"](lambda q: mx.vjp(one, [q], [d_o])[1][0], [q], [q]),
    }


WORDS = {"map": "mx.vmap cannot map", "forward": "forward-mode", "gradient": "gradients of gradients"}


@pytest.mark.parametrize("name", of_traces())
def test_what_the_wrappers_do_not_see_is_refused_all_the_same(taken, name):
    with watched(backend_of("simulator", "apple9"), lazy):
        for _ in range(2):
            mx.grad(loss)(*ARRAYS[:3])
        assert taken == [False, True]
        with pytest.raises(UnsupportedProblem, match=WORDS[name.split()[0]]):
            mx.eval(of_traces()[name]())
        assert trace.alone is None and trace.situation == 0
        mx.grad(loss)(*ARRAYS[:3])
    assert taken[-1]


@pytest.mark.parametrize("name", ["vjp", "jvp"])
def test_what_the_wrappers_see_is_traced_once(taken, name):
    traced = []

    def function(q):
        traced.append(name)
        return getattr(mx, name)(lambda q: attention(q, *ARRAYS[1:3]), [q], [ARRAYS[3]])[1][0].sum()

    with watched(backend_of("simulator", "apple9"), lazy):
        for _ in range(2):
            mx.grad(loss)(*ARRAYS[:3])
        with pytest.raises(UnsupportedProblem):
            mx.grad(function)(ARRAYS[0])
    assert traced == [name] and taken[:2] == [False, True]


def test_compiled_steps_are_not_alone(taken):
    """The graph is kept, and may be differentiated later."""
    with watched(backend_of("simulator", "apple9"), lazy):
        for _ in range(2):
            mx.grad(loss)(*ARRAYS[:3])
        mx.compile(mx.grad(loss))(*ARRAYS[:3])
    assert taken == [False, True, False]


def test_checkpoints_are_alone(taken):
    with chosen(backend_of("simulator", "apple9")):
        want = step()
        for checkpoint in (mx.checkpoint, OWN["checkpoint"]):
            gradients = mx.grad(checkpoint(loss), argnums=(0, 1, 2))(*ARRAYS[:3])
            assert [bits(one) for one in gradients] == want[1:]
    assert taken[0] is False and taken[1] is True


def test_gradients_without_attention_stop_asking(taken, monkeypatch):
    """To ask costs more than a microsecond."""
    asked = []
    monkeypatch.setattr(wrappers, "in_trace", lambda: asked.append(1) and False)
    with chosen(backend_of("simulator", "apple9")):
        step(), step()
        for _ in range(3 * ASKING):
            mx.grad(mx.sin)(mx.array(1.0))
        assert len(asked) == 1 + ASKING and not trace.asks
        step(), step()
    assert taken == [False, True] * 2


def test_an_error_of_the_function_is_its_own(taken):
    """A function that raises is called once, and the next gradient is alone again."""
    called = []

    def wrong(q, k, v):
        called.append(trace.only_gradient is not None)
        loss(q, k, v)
        raise ValueError("of the function")

    with chosen(backend_of("simulator", "apple9")):
        step()
        with pytest.raises(ValueError, match="of the function"):
            mx.grad(wrong)(*ARRAYS[:3])
        step()
    assert called == [True] and taken == [False, True] and trace.alone is None
