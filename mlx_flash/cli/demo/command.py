"""The steps of `python -m mlx_flash demo`, in order."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import mlx.core as mx
from rich.console import Console

from ...api import attention
from ...backends import Backend, current_backend, use_backend
from ...common.errors import CommandError
from ...explanations.explain import explain
from ...kernels.split_kv import QUERIES
from ..console import kernel_backend, progress
from . import plot, report
from .data import batches, load_text
from .model import Shape, Transformer
from .train import new_model, sample, train

SEED = 0
# Steps over which the curves must agree. Rounding differences grow with every step, on some texts from 1e-7 to 7e-5 in
# 20 steps and to 8e-3 in 40, also between two runs of MLX's own attention of which one has noise of 1e-7.
COMPARED = 20
LIMITS = {"float32": 1e-3, "float16": 1e-1, "bfloat16": 1e-1}  # 16 bits: two roundings apart
PROMPT, SAMPLED = b"The ", 76


@dataclass(frozen=True)
class Outcome:
    """The results of a run: a loss per step for mlx_flash and for MLX, the text, and seconds per phase."""

    losses: list[float]
    expected: list[float]
    text: bytes
    seconds: dict[str, float]
    limit: float

    @property
    def difference(self) -> float:
        """Largest difference over the compared steps; infinite where a loss is not a number."""
        pairs = list(zip(self.losses, self.expected))[:COMPARED]
        if not all(math.isfinite(loss) for pair in pairs for loss in pair):
            return math.inf
        return max(abs(loss - expected) for loss, expected in pairs)

    @property
    def agrees(self) -> bool:
        return self.difference < self.limit


def demo(arguments) -> int:
    """Trains, compares, plots and prints. Returns 0 if the two losses agree, else 1."""
    console = Console()
    shape, dtype = Shape(), getattr(mx, arguments.dtype)
    text = load_text(arguments.text, shape.context)
    picture = plot.destination(arguments.out)
    with use_backend(*_backend(arguments)) as backend:
        report.introduce(console, backend, shape, arguments, len(text))
        outcome = _run(console, backend, shape, dtype, text, arguments.steps)
        explanation = explain(*report.operands(shape, dtype), causal=True)
    replaced = picture.exists()
    plot.save(picture, outcome, backend.name, COMPARED)
    report.conclude(console, outcome, explanation, shape, picture, replaced)
    return 0 if outcome.agrees else 1


def _backend(arguments) -> tuple[str, str | None]:
    """The backend named by the option, else by MLX_FLASH_BACKEND, else the one that runs kernels here."""
    if arguments.backend:
        return arguments.backend, arguments.family
    current = current_backend()
    if current.family is None and not report.asked_for_reference():
        return kernel_backend(), arguments.family
    return current.name, arguments.family or (current.family.name if current.family else None)


def _run(console: Console, backend: Backend, shape: Shape, dtype: mx.Dtype, text: bytes, steps: int) -> Outcome:
    seconds = {}

    def learn(attend, tick) -> tuple[Transformer, list[float]]:
        model = new_model(shape, attend, dtype, SEED)
        return model, train(model, batches(text, steps, shape.batch, shape.context, SEED), tick)

    with progress("demo", console) as bars:

        def phase(name: str, total: int):
            """A tick that counts on the phase's bar, and on its clock."""
            bar, start = bars.add_task(f"{name:<34}", total=total, note=""), time.perf_counter()

            def tick(loss: float | None = None):
                seconds[name] = time.perf_counter() - start
                bars.update(bar, advance=1, note="" if loss is None else f"loss {loss:.3f}")

            return tick

        if backend.family:
            done = phase("compile kernels", 1)
            _compile(backend, shape, dtype)
            done()
        model, losses = learn(_ours, phase(f"train with mlx_flash ({backend.name})", steps))
        _, expected = learn(_builtin, phase("train with mx.fast", steps))
        written = sample(model, PROMPT, SAMPLED, shape.context, SEED, phase("write a line", SAMPLED))
    return Outcome(losses, expected, written, seconds, LIMITS[str(dtype).split(".")[-1]])


def _ours(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return attention(q, k, v, causal=True)


def _builtin(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask="causal")


def _compile(backend: Backend, shape: Shape, dtype: mx.Dtype) -> None:
    """Runs the kernels of training once, on a short problem: lengths are no part of their text."""
    operands = report.operands(shape, dtype, QUERIES + 1)  # fewer queries would decode
    try:
        mx.eval(mx.grad(lambda *qkv: _ours(*qkv).sum(), argnums=(0, 1, 2))(*operands))
    except RuntimeError as error:
        raise CommandError(f"the kernels failed on {backend.name}: {error}") from error
