"""Training and sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from .model import Shape, Transformer

RATE = 6e-3
WARMUP = 10  # steps


def new_model(shape: Shape, attend: Callable, dtype: mx.Dtype, seed: int) -> Transformer:
    """A new model with evaluated weights that depend only on the seed."""
    mx.random.seed(seed)
    model = Transformer(shape, attend, dtype)
    mx.eval(model.parameters())
    return model


def train(model: Transformer, data: Iterable[tuple[mx.array, mx.array]], tick: Callable[[float], None]) -> list[float]:
    """Trains with Adam over the batches; returns the loss of each step and passes it to `tick`."""

    def loss_of(inputs, targets):
        return nn.losses.cross_entropy(model(inputs), targets, reduction="mean")

    step = nn.value_and_grad(model, loss_of)
    optimizer = optim.Adam(optim.linear_schedule(RATE / WARMUP, RATE, WARMUP), betas=(0.9, 0.95), eps=1e-6)
    losses = []
    for inputs, targets in data:
        loss, gradients = step(inputs, targets)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        losses.append(loss.item())
        tick(losses[-1])
    return losses


def sample(model: Transformer, prompt: bytes, count: int, context: int, seed: int, tick: Callable[[], None]) -> bytes:
    """The prompt and `count` bytes drawn after it, at temperature 0.6."""
    text, key = list(prompt), mx.random.key(seed)
    for _ in range(count):
        logits = model(mx.array([text[-context:]]))[0, -1]
        key, draw = mx.random.split(key)
        text.append(mx.random.categorical(logits / 0.6, key=draw).item())
        tick()
    return bytes(text)
