"""An exported function is traced once: Python's side effects are those of one call, also with gradients inside."""

import bounds
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import KVCache

from mlx_flash import attention, export_function, transforms

Q = mx.random.normal((1, 2, 4, 16), key=mx.random.key(0))
mx.eval(Q)  # MLX exports no function with lazy arrays in its closure


def exported(tmp_path, function, *arrays) -> list[mx.array]:
    """The results of the exported file on the arrays."""
    path = str(tmp_path / "function.mlxfn")
    export_function(path, function, *arrays)
    return mx.import_function(path)(*arrays)


def close(got: list, want: list):
    assert len(got) == len(want)
    for one, other in zip(got, want):
        bounds.check("O", one, bounds.float64(other), "exported", "float32")


def test_a_cache_grows_once(tmp_path, reference):
    cache = KVCache()
    mx.eval(cache.update_and_fetch(Q, Q))
    (got,) = exported(tmp_path, lambda q: attention(q, *cache.update_and_fetch(q, q), causal=True), Q)
    both = mx.concatenate([Q, Q], 2)
    assert cache.offset == 8
    close([got], [attention(Q, both, both, causal=True)])


def step(calls: list):
    """A step of training: a loss over two layers, one of them checkpointed, and its gradient."""

    def layer(q):
        return q + attention(q, q, q, causal=True)

    def loss(q):
        calls.append(q.shape)
        return mx.square(mx.checkpoint(layer)(layer(q))).sum()

    def function(q):
        ahead = layer(q)
        value, gradient = mx.value_and_grad(loss)(ahead)
        return [value, gradient, attention(gradient, q, q), ahead]

    return function


@pytest.mark.parametrize("everywhere", (False, True), ids=("by name", "installed"))
def test_a_step_of_training(tmp_path, reference, everywhere):
    """Attention before the gradient, inside and after it; also when MLX's own name is used."""
    calls = []
    want = step([])(Q)
    if everywhere:
        path = str(tmp_path / "function.mlxfn")
        with transforms.installed():
            mx.export_function(path, step(calls), Q)
        got = mx.import_function(path)(Q)
    else:
        got = exported(tmp_path, step(calls), Q)
    assert calls == [Q.shape]
    close(got, want)


def test_what_a_loss_leaves_behind_is_exported_too(tmp_path, reference):
    """An array that was stored while the gradient was traced, as running statistics are, is exported too."""
    stored = []

    def loss(q):
        out = attention(q, q, q)
        stored.append(out.mean(0))
        return mx.square(out).sum()

    def function(q):
        gradient = mx.grad(loss)(q)
        return [gradient, stored[-1] * 2]

    want = function(Q)
    close(exported(tmp_path, function, Q), want)
    assert len(stored) == 2


def test_random_numbers_go_on_as_after_an_export_by_mlx(tmp_path, reference):
    """Random numbers are those of MLX's export, in the exported function and afterwards."""

    def function(q):
        kept = mx.random.bernoulli(0.5, q.shape)
        return kept.astype(mx.float32), mx.grad(lambda q: mx.square(attention(q * kept, q, q)).sum())(q)

    path, drawn = str(tmp_path / "function.mlxfn"), []
    for export, exporting in ((mx.export_function, lambda q: function(q)[0]), (export_function, function)):
        mx.random.seed(7)
        export(path, exporting, Q)
        drawn.append((mx.import_function(path)(Q)[0].tolist(), mx.random.uniform().item()))
    assert drawn[0] == drawn[1]


def test_a_function_without_attention_is_what_mlx_exports(tmp_path, reference):
    """Byte for byte: what is traced as the entry of a map leaves nothing of it."""
    model, files = nn.Linear(16, 16), [tmp_path / "ours.mlxfn", tmp_path / "own.mlxfn"]

    def function(x):
        return nn.value_and_grad(model, lambda x: mx.square(model(x)).sum())(x)[0]

    for export, file in zip((export_function, mx.export_function), files):
        export(str(file), function, Q)
    ours, own = (len(file.read_bytes()) for file in files)
    assert ours == own


def test_an_export_by_mlx_itself(tmp_path, reference):
    """MLX without a Metal back-end tells that it exports; with one its exporter refuses custom functions."""
    path = str(tmp_path / "function.mlxfn")
    if mx.metal.is_available():
        with pytest.raises(ValueError, match="Unable to serialize"):
            mx.export_function(path, lambda q: attention(q, q, q), Q)
        return
    mx.export_function(path, lambda q: attention(q, q, q), Q)
    close(mx.import_function(path)(Q), [attention(Q, Q, Q)])
