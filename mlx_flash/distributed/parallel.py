"""The forward and backward pass over gathered keys and values, made of the kernels of one process.

Forward: every piece of this rank's queries meets the keys of the whole sequence. Backward: dQ likewise; for dK and dV
of this rank's keys, queries of the whole sequence are gathered ("exact"), or every rank makes its part of dK and dV of
all keys and the parts are summed ("reduce"). The collectives of "exact" compute nothing, so its bits are those of one
process. Key heads are gathered in groups, each freed before the one after the next begins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx

from ..autodiff.operands import contiguous, segment_shifts
from ..autodiff.statistics import sinks_gradient, with_lse_gradient
from ..autodiff.vjp import NO_JVP, NO_VMAP, Attention, attend, custom
from ..problem.kinds import BACKWARD_MASK, BACKWARD_QUERY, DELTA, FORWARD, KernelKind
from ..problem.problem import Signature
from .collectives import Collectives
from .layout import Layout

Rows = tuple[int, int]  # first row in the sequence, number of rows


class ContextParallel:
    """One signature on one backend over one group, as a function of Q, K, V and the operands named by `names`.

    `signature`: of all heads; positions are given by arrays. `own_ids`: queries and keys have segment ids of their own.
    """

    def __init__(
        self, signature: Signature, names: tuple[str, ...], backend, stream, with_lse: bool, group, layout: Layout,
        method: str, heads: int, own_ids: bool,
    ):  # fmt: skip
        self.signature, self.names, self.backend, self.stream = signature, names, backend, stream
        self.with_lse, self.group, self.layout = with_lse, group, layout
        self.method, self.heads, self.own_ids = method, heads, own_ids
        self._function = custom(self._forward, self._backward, NO_VMAP, NO_JVP)

    def __call__(self, *arrays: mx.array) -> tuple[mx.array, mx.array]:
        return self._function(*arrays)

    def _forward(self, q, k, v, *extras):
        sent = Collectives(self.group)
        call, done = _Local(self, q.shape, extras, sent), []
        O, L = _Result(q.shape[:3]), _Result(q.shape[:3])
        for own in self._groups(k.shape[1]):
            K, V = (self._gathered(sent, array[:, own.keys], done) for array in (k, v))
            done.append([])
            for rows, place in self._pieces(q.shape[2]):
                parts = call.run(FORWARD, own, rows, call.all_rows, q[:, own.queries, place], K, V)
                for result, part in zip((O, L), parts):
                    done[-1].append(result.put(part, own.queries, place))
        return O.array, L.array

    def _backward(self, primals, cotangents, outputs):
        q, k, v, *extras = primals
        d_o, (o, L) = cotangents[0], outputs
        exact = self.method == "exact"
        sent = Collectives(self.group, d_o)  # forward collectives of later layers come before these on every rank
        call = _Local(self, q.shape, extras, sent)
        delta = attend(self.signature, self.names, self.backend, self.stream).run(DELTA, d_o, o)[0]
        if self.with_lse:
            delta = with_lse_gradient(delta, L, cotangents[1])
        done, masks = [], []
        d_q, d_k, d_v = (_Result(array.shape[:3]) for array in (q, k, v))
        for own in self._groups(k.shape[1]):
            queries = [array[:, own.queries] for array in (q, d_o, L, delta)]
            keys = [array[:, own.keys] for array in (k, v)]
            K, V = (self._gathered(sent, array, done) for array in keys)
            done.append([])
            masks.append([])
            for rows, place in self._pieces(q.shape[2]):
                Q, dO, *statistics = (array[:, :, place] for array in queries)
                (part,) = call.run(BACKWARD_QUERY, own, rows, call.all_rows, Q, K, V, dO, *statistics)
                done[-1].append(d_q.put(part, own.queries, place))
                if self.signature.variants.additive:
                    masks[-1] += call.run(BACKWARD_MASK, own, rows, call.all_rows, Q, K, V, dO, *statistics)
            parts = self._exact(call, own, queries, keys) if exact else self._reduced(call, own, queries, K, V)
            for place, *pair in parts:
                done[-1] += [result.put(part, own.keys, place) for result, part in zip((d_k, d_v), pair)]
        gradients = {name: mx.zeros_like(extra) for name, extra in zip(self.names, extras)}
        if masks[0]:
            mask = extras[self.names.index("attention_mask")]
            gradients["attention_mask"] = call.mask_gradient(masks, mask.shape).astype(mask.dtype)
        if "sinks" in self.names:
            gradients["sinks"] = sinks_gradient(extras[self.names.index("sinks")], L, delta)
        return (d_q.array, d_k.array, d_v.array, *gradients.values())

    def _exact(self, call: _Local, own: Heads, queries: list, keys: list):
        """(place, dK, dV) of each piece of this rank's keys, from the queries of the whole sequence."""
        Q, dO, L, delta = (self._gathered(call.sent, array) for array in queries)
        for rows, place in self._pieces(keys[0].shape[2]):
            K, V = (array[:, :, place] for array in keys)
            yield place, *call.key_value(own, call.all_rows, rows, Q, K, V, dO, L, delta)

    def _reduced(self, call: _Local, own: Heads, queries: list, K, V):
        """The same, of all pieces at once, from this rank's queries and all keys, summed over ranks in float32: 16 bits
        would round each rank's part."""
        parts = []
        for rows, place in self._pieces(queries[0].shape[2]):
            Q, dO, L, delta = (array[:, :, place] for array in queries)
            parts.append(call.key_value(own, rows, call.all_rows, Q, K, V, dO, L, delta, wide=True))
        totals = (call.sent.sum(sum(both)) for both in zip(*parts))
        yield slice(None), *(self.layout.own_rows(total, self.group.rank(), 2).astype(K.dtype) for total in totals)

    def _gathered(self, sent: Collectives, array: mx.array, done: list = ()) -> mx.array:
        """[B, heads, N, ...] in the sequence's order. It begins once the group of heads before the last is computed:
        one group is on its way while another is worked on, and no third is held."""
        after = done[-2] if len(done) > 1 else ()
        return sent.gather(array, *after, arrange=partial(self.layout.in_order, axis=2))

    def _groups(self, key_heads: int) -> list[Heads]:
        share = self.signature.query_heads // key_heads
        return [
            Heads(slice(first, first + self.heads), slice(first * share, (first + self.heads) * share))
            for first in range(0, key_heads, self.heads)
        ]

    def _pieces(self, rows: int):
        """(rows in the sequence, place among this rank's rows) of each piece."""
        for number, piece in enumerate(self.layout.pieces(self.group.rank(), rows)):
            yield piece, slice(number * piece[1], (number + 1) * piece[1])


class _Result:
    """An array [B, heads, rows, ...] that parts of some heads and rows are written into. `shape`: its first three
    axes."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.array = shape, None

    def put(self, part: mx.array, heads: slice, rows: slice) -> mx.array:
        """Writes a part to its heads and rows, and returns it."""
        whole = (*self.shape, *part.shape[3:])
        if part.shape == whole:
            self.array = part
            return part
        if self.array is None:
            self.array = mx.zeros(whole, part.dtype)
        self.array[:, heads, rows] = part
        return part


@dataclass(frozen=True)
class Heads:
    """A group of key heads, and the query heads that share them."""

    keys: slice
    queries: slice


class _Local:
    """The kernels of this rank for one call, on any rows and heads. `sent`: the call's collectives."""

    def __init__(self, parallel: ContextParallel, shape: tuple[int, ...], extras, sent: Collectives):
        self.parallel, self.sent, self.batch = parallel, sent, shape[0]
        self.named = dict(zip(parallel.names, extras))
        self.all_rows = (0, shape[2] * parallel.layout.ranks)
        self.shifts = None
        if "q_segments" in self.named:
            for name in ("q_segments", "k_segments") if parallel.own_ids else ("q_segments",):
                self.named[name] = parallel.layout.in_order(sent.gather(self.named[name]), 1)
            if parallel.own_ids:
                self.shifts = segment_shifts(self.named["q_segments"], self.named["k_segments"])
            else:
                self.named["k_segments"] = self.named["q_segments"]

    def run(self, kind: KernelKind, own: Heads, queries: Rows, keys: Rows, *arrays: mx.array):
        """The outputs of one kind of kernel on these rows; `arrays`: Q, K, V and so on, already cut to them."""
        names, extras = self._operands(own, queries, keys)
        return self._attention(own, names).run(kind, *arrays, *extras)

    def key_value(self, own: Heads, queries: Rows, keys: Rows, *arrays: mx.array, wide: bool = False):
        """dK and dV; in float32 where `wide`."""
        names, extras = self._operands(own, queries, keys)
        if wide:
            arrays = [array.astype(mx.float32) for array in arrays]
        return self._attention(own, names, "float32" if wide else None).key_value((*arrays, *extras))

    def _attention(self, own: Heads, names: tuple[str, ...], dtype: str | None = None) -> Attention:
        parallel = self.parallel
        heads = {"query_heads": own.queries.stop - own.queries.start, "key_heads": own.keys.stop - own.keys.start}
        signature = replace(parallel.signature, **heads, dtype=dtype or parallel.signature.dtype)
        return attend(signature, names, parallel.backend, parallel.stream)

    def _operands(self, own: Heads, queries: Rows, keys: Rows) -> tuple[tuple[str, ...], list[mx.array]]:
        """The call's other operands, cut to these rows and heads, and the positions of the rows."""
        named = dict(self.named)
        if "attention_mask" in named:
            mask = named["attention_mask"]
            cut = [slice(None), own.queries, _range(queries), _range(keys)]
            named["attention_mask"] = mask[tuple(_kept(part, extent) for part, extent in zip(cut, mask.shape))]
        for name, part in (("slopes", own.queries), ("sinks", own.queries)):
            if name in named:
                named[name] = named[name][part]
        for name, part in (("q_segments", queries), ("k_segments", keys)):
            if name in named:
                named[name] = contiguous(named[name][:, _range(part)])
        if self.parallel.signature.variants.shifts:
            named["shifts"] = self._shifts(queries, keys)
        return tuple(named), list(named.values())

    def _shifts(self, queries: Rows, keys: Rows) -> mx.array:
        """Row i of the queries and row j of the keys are rows queries[0] + i and keys[0] + j of the sequence."""
        offset, total = queries[0] - keys[0], self.all_rows[1]
        if self.shifts is None:
            return mx.full((self.batch, queries[1] + keys[1]), offset, mx.int32)
        parts = self.shifts[:, :total][:, _range(queries)], self.shifts[:, total:][:, _range(keys)]
        return mx.concatenate(parts, axis=1) + offset

    def mask_gradient(self, parts: list[list[mx.array]], shape: tuple[int, ...]) -> mx.array:
        """This rank's part of the gradient of the whole sequence's mask: zero in the rows of other ranks. `parts`: of
        each group of heads, of each piece."""
        groups = []
        for pieces in parts:
            if shape[2] == 1:
                groups.append(sum(pieces))
                continue
            zero = mx.zeros_like(pieces[0])
            numbers = self.parallel.layout.piece_numbers(self.parallel.group.rank())
            found = dict(zip(numbers, pieces))
            count = self.all_rows[1] // pieces[0].shape[2]
            groups.append(mx.concatenate([found.get(number, zero) for number in range(count)], axis=2))
        return sum(groups) if shape[1] == 1 else mx.concatenate(groups, axis=1)


def _range(rows: Rows) -> slice:
    return slice(rows[0], rows[0] + rows[1])


def _kept(part: slice, extent: int) -> slice:
    """The part of an axis, or all of one that is broadcast."""
    return slice(None) if extent == 1 else part
