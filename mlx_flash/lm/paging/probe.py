"""The test whether a model passes the handles of its caches on to attention, on two tokens and without computing."""

from __future__ import annotations

import mlx.core as mx

from ...integrations import patch
from ...integrations.handles import Handle
from .handle import causal
from .storage import Layer


class _Trial(Handle):
    """Keys or values that count how often attention asks for them."""

    def __init__(self, cache, shape, dtype):
        super().__init__(shape, dtype)
        self.cache = cache

    def attend(self, q: mx.array, values: Handle, *, scale, mask, sinks) -> mx.array:
        if not isinstance(values, _Trial) or values.cache is not self.cache:
            raise TypeError("it mixes the keys and values of caches")
        if mask is not None and not isinstance(mask, str):
            raise TypeError("it makes a mask of its own")
        self.cache.asked += 1
        return mx.zeros((*q.shape[:3], values.shape[3]), q.dtype)


class _TrialCache:
    """The part of a cache's interface that models use."""

    def __init__(self, layer: Layer):
        self.layer, self.offset, self.asked = layer, 0, 0

    def update_and_fetch(self, k: mx.array, v: mx.array):
        self.layer.known(k, v)
        self.offset += k.shape[2]
        shape = (*k.shape[:2], self.offset)
        self.given = _Trial(self, (*shape, k.shape[3]), k.dtype), _Trial(self, (*shape, v.shape[3]), v.dtype)
        return self.given

    def keys_and_values(self):
        self.layer.shared = True
        return self.given

    def make_mask(self, queries: int, return_array: bool = False, window_size: int | None = None):
        if return_array:
            raise TypeError("it computes with its mask")
        return None if queries == 1 and window_size is None else causal(window_size)


def refusal(model, pool) -> str:
    """Why the model cannot use handles; "" if it can. The layers get their heads and dimensions on the way."""
    caches = pool.caches()
    trials = [_TrialCache(layer) if layer else cache for layer, cache in zip(pool.layers, caches)]
    asked = [trial for trial in trials if isinstance(trial, _TrialCache)]
    try:
        with patch(policy="always"):
            for tokens in (2, 1):
                model(mx.zeros((1, tokens), mx.int32), cache=list(trials))
    except Exception as error:  # a model may do anything with a handle
        return f"the model does more with keys than to pass them on ({type(error).__name__}: {_line(error)})"
    if any(trial.asked < 2 for trial in asked):  # layers may share keys
        return "the model computes attention by itself"
    form = pool.layers[next(n for n, layer in enumerate(pool.layers) if layer)].quantization
    for layer in filter(None, pool.layers):
        if form and any(dim % form.group_size for dim in layer.dims):
            return f"head dimensions {layer.dims} are no multiples of the group size {form.group_size}"
    return ""


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else "no words"
