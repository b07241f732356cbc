"""mlx-lm's own kernels, imported as they are, run on the simulator and agree with numpy; its race is reported."""

import mlx.core as mx
import numpy as np
import pytest
from lm_kernels import FLOATS, ROUNDING, close, double, gated_delta, imported, kl, normal

from mlx_flash.simulator import SimulatorError, mode, schedule

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: its kernels cannot be run")


@pytest.fixture(scope="module")
def lm():
    names = ("kernels.qk_norm", "kernels.rms_norm_sigmoid_gate", "models.gated_delta", "models.ssm", "models.rwkv7")
    with imported(*names, "tuner.losses") as modules:
        yield modules


@pytest.mark.parametrize("dtype", FLOATS)
def test_qk_norm(lm, dtype):
    heads, key_heads, size = 2, 1, 40
    x = normal((3, 2 * (heads + key_heads) * size), 1, dtype)
    with mode("check"):
        q, k = lm.qk_norm.qk_norm(x, n_heads=heads, n_kv_heads=key_heads, head_dim=size, eps=1e-5, query_scale=0.5)
    rows = double(x)[:, : (heads + key_heads) * size].reshape(3, -1, size)
    rows = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5)
    close(q, 0.5 * rows[:, :heads], 4 * ROUNDING[dtype] + 1e-6)
    close(k, rows[:, heads:], 4 * ROUNDING[dtype] + 1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rms_norm_sigmoid_gate(lm, dtype):
    x, gate = normal((2, 3, 5, 48), 2, dtype), normal((2, 5, 3 * 48), 3, dtype)
    with mode("check"):
        got = lm.rms_norm_sigmoid_gate.rms_norm_sigmoid_gate(x, gate, eps=1e-5)
    rows = double(x)
    rows = (rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5)).swapaxes(1, 2).reshape(2, 5, -1)
    close(got, rows / (1 + np.exp(-double(gate))), 4 * ROUNDING[dtype] + 1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_gated_delta(lm, dtype):
    key_heads, heads, size, tokens = 1, 2, 32, 5
    q, k = (normal((1, tokens, key_heads, size), seed, dtype, 0.2) for seed in (4, 5))
    v, state = normal((1, tokens, heads, size), 6, dtype), normal((1, heads, size, size), 7, mx.float32)
    g, beta = (mx.sigmoid(normal((1, tokens, heads), seed)) for seed in (8, 9))
    g, beta = g.astype(dtype), beta.astype(dtype)
    with mode("check"):
        y, last = lm.gated_delta.gated_delta_kernel_unpacked(q, k, v, g, beta, state)
    wanted, wanted_last = gated_delta(*map(double, (q, k, v, g, beta, state)))
    close(y, wanted, 4 * ROUNDING[dtype] + 1e-5)
    close(last, wanted_last, 4 * ROUNDING[dtype] + 1e-5)


def test_ssm(lm):
    heads, size, states, groups = 4, 16, 32, 2
    x, state = normal((1, 1, heads, size), 10), normal((1, heads, size, states), 11)
    b, c = normal((1, 1, groups, states), 12), normal((1, 1, groups, states), 13)
    log_a, d = normal((heads,), 14, scale=0.1), normal((heads,), 15)
    dt, bias = normal((1, 1, heads), 16), normal((heads,), 17)
    with mode("check"):
        y, last = lm.ssm.ssm_update_kernel(x, log_a, b, c, d, dt, bias, state, (0.001, 100.0))
    step = np.clip(np.log1p(np.exp(double(dt) + double(bias))), 0.001, 100.0)[:, 0]
    decay = np.exp(-np.exp(double(log_a)) * step)
    b, c = (np.repeat(double(a)[:, 0], heads // groups, 1) for a in (b, c))
    wanted = decay[..., None, None] * double(state) + (step[..., None] * double(x)[:, 0])[..., None] * b[:, :, None, :]
    close(last, wanted, 1e-5)
    close(y[:, 0], np.einsum("bhds,bhs->bhd", wanted, c) + double(d)[:, None] * double(x)[:, 0], 1e-5)


def test_wkv7(lm):
    heads, size, tokens = 2, 32, 4
    r, k, v, a, b = (normal((1, tokens, heads, size), seed, scale=0.3) for seed in range(20, 25))
    w, state = mx.sigmoid(normal((1, tokens, heads, size), 25)), normal((1, heads, size, size), 26)
    with mode("check"):
        y, last = lm.rwkv7.wkv7_kernel(r, w, k, v, a, b, state)
    r, w, k, v, a, b, wanted = map(double, (r, w, k, v, a, b, state))
    for t in range(tokens):
        moved = np.einsum("bhvk,bhk->bhv", wanted, a[:, t])[..., None] * b[:, t, :, None, :]
        wanted = wanted * w[:, t, :, None, :] + v[:, t][..., None] * k[:, t, :, None, :] + moved
        close(y[:, t], np.einsum("bhvk,bhk->bhv", wanted, r[:, t]), 1e-5)
    close(last, wanted, 1e-5)


@pytest.mark.parametrize("size", (1000, 9000))
def test_kl_forward_is_a_race(lm, size):
    """The second exchange through `shared` starts before all threads have read the first: a barrier is missing
    (0.32.2)."""
    q, p = normal((2, size), 18), normal((2, size), 19)
    with mode("check"), pytest.raises(SimulatorError, match="race in threadgroup memory.*'shared'"):
        lm.losses.kl_div_loss(q, p)
    # In one order of the simdgroups nothing shows; on a GPU, as in other orders, the result depends on who comes first.
    results = []
    for order in ("forward", "reversed"):
        with mode("fast"), schedule(order):
            results.append(double(lm.losses.kl_div_loss(q, p)))
    errors = [np.abs(result - kl(double(q), double(p))).max() for result in results]
    assert max(errors) > 1e-2, errors


def test_js_forward_is_the_same_race(lm):
    q, p = normal((2, 5000), 18), normal((2, 5000), 19)
    with (
        mode("check"),
        pytest.raises(SimulatorError, match="race in threadgroup memory.*'shared'.*kernel 'js_forward'"),
    ):
        lm.losses.js_div_loss(q, p)
