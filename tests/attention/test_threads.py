"""Threads and streams: calls from many threads are right, each with its own backend; every stream gives the same."""

import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from arrays import bits
from machines import BACKENDS
from variants import VARIANTS, computed

from mlx_flash import attention, patch, use_backend, vmap
from mlx_flash.autodiff import call as calls
from mlx_flash.backends import current_backend
from mlx_flash.kernels import source
from mlx_flash.kernels.plan import plan
from mlx_flash.sequences import cumulative_segments

NAMES = ("plain", "causal", "softcap", "sinks")
THREADS = 8
Q = mx.random.normal((1, 2, 9, 16), key=mx.random.key(0))
mx.eval(Q)


def results(choice, name: str) -> dict[str, bytes]:
    with use_backend(*choice):
        return {tensor: bits(array) for tensor, array in computed(name).items()}


def in_threads(function, arguments: list) -> list:
    """Runs each function in a thread, all started at once; an exception in one of them is raised."""
    start = threading.Barrier(THREADS)

    def work(one):
        start.wait(60)
        return function(*one)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, arguments))


@pytest.mark.kernels
@pytest.mark.reported("mlx-4043")
def test_cold_kernels_from_many_threads():
    """Texts, plans and built kernels are made by all threads at once: each gets the bits that one thread alone gets."""
    work = [(choice, name) for choice in BACKENDS for name in NAMES]
    work = (work * THREADS)[: len(work) // THREADS * THREADS + THREADS]
    want = {one: results(*one) for one in set(work)}
    for kept in (source.build, plan):
        kept.cache_clear()
    calls.clear_cache()
    for one, got in zip(work, in_threads(results, work)):
        assert got == want[one], one


def test_each_thread_has_its_own_backend(monkeypatch):
    """The choice of one thread is invisible to others; threads that choose nothing follow the environment."""
    monkeypatch.setenv("MLX_FLASH_BACKEND", "reference")

    def chosen(choice):
        before = current_backend().name
        if choice is None:
            return before, current_backend().name, None
        with use_backend(*choice) as backend:
            return before, backend.name, backend.family and backend.family.name

    with use_backend(*BACKENDS[0]):
        choices = ([*BACKENDS, None] * THREADS)[:THREADS]
        for choice, (before, name, family) in zip(choices, in_threads(chosen, [(choice,) for choice in choices])):
            assert before == "reference"
            assert name == (choice or ("reference", None))[0]
            assert choice is None or choice[1] in (None, family)
        assert current_backend().name == BACKENDS[0][0]


def test_a_trace_in_one_thread_is_none_in_another(reference):
    """While mx.vmap traces in one thread and an export in another, calls in other threads are plain."""
    want = bits(attention(Q, Q, Q))
    inside, done, found = threading.Event(), threading.Event(), []

    def elsewhere():
        inside.wait(60)
        with use_backend("reference"):
            found.append(bits(attention(Q, Q, Q)))
        done.set()

    def traced(q):
        inside.set()
        assert done.wait(60)
        return attention(q, Q, Q)

    other = threading.Thread(target=elsewhere)
    other.start()
    mapped = vmap(traced)(mx.stack([Q, Q]))
    other.join()
    assert found == [want] and bits(mapped[1]) == want


def test_patches_of_many_threads(reference):
    """Each counts its own calls, and the built-in is back when the last one has gone."""
    built_in = mx.fast.scaled_dot_product_attention

    def patched(calls_):
        with use_backend("reference"), patch(min_queries=1) as report:
            for _ in range(calls_):
                mx.eval(mx.fast.scaled_dot_product_attention(Q, Q, Q, scale=0.25))
        return report.ours

    assert in_threads(patched, [(n + 1,) for n in range(THREADS)]) == [n + 1 for n in range(THREADS)]
    assert mx.fast.scaled_dot_product_attention is built_in


def test_ids_of_offsets_serve_every_thread(reference):
    """Segments that one thread made are usable in another, whose streams are its own."""
    offsets = mx.array([0, 4, 9])
    mx.eval(offsets)
    (ids, _), found = cumulative_segments(offsets), []
    other = threading.Thread(target=lambda: found.append(ids.tolist()))
    other.start()
    other.join()
    assert found == [[0] * 4 + [1] * 5]


def streams() -> list:
    default = mx.default_device()
    return [None, default, mx.default_stream(default), mx.new_stream(default)]


@pytest.mark.parametrize("options", [{}, {"causal": True, "return_lse": True}], ids=str)
def test_every_stream_gives_the_same(backend, options):
    """Forward and backward, by device, by stream and inside `with mx.stream`; head dimensions that are padded too."""
    for width in (16, 13):
        q = Q[..., :width]

        def loss(q, stream):
            found = attention(q, q, q, stream=stream, **options)  # noqa: B023
            return sum(mx.square(array).sum() for array in (found if isinstance(found, tuple) else [found]))

        want = [bits(array) for array in mx.value_and_grad(loss)(q, None)]
        for stream in streams():
            assert [bits(array) for array in mx.value_and_grad(loss)(q, stream)] == want
            if stream is not None:
                with mx.stream(stream):
                    assert [bits(array) for array in mx.value_and_grad(loss)(q, None)] == want


def test_two_streams_at_once(backend):
    """One stream's result is the other's input: MLX orders them."""
    first, second = (mx.new_stream(mx.default_device()) for _ in range(2))
    want = bits(attention(attention(Q, Q, Q), Q, Q))
    for _ in range(3):
        assert bits(attention(attention(Q, Q, Q, stream=first), Q, Q, stream=second)) == want


def test_the_variants_are_there():
    assert set(NAMES) <= set(VARIANTS)
