"""MLX's function transformations: those that work agree with one another, the others refuse in one sentence."""

import importlib

import bounds
import mlx.core as mx
import numpy as np
import pytest
from cases import Case
from test_determinism import bits

from mlx_flash import UnsupportedProblem, attention
from mlx_flash.backends import Backend, current_backend

CASE = Case(33, 65, 64, "float32", True, group=2, key_heads=2, batch=2)


def arrays() -> list[mx.array]:
    drawn = CASE.arrays()
    return [drawn[name] for name in "qkv"]


def loss(q, k, v, scale=None) -> mx.array:
    return mx.square(attention(q, k, v, scale=scale, causal=True)).sum()


def same(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want):
        assert bits(one) == bits(other)


def test_subsets_of_the_arguments(backend):
    whole = mx.grad(loss, argnums=(0, 1, 2))(*arrays())
    for only in range(3):
        same([mx.grad(loss, argnums=only)(*arrays())], [whole[only]])
    for argnums in ((0, 2), (1, 2)):
        same(mx.grad(loss, argnums=argnums)(*arrays()), [whole[n] for n in argnums])
    value, gradient = mx.value_and_grad(loss)(*arrays())
    same([value, gradient], [loss(*arrays()), whole[0]])


def test_only_the_gradients_asked_for_are_computed(monkeypatch):
    """On a lazy backend: dQ alone evaluates nothing of the key/value kernel."""
    lazy = current_backend()
    ran = []

    def run(plan, inputs, stream):
        ran.append(plan.step.name)
        return lazy.run(plan, inputs, stream)

    counting = Backend("counting", lazy.family, run)
    monkeypatch.setattr(importlib.import_module("mlx_flash.attention"), "current_backend", lambda: counting)
    mx.eval(mx.grad(loss, argnums=(0, 1, 2))(*arrays()))
    assert ran == ["forward", "delta", "backward_query", "backward_key_value"], "one forward, one of each"


def test_checkpoint(backend):
    plain = mx.grad(loss, argnums=(0, 1, 2))(*arrays())
    same(mx.grad(mx.checkpoint(loss), argnums=(0, 1, 2))(*arrays()), plain)


def test_layers_with_different_scales_in_one_graph(backend):
    """No state between forward and backward: each layer's vjp uses its own scale and residuals."""

    def both(q, k, v):
        return loss(q, k, v, scale=0.125) + 2 * loss(q, k, v, scale=-0.5)

    together = mx.grad(both, argnums=(0, 1, 2))(*arrays())
    first = mx.grad(lambda *x: loss(*x, scale=0.125), argnums=(0, 1, 2))(*arrays())
    second = mx.grad(lambda *x: 2 * loss(*x, scale=-0.5), argnums=(0, 1, 2))(*arrays())
    for got, one, other in zip(together, first, second):
        assert np.array_equal(np.array(got), np.array(one + other)) or np.array_equal(
            np.array(got), np.array(other + one)
        )


def test_attention_of_attention(backend):
    """A layer on a layer: the cotangent of the first is a gradient that another vjp returned."""

    def deep(q, k, v):
        return loss(attention(q, k, v), k, v)

    def by_hand(q, k, v):
        inner, pull = attention(q, k, v), []
        cotangents = mx.grad(loss, argnums=(0, 1, 2))(inner, k, v)
        _, pull = mx.vjp(attention, [q, k, v], [cotangents[0]])
        return [pull[0], cotangents[1] + pull[1], cotangents[2] + pull[2]]

    same(mx.grad(deep, argnums=(0, 1, 2))(*arrays()), by_hand(*arrays()))


def test_compile_on_a_lazy_backend(reference):
    step = mx.value_and_grad(loss, argnums=(0, 1, 2))
    value, gradients = mx.compile(step)(*arrays())
    plain_value, plain_gradients = step(*arrays())
    # Compiling fuses elementwise operations, which may round differently: close, not equal.
    for name, got, want in zip(("O", "dQ", "dK", "dV"), (value, *gradients), (plain_value, *plain_gradients)):
        bounds.check(name, got, bounds.float64(want), "compiled", "float32")


def test_compile_on_the_simulator_refuses(kernels):
    if kernels.name == "metal":  # lazy there: compiling works
        same([mx.compile(loss)(*arrays())], [loss(*arrays())])
        return
    with pytest.raises(ValueError, match=r"simulator runs kernel .* at once.* outside mx\.compile"):
        mx.eval(mx.compile(loss)(*arrays()))


def test_second_derivatives_refuse(backend):
    inner = mx.grad(loss)

    def outer(q, k, v):
        return mx.square(inner(q, k, v)).sum()

    with pytest.raises(UnsupportedProblem, match=r"gradients of gradients are not available: .* differentiated once"):
        mx.eval(mx.grad(outer)(*arrays()))


def test_forward_mode_refuses(backend):
    with pytest.raises(UnsupportedProblem, match=r"forward-mode derivatives \(mx\.jvp\).*use mx\.grad or mx\.vjp"):
        mx.eval(mx.jvp(attention, arrays(), arrays()))


def test_forward_mode_over_a_gradient_refuses(backend):
    with pytest.raises(UnsupportedProblem, match="not available"):
        mx.eval(mx.jvp(mx.grad(loss, argnums=(0, 1, 2)), arrays(), arrays()))


def test_integer_leaves_do_not_disturb(backend):
    """Gradients by name through a pytree, as a module's parameters come."""

    def of_tree(tree):
        return loss(tree["q"], tree["k"], tree["v"])

    gradients = mx.grad(of_tree)(dict(zip("qkv", arrays())))
    same([gradients[name] for name in "qkv"], mx.grad(loss, argnums=(0, 1, 2))(*arrays()))
