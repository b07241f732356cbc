"""Every mask and variant alone, forward and backward: O, LSE, dQ, dK, dV, dM and dsinks each within the criterion."""

import itertools

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import oracle_variants
import pytest
from cases import Case
from feature_cases import FEATURES, Variant
from machines import CUDA, METAL, SIMULATED, across_backends, each_simulated_family, label
from oracle_variants import Facts

from mlx_flash import BlockMask, attention, use_backend
from mlx_flash.simulator import mode

GROUPED = Case(65, 70, 16, group=2, key_heads=2, batch=2)
REFERENCE = ("reference", None)
# Each family has float32 and one of the 16-bit types; the reference and a GPU have all three.
DTYPES = [(choice, "float32") for choice in SIMULATED]
DTYPES += list(zip(SIMULATED, ("float16", "bfloat16")))
DTYPES += [(choice, dtype) for choice in (*METAL, *CUDA, REFERENCE) for dtype in ("float32", "float16", "bfloat16")]


def parameters(values, pairs):
    """(backend, dtype, value) with a name. On the simulator float32 and 16 bits of both families take turns, one for
    each value; the rest waits for `pytest -m ""`. Pairs of values meet in the bundles of test_mask_pairs.py."""
    return [
        pytest.param(
            choice, dtype, value, id=f"{label(choice)}-{dtype}-{value}",
            marks=[pytest.mark.slow] if choice in SIMULATED and waits(choice, dtype, index) else [],
        )
        for index, value in enumerate(values)
        for choice, dtype in pairs
    ]  # fmt: skip


def waits(choice, dtype: str, index: int) -> bool:
    turns = [pair for pair in DTYPES if pair[0] in SIMULATED]
    return (choice, dtype) != turns[index % len(turns)]


@pytest.mark.parametrize("backend, dtype, feature", parameters(FEATURES, DTYPES), indirect=["backend"])
def test_feature(backend, dtype, feature):
    """Grouped heads and heads of their own, several batch entries: one kernel serves both."""
    variant = feature_cases.with_dtype(Variant(GROUPED, (feature,)), dtype)
    feature_cases.check(variant)
    feature_cases.check(Variant(Case(33, 97, 16, dtype, group=1, key_heads=2), (feature,)))


AXES = ["bhij", "hij", "bij", "ij", "bhj", "bhi", "hi", "j", "i", ""]


@pytest.mark.parametrize(
    "backend, case", across_backends(itertools.product(("bool", "additive"), AXES)), indirect=["backend"]
)
def test_masks_of_every_broadcast_shape(backend, case):
    """The gradient has the mask's own shape: it is summed over the axes that were broadcast."""
    feature, axes = case
    feature_cases.check(Variant(GROUPED, (feature,), mask_axes=axes))


@pytest.mark.parametrize("feature", ["bool", "additive"])
@each_simulated_family
def test_tiles_that_are_hidden_shown_and_mixed(family, feature):
    """Such tiles alternate along the keys, in another order for every 8 queries: tiles that are not visited lie
    between others, and the simdgroups of a threadgroup see different ones."""
    variant = Variant(Case(72, 640, 16), (feature,))
    draw = variant.draw("tiles")
    kinds = np.stack([np.roll([1.0, 0.0, 0.0, 0.0, 0.6], row) for row in range(9)])
    keep = draw.random((72, 640)) < kinds.repeat(8, 0).repeat(128, 1)
    keep = keep[None, None]
    numbers = np.where(keep, draw.standard_normal(keep.shape), -np.inf).astype(np.float32)
    facts = Facts(keep=keep) if feature == "bool" else Facts(mask=bounds.float64(numbers))
    with use_backend("simulator", family):
        feature_cases.check_arguments(variant, {"mask": mx.array(keep if feature == "bool" else numbers)}, facts)


@pytest.mark.parametrize("shape", [(65, 70), (4, 65, 1), (70,), ()], ids=str)
def test_masks_with_fewer_axes(backend, shape):
    """Bit for bit those with their missing axes written out; the gradient keeps the shape that was passed."""
    arrays, draw = GROUPED.arrays(), np.random.default_rng(1)
    mask = mx.array(draw.standard_normal(shape).astype(np.float32))
    written_out = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    few = feature_cases.backward(Variant(GROUPED, ("additive",)), arrays, {"mask": mask})
    all_four = feature_cases.backward(Variant(GROUPED, ("additive",)), arrays, {"mask": written_out})
    assert few["dM"].shape == shape
    for name in few:
        assert np.array_equal(np.array(few[name]).reshape(-1), np.array(all_four[name]).reshape(-1)), name


@pytest.mark.long
def test_masks_are_read_through_their_strides(backend):
    """Transposed, sliced and broadcast views give the very bits of a contiguous copy, and gradients of their shape."""
    arrays, draw = GROUPED.arrays(), np.random.default_rng(2)
    whole = mx.array(draw.standard_normal((2, 4, 70, 130)).astype(np.float32))
    views = {
        "transposed": whole[..., :65].swapaxes(2, 3),
        "sliced": whole[:, :, 5:70, 60:],
        "step 2": mx.tile(whole, (1, 1, 1, 2))[:, :, 3:68, 1:141:2],
        "stride 0": mx.broadcast_to(whole[:1, :1, :1, :70], (2, 4, 65, 70)),
    }
    for name, view in views.items():
        assert view.shape == (2, 4, 65, 70), name
        for mask in (view, view > 0):
            variant = Variant(GROUPED, ())
            got = feature_cases.backward(variant, arrays, {"mask": mask})
            want = feature_cases.backward(variant, arrays, {"mask": mx.contiguous(mask)})
            for tensor in want:
                assert np.array_equal(np.array(got[tensor]), np.array(want[tensor])), (name, tensor)


@pytest.mark.parametrize("window", [(0, 0), (3, None), (None, 5), (None, None), (500, 0), (0, 500)], ids=str)
@pytest.mark.parametrize("lengths", [(65, 70), (70, 33)], ids=str)
def test_windows(backend, window, lengths):
    variant = Variant(Case(*lengths, 16, group=2, key_heads=2, batch=2), ("window",), window=window)
    feature_cases.check(variant)
    feature_cases.check(Variant(variant.case, ("causal", "window"), window=window))


def shown(query_length: int, key_length: int, **options) -> np.ndarray:
    """The keys that each query sees: keys are marked one-hot in V, and all scores are equal."""
    q, k = mx.zeros((1, 1, query_length, 8)), mx.zeros((1, 1, key_length, 8))
    v = mx.eye(key_length, 16)[None, None]
    return np.array(attention(q, k, v, **options))[0, 0, :, :key_length] > 0


SIDES = (None, *range(10))


@pytest.mark.long
def test_every_small_window_on_the_reference(reference):
    """All Lq, Lk and both sides up to 9 or unbounded, against the definition pair by pair."""
    for query_length in range(1, 10):
        for key_length in range(1, 10):
            for left in SIDES:
                right = SIDES[(query_length + 3 * key_length + 7 * (left or 0)) % len(SIDES)]
                check_window(query_length, key_length, left, right)


@pytest.mark.long
def test_every_pair_of_sides_on_the_reference(reference):
    for left in SIDES:
        for right in SIDES:
            for lengths in ((9, 9), (4, 9), (9, 4)):
                check_window(*lengths, left, right)


def test_small_windows_on_kernels(kernels):
    for step in range(90):
        query_length, key_length = step % 9 + 1, step * 5 % 9 + 1
        check_window(query_length, key_length, SIDES[step * 7 % 11], SIDES[step * 3 % 10 + 1])


@pytest.mark.slow
@pytest.mark.parametrize("query_length", range(1, 10))
def test_every_small_window_on_kernels(kernels, query_length):
    """All key lengths and both sides up to 9, causal and not: on Linux 39204 calls."""
    with mode("fast"):
        for key_length, left, right in itertools.product(range(1, 10), SIDES, SIDES):
            check_window(query_length, key_length, left, right)


def check_window(query_length, key_length, left, right):
    shape, window = (1, 1, query_length, key_length), (left, right)
    for causal in (False, True):
        facts = Facts(causal=causal, window=window)
        want = [
            [oracle_variants.visible(facts, 0, 0, i, j, query_length, key_length) for j in range(key_length)]
            for i in range(query_length)
        ]
        got = shown(query_length, key_length, window=window, causal=causal)
        assert np.array_equal(got, np.array(want)), f"{shape}, window {window}, causal {causal}"


@pytest.mark.parametrize("axes", ["ij", "hij"])
def test_block_masks_per_head(backend, axes):
    feature_cases.check(Variant(GROUPED, ("blocks",), mask_axes=axes))


READY_MADE = {
    "causal": lambda: BlockMask.causal(70, 70, block=32),
    "window": lambda: BlockMask.window(70, 70, 12, 3, block=32),
    "prefix": lambda: BlockMask.prefix(70, 70, 20, block=32),
    "document": lambda: BlockMask.document([30, 7, 33], block=32),
    "dilated": lambda: BlockMask.dilated(70, 70, 3, block=32),
}


@pytest.mark.parametrize("name", READY_MADE)
def test_ready_made_block_masks_are_bool_masks(backend, name):
    """Results are those of the bool arrays, up to the order of sums."""
    case = Case(70, 70, 16, group=2, key_heads=2, batch=2)
    mask = READY_MADE[name]()
    keep = mask.visible()[None, None]
    assert 0 < keep.mean() < 1
    feature_cases.check_arguments(Variant(case, ("blocks",)), {"mask": mask}, Facts(keep=keep))


@pytest.mark.parametrize("value_dim", [24, 72])
def test_value_dimensions_with_features(backend, value_dim):
    """Dv on both sides of D, with everything that has a gradient of its own."""
    case = Case(41, 35, 48, value_dim=value_dim, group=2)
    feature_cases.check(Variant(case, ("causal", "additive", "softcap", "sinks", "lse")))


@pytest.mark.parametrize("scores", ["zero", "negative", "tiny"])
def test_scales_with_masks(backend, scores):
    case = Case(65, 70, 16, group=2, key_heads=2, batch=2, scores=scores)
    feature_cases.check(Variant(case, ("causal", "window")))
    feature_cases.check(Variant(case, ("additive",), mask_axes="hij"))
