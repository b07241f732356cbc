"""Pairs of calls of attention that differ in one thing: a cache whose key lacks that thing returns a wrong result."""

import functools
import sys

import mlx.core as mx
import numpy as np

from mlx_flash import BlockMask, attention, quantized_attention
from mlx_flash.autodiff import call as calls
from mlx_flash.kernels import minify, source

ROWS, KEYS = 40, 70
_DRAW = np.random.default_rng(0)


def _normal(*shape, dtype=mx.float32) -> mx.array:
    return mx.array(_DRAW.standard_normal(shape).astype(np.float32)).astype(dtype)


Q, K, V = _normal(2, 4, ROWS, 64), _normal(2, 2, KEYS, 64), _normal(2, 2, KEYS, 64)
ONE = Q[:, :, :1]
_KEEP = _DRAW.random((2, 4, ROWS, KEYS)) < 0.6
_IDS = [(mx.array(np.arange(ROWS) // n % 2), mx.array(np.arange(KEYS) // n % 2)) for n in (7, 20)]


def _blocks(keep: np.ndarray, side: int) -> BlockMask:
    return BlockMask.from_array(keep, block=side)


_FIRST_KEYS = _blocks(_KEEP[0, 0] & (np.arange(KEYS) < 32), 32)  # block lists with one block


def _batched(ids) -> tuple[mx.array, mx.array]:
    return tuple(mx.broadcast_to(array, (2, array.shape[0])) for array in ids)


def _in_pages(page: int) -> dict:
    pools = {name: one[:, :, :64].reshape(-1, 2, page, 64) for name, one in (("k", K), ("v", V))}
    table = mx.array(np.arange(2 * 64 // page).reshape(2, -1)[:, ::-1].astype(np.int32))
    return pools | {"pages": table, "lengths": mx.array([64, 17])}


def _latent(columns: int) -> dict:
    return {"v": None, "value_dim": columns}


# {name: two sets of keywords}; q, k and v may be among them
PAIRS = {
    "lengths": ({"lengths": mx.array([KEYS, 9])}, {"lengths": mx.array([9, KEYS])}),
    "rows-of-a-page": (_in_pages(8), _in_pages(16)),
    "columns-that-are-values": (_latent(64), _latent(40)),
    "side-of-blocks": ({"mask": _blocks(_KEEP[0, 0, :, ::-1], 64)}, {"mask": _blocks(_KEEP[0, 0], 32)}),
    "heads-of-blocks": ({"mask": _blocks(_KEEP[0, 0], 32)}, {"mask": _blocks(_KEEP[0], 32)}),
    "batch-of-blocks": ({"mask": _blocks(_KEEP[0], 32)}, {"mask": _blocks(_KEEP, 32)}),
    "elements-of-blocks": ({"mask": _blocks(_KEEP[0, 0], 32)}, {"mask": _FIRST_KEYS}),
    "shape-of-mask": ({"mask": mx.array(_KEEP[:1, :1])}, {"mask": mx.array(_KEEP)}),
    "axis-of-mask": ({"mask": mx.array(_KEEP[:, :1])}, {"mask": mx.array(_KEEP[:1])}),
    "rows-of-mask": ({"mask": mx.array(_KEEP[0, 0, :1])}, {"mask": mx.array(_KEEP[0, 0])}),
    "columns-of-mask": ({"mask": mx.array(_KEEP[0, 0])}, {"mask": mx.array(_KEEP[0, 0, :, 20:21])}),
    "dtype-of-mask": ({"mask": mx.array(_KEEP)}, {"mask": mx.array(_KEEP).astype(mx.float32)}),
    "width-of-mask": (
        {"mask": mx.array(_KEEP * 1.3).astype(mx.float32)}, {"mask": mx.array(_KEEP * 1.3).astype(mx.float16)},
    ),
    "causal": ({"causal": True}, {"causal": False}),
    "sides-of-window": ({"window": (9, 3)}, {"window": (3, 9)}),
    "open-window": ({"window": (9, None)}, {"window": (None, 9)}),
    "no-window": ({"window": (9, 3)}, {}),
    "softcap": ({"softcap": 2.0}, {"softcap": 3.0}),
    "scale": ({"scale": 0.1}, {"scale": 0.2}),
    "sign-of-scale": ({"scale": 0.1}, {"scale": -0.1}),
    "dropout": ({"dropout": 0.2, "key": mx.random.key(1)}, {"dropout": 0.5, "key": mx.random.key(1)}),
    "key-of-dropout": ({"dropout": 0.2, "key": mx.random.key(1)}, {"dropout": 0.2, "key": mx.random.key(2)}),
    "sinks": ({"sinks": mx.array([0.5, 1, 2, 3])}, {"sinks": mx.array([3.0, 2, 1, 0.5])}),
    "slopes": ({"alibi_slopes": mx.array([0.1, 0.2, 0.3, 0.4])}, {"alibi_slopes": mx.array([0.4, 0.3, 0.2, 0.1])}),
    "name-of-a-number": ({"scale": 2.0}, {"softcap": 2.0}),
    "name-of-an-array": ({"sinks": mx.array([0.5, 1, 2, 3])}, {"alibi_slopes": mx.array([0.5, 1, 2, 3])}),
    "segments": ({"segments": _IDS[0]}, {"segments": _IDS[1]}),
    "batch-of-segments": ({"segments": _IDS[0]}, {"segments": _batched(_IDS[1])}),
    "statistics": ({"causal": True}, {"causal": True, "return_lse": True}),
    "key-heads": ({"k": K, "v": V}, {"k": mx.repeat(K, 2, 1)[:, ::-1], "v": mx.repeat(V, 2, 1)[:, ::-1]}),
    "width-of-v": ({"v": V}, {"v": V[..., :40]}),
    "number-of-keys": ({"k": K[:, :, :64], "v": V[:, :, :64]}, {}),
    "number-of-queries": ({"q": Q[:, :, :33]}, {}),
    "queries-of-a-capped-call": ({"q": Q[:, :, :33], "softcap": 9.0}, {"softcap": 9.0}),
    "batch": ({"q": Q[:1], "k": K[:1], "v": V[:1]}, {}),
    "dtype": ({}, {name: array.astype(mx.float16) for name, array in zip("qkv", (Q, K, V))}),
}  # fmt: skip
QUANTIZED_PAIRS = {
    "bits": ({"bits": 4}, {"bits": 8}),
    "group-size": ({"bits": 4, "group_size": 32}, {"bits": 4, "group_size": 64}),
    "mode": ({"mode": "mxfp4", "bits": 4, "group_size": 32}, {"mode": "affine", "bits": 4, "group_size": 32}),
    "scale-of-quantized": ({"bits": 4, "scale": 0.1}, {"bits": 4, "scale": 0.2}),
    "causal-of-quantized": ({"bits": 4, "causal": True}, {"bits": 4}),
}


def call(options: dict, decode: bool = False) -> list[mx.array]:
    """The results of attention; with one query if `decode`."""
    named = {"q": Q, "k": K, "v": V} | options
    q, k, v = (named.pop(name) for name in "qkv")
    if decode:
        q, named = one_query(q, named)
    found = attention(q, k, v, **named)
    return list(found) if isinstance(found, tuple) else [found]


def one_query(q: mx.array, options: dict) -> tuple[mx.array, dict]:
    """The last query alone, and the options reduced to it."""
    options, rows = dict(options), q.shape[2]
    if isinstance(options.get("mask"), mx.array) and options["mask"].shape[-2] == rows:
        options["mask"] = options["mask"][..., -1:, :]
    if isinstance(options.get("mask"), BlockMask):
        mask = options["mask"]
        keep = _KEEP[: mask.shape[0], : mask.shape[1], -1:, :: -1 if mask.block == 64 else 1]
        keep = keep & (np.arange(KEYS) < 32) if mask is _FIRST_KEYS else keep
        options["mask"] = BlockMask.from_array(keep, block=mask.block)
    if "segments" in options:
        options["segments"] = (options["segments"][0][..., -1:], options["segments"][1])
    return q[:, :, -1:], options


def quantized_call(options: dict) -> list[mx.array]:
    form = {name: options[name] for name in ("mode", "bits", "group_size") if name in options}
    return [quantized_attention(Q, mx.quantize(K, **form), mx.quantize(V, **form), **options)]


# Their keys are whole texts, and to make all texts again would take most of the time of these tests.
OF_TEXTS = {minify.minified, minify.stripped, source.template, source._asked, source._resolved}


def forget() -> None:
    """Empties every cache of the package except those of texts and of compiled kernels."""
    calls.clear_cache()
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_flash.") and not name.startswith("mlx_flash.metal."):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper) and value not in OF_TEXTS:
                    value.cache_clear()
