"""The forward and backward pass over gathered keys and values, with the kernels of one process.

Forward: this rank's queries attend to the keys of the whole sequence. Backward: dQ likewise. For dK and dV, "exact"
gathers the queries of the whole sequence for this rank's keys, and "reduce" sums the partial dK and dV of all keys over
the ranks. The collectives of "exact" compute nothing, and kernels read gathered arrays in place, in the order of the
sequence, so that the bits are those of one process. Key heads are gathered in groups, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx

from ..autodiff.operands import contiguous, segment_shifts
from ..autodiff.refusals import NO_JVP, NO_VMAP, custom
from ..autodiff.statistics import sinks_gradient, with_lse_gradient
from ..autodiff.vjp import Attention, attend
from ..problem.kinds import BACKWARD_MASK, BACKWARD_QUERY, DELTA, FORWARD, KernelKind
from ..problem.problem import Signature
from .collectives import Collectives
from .layout import Layout

Rows = tuple[int, int]  # first row in the sequence, number of rows
Runs = tuple[Rows, ...]  # that follow each other in an array


class ContextParallel:
    """One signature on one backend over one group, as a function of Q, K, V and the operands named by `names`.

    signature: that of all heads, with positions given by arrays.
    heads: key heads gathered at once, forward and backward.
    own_ids: queries and keys have different segment ids.
    """

    def __init__(
        self, signature: Signature, names: tuple[str, ...], backend, stream, with_lse: bool, group, layout: Layout,
        method: str, heads: tuple[int, int], own_ids: bool,
    ):  # fmt: skip
        self.signature, self.names, self.backend, self.stream = signature, names, backend, stream
        self.with_lse, self.group, self.layout = with_lse, group, layout
        self.method, self.heads, self.own_ids = method, heads, own_ids
        self._function = custom(self._forward, self._backward, NO_VMAP, NO_JVP)

    def __call__(self, *arrays: mx.array) -> tuple[mx.array, mx.array]:
        return self._function(*arrays)

    def _forward(self, q, k, v, *extras):
        sent = Collectives(self.group)
        call, O, L = _Local(self, q.shape, extras, sent), [], []
        for own in self._groups(k.shape[1], self.heads[0]):
            K, V = (sent.gather(array[:, own.keys]) for array in (k, v))
            runs = self._runs(q.shape[2])
            parts = [call.run(FORWARD, own, rows, q[:, own.queries, place], K, V, shards=True) for rows, place in runs]
            sent.follow(*(one for pair in parts for one in pair))
            for result, found in zip((O, L), zip(*parts)):
                result.append(found)
        return _whole(O), _whole(L)

    def _backward(self, primals, cotangents, outputs):
        q, k, v, *extras = primals
        d_o, (o, L) = cotangents[0], outputs
        sent = Collectives(self.group, d_o)  # forward collectives of later layers come before these on every rank
        call = _Local(self, q.shape, extras, sent)
        delta = attend(self.signature, self.names, self.backend, self.stream).run(DELTA, d_o, o)[0]
        if self.with_lse:
            delta = with_lse_gradient(delta, L, cotangents[1])
        sent.follow(d_o, delta)
        parts = self._exact if self.method == "exact" else self._reduced
        d_k, d_v, queries = parts(call, (q, d_o, L, delta), (k, v))
        d_q, *masks = zip(*queries)
        gradients = {name: mx.zeros_like(extra) for name, extra in zip(self.names, extras)}
        if masks:
            mask = extras[self.names.index("attention_mask")]
            gradients["attention_mask"] = call.mask_gradient(masks[0], mask.shape).astype(mask.dtype)
        if "sinks" in self.names:
            sinks = extras[self.names.index("sinks")]
            gradients["sinks"] = sinks_gradient(sinks, L, delta, self.signature.lacking_scale)
        return (_whole(d_q), d_k, d_v, *gradients.values())

    def _exact(self, call: _Local, queries: tuple, keys: tuple) -> tuple[mx.array, mx.array, list]:
        """(dK, dV, results of `_query` for each group of heads). dK and dV of this rank's keys come from the queries of
        the whole sequence, which are freed before dQ is computed from all keys."""
        d_k, d_v, d_q = [], [], []
        for own in self._groups(keys[0].shape[1], self.heads[1]):
            Q, dO, L, delta = (call.sent.gather(array[:, own.queries]) for array in queries)
            L, delta = self.layout.in_order(L, 2), self.layout.in_order(delta, 2)
            parts = []
            for rows, place in self._runs(keys[0].shape[2]):
                K, V = (array[:, own.keys, place] for array in keys)
                parts.append(call.key_value(own, (call.all_rows,), rows, Q, K, V, dO, L, delta, shards=True))
            call.sent.follow(*(one for pair in parts for one in pair))
            for result, found in zip((d_k, d_v), zip(*parts)):
                result.append(found)
        if self.heads[0] == keys[0].shape[1]:  # all keys come at once: parts of dK and dV must not outlive their wholes
            whole = _whole(d_k), _whole(d_v)
            call.sent.follow(*whole)
            d_k, d_v = ([[one]] for one in whole)
        for own in self._groups(keys[0].shape[1], self.heads[0]):
            K, V = (call.sent.gather(array[:, own.keys]) for array in keys)
            d_q.append(self._query(call, own, queries, K, V, shards=True))
            call.sent.follow(*(one for found in d_q[-1] for one in found))
        return _whole(d_k), _whole(d_v), d_q

    def _reduced(self, call: _Local, queries: tuple, keys: tuple) -> tuple[mx.array, mx.array, list]:
        """As `_exact`. Each rank computes its part of dK and dV of all keys, and the parts are summed in float32, since
        16 bits would round each of them. The gathered keys are reordered, because the kernels own them here."""
        arrange, results = partial(self.layout.in_order, axis=2), ([], [], [])
        for own in self._groups(keys[0].shape[1], self.heads[1]):
            K, V = (call.sent.gather(array[:, own.keys], arrange) for array in keys)
            d_q, parts = self._query(call, own, queries, K, V), []
            for rows, place in self._pieces(queries[0].shape[2]):
                Q, dO, L, delta = (array[:, own.queries, place] for array in queries)
                parts.append(call.key_value(own, (rows,), (call.all_rows,), Q, K, V, dO, L, delta, wide=True))
            sums = [call.sent.sum(sum(both)) for both in zip(*parts)]
            d_kv = [[self.layout.own_rows(total, self.group.rank(), 2).astype(K.dtype)] for total in sums]
            call.sent.follow(*(one for found in (*d_kv, *d_q) for one in found))
            for result, found in zip(results, (*d_kv, d_q)):
                result.append(found)
        return _whole(results[0]), _whole(results[1]), results[2]

    def _query(self, call: _Local, own: Heads, queries: tuple, K, V, shards: bool = False) -> list[list[mx.array]]:
        """The parts of dQ of one group of heads, and of the mask's gradient if there is one."""
        kinds = [BACKWARD_QUERY, *([BACKWARD_MASK] if self.signature.variants.additive else [])]
        found = [[] for _ in kinds]
        for rows, place in self._runs(queries[0].shape[2]):
            Q, *others = (array[:, own.queries, place] for array in queries)
            for kind, parts in zip(kinds, found):
                parts += call.run(kind, own, rows, Q, K, V, *others, shards=shards)
        return found

    def _groups(self, key_heads: int, at_once: int) -> list[Heads]:
        share = self.signature.query_heads // key_heads
        return [
            Heads(slice(first, first + at_once), slice(first * share, (first + at_once) * share))
            for first in range(0, key_heads, at_once)
        ]

    def _pieces(self, rows: int) -> list[tuple[Rows, slice]]:
        """(rows in the sequence, slice of this rank's rows) of each piece."""
        pieces = self.layout.pieces(self.group.rank(), rows)
        return [(piece, slice(n * piece[1], (n + 1) * piece[1])) for n, piece in enumerate(pieces)]

    def _runs(self, rows: int) -> list[tuple[Runs, slice]]:
        """(pieces, slice of this rank's rows) of each launch: all of its rows, with their positions in an array; or one
        piece, where a mask would have to be copied to cover two."""
        pieces = self._pieces(rows)
        if "attention_mask" in self.names:
            return [((piece,), place) for piece, place in pieces]
        return [(tuple(piece for piece, _ in pieces), slice(None))]


def _whole(groups) -> mx.array:
    """An array [B, heads, rows, ...] from its parts: for each group of heads, its runs of rows."""
    parts = [found[0] if len(found) == 1 else mx.concatenate(found, axis=2) for found in groups]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


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

    def run(self, kind: KernelKind, own: Heads, queries: Runs, *arrays: mx.array, shards: bool = False):
        """The outputs of one kind of kernel on these rows of queries and all keys. `arrays`: Q, K, V and so on, already
        cut to the rows. `shards`: traversed operands are as they were gathered."""
        names, extras = self._operands(own, queries, (self.all_rows,))
        return self._attention(own, names, shards).run(kind, *arrays, *extras)

    def key_value(
        self, own: Heads, queries: Runs, keys: Runs, *arrays: mx.array, shards: bool = False, wide: bool = False
    ):
        """dK and dV of these keys from these queries; in float32 where `wide`."""
        names, extras = self._operands(own, queries, keys)
        if wide:
            arrays = [array.astype(mx.float32) for array in arrays]
        return self._attention(own, names, shards, "float32" if wide else None).key_value((*arrays, *extras))

    def _attention(self, own: Heads, names: tuple[str, ...], shards: bool, dtype: str | None = None) -> Attention:
        parallel = self.parallel
        heads = {"query_heads": own.queries.stop - own.queries.start, "key_heads": own.keys.stop - own.keys.start}
        variants, layout = parallel.signature.variants, parallel.layout
        if shards:
            variants = replace(variants, pieces=(layout.ranks, layout.pieces_of_a_rank))
        signature = replace(parallel.signature, **heads, dtype=dtype or parallel.signature.dtype, variants=variants)
        return attend(signature, names, parallel.backend, parallel.stream)

    def _operands(self, own: Heads, queries: Runs, keys: Runs) -> tuple[tuple[str, ...], list[mx.array]]:
        """The call's other operands, cut to these rows and heads, and the positions of the rows."""
        named = dict(self.named)
        if "attention_mask" in named:
            mask, (rows,), (columns,) = named["attention_mask"], queries, keys
            cut = [slice(None), own.queries, _range(rows), _range(columns)]
            named["attention_mask"] = mask[tuple(_kept(part, extent) for part, extent in zip(cut, mask.shape))]
        for name, part in (("slopes", own.queries), ("sinks", own.queries)):
            if name in named:
                named[name] = named[name][part]
        for name, runs in (("q_segments", queries), ("k_segments", keys)):
            if name in named:
                ids = [named[name][:, _range(rows)] for rows in runs]
                named[name] = contiguous(ids[0]) if len(ids) == 1 else mx.concatenate(ids, axis=1)
        if self.parallel.signature.variants.shifts:
            named["shifts"] = self._shifts(queries, keys)
        return tuple(named), list(named.values())

    def _shifts(self, queries: Runs, keys: Runs) -> mx.array:
        """The operand `shifts` for these rows of the sequence: that of each query, which kernels read that own queries,
        then that of each key, for kernels that own keys. The rows that a kernel traverses are one run."""
        parts, total = [], self.all_rows[1]
        for runs, other, first, sign in ((queries, keys, 0, 1), (keys, queries, total, -1)):
            place = 0
            for start, count in runs:
                offset = sign * (start - place - other[0][0])
                parts.append(self._shift(offset, slice(first + start, first + start + count)))
                place += count
        return mx.concatenate(parts, axis=1)

    def _shift(self, offset: int, places: slice) -> mx.array:
        """int32 [B, rows]: an offset, plus the segments' own shifts where there are any."""
        if self.shifts is None:
            return mx.full((self.batch, places.stop - places.start), offset, mx.int32)
        return self.shifts[:, places] + offset

    def mask_gradient(self, groups: list[list[mx.array]], shape: tuple[int, ...]) -> mx.array:
        """This rank's part of the gradient of the whole sequence's mask: zero in the rows of other ranks. `groups`: for
        each group of heads, its pieces."""
        layout, found = self.parallel.layout, []
        numbers = layout.piece_numbers(self.parallel.group.rank())
        for pieces in groups:
            if shape[2] == 1:
                found.append(sum(pieces))
                continue
            zero, own = mx.zeros_like(pieces[0]), dict(zip(numbers, pieces))
            count = self.all_rows[1] // pieces[0].shape[2]
            found.append(mx.concatenate([own.get(number, zero) for number in range(count)], axis=2))
        return sum(found) if shape[1] == 1 else mx.concatenate(found, axis=1)


def _range(rows: Rows) -> slice:
    return slice(rows[0], rows[0] + rows[1])


def _kept(part: slice, extent: int) -> slice:
    """The slice of an axis; all of an axis along which the mask is broadcast."""
    return slice(None) if extent == 1 else part
