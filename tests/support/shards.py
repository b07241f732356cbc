"""A sequence in the shards of several ranks: kernels that read it there, against kernels on the sequence in order."""

from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_flash import backends
from mlx_flash.autodiff.vjp import attend
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_MASK, BACKWARD_QUERY, DELTA, FORWARD
from mlx_flash.problem.problem import problem_of
from mlx_flash.problem.shards import in_shards, walked_along


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
        given = [in_shards(arrays[n], *pieces) if split and n in walked_along(step) else arrays[n] for n in names]
        if step is BACKWARD_KEY_VALUE:
            return attention.key_value((*given, *extras.values()))
        return attention.run(step, *given, *extras.values())

    kinds = [FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE, *([BACKWARD_MASK] if variants.additive else [])]
    return tuple(
        {(step.name, n): bits_of(one) for step in kinds for n, one in enumerate(made(attention, step, split))}
        for attention, split in ((plain, False), (sharded, True))
    )


def bits_of(array: mx.array) -> bytes:
    return np.array(array.view(mx.uint8)).tobytes()
