"""The cost of a call to the host before its launch, in function calls, which do not depend on the load of the
machine."""

import re
import sys
from collections import Counter
from contextlib import nullcontext

import mlx.core as mx
import pytest
from watched import chosen

from mlx_flash import BlockMask, attention, quantized_attention, transforms
from mlx_flash.autodiff import call as calls
from mlx_flash.autodiff.vjp import attend
from mlx_flash.backends import Backend, metal
from mlx_flash.backends.metal import run_with
from mlx_flash.kernels import source
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.launch import constant
from mlx_flash.kernels.plan import plan

Q, K = mx.zeros((1, 4, 40, 64)), mx.zeros((1, 2, 40, 64))
# Function calls up to the launch, Python's and C's: today's number and a third more. bench/host_cost.py has the times.
BUDGETS = {
    "plain": ({}, 32),
    "causal": ({"mask": "causal"}, 32),
    "bool": ({"mask": mx.ones((40, 40), mx.bool_)}, 47),
    "several": ({"causal": True, "window": (9, 0), "softcap": 20.0, "sinks": mx.zeros(4), "scale": 0.1}, 55),
}
QUANTIZED_BUDGET = 75
STEP_BUDGET, WRAPPED_STEP_BUDGET = 80, 64  # of a forward and a backward pass, whatever the length
TOKEN_BUDGET = 35  # of one query over a cache that has a length of its own with every call, and one part
# Operations that MLX evaluates for the gradients of one call, besides what the stub makes: each custom function is one,
# and one more for each of its outputs; 7 us and 2 us of an H200's host, a view 1 us. "Depends": the three kernels, and
# an order of operations. The long way makes the views of q, k, v and dO for each kernel.
GRADIENT_OPERATIONS = {"CustomTransforms": 5, "StopGradient": 8, "Depends": 4, "View": 8}
LONG_WAY = GRADIENT_OPERATIONS | {"View": 12}  # a single query's, whose forward kernel is that of decoding


class Launched(Exception):
    pass


@pytest.fixture
def stub():
    """A backend whose kernel object is called and launches nothing; it raises `Launched` once `stop` is set."""

    class Stub:
        stop = False

        def run(self, kind, plan, problem, inputs, stream):
            return run_with(self.kernel, plan.launch(problem), inputs, stream)

        def kernel(self, *, output_shapes, output_dtypes, **_):
            if self.stop:
                raise Launched
            return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)]

    made = Stub()
    made.backend = Backend("stub", FAMILIES["apple9"], made.run, decodes=True, dequantizes=True)
    with chosen(made.backend):
        yield made


def counted(stub, options, forget=False, attention=attention, keys=K) -> Counter:
    """Calls by name, of a second call of attention up to its launch."""
    attention(Q, keys, keys, **options)
    if forget:
        calls.clear_cache()
    found, stub.stop = Counter(), True

    def count(frame, event, argument):
        if event in ("call", "c_call"):
            found[frame.f_code.co_name if event == "call" else argument.__name__] += 1

    sys.setprofile(count)
    try:
        attention(Q, keys, keys, **options)
    except Launched:
        pass
    finally:
        sys.setprofile(None)
        stub.stop = False
    return found


@pytest.mark.parametrize("name", BUDGETS)
def test_budget_of_a_warm_call(stub, name):
    options, budget = BUDGETS[name]
    found = counted(stub, options)
    assert found["kernel"] == 1 and found["signature_of"] == 0, "checked once, not with every call"
    assert budget / 2 < found.total() <= budget, found


def test_a_warm_call_over_a_quantized_cache(stub):
    """Seven arrays in the place of three."""
    packed = mx.quantize(K, group_size=64, bits=4)
    found = counted(stub, {"causal": True}, attention=quantized_attention, keys=packed)
    assert found["kernel"] == 1 and found["signature_of"] == found["quantization_of"] == found["shape_of"] == 0
    assert QUANTIZED_BUDGET / 2 < found.total() <= QUANTIZED_BUDGET, found


def test_budget_of_a_token(stub):
    """A new length costs what the last one did."""
    whole, q, found = mx.zeros((1, 2, 512, 64)), Q[:, :, :1], Counter()

    def count(frame, event, argument):
        found[event] += 1

    for keys in range(100, 105):
        found.clear()
        sys.setprofile(count)
        try:
            attention(q, whole[:, :, :keys], whole[:, :, :keys])
        except Launched:
            pass
        finally:
            sys.setprofile(None)
        counted = found["call"] + found["c_call"]
        assert not stub.stop or TOKEN_BUDGET / 2 < counted <= TOKEN_BUDGET, counted
        stub.stop = True


@pytest.mark.parametrize("length, wrapped", [(128, False), (513, False), (1024, False), (1024, True)])
def test_budget_of_a_training_step(stub, monkeypatch, length, wrapped):
    """Three launches. Nothing is planned again, and MLX is asked once what it traces, which evaluates a constant; where
    the wrappers see that nothing else traces, not even that."""
    q, k = mx.zeros((1, 4, length, 64)), mx.zeros((1, 2, length, 64))
    with transforms.installed() if wrapped else nullcontext():
        gradients = mx.grad(lambda q, k, v: attention(q, k, v, causal=True).sum(), argnums=(0, 1, 2))
    gradients(q, k, k), gradients(q, k, k)
    found, evaluated = Counter(), []
    monkeypatch.setattr(mx, "eval", evaluated.append)

    def count(frame, event, argument):
        if event in ("call", "c_call"):
            found[frame.f_code.co_name if event == "call" else argument.__name__] += 1

    sys.setprofile(count)
    try:
        gradients(q, k, k)
    finally:
        sys.setprofile(None)
    assert found["kernel"] == 3 and found["_traced"] == (not wrapped) and len(evaluated) <= (not wrapped)
    assert found["plan_of"] == found["key_value_kinds"] == found["choose"] == 0
    budget = WRAPPED_STEP_BUDGET if wrapped else STEP_BUDGET
    assert budget / 2 < found.total() <= budget, found


def test_operations_of_gradients(stub, monkeypatch, tmp_path):
    def kernel(*, inputs, output_shapes, output_dtypes, **_):
        return mx.depends([mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)], inputs)

    monkeypatch.setattr(stub, "kernel", kernel, raising=False)
    for q, operations in ((mx.zeros((1, 4, 128, 64)), GRADIENT_OPERATIONS), (mx.zeros((1, 4, 1, 64)), LONG_WAY)):
        k = mx.zeros((1, 2, 128, 64))
        outputs, gradients = mx.vjp(lambda q, k, v: attention(q, k, v, causal=True), [q, k, k], [q])
        mx.export_to_dot(str(tmp_path / "graph"), *outputs, *gradients)
        found = Counter(re.findall(r'label ="(\w+)', (tmp_path / "graph").read_text()))
        assert {name: found[name] for name in operations} == operations


def test_operations_of_a_token(stub, monkeypatch, tmp_path):
    """A view of each array, which copies nothing, and the kernel; rows of more queries than one are packed."""

    def kernel(*, inputs, output_shapes, output_dtypes, **_):
        return mx.depends([mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)], inputs)

    monkeypatch.setattr(stub, "kernel", kernel, raising=False)
    for queries in (1, 1, 3, 3):  # by the long way and by the short one
        mx.export_to_dot(str(tmp_path / "graph"), attention(Q[:, :, :queries], K, K + 1))
        found = Counter(re.findall(r'label ="(\w+)', (tmp_path / "graph").read_text()))
        assert (found["View"], found["Depends"], found["Reshape"]) == (3, 1, queries > 1)


@pytest.mark.parametrize("name", BUDGETS)
def test_cold_calls_exceed_the_budget(stub, name):
    """Otherwise the count would not notice that every call is checked again."""
    options, budget = BUDGETS[name]
    assert counted(stub, options, forget=True).total() > budget


@pytest.mark.parametrize(
    "good, bad",
    [
        ({"causal": True}, {"causal": 1}),
        ({"window": (1, 0)}, {"window": (True, 0)}),
        ({"window": (1, 0)}, {"window": (1.0, 0)}),
        ({"dropout": 0.0}, {"dropout": False}),
        ({"mask": mx.zeros((40, 40))}, {"mask": mx.zeros((40, 40), mx.float16).astype(mx.int32)}),
        ({"mask": BlockMask.causal(40, 40, block=32)}, {"mask": BlockMask.causal(40, 41, block=32)}),
        ({"sinks": mx.zeros(4)}, {"sinks": mx.zeros(5)}),
        ({"segments": (mx.zeros(40, mx.int32),) * 2}, {"segments": (mx.zeros(40),) * 2}),
        ({"scale": 1.0}, {"scale": "x"}),
        ({"softcap": 1.0}, {"softcap": -1.0}),
    ],
    ids=lambda options: ",".join(f"{name}-{type(value).__name__}" for name, value in options.items()),
)
def test_cached_calls_admit_no_wrong_argument(stub, good, bad):
    """True equals 1 equals 1.0: kept calls must not let one pass for another."""
    for _ in range(2):
        attention(Q, K, K, **good)
        with pytest.raises(ValueError, match="expected"):
            attention(Q, K, K, **bad)


def test_numbers_in_arrays_are_read_every_time(reference):
    """A scale that comes as an array looks like any other of its shape."""
    k = mx.random.normal(K.shape, key=mx.random.key(0))
    one, other = (attention(k, k, k, scale=mx.array(scale)) for scale in (0.1, 2.0))
    assert mx.abs(one - other).max() > 0.1
    assert mx.array_equal(other, attention(k, k, k, scale=2.0))


def test_calls_are_cached_separately(reference):
    """Options, shapes, dtypes, results and backends tell calls apart."""
    q = mx.random.normal((1, 2, 5, 16), key=mx.random.key(0))
    plain, causal = attention(q, q, q), attention(q, q, q, causal=True)
    assert not mx.array_equal(plain, causal)
    assert isinstance(attention(q, q, q, return_lse=True), tuple) and isinstance(attention(q, q, q), mx.array)
    assert attention(q[:, :, :3], q, q).shape == (1, 2, 3, 16)
    half = q.astype(mx.float16)
    assert attention(half, half, half).dtype == mx.float16


def test_equal_streams_are_one(reference):
    """MLX makes a new object whenever it is asked for a stream."""
    q = mx.zeros((1, 1, 3, 8))
    calls.clear_cache()
    for _ in range(5):
        attention(q, q, q, stream=mx.default_stream(mx.default_device()))
        attention(q, q, q, stream=mx.default_device())
    assert len(calls._cache) == 2


def test_the_call_cache_is_bounded(reference, monkeypatch):
    monkeypatch.setattr(calls, "CACHE_SIZE", 4)
    monkeypatch.setattr(calls, "_cache", {})  # other tests leave more entries
    for heads in range(1, 10):
        q = mx.zeros((1, heads, 8, 8))
        attention(q, q, q)
        assert len(calls._cache) <= 4


def caches() -> int:
    """Everything that is made once per signature, counted: calls, functions, plans, kernel texts, launches."""
    launches = [len(one.resources["launches"]) for one in (attend_plans())]
    found = (attend, plan, source.build, constant)
    return len(calls._cache) + len(calls._plain) + sum(one.cache_info().misses for one in found) + sum(launches)


def attend_plans():
    used = [call._attention for call in calls._cache.values() if call._attention]  # other tests' calls may be refused
    return [kept.plan for one in used for kept in one._choices.values() if kept.plan]


@pytest.mark.parametrize("options", [{}, {"softcap": 9.0}], ids=["plain", "capped"])
def test_a_growing_cache_builds_nothing(stub, monkeypatch, options):
    """200 tokens, after a first one: no evaluation, and of 6 caches no new entry but where a part is added."""
    evaluated = []
    monkeypatch.setattr(mx, "eval", lambda *arrays: evaluated.append(arrays))
    whole, q = mx.zeros((1, 2, 2048, 64)), Q[:, :, :1]
    attention(q, whole[:, :, :1024], whole[:, :, :1024], causal=True, **options)
    before, parts = caches(), set()
    for keys in range(1025, 1225):
        attention(q, whole[:, :, :keys], whole[:, :, :keys], causal=True, **options)
        parts |= {tuple(one.resources["launches"]) for one in attend_plans()}
    grown = len(max(parts, key=len)) - 1  # launches that differ in the number of parts or in their length
    assert not evaluated and caches() - before <= 2 * grown <= 12


def test_training_at_any_length_builds_nothing(stub):
    """Ragged batches: the forward and backward kernels' texts and functions are those of the first length."""

    def step(length):
        q = mx.zeros((1, 4, length, 64))
        mx.grad(lambda q: attention(q, q[:, :2], q[:, :2], causal=True).sum())(q)

    step(100)
    before = [one.cache_info().misses for one in (attend, plan, source.build)] + [len(calls._cache)]
    for length in range(101, 130):
        step(length)
    assert [one.cache_info().misses for one in (attend, plan, source.build)] + [len(calls._cache)] == before


WHOLE = mx.zeros((1, 2, 8192, 64))
CALLS = {
    "forward": lambda: attention(Q, K, K),
    "decoding": lambda: attention(Q[:, :, :1], K, K),
    "parts": lambda: attention(Q[:, :, :1], WHOLE, WHOLE),
    "gradients": lambda: mx.grad(lambda q: attention(q, K, K, causal=True).sum())(Q),
    "quantized": lambda: quantized_attention(Q, mx.quantize(K), mx.quantize(K)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_reaches_its_kernel_in_eight_steps(monkeypatch, name):
    """Frames from attention to mx.fast.metal_kernel in a first call, and to the kernel's object in every call."""
    depths = {"metal_kernel": [], "kernel": []}

    def reached(what):
        frame, depth = sys._getframe(2), 2
        while frame and frame.f_code.co_name not in ("attention", "quantized_attention"):
            frame, depth = frame.f_back, depth + 1
        depths[what] += [depth] if frame else []  # a backward kernel is not called by attention

    def metal_kernel(**_):
        reached("metal_kernel")
        return kernel

    def kernel(*, output_shapes, output_dtypes, **_):
        reached("kernel")
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)]

    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
    calls.clear_cache()
    with chosen(Backend("stub", FAMILIES["apple9"], metal.run, decodes=True, dequantizes=True)):
        for _ in range(2):
            CALLS[name]()
    calls.clear_cache()  # plans hold the kernels made here
    kernels = 2 if name == "parts" else 1
    assert len(depths["metal_kernel"]) == kernels and len(depths["kernel"]) == 2 * kernels
    assert max(depths["metal_kernel"] + depths["kernel"]) <= 8, depths
