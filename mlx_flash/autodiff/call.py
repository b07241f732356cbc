"""Validated calls, cached by everything about their arguments but the lengths: checked once per signature.

A call then costs only what its own arrays cost. A cache of keys that grows by a token finds the same Call every time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from operator import itemgetter

import mlx.core as mx
import numpy as np

from ..backends import Backend
from ..common import machine
from ..common.errors import UnsupportedProblem, wrong
from ..common.mlx_private import may_compile
from ..common.scalars import LARGEST, shown, truth
from ..kernels.plan import plan
from ..kernels.split_kv import QUERIES
from ..problem.formulas.score import Score, Visible
from ..problem.kinds import FORWARD
from ..problem.masks import BlockMask
from ..problem.problem import SIZED, Problem, Signature, padded, signature_of, sized
from ..problem.quantization import Quantization, quantization_of, shape_of
from ..problem.variants import ARRAYS
from .decoding import Decoding
from .operands import operands
from .refusals import refuse_shapeless, traced
from .statistics import natural
from .vjp import attend

CACHE_SIZE = 1024  # signatures
SPLIT = "split"  # return_lse in two parts: the largest score, and the logarithm of the sum relative to it
sized_of = itemgetter(*SIZED)  # runs in every call: cheaper than a generator
VALUES = frozenset({bool, int, float, str})  # types whose values can be part of the cache's key
SMALLEST = 2.0**-126  # GPUs flush smaller float32 numbers to zero
REPLAYED_AFTER, LENGTHS_WATCHED = 128, 16  # calls with the same lengths before these are replayed; lengths counted
STREAMS = (mx.Stream, mx.Device, mx.DeviceType, mx.ThreadLocalStream)
NOTHING: dict[str, mx.array] = {}
_cache: dict[tuple, Call] = {}
_plain: dict[tuple, Call] = {}  # calls without arrays besides q, k and v, by a shorter key


class Call:
    """All calls of `attention` or `quantized_attention` with one signature on one backend.

    `quantization`: the format of k and v, which are then tuples of arrays as mx.quantize returns them.

    Attributes: signature, as the caller gave it; inner, the signature for the kernels: head dimensions in multiples of
    8, a positive scale; pads, the columns that q and k, and v, are padded with; of_q, the factor of the scale that q is
    multiplied by.
    """

    def __init__(
        self,
        signature: Signature,
        backend: Backend,
        stream,
        return_lse: bool | str,
        quantization: Quantization | None = None,
    ):
        self.signature, self.backend, self.stream = signature, backend, stream
        self.return_lse, self.quantization = return_lse, quantization
        head_dim, value_dim = padded(signature.head_dim), padded(signature.value_dim)
        self.pads = (head_dim - signature.head_dim, value_dim - signature.value_dim)
        # Kernels need a positive scale, which keeps a row's largest score the largest, so q takes a sign. q also takes
        # a factor of a scale whose product with log2(e) would overflow float32, and a zero.
        size = 0.0 if abs(signature.scale) < SMALLEST else 1.0 if abs(signature.scale) < LARGEST / 2 else 2.0
        self.of_q = math.copysign(size, signature.scale)
        self.inner = replace(
            signature,
            head_dim=head_dim,
            value_dim=value_dim,
            scale=abs(signature.scale) / size if size else 1.0,
            variants=replace(signature.variants, quantization=quantization),
        )
        self._attention = self._replayed = self._last = None
        self._headless = not signature.query_heads
        self._as_they_are = self.of_q == 1 and not any(self.pads) and quantization is None
        self._seen: dict[tuple, int] = {}
        self._decoding: dict[int, Decoding | None] = {}  # by the number of queries

    def run(self, q: mx.array, k, v, arguments: dict):
        """The result of one call. `arguments`: the options of `attention`, by name. Raises ValueError for lengths that
        do not fit together."""
        bare, last = self.inner.variants.bare, self._last
        shapes = (q.shape, k.shape, v.shape) if self.quantization is None else (q.shape, k[0].shape, v[0].shape)
        known = last is not None and last[0] == shapes
        problem = last[1] if known else sized(self.inner, *shapes, *sized_of(arguments))
        if self.quantization:
            _check_part_lengths(k, v, self.quantization)
        if not known:
            if self._headless or 0 in problem[1:4] or not shapes[1][0]:
                return self._nothing(problem, q.dtype, arguments["sinks"])
            if bare:  # the layers of a model call with the same lengths one after another
                self._last = shapes, problem
        extras = NOTHING if bare else operands(problem, repeats=self.backend.asks_strides, **arguments)
        if self._attention is None:
            self._attend_with(tuple(extras))
        arrays = (q, k, v) if self._as_they_are else self.inputs(q, k, v)
        if extras:
            arrays = (*arrays, *extras.values())
        replays = self._replayed is not None and self._comes_again(problem)
        out, L = self._replayed(*arrays) if replays else self._attention.run(FORWARD, *arrays, problem=problem)
        out = out[..., : self.signature.value_dim] if self.pads[1] else out
        return (out, self.lse(L, arguments["sinks"])) if self.return_lse else out

    def run_plain(self, q: mx.array, k: mx.array, v: mx.array, shapes: tuple) -> mx.array:
        """`run` for a call that `plain_call` found: without arrays besides these, and without statistics."""
        last = self._last
        if last is None or last[0] != shapes:
            problem = sized(self.inner, *shapes)
            if self._headless or 0 in problem[1:4] or not shapes[1][0]:
                return self._nothing(problem, q.dtype, None)
            last = self._last = shapes, problem
        if self._attention is None:
            self._attend_with(())
        arrays, problem = (q, k, v) if self._as_they_are else self.inputs(q, k, v), last[1]
        decoding = self._decoding.get(problem.query_length)
        if decoding is not None and not traced():
            out = decoding(*arrays, problem)
            return out[..., : self.signature.value_dim] if self.pads[1] else out
        attention = self._attention
        if attention.followed:  # probably again: through a compiled graph the trace would only pass
            attention.followed = traced()
        if attention.followed:
            out, _ = attention.follow(*arrays)
        elif self._replayed is not None and self._comes_again(problem):
            out, _ = self._replayed(*arrays)
        else:
            out, _ = attention.run(FORWARD, *arrays, problem=problem)
        if problem.query_length <= QUERIES:
            self._decoding[problem.query_length] = attention.decoding(problem.query_length)
        return out[..., : self.signature.value_dim] if self.pads[1] else out

    def _attend_with(self, names: tuple[str, ...]) -> None:
        parts = self.quantization.inputs if self.quantization else ()
        self._attention = attend(self.inner, (*parts, *names), self.backend, self.stream, bool(self.return_lse))
        # mx.compile traces again for another stream, and passes other transformations through to the function.
        self._replayed = mx.compile(partial(self._attention.run, FORWARD)) if self.backend.replays else None

    def _comes_again(self, problem: Problem) -> bool:
        """Whether these lengths repeat, as in training, so that this thread replays a compiled graph. A growing cache
        has each length only for as many calls as a model has layers, and every graph that mx.compile keeps makes its
        lookup slower."""
        if not may_compile():
            return False
        lengths = problem[1:]
        seen = self._seen.get(lengths, 0)
        if seen >= REPLAYED_AFTER:
            return True
        if len(self._seen) >= LENGTHS_WATCHED:
            self._seen.clear()
        self._seen[lengths] = seen + 1
        return False

    def inputs(self, q: mx.array, k, v) -> tuple[mx.array, ...]:
        """Q, K and V as the kernels read them, then the scales and biases of quantized K and V."""
        q = q if self.of_q == 1 else mx.multiply(q, self.of_q, stream=self.stream)
        if self.quantization:
            return q, k[0], v[0], *k[1:], *v[1:]
        head, value = self.pads
        if head:
            q, k = self._pad(q, head), self._pad(k, head)
        return q, k, self._pad(v, value) if value else v

    def _pad(self, array: mx.array, columns: int) -> mx.array:
        """Zero columns up to a multiple of 8: they change no dot product, and their gradients are dropped."""
        return mx.pad(array, [(0, 0), (0, 0), (0, 0), (0, columns)], stream=self.stream)

    def lse(self, L: mx.array, sinks: mx.array | None) -> mx.array:
        """The kernels' statistics [B, Hq, Lq, 2] as the caller asked for them."""
        largest, log_sum = natural(L, self.inner.lacking_scale, sinks)
        return mx.stack([largest, log_sum]) if self.return_lse == SPLIT else largest + log_sum

    def _nothing(self, problem: Problem, dtype, sinks):
        """The result of a call without queries or keys: zeros, and the head's sink, if any, as the only score of a
        row."""
        refuse_shapeless()
        problem = problem._replace(signature=self.signature)
        out = mx.zeros(problem.output_shape, dtype)
        if not self.return_lse:
            return out
        lse = -math.inf if sinks is None else sinks.astype(mx.float32)[:, None]
        lse = mx.broadcast_to(mx.array(lse), problem.output_shape[:3])
        return out, mx.stack([lse, mx.zeros_like(lse)]) if self.return_lse == SPLIT else lse


def _check_part_lengths(k, v, quantization: Quantization) -> None:
    for name, (codes, *others) in (("k", k), ("v", v)):
        for part in others:
            if part.shape[:3] != codes.shape[:3]:
                # Raises: its error names the part and the expected shape.
                shape_of(name, (codes, *others), quantization, part.dtype)


def _make(q, k, v, backend: Backend, stream, return_lse: bool | str, quantized_as, arguments: dict) -> Call:
    if stream is not None and not isinstance(stream, STREAMS):
        raise wrong("stream", "an mlx.core.Stream or Device, or None", shown(stream), "Pass mx.cpu or mx.gpu.")
    if backend.gpu and stream is not None and machine.on_cpu(stream):  # which was chosen by name
        raise UnsupportedProblem(
            f'[mlx_flash] backend "{backend.name}": its kernels run on the GPU, and stream {stream} is the CPU\'s. '
            'Leave the stream out, or choose use_backend("reference").'
        )
    if quantized_as is None:
        return Call(signature_of(q, k, v, **arguments), backend, stream, return_lse)
    quantization = quantization_of(*quantized_as)
    dtype = q.dtype if isinstance(q, mx.array) else mx.float32
    # The checks of `attention` run on operands of the dequantized shapes, which are never evaluated.
    logical = [mx.zeros(shape_of(name, parts, quantization, dtype), dtype) for name, parts in (("k", k), ("v", v))]
    return Call(signature_of(q, *logical, **arguments), backend, stream, return_lse, quantization)


def wanted_lse(return_lse) -> bool | str:
    """`return_lse` as True, False or SPLIT. Raises ValueError for another value."""
    if isinstance(return_lse, str) and return_lse == SPLIT:
        return return_lse
    wanted = False if return_lse is None else truth(return_lse)
    if wanted is None:
        raise wrong("return_lse", f'True, False or "{SPLIT}"', shown(return_lse), "Check the spelling.")
    return wanted


def prepared(
    q, k, v, backend: Backend, stream, return_lse: bool | str, arguments: dict, quantized_as: tuple | None = None
) -> Call:
    """The Call for these arguments: from the cache, or checked and added to it.

    `quantized_as`: (mode, bits, group_size) of quantized k and v. Raises ValueError as `signature_of` does.
    """
    if return_lse is not False:
        return_lse = wanted_lse(return_lse)
    try:
        given = [
            (name, type(value), value) if type(value) in VALUES else (name, _static(value, name))
            for name, value in arguments.items()
            if value is not None
        ]
        where = None if stream is None else (type(stream), str(stream))  # equal streams have different hashes
        page = None if arguments.get("pages") is None else _page(k)
        if quantized_as is None and type(q) is type(k) is type(v) is mx.array and q.ndim == k.ndim == v.ndim == 4:
            (_, heads, _, width), (_, k_heads, _, k_width), (_, v_heads, _, v_width) = q.shape, k.shape, v.shape
            form = q.dtype, heads, width, k.dtype, k_heads, k_width, v.dtype, v_heads, v_width
        else:
            form = _static(q), _static(k), _static(v), quantized_as and _static(quantized_as, "quantized_as")
        key = (form, backend, where, return_lse, page, *given)
        call = _cache.get(key)
    except TypeError:  # arguments of other types are checked every time
        key = call = None
    if call is None:
        call = _make(q, k, v, backend, stream, return_lse, quantized_as, arguments)
        if key is not None:
            if len(_cache) >= CACHE_SIZE:
                del _cache[next(iter(_cache))]
            _cache[key] = call
    return call


def plain_call(q, k, v: mx.array, scale, causal, backend: Backend) -> tuple[Call, tuple] | None:
    """(the Call for these arguments, where all others have their defaults; the shapes of q, k and v).

    None where `prepared` has to look at them, since they are of other types or ranks, or the call is not plain. Raises
    ValueError as `prepared` does.
    """
    if not (type(q) is type(k) is mx.array and (scale is None or type(scale) is float) and type(causal) is bool):
        return None
    q_shape, k_shape, v_shape = q.shape, k.shape, v.shape
    if not len(q_shape) == len(k_shape) == len(v_shape) == 4:
        return None
    key = (
        q.dtype, q_shape[1], q_shape[3], k.dtype, k_shape[1], k_shape[3], v.dtype, v_shape[1], v_shape[3], scale,
        causal, v is k, backend,
    )  # fmt: skip
    call = _plain.get(key)
    if call is None:
        arguments = {"scale": scale, "causal": causal, "dropout": 0.0, "latent": v is k}
        call = prepared(q, k, v, backend, None, False, arguments)
        if not call.inner.variants.bare:
            return None
        if len(_plain) >= CACHE_SIZE:
            del _plain[next(iter(_plain))]
        _plain[key] = call
    return call, (q_shape, k_shape, v_shape)


def clear_cache() -> None:
    """Drops all cached calls with their functions and plans, as needed after a change of templates."""
    _cache.clear()
    _plain.clear()
    attend.cache_clear()
    plan.cache_clear()


def _page(k) -> int:
    """The rows of a page of keys, which a kernel's text depends on. Raises TypeError where k is not an array."""
    keys = k[0] if isinstance(k, (tuple, list)) and k else k
    if type(keys) is not mx.array or keys.ndim != 4:
        raise TypeError
    return keys.shape[2]


def _static(value, name: str = "operand"):
    """The part of an argument that decides about kernels: an array's dtype and static axes, a value with its type,
    since True == 1 in Python. Raises TypeError for other types, and for an array in place of a number.

    `name`: of the argument; "operand" for q, k and v.
    """
    kind = type(value)
    if kind is mx.array:
        shape = value.shape
        if name == "operand":
            return (value.dtype, shape[1], shape[3]) if value.ndim == 4 else (value.dtype, shape)
        if name in SIZED:
            return value.dtype, value.ndim
        if name in ARRAYS:
            return value.dtype, shape
        raise TypeError
    if kind in VALUES:
        return kind, value
    if isinstance(value, np.generic):
        return kind, value.item()
    if kind is tuple or kind is list:
        same = name == "segments" and len(value) == 2 and value[0] is value[1]
        return kind, same, *(_static(one, name) for one in value)
    if kind is BlockMask:
        return kind, value.block
    if kind is Score or kind is Visible:
        return kind, value.key
    if value is None:
        return None
    raise TypeError
