"""MLX's layers and mlx-lm's are served by patch() as they are: no layers of our own are needed."""

import ast
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
import pytest
from mlx.utils import tree_flatten
from tiny_models import close

import mlx_flash

X = mx.random.normal((2, 11, 32), key=mx.random.key(0))
MEMORY = mx.random.normal((2, 13, 32), key=mx.random.key(1))
CAUSAL = nn.MultiHeadAttention.create_additive_causal_mask(11)
LAYERS = {  # name: (layer, arguments, attention calls)
    "attention": (nn.MultiHeadAttention(32, 4), (X, X, X), 1),
    "masked attention": (nn.MultiHeadAttention(32, 4, bias=True), (X, X, X, CAUSAL), 1),
    "cross attention, other value dimensions": (nn.MultiHeadAttention(32, 4, value_dims=64), (X, MEMORY, MEMORY), 1),
    "encoder": (nn.TransformerEncoder(2, 32, 4), (X, CAUSAL), 2),
    "transformer": (nn.Transformer(32, 4, 1, 1), (MEMORY, X, None, CAUSAL, None), 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_mlx(reference, name):
    layer, arguments, calls = LAYERS[name]
    layer.eval()  # no dropout

    def loss(layer):
        out = layer(*arguments)
        return mx.square(out).mean(), out

    def step():
        (_, out), gradients = nn.value_and_grad(layer, loss)(layer)
        return {"out": out, **dict(tree_flatten(gradients))}

    want = step()
    with mlx_flash.patch() as report:
        got = step()
    assert report.ours == calls and not report.built_in
    for part, array in want.items():
        close(got[part], array)


@pytest.mark.long
def test_every_model_of_mlx_lm_looks_the_function_up_when_it_calls_it():
    """Nowhere is the built-in function imported by name or kept: patch() reaches all of them."""
    name, callers = "scaled_dot_product_attention", []
    for path in Path(mlx_lm.models.__path__[0]).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if name not in text:
            continue
        tree = ast.parse(text)
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == name:
                assert id(node) in called, f"{path.name} line {node.lineno} keeps the function"
            if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
                assert "fast" not in (node.module or ""), f"{path.name} line {node.lineno} imports the function"
        callers.append(path.name)
    assert len(callers) > 80 and "base.py" in callers
