"""mlx-lm's remaining kernels: routing, fused norms, mixing, ternary weights; losses given the barrier they lack."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from lm_kernels import ROUNDING, close, double, gated_delta, imported, kl, normal

from mlx_flash.simulator import metal_kernel, mode, schedule

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: its kernels cannot be run")


@pytest.fixture(scope="module")
def lm():
    kernels = ("expert_routing", "qk_norm_rope", "post_expert_norm_combine", "norm_add_norm")
    models = ("gated_delta", "kimi_k3", "deepseek_v41", "bitlinear_layers")
    names = [*(f"kernels.{name}" for name in kernels), *(f"models.{name}" for name in models), "tuner.losses"]
    with imported(*names) as modules:
        yield modules


@pytest.fixture(autouse=True)
def checked():
    with mode("check"):
        yield


def unit(rows: np.ndarray, eps: float) -> np.ndarray:
    """Divided by their root mean square."""
    return rows / np.sqrt((rows**2).mean(-1, keepdims=True) + eps)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    weights = np.exp(x - x.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def test_expert_routing(lm):
    logits, bias, top = normal((8, 40), 1, scale=2.0), normal((40,), 2, scale=0.1), 5
    inds, weights = lm.expert_routing.expert_routing(
        logits, bias, top_k=top, multiplier=0.7, score_eps=1e-3, route_scale=2.5
    )
    scores = 1 / (1 + np.exp(-0.7 * double(logits)))
    wanted = np.argsort(-(scores + double(bias)), axis=-1)[:, :top]
    assert np.array_equal(np.array(inds), wanted)
    chosen = np.take_along_axis(scores, wanted, -1)
    close(weights, 2.5 * chosen / (chosen.sum(-1, keepdims=True) + 1e-3), 1e-5)


@pytest.mark.parametrize("dtype", (mx.float32, mx.bfloat16))
def test_qk_norm_rope(lm, dtype):
    batch, tokens, heads, key_heads, size, base = 2, 4, 2, 1, 40, 10000.0
    x, offset = normal((batch, tokens, 2 * (heads + key_heads) * size), 3, dtype), mx.array([5, 11])
    q, k = lm.qk_norm_rope.qk_norm_rope(
        x, n_heads=heads, n_kv_heads=key_heads, head_dim=size, eps=1e-5, query_scale=0.5, rope_base=base, offset=offset
    )
    rows = double(x)[..., : (heads + key_heads) * size].reshape(batch, tokens, -1, size)
    rows = unit(rows, 1e-5)
    rows[:, :, :heads] *= 0.5
    places = np.array(offset)[:, None] + np.arange(tokens)
    angle = places[..., None, None] * base ** (-np.arange(size // 2) / (size // 2))
    turned = (rows[..., ::2] + 1j * rows[..., 1::2]) * np.exp(1j * angle)
    wanted = np.stack([turned.real, turned.imag], -1).reshape(rows.shape)
    close(q, wanted[:, :, :heads], 6 * ROUNDING[dtype] + 1e-5)
    close(k, wanted[:, :, heads:], 6 * ROUNDING[dtype] + 1e-5)


@pytest.mark.parametrize("size, dtype", ((40, mx.float32), (600, mx.bfloat16)))
def test_post_expert_norm_combine(lm, size, dtype):
    experts, weights, norm = normal((3, 4, size), 4, dtype), normal((3, 4), 5, dtype), normal((size,), 6, dtype)
    got = lm.post_expert_norm_combine.post_expert_norm_combine(experts, weights, norm_weight=norm, eps=1e-5)
    scaled = unit(double(experts) * double(norm), 1e-5)
    # Each expert is added in the dtype.
    close(got, np.einsum("nkd,nk->nd", scaled, double(weights)), 24 * ROUNDING[dtype] + 1e-5)


@pytest.mark.parametrize("size, dtype", ((40, mx.float32), (600, mx.float16)))
def test_norm_add_norm(lm, size, dtype):
    branch, stream, norm = normal((3, size), 7, dtype), normal((3, size), 8), nn.RMSNorm(size, eps=1e-4)
    alpha, beta, post, norm.weight = (normal((size,), seed) for seed in range(9, 13))
    call = dict(alpha=alpha, beta=beta, post_weight=post.astype(dtype), post_eps=1e-5)
    got, normed = lm.norm_add_norm.norm_add_norm(branch, stream, next_norm=norm, **call)
    alone, nothing = lm.norm_add_norm.norm_add_norm(branch, stream, next_norm=None, **call)
    again = lm.norm_add_norm.pre_norm(got, norm, dtype=dtype)
    wanted = double(alpha) * double(stream) + double(beta) * unit(double(branch) * double(post.astype(dtype)), 1e-5)
    close(got, wanted, 12 * ROUNDING[dtype] + 1e-5)
    close(normed, unit(double(got), 1e-4) * double(norm.weight), 4 * ROUNDING[dtype] + 1e-5)
    assert nothing is None and mx.array_equal(alone, got) and mx.array_equal(again, normed)


def test_attention_over_residuals(lm):
    blocks, rows, size = 3, 2, 1100
    raw, partial, w = normal((blocks, rows, size), 13), normal((rows, size), 14), normal((size,), 15, scale=0.1)
    inverse = mx.array((1 / np.sqrt((double(raw) ** 2).mean(-1))).astype(np.float32))
    (got,) = lm.kimi_k3._attn_res_kernel(
        inputs=[raw, inverse, partial, w, mx.array([1e-5]), rows],
        template=[("InT", mx.float32), ("K", blocks), ("D", size), ("THREADS", 512)], grid=(512, rows, 1),
        threadgroup=(512, 1, 1), output_shapes=[partial.shape], output_dtypes=[mx.float32],
    )  # fmt: skip
    everything = np.concatenate([double(raw), double(partial)[None]])
    weights = softmax((unit(everything, 1e-5) * double(w)).sum(-1), 0)
    close(got, (weights[..., None] * everything).sum(0), 1e-4)


def test_sinkhorn(lm):
    size, iterations, eps = 4, 3, 1e-3
    comb = mx.softmax(normal((5, size, size), 16), axis=-1)
    (got,) = lm.deepseek_v41._sinkhorn_kernel(
        inputs=[comb, mx.array([eps])], template=[("HC", size), ("ITERS", iterations)], grid=(5, 1, 1),
        threadgroup=(5, 1, 1), output_shapes=[comb.shape], output_dtypes=[mx.float32],
    )  # fmt: skip
    wanted = double(comb)
    for turn in range(2 * iterations - 1):
        wanted = wanted / (wanted.sum(-1 if turn % 2 else -2, keepdims=True) + eps)
    close(got, wanted, 1e-5)


@pytest.mark.parametrize("inverted", (False, True))
def test_ternary_weights(lm, inverted):
    rows, depth, columns = 3, 96, 24
    layer = lm.bitlinear_layers.BitLinear(depth, columns, bias=False, invert_weight_scales=inverted)
    weight = np.random.default_rng(17).integers(-1, 2, (4, columns // 4, depth))
    layer.weight = mx.array(sum((weight[part] + 1) << 2 * part for part in range(4)).astype(np.uint8))
    layer.weight_scale = mx.array([0.5])
    x = normal((rows, depth), 18)
    scale = 2.0 if inverted else 0.5
    close(layer(x), scale * double(x) @ weight.reshape(columns, depth).T, 1e-5)


@pytest.mark.parametrize("variant", ("masked", "vec", "vec_masked", "xtree", "packed"))
def test_gated_delta_variants(lm, variant):
    size, tokens, dtype = (128, 3, mx.float32) if variant in ("xtree", "packed") else (32, 4, mx.float16)
    key_heads, heads, values = 1, 2, 16
    q, k = (normal((1, tokens, key_heads, size), seed, dtype, 0.2) for seed in (20, 21))
    v, state = normal((1, tokens, heads, values), 22, dtype), normal((1, heads, values, size), 23)
    beta = mx.sigmoid(normal((1, tokens, heads), 24)).astype(dtype)
    g = mx.sigmoid(normal((1, tokens, heads, *([size] if "vec" in variant else [])), 25))
    kept = np.array([[True, False, True, True][:tokens]])
    arguments = (q, k, v, g, beta, state, mx.array(kept) if "masked" in variant else None)
    run = lm.gated_delta.gated_delta_kernel_xtree if variant == "xtree" else lm.gated_delta.gated_delta_kernel
    y, last = run(*arguments)
    wanted, now = [], double(state)
    for t in range(tokens):
        if "masked" in variant and not kept[0, t]:
            wanted.append(np.zeros((1, 1, heads, values)))
            continue
        part, now = step(*(double(a)[:, t : t + 1] for a in (q, k, v, g, beta)), now)
        wanted.append(part)
    close(y, np.concatenate(wanted, 1), 4 * ROUNDING[dtype] + 1e-5)
    close(last, now, 4 * ROUNDING[dtype] + 1e-5)


def step(q, k, v, g, beta, state):
    """One token; g decays whole rows of the state, or every column by itself."""
    if g.ndim == 4:
        state, g = state * g[:, 0, :, None, :], np.ones(g.shape[:3])
    return gated_delta(q, k, v, g, beta, state)


def repaired(kernel):
    """The text with a barrier between the two exchanges through `shared`, and fences for threadgroup memory in its
    barriers."""
    assert "// Share the sum_exp across" in kernel.source
    source = kernel.source.replace("mem_flags::mem_none", "mem_flags::mem_threadgroup")
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
    source = source.replace("// Share the sum_exp across", barrier + "// Share the sum_exp across")
    return metal_kernel(kernel.name, kernel.input_names, kernel.output_names, source)


@pytest.mark.parametrize("loss", ("kl", "js"))
def test_losses_are_right_once_repaired(lm, loss, monkeypatch):
    for name in (f"_{loss}_forward_kernel", f"_{loss}_backward_kernel"):
        monkeypatch.setattr(lm.losses, name, repaired(getattr(lm.losses, name)))
    q, p, cotangent = normal((2, 4200), 26), normal((2, 4200), 27), normal((2,), 28)
    run = lm.losses.kl_div_loss if loss == "kl" else lm.losses.js_div_loss
    with schedule("random", seed=3):
        (value,), (gradient, _) = mx.vjp(run, [q, p], [cotangent])
    a, b = softmax(double(q)), softmax(double(p))
    middle = np.log((a + b) / 2)
    if loss == "kl":
        wanted, slope = kl(double(q), double(p)), a - b
    else:
        wanted = 0.5 * (kl(middle, double(p)) + kl(middle, double(q)))
        slope = 0.5 * a * (np.log(a) - middle - kl(middle, double(q))[:, None])
    close(value, wanted, 1e-4)
    close(gradient, double(cotangent)[:, None] * slope, 1e-5)
