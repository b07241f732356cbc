"""MLX's gated delta rule for the neural accelerators of M5: chunks of 16 steps as products, forward and gradients.

With state S [Dv, Dk], per step: S = g S; S = S + beta (v - S k) k^T; y = S q.
"""

import functools

import mlx.core as mx
import numpy as np

from metal_conformance.case import METAL_TYPES, RELAXED, TENSOR_LANGUAGE, Case, agree, double, library, normal, short

_CHUNK, _KEPT = 16, 2  # steps of a chunk, chunks of a segment whose first state is stored
_BATCH, _KEY_HEADS, _VALUE_HEADS, _DK, _DV = 1, 1, 2, 64, 64
_NAMES = ("q", "k", "v", "g", "beta", "state")
_I = np.int32


def recurrence(q, k, v, g, beta, state):
    """(y, last state), step by step in plain operations of MLX.

    q, k [B, T, Hk, Dk], v [B, T, Hv, Dv], g, beta [B, T, Hv], state [B, Hv, Dv, Dk].
    """
    repeats, outputs = v.shape[2] // k.shape[2], []
    for t in range(q.shape[1]):
        q_t, k_t = (mx.repeat(x[:, t], repeats, 1)[..., None, :] for x in (q, k))
        state = state * g[:, t, :, None, None]
        read = (state * k_t).sum(-1)
        state = state + ((v[:, t] - read) * beta[:, t, :, None])[..., None] * k_t
        outputs.append((state * q_t).sum(-1))
    return mx.stack(outputs, 1), state


def tensors(dtype: mx.Dtype, steps: int) -> dict[str, mx.array]:
    """Keys of length 1, decays and rates in (0, 1)."""
    shapes = dict(
        q=(_KEY_HEADS, _DK), k=(_KEY_HEADS, _DK), v=(_VALUE_HEADS, _DV), g=(_VALUE_HEADS,), beta=(_VALUE_HEADS,)
    )
    arrays = {
        name: normal((_BATCH, steps, *shape), mx.float32, seed) for seed, (name, shape) in enumerate(shapes.items())
    }
    arrays["q"], arrays["k"] = (x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in (arrays["q"], arrays["k"]))
    arrays["g"], arrays["beta"] = 0.8 + 0.2 * mx.sigmoid(arrays["g"]), mx.sigmoid(arrays["beta"])
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    return arrays | {"state": normal((_BATCH, _VALUE_HEADS, _DV, _DK), mx.float32, 9)}


def kernel_of(header: str, function: str, dtype: mx.Dtype, constants: dict):
    sizes = (_DK, _DV, _KEY_HEADS, _VALUE_HEADS, _CHUNK, _KEPT)
    source = library((f"{header}.h",), TENSOR_LANGUAGE)
    return source.kernel(f"{function}<{', '.join([METAL_TYPES[dtype], *map(str, sizes)])}>", constants)


def forward(arrays: dict[str, mx.array]) -> list[mx.array]:
    """[y, last state, stored states, matrices of chunks, differences of chunks]."""
    dtype, steps = arrays["q"].dtype, arrays["q"].shape[1]
    chunks = -(-steps // _CHUNK)
    kernel = kernel_of("gated_delta_update_nax", "gated_delta_fused_nax", dtype, {"save_state_cache": True})
    heads = (_BATCH, _VALUE_HEADS)
    arguments = dict(enumerate([arrays[name] for name in ("q", "k", "v", "state", "g", "beta")]))
    arguments |= {6: (arrays["v"].shape, dtype), 7: (arrays["state"].shape, mx.float32), 8: _I(steps)}
    arguments |= {
        9: ((*heads, -(-chunks // _KEPT), _DV, _DK), mx.float32),
        10: ((*heads, chunks, 3, 16, 16), mx.float32),
    }
    arguments |= {11: ((*heads, chunks, _CHUNK, _DV), mx.float32)}
    return kernel(arguments, (32, _DV // 16, _BATCH * _VALUE_HEADS), (32, _DV // 16, 1))


def exact(arrays: dict[str, mx.array]) -> list[np.ndarray]:
    return [double(array.astype(mx.float32)) for array in arrays.values()]


def run_forward(dtype: mx.Dtype, steps: int):
    arrays = tensors(dtype, steps)
    y, state, *_ = forward(arrays)
    wanted, last = recurrence(*(mx.array(array.astype(np.float32)) for array in exact(arrays)))
    tolerance = 16 * RELAXED[dtype] + 16 * RELAXED[mx.float32]
    agree(y, double(wanted), tolerance, "y")
    agree(state, double(last), tolerance, "the last state")


def run_gradients(dtype: mx.Dtype, steps: int):
    """Runs the gradients. For g the kernel returns the gradient by cumulated decays, which another kernel converts."""
    arrays = tensors(dtype, steps)
    _, _, *kept = forward(arrays)
    cot_y = normal(arrays["v"].shape, dtype, 11)
    cot_state = normal(arrays["state"].shape, mx.float32, 12)
    chunks = -(-steps // _CHUNK)
    inputs = [arrays[name] for name in ("q", "k", "v", "g", "beta")] + [cot_y, cot_state, kept[0]]
    # Gradients of q and k are summed atomically.
    added = {index: np.zeros(arrays[name].shape, np.float32) for index, name in ((9, "q"), (10, "k"))}
    shapes = {11: "v", 12: "g", 13: "beta", 14: "state"}
    arguments = dict(enumerate(inputs)) | {8: _I(steps)} | added
    arguments |= {index: (arrays[name].shape, mx.float32) for index, name in shapes.items()}
    arguments |= {15: kept[1], 16: kept[2], 17: ((_BATCH, _VALUE_HEADS, _KEPT, _DV, _DK), mx.float32)}
    kernel = kernel_of("gated_delta_update_nax_vjp", "gated_delta_vjp_fused_nax", dtype, {})
    dv, dg, d_beta, d_state, _ = kernel(arguments, (32, _DV // 16, _BATCH * _VALUE_HEADS), (32, _DV // 16, 1))
    turned = np.array(dg)
    source = library(("gated_delta_update_nax_vjp.h",), TENSOR_LANGUAGE)
    turn = source.kernel(f"gated_delta_dgamma_to_dg<{METAL_TYPES[dtype]}, {_CHUNK}>")
    turn([arrays["g"], turned, _I(steps), _I(_VALUE_HEADS), _I(_BATCH * _VALUE_HEADS)],
         (_BATCH * _VALUE_HEADS, chunks, 1), (_BATCH * _VALUE_HEADS, chunks, 1))  # fmt: skip
    plain = [mx.array(array.astype(np.float32)) for array in exact(arrays)]
    _, wanted = mx.vjp(recurrence, plain, [cot_y.astype(mx.float32), cot_state])
    got = [mx.array(added[9]), mx.array(added[10]), dv, mx.array(turned), d_beta, d_state]
    for name, mine, right in zip(_NAMES, got, wanted):
        largest = float(mx.abs(right).max())
        agree(mine / largest, double(right) / largest, 16 * RELAXED[dtype] + 16 * RELAXED[mx.float32], f"d{name}")


def cases() -> list[Case]:
    """Whole chunks, and an incomplete last one."""
    found = []
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        for steps in (39, 32):
            run = functools.partial(run_forward, dtype, steps)
            found.append(Case("tensor gated delta", f"{steps} steps {short(dtype)}", run))
    for steps in (39, 48):  # in 16 bits MLX's max(g, 1e-6) is ambiguous
        found.append(
            Case("tensor gated delta vjp", f"{steps} steps", functools.partial(run_gradients, mx.float32, steps))
        )
    return found
