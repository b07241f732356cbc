"""Predictions for sharing a sequence on other machines: bytes, memory and time by closed formulas.

    seconds = visible pairs * operations per pair / FLOP/s / P * imbalance + bytes / bandwidth + collectives * latency

Sending is not assumed to overlap with computing. Computing grows with N^2 and sending with N, so there is a length from
which sharing pays, and a longer one from which it is efficient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..common.errors import wrong
from ..common.scalars import readable, real, shown, whole, word
from ..problem.problem import Problem
from .cost import METHODS, bytes_sent, chosen_method, key_heads_at_once, own_bytes, transient_bytes
from .layout import PIECES, layout_of


@dataclass(frozen=True)
class Link:
    """A connection between ranks. `bandwidth`: bytes per second in one direction. `latency`: seconds of a collective
    without data."""

    bandwidth: float
    latency: float


CROSSING = 180e-6  # from GPU to CPU and back without MLX_METAL_FAST_SYNCH (ml-explore/mlx 4438)
LINKS = {
    "thunderbolt5": Link(6e9, CROSSING),  # what MLX reports for one ring (ml-explore/mlx 1985)
    "ethernet10": Link(1.17e9, CROSSING),  # 10 Gbit/s less framing
    "nvlink": Link(197 * 2**30, 20e-6),  # all_gather of 256 MiB a rank by NCCL, measured on two H200
}
FLOPS = 15e12  # FLOP/s of an M4 Max: 40 cores, 128 fused multiply-adds per cycle, 1.47 GHz
EFFICIENT = 0.9  # fraction of P times one rank's speed


@dataclass(frozen=True)
class Seconds:
    """Seconds of one call: the whole call on one rank; with P ranks, computing, sending, and starting collectives."""

    one_rank: float
    computing: float
    sending: float
    beginning: float

    @property
    def shared(self) -> float:
        return self.computing + self.sending + self.beginning

    def __str__(self):
        ratio = self.one_rank / self.shared
        return f"{_time(self.one_rank)} on one rank, {_time(self.shared)} shared: {ratio:.2f} times as fast"


@dataclass(frozen=True)
class SharingPlan:
    """One layer's attention over a group of ranks; bytes are those of one rank.

    `gathered_heads`: key heads that are gathered at once, forward and backward. `own_bytes`: operands, results and
    gradients. `transient_bytes`: an upper bound of what gathering holds beside them. `pays_from`, `efficient_from`: the
    lengths from which a training step is faster than on one rank, and at least 0.9 P times as fast; None where no
    length is.
    """

    ranks: int
    layout: str
    method: str
    gathered_heads: tuple[int, int]
    link: Link
    flops: float
    forward_sent: int
    backward_sent: int
    own_bytes: int
    transient_bytes: int
    forward: Seconds
    training: Seconds
    pays_from: int | None
    efficient_from: int | None

    def facts(self) -> list[tuple[str, str]]:
        """(label, value) in the order in which they are printed."""
        return [
            (
                "shared by",
                f"{self.ranks} ranks, {self.layout}, {self.method}, key heads at once: "
                + " forward, ".join(map(str, self.gathered_heads))
                + " backward",
            ),
            ("a rank sends", f"{readable(self.forward_sent)} forward, {readable(self.backward_sent)} backward"),
            ("a rank holds", f"{readable(self.own_bytes)}, and gathers at most {readable(self.transient_bytes)}"),
            ("forward pass", str(self.forward)),
            ("with gradients", str(self.training)),
            ("assumed", f"{self.flops / 1e12:.3g} TFLOP/s a rank, {self.link.bandwidth / 1e9:.3g} GB/s, no overlap"),
            ("pays from", _length(self.pays_from)),
            ("90 % from", _length(self.efficient_from)),
        ]


def planned(
    problem: Problem,
    ranks: int,
    link: str | float = "thunderbolt5",
    *,
    layout: str = "zigzag",
    method: str = "exact",
    flops: float = FLOPS,
) -> SharingPlan:
    """The plan of a call; `problem` is that of the whole sequence.

    Args:
        link: a name in LINKS, or bytes per second in one direction.
        layout, method: as in `distributed.attention`.
        flops: floating-point operations per second that attention reaches on one rank.

    Raises:
        ValueError: queries and keys of different lengths, a length that the layout cannot cut, an unknown link, layout
            or method, numbers that are not positive.
    """
    count = whole(ranks)
    if count is None or count < 1:
        raise wrong("group_size", "a whole number of ranks, at least 1", shown(ranks), "Pass 2 or more.", "explain")
    word("method", method, METHODS, "explain", '"exact", "reduce" or "auto"')
    layout_of(layout, count, "explain")
    between, flops = _link(link), _positive("flops", flops)
    rows, multiple = problem.query_length, PIECES[layout] * count
    if rows != problem.key_length or rows % multiple:
        got = f"{rows} queries and {problem.key_length} keys"
        remedy = "Context parallelism is for self-attention: pass one length."
        raise wrong("length", f"as many keys as queries, a multiple of {multiple}", got, remedy, "explain")
    local = problem._replace(query_length=rows // count, key_length=rows // count)
    chosen = chosen_method(local, count, method)
    heads = key_heads_at_once(local, count, chosen)
    sent = bytes_sent(local, count, chosen)
    key, value, groups = problem.head_dim, problem.value_dim, [problem.key_heads // count for count in heads]
    # Columns of the products: S and O forward; S and dP twice, dQ, dK and dV backward. Collectives: K and V forward,
    # all operands backward, or two sums.
    forward = _seconds(problem, count, layout, key + value, sent["forward"], 2 * groups[0], between, flops)
    collectives = 2 * groups[0] + (6 if chosen == "exact" else 4) * groups[1]
    training = _seconds(problem, count, layout, 5 * key + 4 * value, sum(sent.values()), collectives, between, flops)
    lengths = [None, None] if problem.variants.window else [_from(rows, training, n) for n in (1, EFFICIENT * count)]
    return SharingPlan(
        count, layout, chosen, heads, between, flops, sent["forward"], sent["backward"], own_bytes(local),
        transient_bytes(local, count, heads, chosen), forward, training, *lengths,
    )  # fmt: skip


def _link(link) -> Link:
    if not isinstance(link, str):
        return Link(_positive("link", link), CROSSING)
    return LINKS[word("link", link, LINKS, "explain", f"one of {', '.join(LINKS)}, or bytes a second")]


def _positive(name: str, value) -> float:
    number = real(value)
    if number is None or not 0 < number < math.inf:
        raise wrong(name, "a positive number", shown(value), "Pass a rate in units a second.", "explain")
    return number


def visible_pairs(problem: Problem) -> float:
    """The (query, key) pairs of one head that causality and a window show; arrays are assumed to hide nothing."""
    rows, variants = problem.query_length, problem.variants
    left, right = variants.window or (None, None)
    left = rows - 1 if left is None else min(left, rows - 1)
    right = 0 if variants.causal else rows - 1 if right is None else min(right, rows - 1)
    return rows + sum(width * rows - width * (width + 1) / 2 for width in (left, right))


def _seconds(
    problem: Problem, ranks: int, layout: str, columns: int, sent: int, collectives: int, link: Link, flops: float
) -> Seconds:
    one_rank = 2 * problem.batch * problem.query_heads * visible_pairs(problem) * columns / flops
    # The last rank of a contiguous layout has the longest rows of a causal mask.
    triangle = problem.variants.causal and problem.variants.window is None
    imbalance = 2 - 1 / ranks if triangle and layout == "contiguous" else 1.0
    beginning = collectives * link.latency if ranks > 1 else 0.0
    return Seconds(one_rank, one_rank / ranks * imbalance, sent / link.bandwidth, beginning)


def _from(rows: int, seconds: Seconds, speedup: float) -> int | None:
    """The length from which sharing is `speedup` times as fast: computing grows with its square, sending with it."""
    spare = seconds.one_rank / speedup - seconds.computing
    if spare <= 0:
        return None
    half = seconds.sending / spare / 2  # x rows: spare x^2 = sending x + beginning
    return math.ceil(rows * (half + math.sqrt(half**2 + seconds.beginning / spare)))


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _length(length: int | None) -> str:
    return "no length" if length is None else f"{length} rows"
