"""A sequence in the shards of several ranks: kernels that read it there, against kernels on the sequence in order."""

from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_flash import backends
from mlx_flash.autodiff.vjp import attend
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_MASK, BACKWARD_QUERY, DELTA, FORWARD
from mlx_flash.problem.problem import problem_of
from mlx_flash.problem.shards import in_shards, traversed_operands


def results(
    queries: int, keys: int, pieces: tuple[int, int], dtype: str, width: int = 24, first: int = 0, **options
) -> tuple[dict, dict]:
    """Bits of O, L, dQ, dK, dV and the mask's gradient: of kernels on the sequence in order, and in shards.

    For forward and dQ the keys are in shards, for dK and dV the queries. `first`: the position of the first query among
    the keys.
    """
    draw, kind = np.random.default_rng(3), getattr(mx, dtype)
    shapes = {"Q": (2, 4, queries, width), "K": (2, 2, keys, width), "V": (2, 2, keys, width)}
    arrays = {
        name: mx.array(draw.standard_normal(shape).astype(np.float32)).astype(kind) for name, shape in shapes.items()
    }
    arrays["dO"] = mx.array(draw.standard_normal(shapes["Q"]).astype(np.float32)).astype(kind)
    signature = problem_of(arrays["Q"], arrays["K"], arrays["V"], **options).signature
    variants = replace(signature.variants, shifts=True)
    extras = {"shifts": mx.full((2, queries + keys), first, mx.int32)}
    for option, name in (("mask", "attention_mask"), ("alibi_slopes", "slopes")):
        if option in options:
            extras[name] = options[option]
    plain = attend(replace(signature, variants=variants), tuple(extras), backends.current_backend())
    sharded = attend(
        replace(signature, variants=replace(variants, pieces=pieces)), tuple(extras), backends.current_backend()
    )
    arrays["O"], arrays["L"] = plain.run(FORWARD, *(arrays[name] for name in "QKV"), *extras.values())
    arrays["delta"] = plain.run(DELTA, arrays["dO"], arrays["O"])[0]

    def made(attention, step, split: bool):
        names = [name for name in ("Q", "K", "V", "dO", "L", "delta") if name in step.inputs]
        given = [in_shards(arrays[n], *pieces) if split and n in traversed_operands(step) else arrays[n] for n in names]
        if step is BACKWARD_KEY_VALUE:
            return attention.key_value((*given, *extras.values()))
        return attention.run(step, *given, *extras.values())

    kinds = [FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE, *([BACKWARD_MASK] if variants.additive else [])]
    return tuple(
        {(step.name, n): bits_of(one) for step in kinds for n, one in enumerate(made(attention, step, split))}
        for attention, split in ((plain, False), (sharded, True))
    )


def of_two_pieces(length: int, dtype: str, width: int = 24, **options) -> tuple[list[bytes], list[bytes]]:
    """Bits of dK and dV of the first and the last quarter of the keys: cut from those of all keys, and of one kernel
    that owns both quarters, with their positions in the operand `shifts`."""
    draw, kind, piece = np.random.default_rng(5), getattr(mx, dtype), length // 4
    heads = {"Q": 4, "K": 2, "V": 2, "dO": 4}
    arrays = {
        name: mx.array(draw.standard_normal((1, count, length, width)).astype(np.float32)).astype(kind)
        for name, count in heads.items()
    }
    signature = problem_of(arrays["Q"], arrays["K"], arrays["V"], causal=True, **options).signature
    extras = {"shifts": mx.zeros((1, 2 * length), mx.int32)}
    if "alibi_slopes" in options:
        extras["slopes"] = options["alibi_slopes"]
    signature = replace(signature, variants=replace(signature.variants, shifts=True))
    attention = attend(signature, tuple(extras), backends.current_backend())
    arrays["O"], arrays["L"] = attention.run(FORWARD, *(arrays[name] for name in "QKV"), *extras.values())
    (delta,) = attention.run(DELTA, arrays["dO"], arrays["O"])

    def cut(array):
        return mx.concatenate([array[:, :, :piece], array[:, :, -piece:]], axis=2)

    def made(K, V, shifts):
        others = extras | {"shifts": shifts}
        return attention.key_value((arrays["Q"], K, V, arrays["dO"], arrays["L"], delta, *others.values()))

    whole = made(arrays["K"], arrays["V"], extras["shifts"])
    places = mx.where(mx.arange(length + 2 * piece) < length + piece, 0, 2 * piece - length)[None].astype(mx.int32)
    both = made(cut(arrays["K"]), cut(arrays["V"]), places)
    return [bits_of(cut(one)) for one in whole], [bits_of(one) for one in both]


def bits_of(array: mx.array) -> bytes:
    return np.array(array.view(mx.uint8)).tobytes()
