"""A training step of a model on a GPU with both attentions:
python bench/model_step.py --out bench/results/cuda_model_step.json

Eight layers of width 2048 with rotary positions, bfloat16, one row of tokens. `kept`: MiB that the forward pass leaves
to the backward pass. `least`: the peak of a step, beside the parameters, where MLX waits for the GPU before it
allocates more; otherwise it allocates as far ahead as the host is early, and peaks of equal steps differ by a tenth.
`ms`: the median of steps in turns.
"""

from __future__ import annotations

import statistics
import time

import mlx.core as mx
import mlx.nn as nn
from on_gpu import write_results

from mlx_flash import attention

WIDTH, LAYERS, HIDDEN, TOKENS = 2048, 8, 5504, 8192
SIZES = ((8192, 16), (2048, 16), (512, 16), (4096, 8), (4001, 16))  # tokens, heads
ROUNDS, MIB = 12, 2**20


def built_in(q, k, v):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask="causal")


def ours(q, k, v):
    return attention(q, k, v, causal=True)


class Layer(nn.Module):
    def __init__(self, heads: int):
        super().__init__()
        self.heads, self.norms = heads, [nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)]
        self.rope = nn.RoPE(WIDTH // heads)
        self.projections = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)]
        self.up, self.gate = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def __call__(self, x, attend):
        y = self.norms[0](x)
        q, k, v = (mx.unflatten(one(y), -1, (self.heads, -1)).swapaxes(1, 2) for one in self.projections[:3])
        o = attend(self.rope(q), self.rope(k), v)
        x = x + self.projections[3](o.swapaxes(1, 2).flatten(-2))
        y = self.norms[1](x)
        return x + self.down(nn.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self, heads: int):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.layers = [Layer(heads) for _ in range(LAYERS)]
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)

    def __call__(self, tokens, attend):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, attend)
        return self.head(x).astype(mx.float32)


def kept_and_least(step, tokens) -> tuple[int, int]:
    """MiB that a forward pass keeps, and MiB at the peak of a step beside the parameters."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    value, gradients = step(tokens)
    mx.eval(value)
    mx.synchronize()
    time.sleep(0.05)  # another thread frees what was used
    kept = mx.get_active_memory() - before
    del value, gradients
    mx.synchronize()
    mx.clear_cache()
    limit = mx.set_memory_limit(1)
    mx.reset_peak_memory()
    mx.eval(step(tokens))
    mx.synchronize()
    mx.set_memory_limit(limit)
    mx.clear_cache()
    return round(kept / MIB), round((mx.get_peak_memory() - before) / MIB)


def measured(length: int, heads: int) -> dict:
    mx.random.seed(0)
    model = Model(heads)
    model.set_dtype(mx.bfloat16)
    tokens = mx.random.randint(0, TOKENS, (1, length + 1))
    mx.eval(model.parameters(), tokens)

    def step_with(attend):
        def loss(tokens):
            return nn.losses.cross_entropy(model(tokens[:, :-1], attend), tokens[:, 1:]).mean()

        return nn.value_and_grad(model, loss)

    steps = {"built_in": step_with(built_in), "mlx_flash": step_with(ours)}
    found = {"length": length, "heads": heads, "head_dim": WIDTH // heads}
    for name, step in steps.items():
        mx.eval(step(tokens))  # makes the kernels
        loss = round(step(tokens)[0].item(), 4)
        kept, least = kept_and_least(step, tokens)
        found[name] = {"loss": loss, "kept": kept, "least": least}
    times = {name: [] for name in steps}
    for turn in range(ROUNDS):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            mx.synchronize()
            start = time.perf_counter()
            mx.eval(steps[name](tokens))
            times[name].append((time.perf_counter() - start) * 1e3)
    for name, taken in times.items():
        found[name]["ms"] = round(statistics.median(taken), 2)
    mx.clear_cache()
    return found


def main() -> None:
    write_results(__doc__, (measured(length, heads) for length, heads in SIZES))


if __name__ == "__main__":
    main()
