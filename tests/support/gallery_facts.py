"""The gallery's masks and scores from their definitions, pair by pair. Nothing is shared with the package.

q and k are positions. A mask is (the Visible, Lq, Lk, a function (q, k) -> bool); a score is (the Score, a function (s,
h, q, k) -> (score, slope in s)).
"""

import functools
import math

import mlx.core as mx
import numpy as np

from mlx_flash.gallery import masks, scores

GRID, VIDEO, LENGTHS, PARENTS, IMAGES = (
    (9, 11),
    (4, 5, 6),
    [20, 5, 40, 34],
    [-1, 0, 0, 1, 1, 2, 5],
    [[0, 9], [4, 9], [9, 20]],
)


@functools.cache
def place(n: int, shape) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.unravel_index(n, shape))


@functools.cache
def near(i: int, j: int, size: int, kernel: int, dilation: int) -> bool:
    """Whether j is one of the `kernel` tokens around i with the same remainder modulo `dilation`; at the borders the
    window is moved inwards.
    """
    own = [n for n in range(size) if n % dilation == i % dilation]
    start = min(max(own.index(i) - kernel // 2, 0), len(own) - kernel)
    return j in own[start : start + kernel]


def neighbours(shape, kernels, dilations):
    def seen(q, k):
        axes = zip(place(q, shape), place(k, shape), shape, kernels, dilations)
        return all(near(*axis) for axis in axes)

    return seen


def shifted_windows(rows: int, columns: int, size: int, shift: int):
    """Swin's mask as in its code: the image is rolled and cut into windows, in which regions do not see each other."""
    image = np.arange(rows * columns).reshape(rows, columns)
    region = np.zeros((rows, columns), int)
    cuts = (slice(0, -size), slice(-size, -shift or None), slice(-shift, None) if shift else slice(0, 0))
    for number, (a, b) in enumerate((a, b) for a in cuts for b in cuts):
        region[a, b] = number
    window = np.arange(rows)[:, None] // size * columns + np.arange(columns) // size
    label = np.empty(rows * columns, object)
    for token, *names in zip(np.roll(image, (-shift, -shift), (0, 1)).ravel(), window.ravel(), region.ravel()):
        label[token] = tuple(names)
    return lambda q, k: label[q] == label[k]


def tiles(q, k, shape, kernel, tile, text):
    """Sliding tiles: the tokens are ordered tile by tile."""
    total, counts = math.prod(shape), tuple(size // one for size, one in zip(shape, tile))
    if q >= total or k >= total:
        return q < total + text and k < total + text
    for i, j, count, width in zip(
        *(place(n // math.prod(tile), counts) for n in (q, k)), counts, (a // b for a, b in zip(kernel, tile))
    ):
        left, right = width // 2, width // 2 + width % 2 - 1
        centre = min(max(i, left), count - 1 - right)
        if not centre - left <= j <= centre + right:
            return False
    return True


def ancestors(n: int) -> set[int]:
    return {n} | (ancestors(PARENTS[n]) if PARENTS[n] >= 0 else set())


def draft(q, k):
    return k <= q if k < 30 else q >= 30 and k - 30 in ancestors(q - 30)


IDS = np.repeat(np.arange(4), LENGTHS)
N = math.prod(GRID)
MASKS = {
    "causal": (masks.causal(block=32), 40, N, lambda q, k: k <= q),
    "window": (masks.window(20, 5, block=32), N, N, lambda q, k: -20 <= k - q <= 5),
    "dilated_window": (masks.dilated_window(30, 3, block=32), N, 60, lambda q, k: k in range(q, q - 31, -3)),
    "sink_window": (masks.sink_window(20, 3, block=32), N, N, lambda q, k: k <= q and (q - k <= 20 or k < 3)),
    "local_global": (masks.local_global(7, 4, block=32), N, N, lambda q, k: abs(q - k) <= 7 or min(q, k) < 4),
    "strided": (masks.strided(8, block=32), N, N, lambda q, k: k <= q and (q - k < 8 or (q - k) % 8 == 0)),
    "prefix": (masks.prefix(37, block=32), N, N, lambda q, k: k <= q or k < 37),
    "document": (masks.document(LENGTHS, block=32), N, N, lambda q, k: IDS[q] == IDS[k] and k <= q),
    "documents": (masks.document(LENGTHS, causal=False, block=32), 50, N, lambda q, k: IDS[q] == IDS[k]),
    "axial": (
        masks.axial(*GRID, block=32), N, N, lambda q, k: any(a == b for a, b in zip(place(q, GRID), place(k, GRID))),
    ),
    "neighbourhood-1": (masks.neighbourhood(N, 13, block=32), N, N, neighbours((N,), (13,), (1,))),
    "neighbourhood-1-dilated": (masks.neighbourhood(N, 5, 4, block=32), N, N, neighbours((N,), (5,), (4,))),
    "neighbourhood-2": (masks.neighbourhood(GRID, 5, block=32), N, N, neighbours(GRID, (5, 5), (1, 1))),
    "neighbourhood-2-dilated": (
        masks.neighbourhood(GRID, (3, 5), (3, 2), block=32), N, N, neighbours(GRID, (3, 5), (3, 2)),
    ),
    "neighbourhood-2-causal": (
        masks.neighbourhood(GRID, (3, 5), 1, (True, False), block=32), N, N,
        lambda q, k: 0 <= q // 11 - k // 11 < 3 and near(q % 11, k % 11, 11, 5, 1),
    ),
    "neighbourhood-3": (
        masks.neighbourhood(VIDEO, (3, 3, 5), (1, 1, 1), block=32), 120, 120, neighbours(VIDEO, (3, 3, 5), (1, 1, 1)),
    ),
    "sliding_tiles": (
        masks.sliding_tiles((8, 12), (4, 12), (2, 4), 5, block=32), 104, 104,
        lambda q, k: tiles(q, k, (8, 12), (4, 12), (2, 4), 5),
    ),
    "swin_window": (masks.swin_window((8, 12), 4, block=32), 96, 96, shifted_windows(8, 12, 4, 0)),
    "swin_window-shifted": (masks.swin_window((8, 12), 4, 1, block=32), 96, 96, shifted_windows(8, 12, 4, 1)),
    "video": (masks.video(5, 20, 1, block=32), 100, 100, lambda q, k: abs(q // 20 - k // 20) <= 1 or q % 20 == k % 20),
    "spatial_head": (masks.spatial_head(12, 2, 6, block=32), 90, 90, lambda q, k: abs(q - k) < 24 or min(q, k) < 6),
    "temporal_head": (
        masks.temporal_head(12, 3, 6, block=32), 90, 90,
        lambda q, k: min(q, k) < 6 or abs((q - 6) % 12 - (k - 6) % 12) < 3,
    ),
    "image_intervals": (
        masks.image_intervals(IMAGES, 16, 20, block=32), 20, 48,
        lambda q, k: IMAGES[k // 16][0] <= q - 28 < IMAGES[k // 16][1],
    ),
    "draft_tree": (masks.draft_tree(PARENTS, 30, block=32), 7, 37, draft),
}  # fmt: skip


@functools.cache
def table(name: str) -> np.ndarray:
    """bool [Lq, Lk] of one mask, pair by pair."""
    _, queries, keys, seen = MASKS[name]
    return np.array([[bool(seen(i + keys - queries, j)) for j in range(keys)] for i in range(queries)])


DRAW = np.random.default_rng(1)
HEADS, LENGTH = 2, 49


def numbers(*shape: int, least: float = -1.0) -> np.ndarray:
    return DRAW.uniform(least, 1, shape).astype(np.float32)


SLOPES, OFFSETS, BUCKETS, SWIN, PAIRS = numbers(2), numbers(17, 2), numbers(32, 2), numbers(169, 2), numbers(2, 49, 49)
WARM, FIRST, SECOND = numbers(49), numbers(2, least=0.1), numbers(2, least=0.1)


def t5_bucket(offset: int, bidirectional: bool, farthest: int) -> int:
    """The bucket of the offset key - query, of 32 buckets.

    A logarithmic bucket is found by definition: it is the first one whose end lies beyond the distance.
    """
    first, count = (16 if bidirectional and offset > 0 else 0), 16 if bidirectional else 32
    distance = abs(offset) if bidirectional else max(-offset, 0)
    half = count // 2
    if distance < half:
        return first + distance
    ends = [half * (farthest / half) ** ((n + 1) / half) for n in range(half)]
    return first + half + min(sum(distance >= end for end in ends[:-1]), half - 1)


SCORES = {
    "alibi": (scores.alibi(mx.array(SLOPES)), lambda s, h, q, k: (s - SLOPES[h] * abs(q - k), 1)),
    "softcap": (scores.softcap(0.7), lambda s, h, q, k: (0.7 * math.tanh(s / 0.7), 1 - math.tanh(s / 0.7) ** 2)),
    "offset_bias": (
        scores.offset_bias(mx.array(OFFSETS)), lambda s, h, q, k: (s + OFFSETS[min(max(q - k, -8), 8) + 8, h], 1),
    ),
    "t5_bias": (
        scores.t5_bias(mx.array(BUCKETS), farthest=40),
        lambda s, h, q, k: (s + BUCKETS[t5_bucket(k - q, False, 40), h], 1),
    ),
    "t5_bias-both": (
        scores.t5_bias(mx.array(BUCKETS), bidirectional=True, farthest=40),
        lambda s, h, q, k: (s + BUCKETS[t5_bucket(k - q, True, 40), h], 1),
    ),
    "swin_bias": (
        scores.swin_bias(mx.array(SWIN)),
        lambda s, h, q, k: (s + SWIN.reshape(13, 13, 2)[q // 7 - k // 7 + 6, q % 7 - k % 7 + 6, h], 1),
    ),
    "pair_bias": (scores.pair_bias(mx.array(PAIRS)), lambda s, h, q, k: (s + PAIRS[h, q, k], 1)),
    "position_temperature": (scores.position_temperature(mx.array(WARM)), lambda s, h, q, k: (s * WARM[q], WARM[q])),
    "log_length": (
        scores.log_length(9),
        lambda s, h, q, k: (s * max(1, math.log(q + 1) / math.log(9)), max(1, math.log(q + 1) / math.log(9))),
    ),
    "distance_penalty": (scores.distance_penalty(0.3, 0.5), lambda s, h, q, k: (s - 0.3 * abs(q - k) ** 0.5, 1)),
    "kerple": (
        scores.kerple(mx.array(FIRST), mx.array(SECOND)),
        lambda s, h, q, k: (s - FIRST[h] * math.log(1 + SECOND[h] * abs(q - k)), 1),
    ),
}  # fmt: skip


class PairByPair:
    """A score of `SCORES` in the oracle's form: arrays s [B, Hq, Lq, Lk], positions q [.., Lq, 1] and k [Lk]."""

    def __init__(self, name: str):
        self.pair = SCORES[name][1]

    def _both(self, s, q, k):
        q, k = np.broadcast_to(q, s.shape), np.broadcast_to(k, s.shape)
        found = np.empty((2, *s.shape))
        for at in np.ndindex(*s.shape):
            found[(slice(None), *at)] = self.pair(float(s[at]), at[1], int(q[at]), int(k[at]))
        return found

    def value(self, s, q, k):
        return self._both(s, q, k)[0]

    def slope(self, s, q, k):
        return self._both(s, q, k)[1]
