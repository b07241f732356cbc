"""patch() puts attention in the place of the built-in for every holder of the function: reversibly, and never with
another answer."""

import inspect
import logging
import threading

import bounds
import mlx.core as mx
import numpy as np
import pytest
from tiny_models import close

import mlx_flash
from mlx_flash import unpatch, use_backend
from mlx_flash.integrations.kept import MOST_REASONS

KEPT = [mx.fast.scaled_dot_product_attention]  # in a list, where patch() does not look for those who hold the function


def built_in(*arguments, **options):
    return KEPT[0](*arguments, **options)


@pytest.fixture(autouse=True)
def built_in_again():
    yield
    unpatch()
    assert mx.fast.scaled_dot_product_attention is KEPT[0]


def arrays(queries=12):
    lengths = (queries, 20, 20)
    return tuple(mx.random.normal((1, 2, length, 16), key=mx.random.key(n)) for n, length in enumerate(lengths))


def call(queries=12, **options):
    out = mx.fast.scaled_dot_product_attention(*arrays(queries), **{"scale": 0.25} | options)
    mx.eval(out)
    return out


def test_what_is_not_served_goes_to_the_built_in(reference):
    with mlx_flash.patch(min_queries=np.int64(9)) as report:
        few = call(3)
        mixed = [x.astype(dtype) for x, dtype in zip(arrays(), (mx.float16, mx.float32, mx.float32))]
        assert mx.fast.scaled_dot_product_attention(*mixed, scale=0.25).dtype == mx.float32
    close(few, built_in(*arrays(queries=3), scale=0.25))
    assert report.ours == 1 and report.built_in.total() == 1
    assert str(report).splitlines()[:2] == [
        "mlx_flash served 1 of 2 attention calls (1 prefill)", "  1 to the built-in: fewer than 9 queries"
    ]  # fmt: skip


Q, K, V = arrays()
HALF = tuple(array.astype(mx.float16) for array in (Q, K, V))
CALLS = {  # what the built-in accepts, and what it does not: arguments that change
    "causal": {"mask": "causal"},
    "bool mask": {"mask": mx.arange(20) > 3},
    "mask of any rank": {"mask": mx.array(True)},
    "added mask": {"mask": mx.random.normal((2, 1, 20), key=mx.random.key(4))},
    "half mask": {"mask": mx.zeros((12, 20), mx.float16)},
    "integer mask": {"mask": mx.ones((12, 20), mx.int32)},
    "sinks": {"sinks": mx.array([0.5, -1.0])},
    "half sinks": {"sinks": mx.array([0.5, -1.0], mx.float16), "mask": "causal"},
    "integer sinks": {"sinks": mx.zeros((2,), mx.int32)},
    "scale of numpy": {"scale": np.float32(0.3)},
    "scale in an array": {"scale": mx.array(0.3)},
    "whole scale": {"scale": 1},
    "infinite scale": {"scale": float("inf")},
    "integer queries": {"q": mx.ones((1, 2, 12, 16), mx.int32)},
    "mixed types": {"q": HALF[0]},
    "all half": dict(zip("qkv", HALF)),
    "value dimension": {"v": mx.concatenate([V, V], -1)},
    "no queries": {"q": Q[:, :, :0]},
    "no keys": {"k": K[:, :, :0], "v": V[:, :, :0]},
    "no batch": {"q": Q[:0], "k": K[:0], "v": V[:0]},
    "stream": {"stream": mx.cpu},
    "mask shape": {"mask": mx.zeros((5, 7))},
    "mask name": {"mask": "diagonal"},
    "empty mask name": {"mask": ""},
    "mask of numpy": {"mask": np.ones((12, 20), bool)},
    "mask rank": {"mask": mx.ones((1, 1, 1, 12, 20))},
    "mask type": {"mask": mx.zeros((12, 20)), **dict(zip("qkv", HALF))},
    "sinks shape": {"sinks": mx.zeros((3,))},
    "sinks of numpy": {"sinks": np.zeros((2,), np.float32)},
    "scale in words": {"scale": "large"},
    "scale in digits": {"scale": "1"},
    "no scale": {"scale": None},
    "head dimension": {"q": mx.zeros((1, 2, 12, 8))},
    "rank": {"q": mx.zeros((2, 12, 16))},
    "heads": {"q": mx.zeros((1, 3, 12, 16))},
    "value heads": {"v": mx.concatenate([V, V], 1)},
    "batch": {"q": mx.concatenate([Q, Q])},
    "all integers": {name: mx.ones((1, 2, 12, 16), mx.int32) for name in "qkv"},
    "complex": {"q": Q.astype(mx.complex64)},
    "no array": {"q": np.zeros((1, 2, 12, 16))},
    "fused": {"force_fused": True},
    "unknown option": {"window": 3},
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_ends_as_it_would(reference, name):
    """The call ends with the built-in's result or exception, and is counted once."""
    arguments = {"q": Q, "k": K, "v": V, "scale": 0.25} | CALLS[name]

    def outcome():
        try:
            out = mx.fast.scaled_dot_product_attention(**arguments)
            mx.eval(out)
            return out
        except Exception as error:
            # nanobind ends its TypeErrors with how the function was called, by position or by name
            return type(error), str(error).split("Invoked")[0]

    want = outcome()
    with mlx_flash.patch() as report:
        got = outcome()
    assert report.ours + report.built_in.total() == 1
    if isinstance(want, tuple):
        assert got == want and report.ours == 0
        return
    assert got.dtype == want.dtype and got.shape == want.shape
    if want.size == 0 or not mx.all(mx.isfinite(want)):
        return
    if got.dtype == mx.float16:
        unit = bounds.ulp(mx.abs(want).max().item(), "float16")
        assert mx.abs(got - want).max().item() <= bounds.LARGEST_FLOOR * unit
    else:
        close(got, want)


def squares(q):
    return mx.square(mx.fast.scaled_dot_product_attention(q, K, V, scale=0.25)).sum()


DERIVATIVES = {  # those attention has, and those it has not: (what is computed, the reason it falls through)
    "grad": (lambda: mx.grad(squares)(Q), None),
    "value and grad by name": (lambda: mx.value_and_grad(squares, argnums=[], argnames="q")(q=Q)[1][1]["q"], None),
    "vjp": (lambda: mx.vjp(squares, [Q], [mx.array(2.0)])[1][0], None),
    "jvp": (lambda: mx.jvp(squares, [Q], [Q])[1][0], "a forward-mode derivative (mx.jvp)"),
    "grad of grad": (lambda: mx.grad(lambda q: mx.grad(squares)(q).sum())(Q), "a gradient of a gradient"),
    "jvp of grad": (lambda: mx.jvp(mx.grad(squares), [Q], [Q])[1][0], "a forward-mode derivative (mx.jvp)"),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_that_attention_has_not_come_from_the_built_in(backend, name):
    compute, reason = DERIVATIVES[name]
    want = compute()
    with mlx_flash.patch() as report:
        got = compute()
        mx.eval(got)
    assert (report.ours, dict(report.built_in)) == ((0, {reason: 1}) if reason else (1, {}))
    close(got, want)
    assert not hasattr(mx.grad, "__wrapped__"), "mx.grad is MLX's again"


def test_patches_nest_and_are_taken_back_in_any_order(reference):
    outer, inner = mlx_flash.patch(min_queries=9), mlx_flash.patch()
    call(2)
    outer.undo()
    call(2)
    assert (outer.ours, inner.ours) == (0, 2) and inner.served == {"decode": 2}
    inner.undo()
    inner.undo()
    assert mx.fast.scaled_dot_product_attention is KEPT[0]


def test_an_exception_takes_it_back_and_goes_on(reference):
    with pytest.raises(ZeroDivisionError), mlx_flash.patch() as report:
        call()
        raise ZeroDivisionError
    assert mx.fast.scaled_dot_product_attention is KEPT[0] and report.ours == 1


def test_mapped_calls(backend):
    """Grouped heads work too, where MLX's own rule does not return."""
    q, k, v = (mx.random.normal((3, 1, heads, 12, 16), key=mx.random.key(n)) for n, heads in enumerate((4, 2, 2)))
    want = mx.stack([built_in(*one, scale=0.25, mask="causal") for one in zip(q, k, v)])
    with mlx_flash.patch() as report:
        got = mx.vmap(lambda *one: mx.fast.scaled_dot_product_attention(*one, scale=0.25, mask="causal"))(q, k, v)
        mx.eval(got)
    close(got, want)
    assert report.ours == 1 and not report.built_in


def test_a_wrapper_made_inside_a_patch_keeps_working(reference):
    """Taken off in the wrong order, and put on again over the other's wrapper."""
    first = mlx_flash.patch()
    ours, seen = mx.fast.scaled_dot_product_attention, []

    def wrapper(*arguments, **options):
        seen.append(1)
        return ours(*arguments, **options)

    mx.fast.scaled_dot_product_attention = wrapper
    try:
        first.undo()
        assert mx.fast.scaled_dot_product_attention is wrapper
        close(call(), built_in(*arrays(), scale=0.25))
        with mlx_flash.patch(min_queries=9) as second:
            call()
            call(3)
        close(call(), built_in(*arrays(), scale=0.25))
    finally:
        mx.fast.scaled_dot_product_attention = KEPT[0]
    assert (first.ours, second.ours, second.built_in.total(), len(seen)) == (0, 1, 1, 3)


def test_it_looks_like_the_built_in():
    with mlx_flash.patch():
        ours = mx.fast.scaled_dot_product_attention
        assert ours is not KEPT[0] and ours.__name__ == KEPT[0].__name__ and ours.__doc__ == KEPT[0].__doc__
        assert inspect.unwrap(ours) is KEPT[0]


def in_threads(work, count=8):
    errors = []

    def guarded(n):
        try:
            with use_backend("reference"):
                work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_calls_of_threads_without_a_patch_count_in_the_innermost():
    with mlx_flash.patch() as outer, mlx_flash.patch() as inner:
        in_threads(lambda n: [call() for _ in range(20)])
    assert (outer.ours, inner.ours) == (0, 160)


def test_threads_patch_call_and_take_back_at_once():
    """Each thread's calls count in its own patch, whatever the others do, and every result is right."""
    want, reports = call(), []

    def work(n):
        for _ in range(10):
            with mlx_flash.patch(min_queries=1 if n % 2 else 9) as report:
                for queries in (12, 3):
                    out = call(queries)
                    if queries == 12:
                        close(out, want)
            reports.append((n, report))

    in_threads(work)
    assert mx.fast.scaled_dot_product_attention is KEPT[0]
    assert len(reports) == 80
    for n, report in reports:
        assert (report.ours, report.built_in.total()) == ((2, 0) if n % 2 else (1, 1))


def test_reasons_do_not_grow_without_end():
    with mlx_flash.patch() as report:
        for n in range(3 * MOST_REASONS):
            with pytest.raises(ValueError):
                call(mask=mx.zeros((n + 2, 21)))
    assert len(report.built_in) == MOST_REASONS + 1 and report.built_in.total() == 3 * MOST_REASONS


def test_a_backend_that_cannot_serve_falls_through(kernels):
    """The simulator computes at once: inside mx.compile the built-in serves, and the report says why."""
    with mlx_flash.patch() as report:
        got = mx.compile(lambda q: mx.fast.scaled_dot_product_attention(q, K, V, scale=0.25))(Q)
        close(got, built_in(Q, K, V, scale=0.25))
    if kernels.name == "simulator":
        assert report.ours == 0 and "outside mx.compile" in str(report)


def test_each_patch_traces_a_function_anew(reference):
    """One that was compiled during an earlier patch too; during one patch its trace is kept."""

    def attend(q):
        return mx.fast.scaled_dot_product_attention(q, K, V, scale=0.25)

    compiled = []  # MLX forgets the traces of functions that nobody holds
    for _ in range(2):
        with mlx_flash.patch() as report:
            for _ in range(2):
                compiled.append(mx.compile(attend))
                close(compiled[-1](Q), built_in(Q, K, V, scale=0.25))
        assert report.ours == 1


def test_leaving_is_logged(reference, caplog):
    with caplog.at_level(logging.INFO, "mlx_flash"), mlx_flash.patch():
        call()
    (message,) = (record.message for record in caplog.records)
    assert message.splitlines()[0] == "mlx_flash served 1 of 1 attention calls (1 prefill)"


def test_min_queries_is_checked():
    with pytest.raises(ValueError, match="min_queries: expected a whole number of at least 1, got 0"):
        mlx_flash.patch(min_queries=0)
