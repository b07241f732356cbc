"""Views give bit for bit what their contiguous copies give, and are not copied on the way in."""

import bounds
import feature_cases
import mlx.core as mx
import pytest
from arrays import address, bits
from cases import Case, backward
from kernel_checks import problem
from machines import each_simulated_family
from mlx.utils import tree_map
from problems import launch_of
from variants import VARIANTS
from views import IN_PLACE, VIEWS, spread, strided_columns

from mlx_flash import attention, use_backend
from mlx_flash.backends import backend as backend_of
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, DECODE, FORWARD

CASE = Case(33, 65, 64, "float32", True, group=2, key_heads=2, batch=2)
HALF = Case(33, 65, 64, "float16", False, group=2, key_heads=2, batch=2)


@pytest.mark.parametrize("case", [CASE, HALF], ids=str)
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_views_equal_their_copies(backend, view, case):
    arrays = case.arrays()
    want = {name: bits(array) for name, array in backward(case, arrays).items()}
    viewed = {name: view(array) for name, array in arrays.items()}
    for name, array in viewed.items():
        assert bits(array) == bits(arrays[name])
    got = backward(case, viewed)
    assert [name for name, array in got.items() if bits(array) != want[name]] == []


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_views_of_few_queries_equal_their_copies(kernels, view):
    """Decoding packs q's heads and queries into one axis, whatever their strides."""
    arrays = Case(3, 600, 64, "float16", group=4, key_heads=2, batch=2).arrays()
    want, got = (attention(*(made(arrays[name]) for name in "qkv"), causal=True) for made in (lambda same: same, view))
    assert bits(got) == bits(want)


def test_broadcast_axes(backend):
    """Stride 0: one head read by all, one batch entry read by all, one row of dO for every query."""
    arrays = CASE.arrays()
    shapes = {name: array.shape for name, array in arrays.items()}
    narrow = {
        "q": arrays["q"][:1], "k": arrays["k"][:, :1], "v": arrays["v"][:1, :1], "d_o": arrays["d_o"][:, :, :1],
    }  # fmt: skip
    views = {name: mx.broadcast_to(array, shapes[name]) for name, array in narrow.items()}
    want = backward(CASE, {name: mx.contiguous(array) for name, array in views.items()})
    got = backward(CASE, views)
    assert [name for name in got if bits(got[name]) != bits(want[name])] == []


def test_a_cotangent_that_is_one_number(backend):
    """The gradient of a plain sum arrives as a scalar broadcast over all four axes, the last one included."""
    arrays = CASE.arrays()
    scalar = mx.broadcast_to(mx.array(1.0), arrays["d_o"].shape)
    want = backward(CASE, arrays | {"d_o": mx.ones(scalar.shape)})
    got = backward(CASE, arrays | {"d_o": scalar})
    assert [name for name in got if bits(got[name]) != bits(want[name])] == []


@pytest.mark.parametrize("feature", ["bool", "additive", "alibi", "sinks", "segments", "dropout"])
def test_views_of_the_other_arguments(backend, feature):
    variant = VARIANTS[feature]
    arrays, (arguments, _) = variant.case.arrays(), feature_cases.build(variant)
    views = tree_map(lambda leaf: spread(leaf) if isinstance(leaf, mx.array) else leaf, arguments)
    d_lse = mx.ones(variant.shape[:3])
    want = feature_cases.backward(variant, arrays, arguments, d_lse)
    got = feature_cases.backward(variant, arrays, views, d_lse)
    assert [name for name in got if bits(got[name]) != bits(want[name])] == []


def launched_inputs(step, case: Case, arrays) -> dict[str, mx.array]:
    inputs = {"Q": arrays["q"], "K": arrays["k"], "V": arrays["v"], "dO": arrays["d_o"], "scale": case.scale}
    batch, *rows = case.shapes["q"][:3]
    inputs |= {"L": mx.zeros((batch, *rows, 2)), "delta": mx.zeros((batch, *rows))}
    launch = launch_of(step, problem(case), backend_of("simulator", "apple9").family)
    return dict(zip(step.inputs, launch.arguments({name: inputs[name] for name in step.inputs})))


@pytest.mark.parametrize("view", IN_PLACE, ids=lambda view: view.__name__)
def test_views_are_not_copied(view):
    for case in (CASE, HALF):
        arrays = {name: view(array) for name, array in case.arrays().items()}
        for step in (FORWARD, BACKWARD_KEY_VALUE):
            launched = launched_inputs(step, case, arrays)
            for name, given in (("Q", "q"), ("K", "k"), ("V", "v"), ("dO", "d_o")):
                if name in launched:
                    assert address(launched[name]) == address(arrays[given]), f"{name} was copied"


def test_the_addresses_can_differ():
    """A last axis that is strided has to be copied, and the test above would see it."""
    arrays = {name: strided_columns(array) for name, array in CASE.arrays().items()}
    launched = launched_inputs(FORWARD, CASE, arrays)
    assert address(launched["Q"]) != address(arrays["q"])
    assert bounds.float64(launched["Q"].view(mx.float32)).shape == arrays["q"].shape


@each_simulated_family
@pytest.mark.parametrize("length", [37, 600])
def test_a_cache_is_read_in_place(family, length):
    """A token's step over the front of a larger buffer, and over one that lies [B, L, H, D]: neither is copied, in
    arrays or in memory, and what lies behind the front, NaN here, reaches nothing."""
    case = Case(1, length, 64, "float16", group=4, key_heads=2)
    arrays = case.arrays()
    with use_backend("simulator", family):
        want = [bits(array) for array in attention(*(arrays[name] for name in "qkv"), causal=True, return_lse=True)]
        for axes in ((0, 1, 2, 3), (0, 2, 1, 3)):
            views = {}
            for name in "kv":
                buffer = mx.full((1, 2, 8192, 64), mx.nan, mx.float16)
                buffer[:, :, :length] = arrays[name]
                views[name] = mx.contiguous(buffer.transpose(axes)).transpose(axes)[:, :, :length]
            chosen = plan_of(DECODE, problem(case), backend_of("simulator", family).family)
            given = {
                "Q": arrays["q"],
                "K": views["k"],
                "V": views["v"],
                "scale": 1.0,
                "decode_params": (1, 0, 256, 512, 1),
            }
            launched = dict(zip(chosen.kernel.inputs, chosen.launch(problem(case)).arguments(given)))
            assert address(launched["K"]) == address(views["k"]) and address(launched["V"]) == address(views["v"])
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            got = attention(arrays["q"], views["k"], views["v"], causal=True, return_lse=True)
            mx.eval(got)
            grown = mx.get_peak_memory() - before
            assert [bits(array) for array in got] == want
            # What it takes is the results, in parts too, and numbers: nothing of the cache's size.
            asked = problem(case)
            results = chosen.launch(asked).output_bytes if chosen.launch(asked).parts > 1 else 0
            assert grown <= results + 4096 < views["k"].nbytes


@each_simulated_family
def test_a_single_query_is_read_as_it_lies(family):
    """One of several positions [B, L, H, D], as a projection leaves it; every second head of another array; and more
    queries, which are packed: the bits of copies."""
    k, v = (mx.random.normal((2, 2, 70, 24), key=mx.random.key(n)).astype(mx.float16) for n in range(2))
    drawn = mx.random.normal((2, 5, 16, 24), key=mx.random.key(2)).astype(mx.float16)
    views = {
        "a position": drawn[:, 2:3, :8].swapaxes(1, 2),
        "heads apart": drawn[:, 1:2, ::2].swapaxes(1, 2),
        "a head's only": drawn[:, 3:4, :2].swapaxes(1, 2),
        "three positions": drawn[:, 1:4, :8].swapaxes(1, 2),
    }
    with use_backend("simulator", family):
        for name, view in views.items():
            for _ in range(2):  # by the long way and by the short one
                assert bits(attention(view, k, v)) == bits(attention(mx.contiguous(view), k, v)), name
        case = Case(1, 70, 24, "float16", group=4, key_heads=2, batch=2)
        chosen = plan_of(DECODE, problem(case), backend_of("simulator", family).family)
        given = {"Q": views["a position"], "K": k, "V": v, "scale": 1.0, "decode_params": (1, 0, 256, 512, 1)}
        read = dict(zip(chosen.kernel.inputs, chosen.launch(problem(case)).arguments(given)))["Q"]
    assert address(read) == address(views["a position"])
