"""Bugs of other implementations with memory, order and arguments; the id names the thread."""

import re

import feature_cases
import mlx.core as mx
import pytest
import views
from arrays import bits
from cases import Case, backward, expected
from feature_cases import Variant
from machines import across_backends, each_simulated_family
from problems import make_problem

from mlx_flash import attention, use_backend
from mlx_flash.backends.metal import kernel_object
from mlx_flash.kernels.apple import TABLE
from mlx_flash.kernels.config import FULL
from mlx_flash.kernels.devices import FAMILIES, THREADGROUP_THREADS
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import FORWARD
from mlx_flash.simulator import mode, schedule

# Forward and backward under every check of the simulator: out of bounds, races, barriers, what is never written.
STRICT = {
    "flash-attention-359-race-in-the-backward-pass": (Case(45, 70, 16, group=2, key_heads=2), ("causal",)),
    "flash-attention-2033-race-of-two-blocks": (Case(41, 70, 16, group=2, key_heads=2), ("causal",)),
    "cudnn-frontend-426-shared-memory-reused": (Case(70, 45, 16, group=2, key_heads=2), ("lse",)),
    "mlx-3630-and-jax-mps-168-write-after-read": (Case(41, 139, 16, group=2, key_heads=2), ("additive",)),
    "llama-cpp-27678-barrier-in-a-branch": (Case(45, 70, 16, group=2, key_heads=2), ("segments",)),
    "llama-cpp-27955-barrier-of-a-partial-block": (Case(33, 97, 16, group=2, key_heads=2), ("segments",)),
    "llama-cpp-27870-barrier-of-one-simdgroup": (Case(9, 70, 16, group=2, key_heads=2), ("segments",)),
    "llama-cpp-13438-race-of-a-skipped-block": (Case(45, 97, 16, group=2, key_heads=2), ("blocks",)),
    "pytorch-169222-reads-past-keys-no-multiple-of-32": (Case(33, 65, 16, group=2, key_heads=2), ("bool",)),
    "liger-1375-reads-past-the-last-row": (Case(1, 1, 16), ("sinks",)),
    "tilelang-2461-statistics-of-no-row": (Case(17, 33, 16, group=2, key_heads=2), ("window",)),
    "llama-cpp-9187-decoding": (Case(2, 70, 16, group=2, key_heads=2), ("causal",)),
}


@pytest.mark.parametrize("name", STRICT)
@each_simulated_family
def test_nothing_is_reported(family, name):
    case, features = STRICT[name]
    with use_backend("simulator", family), mode("check"), schedule("random", len(name)):
        feature_cases.check(Variant(case, features))


LAYOUTS = {
    "pytorch-181133-transposed-projection": views.transposed,
    "pytorch-163597-step-between-rows": views.every_second,
    "mlx-lm-cache-slice": views.cache_slice,
    "mps-odd-storage-offset": views.odd_start,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_by_their_threads(backend, name):
    case = Case(45, 70, 16, "float32", True, group=2, key_heads=2, batch=2)
    arrays = case.arrays()
    want = {tensor: bits(array) for tensor, array in backward(case, arrays).items()}
    got = backward(case, {tensor: LAYOUTS[name](array) for tensor, array in arrays.items()})
    assert {tensor: bits(array) for tensor, array in got.items()} == want


# How often, and with what: every kernel that sums over rows of several blocks or heads is among them.
REPEATED = {
    "flash-attention-429": (250, ("causal",)), "flash-attention-414": (10, ("window",)),
    "flash-attention-349": (10, ("additive",)), "flash-attention-321": (10, ("sinks",)),
    "flash-attention-722": (10, ("segments",)), "flash-attention-1245": (10, ("dropout",)),
    "flash-attention-1766": (10, ("blocks",)),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("backend, thread", across_backends(REPEATED), indirect=["backend"])
def test_repeats_are_bit_identical(backend, thread):
    """Forward and backward, again and again, to the bit."""
    count, features = REPEATED[thread]
    variant = Variant(Case(17, 35, 16, group=2, key_heads=2), features)
    arrays, (arguments, _) = variant.case.arrays(), feature_cases.build(variant)
    answers = {tuple(map(bits, feature_cases.backward(variant, arrays, arguments).values())) for _ in range(count)}
    assert len(answers) == 1


@pytest.mark.reported("flash-attention-1897", "flash-attention-2604", "vllm-51902")
def test_a_batch_changes_no_entry(kernels):
    """Alone, in a batch of three, and beside longer neighbours that the mask hides."""
    case = Case(45, 70, 16, "float32", True, group=2, key_heads=2, batch=3)
    arrays = case.arrays()
    together = backward(case, arrays)
    alone = backward(case, {name: array[1:2] for name, array in arrays.items()})
    assert all(bits(alone[name]) == bits(together[name][1:2]) for name in together)


NOTHING = {
    "pytorch-141218": (0, 2, 9, 16), "pytorch-174939": (2, 0, 9, 16), "pytorch-141218-no-length": (2, 2, 0, 16),
}  # fmt: skip


@pytest.mark.parametrize("thread", NOTHING)
def test_sizes_of_zero(backend, thread):
    shape = NOTHING[thread]
    zero = mx.zeros(shape)
    out, grads = mx.vjp(lambda *x: attention(*x), [zero, zero, zero], [zero])
    assert [array.shape for array in (*out, *grads)] == [shape] * 4


Q, K = mx.zeros((2, 4, 9, 16)), mx.zeros((2, 2, 12, 16))
WRONG = {
    "pytorch-193728-values-shorter-than-keys": ((Q, K, K[:, :, :11]), "v: expected batch, heads and length .*11"),
    "pytorch-147443-five-axes": ((Q[None], K, K), "q: expected 4 axes"),
    "mlx-3662-mixed-dtypes": ((Q, K.astype(mx.float16), K), "k: expected q's dtype"),
    "pytorch-193893-heads-that-do-not-divide": ((Q[:, :3], K, K), "q: expected a number of heads that is a multiple"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(backend, name):
    arrays, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        attention(*arrays)


@pytest.mark.reported("iree-23914", "tinygrad-1260", "tinygrad-2145")
def test_math_is_not_fast():
    """-inf and NaN mean something here: safe math, which is MLX's default, is asked for all the same. One function of
    fast math is named, 2^x, which keeps 2^-inf = 0 and NaN."""
    given = {}
    kernel = plan_of(FORWARD, make_problem(), FAMILIES["apple9"]).kernel
    kernel_object(lambda **keywords: given.update(keywords), kernel)
    assert given["compile_options"] == {"math_mode": "safe"}
    assert not re.search(r"\bfast::(?!exp2\()|#pragma METAL fp", kernel.header + kernel.body)


@pytest.mark.reported("mlx-4018", "mlx-2205")
def test_threadgroups_are_never_too_large():
    """A threadgroup of any row and family has at most the threads that its kernel was compiled for and that a GPU
    allows."""
    for (step, precision, table), rows in TABLE.items():
        for family in (family for family in FAMILIES.values() if family.table == table and not family.tensor):
            for row in rows:
                dtype = "float32" if precision == FULL else "float16"
                asked = make_problem(1, 2, 1, 9, 70, row.max_head, row.max_head, dtype)
                chosen = plan_of(step, asked, family)
                assert chosen.config.threads <= (chosen.max_threads or THREADGROUP_THREADS) <= THREADGROUP_THREADS


@pytest.mark.reported("flash-attention-1253", "flash-attention-1231")
def test_the_criterion_does_not_degenerate():
    """One key: unfused and fused are both exact, and twice no error is no error. There is a floor, and it is tight."""
    case = Case(9, 1, 64, "float16")
    arrays = case.arrays()
    judge = expected(case, arrays)
    value = mx.broadcast_to(arrays["v"], case.shapes["d_o"])
    judge.check(O=value)
    with pytest.raises(AssertionError):
        judge.check(O=value * 1.01)
