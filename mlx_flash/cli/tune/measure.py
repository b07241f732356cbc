"""The tuner's timings: one row of one kernel, and one call beside the built-in's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from ...autodiff.operands import array_inputs
from ...autodiff.vjp import attend
from ...backends import Backend
from ...common.errors import UnsupportedProblem
from ...kernels.config import TileConfig
from ...kernels.devices import Tuned, TunedRow
from ...problem.kinds import BACKWARD_KINDS, DECODE, DELTA, FORWARD, KernelKind
from ...problem.problem import Signature
from ...problem.variants import Variants
from ..benchmark import Case, arrays, built_in, ours, rounds
from ..probe.trial import TOLERANCE, relative_error
from ..turns import take_turns

SIZES = {"metal": (8, 2048), "cuda": (32, 4096)}  # heads and length: long enough that the host keeps up
DECODE_HEADS, DECODE_KEYS = (32, 8), 8192
CALLS = 4  # queued without waiting
ROW_SECONDS = CALL_SECONDS = 0.2  # for each row, and for each of the two functions


class Kernel(NamedTuple):
    """One kernel to tune."""

    kind: KernelKind
    dtype: str
    head_dim: int

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype} D={self.head_dim}"


class Bench:
    """The problem of one kernel on a backend, and its right results by the table's row."""

    def __init__(self, kernel: Kernel, own: Backend):
        self.kernel, self.own = kernel, own
        kind, dtype, head_dim = kernel
        heads, length = SIZES[own.name]
        query_heads, key_heads = DECODE_HEADS if kind is DECODE else (heads, heads)
        queries, keys = (1, DECODE_KEYS) if kind is DECODE else (length, length)
        scale = head_dim**-0.5
        self.signature = Signature(query_heads, key_heads, head_dim, head_dim, dtype, scale, Variants(causal=True))
        rows = {
            "Q": (query_heads, queries),
            "K": (key_heads, keys),
            "V": (key_heads, keys),
            "dO": (query_heads, queries),
        }
        self.arrays = {
            name: mx.random.normal((1, *sizes, head_dim), key=mx.random.key(seed)).astype(getattr(mx, dtype))
            for seed, (name, sizes) in enumerate(rows.items())
        }
        if kind in BACKWARD_KINDS:
            table = attend(self.signature, (), self._with(Tuned()))
            self.arrays["O"], self.arrays["L"] = table.run(FORWARD, *(self.arrays[name] for name in "QKV"))
            self.arrays["delta"] = table.run(DELTA, self.arrays["dO"], self.arrays["O"])[0]
        self.wanted = None
        mx.eval(*self.arrays.values())

    def _with(self, tuned: Tuned) -> Backend:
        return replace(self.own, family=replace(self.own.family, tuned=tuned), falls_back=False)

    def _launch(self, row: TileConfig) -> Callable[[], tuple[mx.array, ...]]:
        kind, dtype, head_dim = self.kernel
        chosen = TunedRow(kind.name, dtype, head_dim, row, 0.0, 0.0)
        attention = attend(self.signature, (), self._with(Tuned((chosen,))))
        run = FORWARD if kind is DECODE else kind
        return partial(attention.run, run, *(self.arrays[name] for name in array_inputs(run)))

    def time(self, row: TileConfig) -> tuple[float, str]:
        """(milliseconds of a launch, why the row is not to be used or ""). The first row gives the right results."""
        try:
            launch = self._launch(row)
            found = launch()
            mx.eval(found)
            if self.wanted is None:
                self.wanted = found
            error = max(map(relative_error, found, self.wanted))
            if error > TOLERANCE[self.kernel.dtype]:
                return 0.0, f"its numbers are wrong, by {error:.2g} of the largest magnitude"
            return milliseconds(lambda: mx.async_eval(launch())), ""
        except (UnsupportedProblem, RuntimeError, ValueError) as error:
            return 0.0, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    def in_turns(self, rows: list[TileConfig]) -> list[float]:
        """Milliseconds of launches by rows that work, so taken that a change of clocks affects all of them alike."""
        runs = {row: self._launch(row) for row in rows}
        found = take_turns(runs, CALLS, ROW_SECONDS)
        return [found[row]["ms"] for row in rows]


def milliseconds(call: Callable[[], None]) -> float:
    """Median of a queued call."""
    return rounds(call, mx.synchronize, ROW_SECONDS, CALLS)


def cases(dtypes: list[str], head_dims: list[int], name: str) -> list[Case]:
    """Calls that models make: prefill, training and decoding, as the built-in has them."""
    heads, length = SIZES[name]
    found = []
    for dtype in dtypes:
        for head_dim in head_dims:
            for backward in (False, True):
                sizes = {"heads": heads, "key_heads": heads, "dtype": dtype}
                found += [Case(head_dim, length, backward, causal, **sizes) for causal in (True, False)]
            found.append(
                Case(head_dim, DECODE_KEYS, causal=False, heads=DECODE_HEADS[0], key_heads=DECODE_HEADS[1],
                     dtype=dtype, queries=1)
            )  # fmt: skip
    return found


def call_times(case: Case) -> tuple[float, float]:
    """Milliseconds of one call: ours and the built-in's, in turns."""
    drawn = arrays(case)
    providers = {one.__name__: partial(one, case, *drawn) for one in (ours, built_in)}
    found = take_turns(providers, CALLS, CALL_SECONDS)
    return found["ours"]["ms"], found["built_in"]["ms"]
