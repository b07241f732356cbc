"""return_lse: the natural logarithm of each row's sum of exponentials, its gradient, and merge, which joins parts."""

import math
import re

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from cases import Case
from feature_cases import Variant
from oracle_variants import Attention, Facts

from mlx_flash import attention, merge

CASE = Case(65, 70, 40, group=2, key_heads=2, batch=2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_lse_is_a_natural_logarithm(backend, dtype):
    """Equal scores over n keys: log n, in float32 whatever the inputs' dtype."""
    q, k = (mx.zeros((1, 2, length, 40), getattr(mx, dtype)) for length in (9, 70))
    out, lse = attention(q, k, k, return_lse=True, causal=True)
    assert lse.dtype == mx.float32 and lse.shape == (1, 2, 9) and out.dtype == q.dtype
    want = np.broadcast_to(np.log(np.arange(62, 71)), (1, 2, 9))
    bounds.check("LSE", lse, want, "equal scores", "float32")


def test_the_output_is_that_without_lse(backend):
    """Asking for LSE changes no bit of O, and none of the gradients where nothing flows back through it."""
    arrays, variant = CASE.arrays(), Variant(CASE, ())
    plain = feature_cases.backward(variant, arrays, {"causal": True})
    both = feature_cases.backward(variant, arrays, {"causal": True, "return_lse": True}, mx.zeros((2, 4, 65)))
    for name, array in plain.items():
        assert np.array_equal(np.array(both[name]), np.array(array)), name


def test_gradient_of_lse_alone(backend):
    """Without a cotangent for O: dQ = P K and dK = P^T Q, scaled, and dV is 0."""
    arrays = CASE.arrays() | {"d_o": mx.zeros((2, 4, 65, 40))}
    d_lse = mx.random.normal((2, 4, 65), key=mx.random.key(1))
    got = feature_cases.backward(Variant(CASE, ()), arrays, {"return_lse": True}, d_lse)
    inputs = [bounds.float64(arrays[name]) for name in ("q", "k", "v", "d_o")]
    judge = Attention(*inputs, CASE.scale, Facts(), bounds.float64(d_lse))
    want, terms = judge.results(), judge.term_magnitudes()
    assert not np.array(got["dV"]).any()
    for name in ("dQ", "dK"):
        bounds.check(name, got[name], want[name], str(CASE), "float32", terms=terms[name])


def halves(arrays, cut: int, **options):
    q, k, v = (arrays[name] for name in "qkv")
    parts = [attention(q, k[:, :, keys], v[:, :, keys], return_lse=True, **options) for keys in
             (slice(0, cut), slice(cut, None))]  # fmt: skip
    return merge([out for out, _ in parts], [lse for _, lse in parts])


def test_merged_halves_equal_the_whole(backend):
    """The weights of the parts are exponentials of LSEs, which float32 rounds: their unit is what O cannot beat."""
    arrays = CASE.arrays()
    whole, whole_lse = attention(*(arrays[name] for name in "qkv"), return_lse=True)
    largest = max(float(mx.abs(array).max()) for array in (whole, whole_lse))
    for cut in (1, 35, 64):
        out, lse = halves(arrays, cut)
        assert lse.dtype == mx.float32 and out.dtype == whole.dtype
        for got, want in ((out, whole), (lse, whole_lse)):
            worst = np.abs(bounds.float64(got) - bounds.float64(want)).max()
            assert worst <= bounds.MERGED * bounds.ulp(largest, "float32"), cut


def test_merged_gradients(backend):
    """Gradients through merge and through the LSE of each part are those of the whole."""
    arrays = CASE.arrays()
    d_lse = mx.random.normal((2, 4, 65), key=mx.random.key(2))
    leaves = [arrays[name] for name in "qkv"]
    _, got = mx.vjp(
        lambda q, k, v: list(halves({"q": q, "k": k, "v": v}, 33)), leaves, [arrays["d_o"], d_lse]
    )  # fmt: skip
    inputs = [bounds.float64(arrays[name]) for name in ("q", "k", "v", "d_o")]
    judge = Attention(*inputs, CASE.scale, Facts(), bounds.float64(d_lse))
    want, terms = judge.results(), judge.term_magnitudes()
    for name, array in zip(("dQ", "dK", "dV"), got):
        bounds.check(name, array, want[name], str(CASE), "float32", terms=terms[name])


def test_fully_masked_parts(backend):
    """A part of masked keys adds nothing, bit for bit, in any place; its gradients are zeros, not NaN."""
    arrays = CASE.arrays()
    q, k, v = (arrays[name] for name in "qkv")
    out, lse = attention(q, k, v, return_lse=True)

    def merged(q, k, v):
        none = attention(q, k, v, return_lse=True, mask=mx.zeros((65, 70), mx.bool_))
        some = attention(q, k, v, return_lse=True)
        return list(merge([none[0], some[0], none[0]], [none[1], some[1], none[1]]))

    (got, got_lse), grads = mx.vjp(merged, [q, k, v], [arrays["d_o"], mx.zeros_like(lse)])
    assert np.array_equal(np.array(got), np.array(out)) and np.array_equal(np.array(got_lse), np.array(lse))
    want = feature_cases.backward(Variant(CASE, ()), arrays, {})
    for name, grad in zip(("dQ", "dK", "dV"), grads):
        bounds.check(name, grad, bounds.float64(want[name]), "empty parts", "float32")


def test_rows_fully_masked_in_every_part():
    lses = [mx.array([[[-math.inf, 0.5, -math.inf]]]), mx.array([[[-math.inf, -math.inf, 2.0]]])]
    outputs = [mx.where(lse[..., None] == -math.inf, 0, mx.ones((1, 1, 3, 4))) for lse in lses]
    (out, lse), grads = mx.vjp(lambda *x: list(merge(x[:2], x[2:])), [*outputs, *lses], [mx.ones((1, 1, 3, 4)),
                                                                                       mx.ones((1, 1, 3))])  # fmt: skip
    assert np.array_equal(np.array(lse), [[[-math.inf, 0.5, 2.0]]])
    assert np.array_equal(np.array(out), np.array([[[[0.0] * 4, [1.0] * 4, [1.0] * 4]]]))
    assert all(np.isfinite(np.array(grad)).all() for grad in grads)


def test_merging_one_part_is_the_identity():
    out, lse = attention(*(CASE.arrays()[name] for name in "qkv"), return_lse=True)
    got, got_lse = merge([out], [lse])
    assert np.array_equal(np.array(got), np.array(out)) and np.array_equal(np.array(got_lse), np.array(lse))


def test_parts_far_apart_do_not_overflow():
    outputs = [mx.full((1, 1, 1, 2), value) for value in (1.0, 5.0)]
    for low, high in ((-1e30, 1e30), (-500.0, 500.0), (1e4, 1.1e4)):
        out, lse = merge(outputs, [mx.full((1, 1, 1), low), mx.full((1, 1, 1), high)])
        assert lse.item() == np.float32(high) and np.array(out).tolist() == [[[[5.0, 5.0]]]]


ONE = mx.zeros((1, 1, 2, 4))
WRONG = {
    "no-parts": ([], [], "as many outputs as lses, at least one", "0 and 0", "Pass both"),
    "uneven": ([ONE], [], "as many outputs as lses, at least one", "1 and 0", "Pass both"),
    "shape": ([ONE, ONE[:, :, :1]], [ONE[..., 0]] * 2, "shapes (1, 1, 2, 4)", "(1, 1, 1, 4)", "All parts share"),
    "numpy-output": ([np.array(ONE)], [ONE[..., 0]], "mlx.core.arrays of a float type", "ndarray", "mx.array(...)"),
    "numpy-lse": ([ONE], [np.array(ONE[..., 0])], "mlx.core.arrays of a float type", "ndarray", "mx.array(...)"),
    "integers": ([ONE.astype(mx.int32)], [ONE[..., 0]], "mlx.core.arrays of a float type", "int32", "Convert"),
    "lse-shape": ([ONE], [ONE], "(1, 1, 2)", "(1, 1, 2, 4)", "All parts share"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parts(name):
    outputs, lses, expected, got, remedy = WRONG[name]
    pattern = r"\[mlx_flash\.merge\] outputs, lses: expected .*{}.*, got .*{}.*\. .*{}".format(
        *map(re.escape, (expected, got, remedy))
    )
    with pytest.raises(ValueError, match=pattern):
        merge(outputs, lses)


@pytest.mark.parametrize("given", [None, 3, mx.array(1.0)], ids=["none", "number", "array-without-axes"])
@pytest.mark.parametrize("name", ["outputs", "lses"])
def test_no_list_of_parts(name, given):
    arguments = {"outputs": [ONE], "lses": [ONE[..., 0]]} | {name: given}
    with pytest.raises(
        ValueError, match=rf"\[mlx_flash\.merge\] {name}: expected a list of arrays.*, got \w+.*Pass \["
    ):
        merge(**arguments)
