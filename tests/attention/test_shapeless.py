"""Shapeless traces: attention refuses in one sentence, at the first call; under patch() every length is right."""

import bounds
import mlx.core as mx
import pytest
from tiny_models import close

import mlx_flash
from mlx_flash import UnsupportedProblem, attention, export_function, vmap

REFUSED = r"shapeless compilation and export \(shapeless=True\) are not available"


def drawn(length: int) -> mx.array:
    return mx.random.normal((1, 2, length, 16), key=mx.random.key(length))


def masked(q):
    return attention(q, q, q, mask=mx.ones((q.shape[2], q.shape[2]), mx.bool_))


FUNCTIONS = {
    "plain": lambda q: attention(q, q, q),
    "masked": masked,
    "without keys": lambda q: attention(q, q[:, :, :0], q[:, :, :0]),
    "gradient": mx.grad(lambda q: attention(q, q, q, causal=True).sum()),
    "map": vmap(lambda q: attention(q[None], q[None], q[None])),
    "checkpoint": mx.checkpoint(lambda q: attention(q, q, q)),
    "compiled inside": mx.compile(lambda q: attention(q, q, q)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_attention_refuses(reference, tmp_path, name):
    """Whether the call is met for the first time or not, compiled or exported."""
    function = FUNCTIONS[name]
    for _ in range(2):
        with pytest.raises(UnsupportedProblem, match=REFUSED):
            mx.eval(mx.compile(lambda q: function(q), shapeless=True)(drawn(5)))
        mx.eval(function(drawn(5)))
    if name != "compiled inside":
        with pytest.raises(UnsupportedProblem, match=REFUSED):
            export_function(str(tmp_path / "f.mlxfn"), lambda q: function(q), drawn(5), shapeless=True)


def test_other_traces_go_on(reference):
    compiled = mx.compile(lambda q: attention(q, q, q, causal=True))
    for length in (4, 6):
        want = attention(*[drawn(length)] * 3, causal=True)
        bounds.check("O", compiled(drawn(length)), bounds.float64(want), "compiled", "float32")


def built_in(q, mask="causal"):
    return mx.fast.scaled_dot_product_attention(q, q, q, scale=0.25, mask=mask)


@pytest.mark.parametrize("mask", (None, "causal"))
def test_under_patch_every_length_is_right(reference, mask):
    """This holds also if the function was compiled before, and if its first length is one."""
    wants = {length: built_in(drawn(length), mask) for length in (9, 1, 12)}

    def call(q):
        return built_in(q, mask)

    mx.eval(mx.compile(call, shapeless=True)(drawn(9)))
    with mlx_flash.patch() as report:
        compiled = mx.compile(call, shapeless=True)
        for length, want in wants.items():
            close(compiled(drawn(length)), want)
            close(compiled(drawn(length)), want)
    assert report.ours + report.built_in.total() >= 1


def test_a_shapeless_export_under_patch_is_the_built_in_s(reference, tmp_path):
    path = str(tmp_path / "f.mlxfn")
    with mlx_flash.patch() as report:
        mx.export_function(path, lambda q: built_in(q, None), drawn(5), shapeless=True)
    assert report.ours == 0 and "shapeless" in str(report)
    for length in (5, 9):
        close(mx.import_function(path)(drawn(length))[0], built_in(drawn(length), None))


def test_a_function_that_was_compiled_before_the_patch(reference):
    """MLX shares traces among all who compile a function, so it would use the trace from before the patch."""
    traced = []

    def call(q):
        traced.append(q.shape)
        return built_in(q)

    compiled = [mx.compile(call)]
    mx.eval(compiled[0](drawn(5)))
    with mlx_flash.patch() as report:
        for _ in range(3):
            compiled.append(mx.compile(call))
            mx.eval(compiled[-1](drawn(5)))
    assert report.ours == 1 and len(traced) == 2
    compiled.append(mx.compile(call))
    mx.eval(compiled[-1](drawn(5)))
    assert len(traced) == 2, "the trace from before the patch serves again"
