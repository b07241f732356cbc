"""MLX's function transformations: those that work agree with one another, the others refuse in one sentence."""

from io import StringIO

import bounds
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from arrays import bits
from cases import Case
from watched import kinds, watched

from mlx_flash import UnsupportedProblem, attention

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


BACKWARD = ["forward", "delta", "backward_query", "backward_key_value"]


def test_a_gradient_runs_every_kernel_once(reference):
    with watched() as ran:
        mx.eval(mx.grad(loss, argnums=(0, 1, 2))(*arrays()))
    assert kinds(ran) == BACKWARD


def operations(*results: mx.array) -> int:
    """How many operations MLX evaluates for these lazy arrays: those of the graph behind them."""
    graph = StringIO()
    mx.export_to_dot(graph, *results)
    return graph.getvalue().count("shape=rectangle")


@pytest.mark.parametrize("argument, needed", [(0, "backward_query"), (1, "backward_key_value")])
def test_only_the_gradients_asked_for_are_computed(reference, argument, needed):
    """A lazy backend evaluates dQ without the key/value kernel, and dK without the query kernel: a kernel is evaluated
    if its outputs add nothing to the graph behind the gradient."""
    with watched() as ran:
        gradient = mx.grad(loss, argnums=argument)(*arrays())
    assert kinds(ran) == BACKWARD
    evaluated = [run.kind.name for run in ran if operations(gradient, *run.outputs) == operations(gradient)]
    assert evaluated == ["forward", "delta", needed]


def test_checkpoint(backend):
    plain = mx.grad(loss, argnums=(0, 1, 2))(*arrays())
    same(mx.grad(mx.checkpoint(loss), argnums=(0, 1, 2))(*arrays()), plain)


def test_layers_with_different_scales_in_one_graph(backend):
    """There is no state between forward and backward: each layer's vjp uses its own scale and residuals."""

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


def test_compiled_functions_are_traced_once_for_each_shape(reference):
    """Other shapes trace the function again, gradients included."""
    traced = []

    def function(q, k, v):
        traced.append(q.shape)
        return mx.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

    compiled, (q, k, v) = mx.compile(function), arrays()
    for length in (33, 20, 33, 7, 20):
        part = q[:, :, :length]
        value, gradients = compiled(part, k, v)
        plain_value, plain = mx.value_and_grad(loss, argnums=(0, 1, 2))(part, k, v)
        for name, got, want in zip(("O", "dQ", "dK", "dV"), (value, *gradients), (plain_value, *plain)):
            bounds.check(name, got, bounds.float64(want), "compiled", "float32")
    assert [shape[2] for shape in traced] == [33, 20, 7]


def test_a_compiled_step_with_an_optimizer(reference):
    """The step is mlx-lm's: model and optimizer state as inputs and outputs, checkpointed layers, three steps."""
    losses = {}
    for name in ("plain", "compiled", "checkpointed"):
        mx.random.seed(0)
        model = Layer(checkpoint=name == "checkpointed")
        optimizer = optim.SGD(learning_rate=0.1)
        state = [model.state, optimizer.state]
        step = training_step(model, optimizer)
        step = step if name == "plain" else mx.compile(step, inputs=state, outputs=state)
        x = mx.random.normal((2, 9, 32), key=mx.random.key(1))
        losses[name] = []
        for _ in range(3):
            losses[name].append(step(x).item())
            mx.eval(state)
    for name in ("compiled", "checkpointed"):
        bounds.check("O", np.array(losses[name]), np.array(losses["plain"]), name, "float32")
    assert losses["plain"][2] < losses["plain"][0]


class Layer(nn.Module):
    """Grouped attention between projections, with sinks that are trained."""

    def __init__(self, checkpoint: bool):
        super().__init__()
        self.q, self.kv, self.sinks = nn.Linear(32, 64), nn.Linear(32, 64), mx.zeros(4)
        self.attend = mx.checkpoint(self.heads) if checkpoint else self.heads

    def heads(self, q, k, v, sinks):
        return attention(q, k, v, causal=True, window=(4, 0), sinks=sinks)

    def __call__(self, x):
        q = self.q(x).reshape(2, 9, 4, 16).swapaxes(1, 2)
        k, v = (part.reshape(2, 9, 2, 16).swapaxes(1, 2) for part in self.kv(x).split(2, axis=-1))
        return self.attend(q, k, v, self.sinks)


def training_step(model, optimizer):
    def step(x):
        value, gradients = nn.value_and_grad(model, lambda x: mx.square(model(x) - 1).mean())(x)
        assert set(gradients) == {"q", "kv", "sinks"}
        optimizer.update(model, gradients)
        return value

    return step


def test_compile_on_the_simulator_refuses(kernels):
    if kernels.name in ("metal", "cuda"):  # lazy there: compiling works
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


@pytest.mark.parametrize("argument", ["k", "sinks"])
def test_second_derivatives_of_what_a_kernel_leaves_to_operations_refuse(backend, argument):
    """The gradient of sinks is made of delta and the statistics."""
    sinks = mx.zeros(arrays()[0].shape[1])

    def inner(q, k, sinks):
        return mx.grad(lambda sinks: attention(q, k, arrays()[2], sinks=sinks).sum())(sinks).sum()

    given = {"k": arrays()[1], "sinks": sinks}
    with pytest.raises(UnsupportedProblem, match="gradients of gradients are not available"):
        mx.eval(mx.grad(lambda one: inner(arrays()[0], **given | {argument: one}))(given[argument]))


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
