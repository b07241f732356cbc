"""Derivatives that attention does not have come from the built-in, by whatever name they are asked for.

Also where patch() cannot see that a derivative is traced: through a function that was taken from MLX before."""

import mlx.core as mx
import pytest
from tiny_models import close

import mlx_flash

Q, K, V = (mx.random.normal((1, 2, n, 16), key=mx.random.key(n)) for n in (6, 7, 8))
K, V = K[:, :, :7], mx.concatenate([K, K], 3)[..., 3:27]
BIAS = mx.random.normal((2, 6, 7), key=mx.random.key(9))
MASKS = {"none": None, "causal": "causal", "bool": BIAS > 0, "added": BIAS}
OWN = {name: getattr(mx, name) for name in ("grad", "value_and_grad", "vjp", "jvp", "checkpoint")}


def loss(mask, around=lambda function: function):
    """A function of q, k and v; `around`: what the call of the built-in is put into."""

    def call(q, k, v):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)

    def function(q, k, v):
        return mx.sin(3 * around(call)(q, k, v)).sum()

    return function


ARGUMENTS = (0, 1, 2)
WEIGHTS = [mx.random.normal(array.shape, key=mx.random.key(20 + n)) for n, array in enumerate((Q, K, V))]


def weighted(gradients):
    return sum((gradient * weight).sum() for gradient, weight in zip(gradients, WEIGHTS))


# What is computed with the functions of a namespace, mx itself or those that were taken before.
SECOND = {
    "gradient of a gradient": lambda of, f: of["grad"](
        lambda *x: weighted(of["grad"](f, argnums=ARGUMENTS)(*x)), argnums=ARGUMENTS
    )(Q, K, V),
    "value and gradient": lambda of, f: of["value_and_grad"](
        lambda *x: weighted(of["value_and_grad"](f, argnums=ARGUMENTS)(*x)[1]), argnums=ARGUMENTS
    )(Q, K, V)[1],
    "vjp of a vjp": lambda of, f: of["vjp"](
        lambda *x: weighted(of["vjp"](f, list(x), [mx.array(2.0)])[1]), [Q, K, V], [mx.array(1.0)]
    )[1],
    "jvp": lambda of, f: of["jvp"](f, [Q, K, V], WEIGHTS)[1],
    "jvp of one argument": lambda of, f: of["jvp"](lambda k: f(Q, k, V), [K], [WEIGHTS[1]])[1],
    "jvp of a gradient": lambda of, f: of["jvp"](of["grad"](f, argnums=ARGUMENTS), [Q, K, V], WEIGHTS)[1],
}
THROUGH = {
    "as it is": lambda of: lambda function: function,
    "checkpoint": lambda of: of["checkpoint"],
    "compile": lambda of: mx.compile,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("by", ("mx", pytest.param("name", marks=pytest.mark.long)))
@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives(reference, name, by, mask):
    compare(name, by, "as it is", mask)


# MLX has no forward mode through mx.checkpoint.
WAYS = [(name, way) for name in SECOND for way in THROUGH if way != "checkpoint" or "jvp" not in name.split()[0]]


@pytest.mark.parametrize("name, through", WAYS)
@pytest.mark.parametrize("by", (pytest.param("mx", marks=pytest.mark.long), "name"))
def test_through_other_transformations(reference, name, by, through):
    compare(name, by, through, "causal")


@pytest.mark.parametrize("by", ("mx", "name"))
def test_on_kernels(kernels, by):
    for name in ("gradient of a gradient", "jvp of a gradient"):
        compare(name, by, "as it is", "added")


def compare(name: str, by: str, through: str, mask: str):
    """Compares results with and without patch(), and checks that the built-in answered where patch() can see the
    request."""

    def result():
        of = OWN if by == "name" else {one: getattr(mx, one) for one in OWN}
        found = SECOND[name](of, loss(MASKS[mask], THROUGH[through](of)))
        mx.eval(found)
        return found

    want = result()
    with mlx_flash.patch() as report:
        got = result()
    assert len(got) == len(want)
    for one, other in zip(got, want):
        assert one.shape == other.shape and one.dtype == other.dtype
        close(one, other)
    if by == "mx":
        assert report.ours == 0 and report.built_in.total() >= 1


def test_a_gradient_made_before_the_patch(reference):
    """The call is not counted, and its gradient is right."""
    inner = mx.grad(loss(None), argnums=ARGUMENTS)
    outer = mx.grad(lambda *x: weighted(inner(*x)), argnums=ARGUMENTS)
    want = outer(Q, K, V)
    with mlx_flash.patch() as report:
        got = outer(Q, K, V)
        mx.eval(got)
    for one, other in zip(got, want):
        close(one, other)
    assert report.ours == 1


def test_one_gradient_through_a_checkpoint_is_served(backend):
    want = mx.grad(loss("causal", mx.checkpoint), argnums=ARGUMENTS)(Q, K, V)
    with mlx_flash.patch() as report:
        got = mx.grad(loss("causal", mx.checkpoint), argnums=ARGUMENTS)(Q, K, V)
        mx.eval(got)
    for one, other in zip(got, want):
        close(one, other)
    assert report.ours == 2 and not report.built_in, "once in each of its traces"
