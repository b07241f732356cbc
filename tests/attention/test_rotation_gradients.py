"""Gradients through Rotation and Balance are those of the matrices they stand for, in every dimension they accept."""

import threading

import bounds
import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.rotations import Balance, Rotation

DIMENSIONS = [m << k for m in (1, 12, 20, 28) for k in range(9) if m << k <= 256]
KEY = mx.random.key(5)


def dense(map, dimension: int) -> np.ndarray:
    """The map's matrix in float64: row i is the image of unit vector i."""
    return bounds.float64(map(mx.eye(dimension)))


def maps(dimension: int) -> dict:
    """Every linear map of the module for this dimension, on arrays [rows, dimension] of one head."""
    rotation = Rotation(dimension, KEY)
    sample = mx.random.normal((1, 1, 7, dimension), key=mx.random.key(dimension)) * (1 + mx.arange(dimension))
    balance = Balance(sample, KEY)
    heads = {"balance": balance, "queries": balance.queries, "balance undo": balance.undo}
    one_head = {name: lambda x, map=map: map(x[None, None])[0, 0] for name, map in heads.items()}
    return {"rotation": rotation, "rotation undo": rotation.undo, **one_head}


def close(got, want: np.ndarray, label: str, dimension: int):
    """`want` in float64; the error counts in roundings of sums of `dimension` terms."""
    bounds.check("dQ", got, want, label, "float32", terms=float(np.sqrt(dimension)) * np.abs(want).max())


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_gradient_is_the_transposed_matrix(dimension):
    x, w = mx.random.normal((2, 3, dimension), key=mx.random.key(1))
    for name, map in maps(dimension).items():
        rows = dense(map, dimension)
        close(map(x), bounds.float64(x) @ rows, f"{name} {dimension}", dimension)
        close(mx.vjp(map, [x], [w])[1][0], bounds.float64(w) @ rows.T, f"{name} {dimension}", dimension)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_gradient_is_that_of_differences(dimension):
    """A linear map's difference quotient is exact for any step: rounding alone is left."""
    x, w = mx.random.normal((2, 3, dimension), key=mx.random.key(2))
    for name, map in maps(dimension).items():
        gradient = bounds.float64(mx.vjp(map, [x], [w])[1][0])
        along = np.array([(bounds.float64(map(step)) * bounds.float64(w)).sum() for step in (x, -x)])
        want = (along[0] - along[1]) / 2
        size = np.abs(bounds.float64(map(x)) * bounds.float64(w)).sum()
        got = (gradient * bounds.float64(x)).sum()
        bounds.check("dQ", np.array([got]), np.array([want]), f"{name} {dimension}", "float32", terms=size)


@pytest.mark.parametrize("dimension", [64, 80, 112])
def test_every_transformation_keeps_the_gradient(dimension):
    """mx.compile, mx.checkpoint, mx.vmap, mx.jvp, and gradients of gradients."""
    x, w = mx.random.normal((2, 3, dimension), key=mx.random.key(3))
    rotation = Rotation(dimension, KEY)
    rows = dense(rotation, dimension)

    def loss(x):
        return (rotation(x) * w).sum()

    want = bounds.float64(w) @ rows.T
    compiled = mx.compile(mx.grad(loss))(x)
    mapped = mx.vmap(mx.grad(lambda x, w: (rotation(x) * w).sum()))(x, w)
    for name, got in (("compile", compiled), ("checkpoint", mx.grad(mx.checkpoint(loss))(x)), ("vmap", mapped)):
        close(got, want, name, dimension)
    close(mx.compile(rotation, shapeless=True)(x), bounds.float64(x) @ rows, "shapeless", dimension)
    close(mx.jvp(rotation, [x], [w])[1][0], bounds.float64(w) @ rows, "jvp", dimension)
    second = mx.grad(lambda x: (mx.grad(lambda x: (rotation(x) ** 2 * w).sum())(x) * w).sum())(x)
    close(second, 2 * (bounds.float64(w) @ rows * bounds.float64(w)) @ rows.T, "second", dimension)


@pytest.mark.parametrize("dimension", [64, 80])
def test_a_shapeless_trace_serves_every_length(dimension):
    """Outputs and gradients of every map."""
    for name, map in maps(dimension).items():
        for function in (map, mx.grad(lambda x, map=map: mx.square(map(x)).sum())):
            compiled = mx.compile(function, shapeless=True)
            for rows in (3, 7):
                x = mx.random.normal((rows, dimension), key=mx.random.key(rows))
                case = f"{name} {rows}"
                bounds.check("dQ", compiled(x), bounds.float64(function(x)), case, "float32", terms=dimension**0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_rounded_once(dtype):
    x, w = mx.random.normal((2, 3, 80), key=mx.random.key(4)).astype(getattr(mx, dtype))
    rotation = Rotation(80)
    gradient = mx.vjp(rotation, [x], [w])[1][0]
    assert gradient.dtype == x.dtype
    want = bounds.float64(w) @ dense(rotation, 80).T
    error = bounds.Error.of(gradient, want)
    assert error.largest <= bounds.ulp(float(np.abs(want).max()), dtype)


@pytest.mark.parametrize("dimension", [64, 80])
def test_made_in_one_thread_used_in_another(dimension):
    """No cached array stays lazy: a lazy array belongs to the thread and the stream that made it."""
    kept, results = {}, {}
    x = mx.random.normal((1, 1, 3, dimension), key=mx.random.key(6))
    mx.eval(x)

    def make():
        kept["maps"] = (Rotation(dimension, mx.random.key(7)), Balance(x, mx.random.key(8)))

    def use(name):
        with mx.stream(mx.new_stream(mx.default_device())):
            rotation, balance = kept["maps"]
            results[name] = rotation.undo(rotation(x)), balance.undo(balance(x))
            mx.eval(results[name])

    for work in (make, lambda: use("worker")):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    use("here")
    for array in (*results["worker"], *results["here"]):
        close(array, bounds.float64(x), "undone", dimension)


def test_balance_made_inside_a_trace():
    """The scales depend on the sample: gradients flow through them, and are finite for silent channels."""
    x = mx.random.normal((1, 2, 5, 40), key=mx.random.key(9))
    x = mx.where(mx.arange(40) == 3, 0, x) * mx.array([1.0, 0.0])[:, None, None]
    gradient = mx.compile(mx.grad(lambda x: Balance(x)(x).square().sum()))(x)
    assert mx.isfinite(gradient).all().item()


def test_large_samples_do_not_overflow():
    """Squares of such keys are beyond float32, and below it."""
    x = mx.random.normal((1, 2, 5, 40), key=mx.random.key(10))
    scales = Balance(x).scales
    for power in (-100, 100):
        bounds.check("O", Balance(x * 2.0**power).scales / 2.0 ** (power / 2), bounds.float64(scales), "", "float32")
