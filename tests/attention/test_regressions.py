"""Bugs that other implementations shipped, one test each; the id names the thread."""

from dataclasses import replace

import bounds
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case, backward, expected
from kernel_checks import problem
from problems import launch_of

from mlx_flash import attention
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.problem.kinds import FORWARD

# name: a case whose data need nothing special, and what went wrong
ORDINARY = {
    "pytorch-153799-length-no-multiple-of-128": Case(129, 129, 64, "float16"),
    "pytorch-105190-negative-scale": Case(65, 129, 64, scores="negative"),
    "flash-attention-2896-dq-of-padded-72": Case(65, 65, 72, "float16", True, 2),
    "flash-attention-1347-d-no-multiple-of-8": Case(33, 65, 33),
    "flash-attention-334-nan-dq-at-partial-blocks": Case(113, 113, 64, "float32", True),
    "flash-attention-443-nan-dq-of-length-193": Case(193, 193, 64, "float32", True),
    "flash-attention-1071-precision-of-half": Case(197, 65, 64, "float16", group=2),
    "flash-attention-1138-precision-of-large-scores": Case(65, 197, 64, "float16", scores="large"),
    "flash-attention-2151-precision-of-float32": Case(65, 129, 64, scores="large"),
    "flash-attention-2864-precision-of-many-heads": Case(7, 197, 64, "float16", group=4, key_heads=2, batch=2),
    "mlx-2409-one-query": Case(1, 129, 64, "float32", True, group=4),
    "jax-flash-attn-single-key": Case(65, 1, 64),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_case(backend, name):
    case = ORDINARY[name]
    arrays = case.arrays()
    expected(case, arrays).check(**backward(case, arrays))


VERY_NEGATIVE = {
    "pytorch-196678": ("float32", False), "cudnn-frontend-1072": ("float16", False),
    "cudnn-frontend-160": ("float32", True), "trl-7181": ("float16", True),
}  # fmt: skip


@pytest.mark.parametrize("thread", VERY_NEGATIVE)
def test_nan_dq_where_every_score_is_very_negative(backend, thread):
    """LSE below -88.7 and a partial tile: padded keys that score 0 get exp(0 - LSE) = inf, and inf * 0 is NaN."""
    case = Case(65, 65, 64, *VERY_NEGATIVE[thread])
    arrays = case.arrays()
    one = mx.array(1, arrays["q"].dtype)
    arrays |= {"q": 4 * one + arrays["q"] / 16, "k": -4 * one + arrays["k"] / 16}
    expected(case, arrays).check(**backward(case, arrays))


@pytest.mark.reported("flashinfer-4267", "flashinfer-4401")
def test_very_negative_scores_are_not_masked(backend):
    """Every score is -5e5, below any finite sentinel: the softmax of equal scores is still their mean."""
    q, k = mx.full((1, 1, 9, 64), 1000.0), mx.full((1, 1, 65, 64), -62.5)
    v = mx.broadcast_to(mx.arange(64, dtype=mx.float32), (1, 1, 65, 64))
    out = attention(q, k, v, scale=0.125)
    bounds.check("O", out, np.broadcast_to(np.arange(64.0), (1, 1, 9, 64)), "equal scores", "float32")


@pytest.mark.reported("pytorch-121558")
def test_large_bfloat16(backend):
    """Entries of 133120: scores of 1e10, whose softmax is one-hot, so O is V and all gradients but dV vanish."""
    eye = 133120 * mx.eye(64)[None, None].astype(mx.bfloat16)
    v = mx.random.normal((1, 1, 64, 64), key=mx.random.key(0)).astype(mx.bfloat16)
    out, grads = mx.vjp(lambda *x: attention(*x), [eye, eye, v], [v])
    assert bits(out[0]) == bits(v) and bits(grads[2]) == bits(v)
    assert np.isfinite(bounds.float64(grads[0])).all() and np.isfinite(bounds.float64(grads[1])).all()


@pytest.mark.reported("mlx-3119")
def test_scale_multiplies_in_float32(backend):
    """q k^T overflows float16 by far; scaled in float32 the scores are small and the answer ordinary."""
    q = k = mx.full((1, 1, 33, 64), 600.0, mx.float16)
    v = mx.random.normal((1, 1, 33, 64), key=mx.random.key(0)).astype(mx.float16)
    out = bounds.float64(attention(q, k, v, scale=1e-7))
    mean = np.broadcast_to(bounds.float64(v).mean(2, keepdims=True), out.shape)
    bounds.check("O", out, mean, "overflow before the scale", "float16", unfused=bounds.Error(0.0, 0.0))


ZERO_LENGTH = {
    "rocm-179-no-queries": Case(0, 5, 64),
    "flash-attention-2470-no-keys": Case(5, 0, 64),
    "flash-attention-2503-no-keys-of-half": Case(5, 0, 64, "float16"),
    "flash-attention-2568-no-keys-of-groups": Case(5, 0, 64, causal=True, group=4),
    "flash-attention-1537-no-queries-of-a-batch": Case(0, 5, 64, causal=True, key_heads=2, batch=2),
}


@pytest.mark.parametrize("name", ZERO_LENGTH)
def test_zero_length(backend, name):
    """dK and dV hold no garbage either."""
    case = ZERO_LENGTH[name]
    for name, array in backward(case, case.arrays()).items():
        assert not np.array(array).any(), name


@pytest.mark.reported("nsa-27", "levanter-449")
def test_query_head_to_key_head(backend):
    """V of key head g is the constant g: O of query head h must be h // group, in every batch entry."""
    case = Case(33, 65, 64, "float32", False, group=3, key_heads=4, batch=2)
    arrays = case.arrays()
    heads = mx.arange(4, dtype=mx.float32)[None, :, None, None]
    out = attention(arrays["q"], arrays["k"], mx.broadcast_to(heads, case.shapes["v"]))
    want = np.broadcast_to((np.arange(12) // 3)[None, :, None, None], out.shape).astype(np.float64)
    bounds.check("O", out, want, str(case), "float32")


@pytest.mark.reported("flash-attention-1778", "pytorch-41508")
def test_causal_rows_before_the_first_key(backend):
    """More queries than keys: the first rows give zeros, not NaN or a mean, and take part in no gradient."""
    case = Case(65, 38, 64, "float32", True, group=2)  # 27 blind rows: part of a block
    arrays = case.arrays()
    results = backward(case, arrays)
    expected(case, arrays).check(**results)
    blind = slice(0, 65 - 38)
    assert not np.array(results["O"][:, :, blind]).any() and not np.array(results["dQ"][:, :, blind]).any()
    loud = arrays | {"d_o": mx.concatenate([1e30 * arrays["d_o"][:, :, blind], arrays["d_o"][:, :, 65 - 38 :]], axis=2)}
    again = backward(case, loud)
    assert bits(again["dK"]) == bits(results["dK"]) and bits(again["dV"]) == bits(results["dV"])


@pytest.mark.reported("burn-4484")
def test_causal_in_every_head(backend):
    """V of the last key is huge: only the last query may see it, in every head and batch entry."""
    case = Case(33, 33, 64, "float32", True, group=2, key_heads=2, batch=2)
    arrays = case.arrays()
    spike = mx.concatenate([arrays["v"][:, :, :-1], mx.full((2, 2, 1, 64), 1e20)], axis=2)
    out = np.abs(bounds.float64(attention(arrays["q"], arrays["k"], spike, causal=True)))
    assert out[:, :, :-1].max() < 100 and (out[:, :, -1] > 1e10).all()


@pytest.mark.reported("pytorch-191937")
def test_broadcast_keys_of_odd_length(backend):
    """Stride 0 over the heads, and one key more than a block of 32."""
    case = Case(33, 33, 64, "float32", False, key_heads=4)
    arrays = case.arrays()
    shared = {name: mx.broadcast_to(arrays[name][:, :1], arrays[name].shape) for name in "kv"}
    expected(case, arrays | shared).check(**backward(case, arrays | shared))


@pytest.mark.reported("liger-272", "liger-254", "liger-343", "liger-1251", "mlx-3121")
def test_inputs_are_not_overwritten(backend):
    """Gradients are not written over saved inputs, and temporaries are not reused while the backward needs them."""
    case = Case(33, 65, 64, "float32", True, group=2)
    arrays = case.arrays()
    before = {name: bits(array) for name, array in arrays.items()}
    want = {name: bits(array) for name, array in backward(case, arrays).items()}
    assert {name: bits(array) for name, array in arrays.items()} == before
    got = backward(case, {name: 1 * array for name, array in arrays.items()})
    assert {name: bits(array) for name, array in got.items()} == want


@pytest.mark.reported("mlx-3361")
def test_more_keys_than_16_bits_count(backend):
    """70000 keys, the last of which decides: an index that wraps would miss it. Then a mask hides that one."""
    q, v = mx.ones((1, 1, 1, 8)), mx.zeros((1, 1, 70000, 8))
    k = mx.zeros((1, 1, 70000, 8))
    k[:, :, -1], v[:, :, -1] = 100, 7
    assert np.array_equal(np.array(attention(q, k, v, causal=True)), np.full((1, 1, 1, 8), 7, np.float32))
    others = mx.arange(70000) != 69999
    assert not np.array(attention(q, k, v, mask=others)).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.reported("mlx-4534")
def test_a_grid_is_whole_threadgroups(axis):
    launch = launch_of(FORWARD, problem(Case(33, 65, 64)), FAMILIES["apple9"])
    for threads in (0, launch.threadgroup[axis] + 1 if axis == 0 else -1):
        grid = [*launch.grid]
        grid[axis] = threads
        with pytest.raises(ValueError, match="is no multiple of"):
            replace(launch, grid=tuple(grid))


@pytest.mark.reported("pytorch-142228", "pytorch-146704", "xformers-845")
def test_batches_beyond_16_bits(reference):
    """65537 batch entries: the grid's third axis must carry them; each kernel's grid is checked without running it."""
    many = problem(Case(1, 1, 8))._replace(batch=65537)
    for family in FAMILIES.values():
        assert launch_of(FORWARD, many, family).grid[2] == 65537
    ones = mx.broadcast_to(mx.arange(65537, dtype=mx.float32)[:, None, None, None], (65537, 1, 1, 8))
    assert bits(attention(ones, ones, ones)) == bits(ones)
