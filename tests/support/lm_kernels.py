"""Imports mlx-lm again with metal_kernel replaced, so that its kernels run on the simulator; and what they compute."""

import sys
import warnings
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
from metal_conformance.case import agree

from mlx_flash.simulator import replace_metal_kernel

FLOATS = (mx.float32, mx.float16, mx.bfloat16)
ROUNDING = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}


@contextmanager
def imported(*names: str):
    """Modules of mlx-lm, by the last part of their names; they are removed from sys.modules afterwards."""
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "mlx_lm"}
    with replace_metal_kernel(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlx_lm.utils

        mlx_lm.utils.can_run_metal = lambda: True
        yield SimpleNamespace(**{name.rsplit(".")[-1]: import_module(f"mlx_lm.{name}") for name in names})
    for name in list(sys.modules):
        if name.split(".")[0] == "mlx_lm":
            del sys.modules[name]
    sys.modules.update(others)


def normal(shape, seed: int, dtype=mx.float32, scale: float = 1.0) -> mx.array:
    return mx.array((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)).astype(dtype)


def double(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def close(got: mx.array, wanted: np.ndarray, tolerance: float):
    agree(got.reshape(wanted.shape), wanted, tolerance)


def gated_delta(q, k, v, g, beta, state):
    """S = g S; S += beta (v - S k) k^T; y = S q, one token after the other."""
    repeat = v.shape[2] // k.shape[2]
    q, k, out = np.repeat(q, repeat, 2), np.repeat(k, repeat, 2), []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, None, None]
        correction = beta[:, t, :, None] * (v[:, t] - np.einsum("bhvk,bhk->bhv", state, k[:, t]))
        state = state + correction[..., None] * k[:, t, :, None, :]
        out.append(np.einsum("bhvk,bhk->bhv", state, q[:, t]))
    return np.stack(out, 1), state


def kl(q: np.ndarray, p: np.ndarray) -> np.ndarray:
    log_q, log_p = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (q, p))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)
