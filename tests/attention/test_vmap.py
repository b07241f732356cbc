"""mlx_flash.vmap: for any axes of any argument, the same as one call per entry, before and after mx.grad."""

import bounds
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from machines import across_backends
from watched import watched

from mlx_flash import BlockMask, UnsupportedProblem, attention, transforms, vmap

N = 3
# What a map that MLX does by itself ends in; the simulator has no values to run on, and says so before that.
REFUSED = r"mx\.vmap cannot map attention by itself: use mlx_flash\.vmap|Attention itself maps with mlx_flash\.vmap"
# One entry: shape, and what is drawn.
ENTRY = {
    "q": ((2, 4, 9, 16), "normal"),
    "k": ((2, 2, 13, 16), "normal"),
    "v": ((2, 2, 13, 16), "normal"),
    "bool": ((2, 1, 9, 13), "bool"),
    "bias": ((1, 4, 9, 13), "normal"),
    "slopes": ((4,), "normal"),
    "sinks": ((4,), "normal"),
    "q_ids": ((9,), "ids"),
    "k_ids": ((2, 13), "ids"),
    "key": ((2,), "key"),
}
KEYWORDS = {
    "bool": lambda array: {"mask": array},
    "bias": lambda array: {"mask": array},
    "slopes": lambda array: {"alibi_slopes": array},
    "sinks": lambda array: {"sinks": array},
    "q_ids": lambda array: {},
    "k_ids": lambda array: {},
    "key": lambda array: {"dropout": 0.3, "key": array},
}
DIFFERENTIABLE = ("q", "k", "v", "bias", "sinks")
# Arguments beyond q, k and v, and the axes of all of them.
AXES = {
    "all-in-front": ((), (0, 0, 0)),
    "all-at-odd-places": ((), (2, -1, -3)),
    "queries-alone": ((), (1, None, None)),
    "keys-alone": ((), (None, 3, 0)),
    "values-alone": ((), (None, None, -5)),
    "mask": (("bool",), (0, None, 2, -1)),
    "mask-shared": (("bool",), (0, 0, 0, None)),
    "mask-alone": (("bool",), (None, None, None, 1)),
    "bias": (("bias",), (-2, 0, None, 4)),
    "bias-shared": (("bias",), (0, 0, 0, None)),
    "bias-alone": (("bias",), (None, None, None, 0)),
    "slopes": (("slopes",), (0, 1, None, -1)),
    "slopes-shared": (("slopes",), (0, None, None, None)),
    "sinks": (("sinks",), (0, None, None, 1)),
    "sinks-shared": (("sinks",), (1, 1, 1, None)),
    "segments": (("q_ids", "k_ids"), (0, None, 0, 0, 1)),
    "segments-shared": (("q_ids", "k_ids"), (0, 0, 0, None, None)),
    "dropout": (("key",), (0, 0, 0, 0)),
    "dropout-shared-key": (("key",), (0, None, None, None)),
}


def draw(names, axes) -> list[mx.array]:
    return [drawn(name, axis, np.random.default_rng(n)) for n, (name, axis) in enumerate(zip(names, axes))]


def drawn(name: str, axis: int | None, generator: np.random.Generator) -> mx.array:
    shape, kind = ENTRY[name]
    if axis is not None:
        at = axis if axis >= 0 else len(shape) + 1 + axis
        shape = (*shape[:at], N, *shape[at:])
    if kind == "normal":
        return mx.array(generator.standard_normal(shape), mx.float32)
    if kind == "bool":
        return mx.array(generator.random(shape) < 0.7)
    if kind == "ids":
        return mx.array(generator.integers(0, 2, shape), mx.int32)
    return mx.array(generator.integers(0, 2**32, shape, dtype=np.uint32))


def call(names, **options):
    """(O, LSE) as a function of the named arrays."""

    def function(*arrays):
        given = dict(zip(names, arrays))
        keywords = {"segments": (given["q_ids"], given["k_ids"])} if "q_ids" in given else {"causal": True}
        for name in names[3:]:
            keywords |= KEYWORDS[name](given[name])
        return attention(*arrays[:3], return_lse=True, **(keywords | options))

    return function


def one_by_one(function, axes):
    """The definition of a map: the function on one entry after the other."""

    def loop(*arrays):
        entries = [
            function(*(array if axis is None else mx.take(array, n, axis) for array, axis in zip(arrays, axes)))
            for n in range(N)
        ]
        return tuple(mx.stack(outputs) for outputs in zip(*entries))

    return loop


def total(function):
    """A scalar through which gradients reach both results; rows that see nothing have no finite LSE."""

    def loss(*arrays):
        out, lse = function(*arrays)
        return mx.square(out).sum() + mx.sin(mx.where(lse == -mx.inf, 0, lse)).sum()

    return loss


def gradients(function, names):
    return mx.grad(function, argnums=tuple(n for n, name in enumerate(names) if name in DIFFERENTIABLE))


def agree(got, want, names=("dQ", "dK", "dV", "dM")):
    assert len(got) == len(want)
    for one, other, name in zip(got, want, names):
        assert one.shape == other.shape and one.dtype == other.dtype
        bounds.check(name, one, bounds.float64(other), "one by one", "float32")


@pytest.mark.parametrize("backend, case", across_backends(AXES), indirect=["backend"])
def test_any_axis_of_any_argument(backend, case):
    extras, axes = AXES[case]
    names = ("q", "k", "v", *extras)
    arrays, function = draw(names, axes), call(names)
    for got, want in zip(vmap(function, axes)(*arrays), one_by_one(function, axes)(*arrays)):
        assert bits(got) == bits(want), "an entry depends on the others"

    each = gradients(total(function), names)
    agree(vmap(each, axes)(*arrays), one_by_one(each, axes)(*arrays))

    of_mapped, of_loop = (total(over(function, axes)) for over in (vmap, one_by_one))
    agree(gradients(of_mapped, names)(*arrays), gradients(of_loop, names)(*arrays))


@pytest.mark.parametrize("name", AXES)
def test_one_launch_for_all_entries(name):
    """All entries share one launch, unless they have slopes, sinks or keys of their own, or dropout."""
    extras, axes = AXES[name]
    names = ("q", "k", "v", *extras)
    with watched() as ran:
        vmap(call(names), axes)(*draw(names, axes))
    apart = name in ("slopes", "sinks", "dropout", "dropout-shared-key")
    assert [one.problem.batch for one in ran] == ([2] * N if apart else [2 * N])


@pytest.mark.parametrize("axes", [(0, 0), (1, 1), (None, 1), (1, None)], ids=str)
def test_segments_of_one_batch_entry(kernels, axes):
    """Ids that are mapped along their last axis, where no second batch entry makes MLX copy them."""
    generator, ids = np.random.default_rng(0), []
    shapes = ((1, 4, 9, 16), (1, 2, 13, 16), (1, 2, 13, 16))
    q, k, v = (mx.array(generator.standard_normal(shape), mx.float32) for shape in shapes)
    for length, axis in zip((9, 13), axes):
        numbers = generator.integers(0, 2, {None: (length,), 0: (N, length), 1: (length, N)}[axis])
        ids.append(mx.array(numbers, mx.int32))

    def one(q_ids, k_ids):
        return attention(q, k, v, segments=(q_ids, k_ids))

    (want,) = one_by_one(lambda *arrays: (one(*arrays),), axes)(*ids)
    assert bits(vmap(one, axes)(*ids)) == bits(want)


def test_output_axes(backend):
    names, axes = ("q", "k", "v"), (0, 0, 0)
    arrays, function = draw(names, axes), call(names)
    out, lse = vmap(function, axes, (-1, 2))(*arrays)
    for got, want, axis in zip((out, lse), one_by_one(function, axes)(*arrays), (-1, 2)):
        assert bits(got) == bits(mx.moveaxis(want, 0, axis))


def test_maps_nest(backend):
    """Maps over the batch axis of q, and over heads that share their keys; gradients inside, between and outside."""
    q, k, v = draw(("q", "k", "v"), (0, None, None))

    def one(q, k, v):  # [heads, length, dimension]
        return attention(q[None], k[None], v[None], causal=True)[0]

    def loss(q, k, v):
        return mx.square(one(q, k, v)).sum()

    inner, outer = (0, 0, 0), (0, None, None)
    want = mx.stack([attention(q[n], k, v, causal=True) for n in range(N)])
    assert bits(vmap(vmap(one, inner), outer)(q, k, v)) == bits(want)

    def summed(q, k, v):
        return vmap(loss, inner)(q, k, v).sum()

    def plain(q, k, v):
        return mx.square(attention(q, k, v, causal=True)).sum()

    wanted = one_by_one(gradients(plain, "qkv"), outer)(q, k, v)
    agree(vmap(vmap(gradients(loss, "qkv"), inner), outer)(q, k, v), wanted)
    agree(vmap(gradients(summed, "qkv"), outer)(q, k, v), wanted)
    totals = [wanted[0], wanted[1].sum(0), wanted[2].sum(0)]
    agree(gradients(lambda *x: vmap(summed, outer)(*x).sum(), "qkv")(q, k, v), totals)


def test_attention_on_arrays_that_are_not_mapped(backend):
    """Calls inside a mapped function that depend on none of its arguments, or on the unmapped ones only."""
    q, k, v = draw(("q", "k", "v"), (None, None, None))
    x = mx.arange(3.0)
    fixed = attention(q, k, v)
    assert bits(vmap(lambda x: attention(q, k, v) * x)(x)) == bits(fixed * x.reshape(3, 1, 1, 1, 1))
    both = vmap(lambda x, q: (attention(q, k, v), attention(q, k, v) * x), (0, None))(x, q)
    assert bits(both[1]) == bits(fixed * x.reshape(3, 1, 1, 1, 1)) and bits(both[0][2]) == bits(fixed)
    inside = vmap(lambda x: mx.grad(lambda w: attention(w, k, v).sum())(q) * x)(x)
    agree([inside], [mx.grad(lambda w: attention(w, k, v).sum())(q) * x.reshape(3, 1, 1, 1, 1)])


def test_trees_and_padded_dimensions(backend):
    """Named arrays; head dimensions that are padded (19 and 21); a window and a softcap; layers on layers."""

    def layers(tree, x):
        inner = attention(tree["q"], x, x[..., :21], window=(3, 2), softcap=2.0)
        return mx.square(attention(inner, inner, inner, scale=0.3)).sum()

    q, x = (mx.array(np.random.default_rng(n).standard_normal((N, 1, 2, 7, 19)), mx.float32) for n in range(2))
    value, (tree, d_x) = vmap(mx.value_and_grad(layers, argnums=(0, 1)), (0, 0))({"q": q}, x)
    each = [mx.value_and_grad(layers, argnums=(0, 1))({"q": q[n]}, x[n]) for n in range(N)]
    agree([value, tree["q"], d_x], [mx.stack(z) for z in zip(*((o, g["q"], d) for o, (g, d) in each))])


def test_decoding(backend):
    """Few queries, and more keys than one part holds: how many parts there are follows the folded batch."""
    q = mx.random.normal((N, 1, 4, 2, 16), key=mx.random.key(0))
    cache = mx.random.normal((1, 2, 700, 16), key=mx.random.key(1))
    sinks = mx.array([0.5, -1.0, 2.0, 0.0])

    def decoded(q, k):
        return attention(q, k, k, causal=True, sinks=sinks, return_lse=True)

    agree(vmap(decoded, (0, None))(q, cache), one_by_one(decoded, (0, None))(q, cache), ("O", "LSE"))
    each = mx.grad(total(decoded), argnums=(0, 1))
    agree(vmap(each, (0, None))(q, cache), one_by_one(each, (0, None))(q, cache))


def test_block_masks(backend):
    """One layer for all, and one for each batch entry."""
    names, axes = ("q", "k", "v"), (0, 0, None)
    arrays, seen = draw(names, axes), np.random.default_rng(0).random((2, 1, 9, 13)) < 0.6
    for layers in (seen[:1], seen):
        function = call(names, mask=BlockMask.from_array(layers, block=32))
        for got, want in zip(vmap(function, axes)(*arrays), one_by_one(function, axes)(*arrays)):
            assert bits(got) == bits(want)


def test_nothing_to_map_and_nothing_to_attend_to(backend):
    none = vmap(lambda q: attention(q, q, q))(mx.zeros((0, 1, 2, 5, 16)))
    assert none.shape == (0, 1, 2, 5, 16)
    k = mx.zeros((1, 2, 0, 16))
    out, lse = vmap(lambda q: attention(q, k, k, return_lse=True))(mx.zeros((3, 1, 2, 5, 16)))
    assert out.shape == (3, 1, 2, 5, 16) and not np.array(out).any() and np.isneginf(np.array(lse)).all()


def test_errors_are_about_one_entry(backend):
    q = mx.zeros((2, 2, 5, 16))
    with pytest.raises(ValueError, match=r"\] q: expected 4 axes .* got shape \(2, 5, 16\)"):
        vmap(lambda q: attention(q, q, q))(q)
    assert attention(q, q, q).shape == q.shape, "the trace that failed is over"


def test_compiled(reference):
    names, axes = ("q", "k", "v"), (0, None, 1)
    arrays, function = draw(names, axes), call(names)
    want = vmap(function, axes)(*arrays)
    agree(mx.compile(vmap(function, axes))(*arrays), want, ("O", "LSE"))
    agree(vmap(mx.compile(function), axes)(*arrays), want, ("O", "LSE"))


def test_checkpoint_around_the_map_and_inside(backend):
    """This includes a gradient inside the map, where MLX has no rule for the primitives of a checkpoint."""
    with transforms.installed():
        check_checkpoints()


def check_checkpoints():
    names, axes = ("q", "k", "v"), (0, None, 1)
    arrays, function = draw(names, axes), call(names)
    loss = total(vmap(function, axes))
    agree(gradients(mx.checkpoint(loss), names)(*arrays), gradients(loss, names)(*arrays))
    inside = vmap(mx.checkpoint(function), axes)
    agree(inside(*arrays), vmap(function, axes)(*arrays), ("O", "LSE"))
    agree(gradients(total(inside), names)(*arrays), gradients(loss, names)(*arrays))
    each = vmap(gradients(mx.checkpoint(total(function)), names), axes)
    agree(each(*arrays), vmap(gradients(total(function), names), axes)(*arrays))


def test_a_custom_function_without_a_rule_refuses(backend):
    """MLX traces it once more, out of our sight: that refuses in a sentence."""
    q = draw(("q",), (0,))[0]
    function = mx.custom_function(lambda q: attention(q, q, q))
    function.vjp(lambda q, d_o, o: d_o)
    with pytest.raises(ValueError, match=REFUSED):
        mx.eval(vmap(function)(q))


def test_still_no_second_derivatives(backend):
    q = draw(("q",), (0,))[0]

    def loss(q):
        return mx.square(mx.grad(lambda q: mx.square(attention(q, q, q)).sum())(q)).sum()

    with pytest.raises(UnsupportedProblem, match="gradients of gradients"):
        mx.eval(vmap(mx.grad(loss))(q))


def test_a_map_by_mlx_refuses(backend):
    """MLX does not say that it maps: never a wrong result, whichever argument is mapped and under any other trace."""
    q, k, v = draw("qkv", (0, None, None))
    maps = {
        "queries": lambda: mx.vmap(lambda q: attention(q, k, v))(q),
        "values": lambda: mx.vmap(lambda x: attention(q[0], k, v * x))(mx.arange(3.0)),
        "bias": lambda: mx.vmap(lambda x: attention(q[0], k, v, mask=x))(mx.zeros((3, 9, 13))),
        "gradient inside": lambda: mx.vmap(mx.grad(lambda q: attention(q, k, v).sum()))(q),
        "gradient outside": lambda: mx.grad(lambda q: mx.vmap(lambda q: attention(q, k, v))(q).sum())(q),
        "checkpoint made outside": lambda: vmap(mx.checkpoint(lambda q: attention(q, k, v)))(q),
    }
    for name, call in maps.items():
        with pytest.raises(UnsupportedProblem, match=REFUSED):
            mx.eval(call())
            pytest.fail(name)


def test_other_functions_map_as_ever():
    assert vmap(lambda x, y: x + y, in_axes=(0, None))(mx.arange(3), mx.array(2)).tolist() == [2, 3, 4]
    assert "vectorized" in mx.vmap.__doc__ and mx.vmap.__name__ == "vmap"
    named = vmap(lambda d: d["a"] - d["b"], in_axes={"a": 0, "b": None}, out_axes=-1)
    assert named({"a": mx.arange(3), "b": mx.ones(2)}).shape == (2, 3)
    with pytest.raises(ValueError, match=r"\[vmap\]"):
        vmap(lambda x: x, in_axes="front")(mx.arange(3))
    with pytest.raises(TypeError, match=r"\[mlx_flash\.vmap\] keyword arguments are not mapped"):
        vmap(lambda x, y: x + y)(mx.arange(3), y=mx.arange(3))
    with pytest.raises(TypeError, match="vmap"):
        vmap(lambda x: x, 0, None)
