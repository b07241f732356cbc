"""Named problems and their data, all drawn from one seed."""

import itertools
import os
import random
import zlib
from dataclasses import dataclass, replace

import bounds
import mlx.core as mx
import numpy as np
import oracle

from mlx_flash import attention

SEED = int(os.environ.get("MLX_FLASH_SEED", "0"))

HEAD_DIMS = (8, 16, 32, 40, 64, 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 3, 33, 77, 199)
DTYPES = ("float32", "float16", "bfloat16")
LENGTHS = (1, 7, 63, 65, 129, 197)  # near the edges of blocks of 8, 16, 32, 64 and 128, and odd
GROUPS = (1, 2, 4, 8)  # query heads per key head
# {name: (scale as a function of the head dimension, magnitude of q and k)}
SCORES = {
    "plain": (lambda d: d**-0.5, 1.0),
    "large": (lambda d: d**-0.5, 8.0),
    "negative": (lambda d: -(d**-0.5), 1.0),
    "zero": (lambda d: 0.0, 1.0),
    "tiny": (lambda d: 1e-30, 1.0),
}


@dataclass(frozen=True)
class Case:
    query_length: int = 65
    key_length: int = 65
    head_dim: int = 64
    dtype: str = "float32"
    causal: bool = False
    group: int = 1
    scores: str = "plain"
    value_dim: int | None = None  # None means head_dim
    key_heads: int = 1
    batch: int = 1

    def __str__(self):
        width = f"{self.head_dim}" + (f"v{self.value_dim}" if self.value_dim else "")
        heads = f"{self.group * self.key_heads}over{self.key_heads}"
        mask = "causal" if self.causal else "dense"
        return f"{self.query_length}x{self.key_length}-d{width}-{self.dtype}-{mask}-{heads}-b{self.batch}-{self.scores}"

    @property
    def scale(self) -> float:
        return SCORES[self.scores][0](self.head_dim)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        heads, value_dim = self.group * self.key_heads, self.value_dim or self.head_dim
        return {
            "q": (self.batch, heads, self.query_length, self.head_dim),
            "k": (self.batch, self.key_heads, self.key_length, self.head_dim),
            "v": (self.batch, self.key_heads, self.key_length, value_dim),
            "d_o": (self.batch, heads, self.query_length, value_dim),
        }

    def arrays(self) -> dict[str, mx.array]:
        """q, k, v and the cotangent d_o in the case's dtype; the same for the same case in every process."""
        generator = np.random.default_rng([SEED, zlib.crc32(str(self).encode())])
        size = {"q": SCORES[self.scores][1], "k": SCORES[self.scores][1]}
        return {
            name: mx.array(generator.standard_normal(shape, np.float32) * size.get(name, 1)).astype(
                getattr(mx, self.dtype)
            )
            for name, shape in self.shapes.items()
        }


@dataclass(frozen=True)
class Expected:
    """The oracle's results for a case, and the criterion by which results are judged."""

    case: Case
    want: dict[str, np.ndarray]
    terms: dict[str, float]
    unfused: dict[str, bounds.Error]
    floors: dict[str, float]

    def check(self, **got: mx.array):
        for name, array in got.items():
            assert array.dtype == getattr(mx, self.case.dtype), f"{name}: dtype {array.dtype} in {self.case}"
            bounds.check(
                name, array, self.want[name], str(self.case), self.case.dtype, terms=self.terms[name],
                unfused=self.unfused.get(name), floor=self.floors.get(name, 0.0),
            )  # fmt: skip


def expected(case: Case, arrays: dict[str, mx.array], scale: float | None = None, stored_output=False) -> Expected:
    """The oracle's results for a case.

    stored_output: allows for the worst effect of O being rounded to 16 bits before the gradients read it.
    """
    scale = case.scale if scale is None else scale
    exact = [bounds.float64(arrays[name]) for name in ("q", "k", "v", "d_o")]
    out, _ = oracle.forward(*exact[:3], scale, case.causal)
    want = {"O": out, **oracle.gradients(*exact, scale, case.causal)}
    terms = oracle.term_magnitudes(*exact, scale, case.causal)
    unfused, floors = {}, {}
    if case.dtype != "float32":
        inputs = [arrays[name] for name in ("q", "k", "v")]
        unfused = bounds.unfused_errors(inputs, arrays["d_o"], scale, case.causal, want)
        if stored_output:
            floors = oracle.moved_by_output(*exact, scale, case.causal, bounds.rounding(case.dtype))
    else:
        largest = oracle.largest_score(*exact[:2], scale)
        floors = {name: bounds.score_rounding(largest) * size for name, size in terms.items()}
    return Expected(case, want, terms, unfused, floors)


def _pairs(case: Case):
    facts = {
        "head_dim": case.head_dim, "dtype": case.dtype, "causal": case.causal, "group": case.group,
        "scores": case.scores, "query_length": case.query_length, "key_length": case.key_length,
    }  # fmt: skip
    # Lengths, groups and scores are combined with each other and with dtype and causal; head_dim with the last two
    # only: each further combination would be another kernel to compile.
    return {
        pair
        for pair in itertools.combinations(facts.items(), 2)
        if pair[0][0] != "head_dim" or pair[1][0] in ("dtype", "causal")
    }


def pairwise() -> list[Case]:
    """One case per head dimension and dtype; the other factors are chosen so that each pair of values occurs."""
    draw = random.Random(SEED)
    met, chosen = set(), []
    for index, (head_dim, dtype) in enumerate(itertools.product(HEAD_DIMS, DTYPES)):
        candidates = [
            Case(
                draw.choice(LENGTHS), draw.choice(LENGTHS), head_dim, dtype, index % 2 == 1, draw.choice(GROUPS),
                draw.choice(tuple(SCORES)),
            )
            for _ in range(200)
        ]  # fmt: skip
        best = max(candidates, key=lambda case: len(_pairs(case) - met))
        met |= _pairs(best)
        # Some cases have several batch entries and key heads, so that the grid has more than one axis.
        chosen.append(replace(best, batch=1 + index % 2, key_heads=1 + (index % 3 == 0)))
    return chosen


VALUE_DIMS = [
    Case(65, 129, 96, "float16", True, 2, value_dim=64),
    Case(129, 65, 64, "float32", False, 1, value_dim=128, key_heads=2),
    Case(33, 77, 192, "bfloat16", True, 4, value_dim=128),
    Case(7, 65, 33, "float32", False, 2, value_dim=77),
]
CASES = pairwise() + VALUE_DIMS


def backward(case: Case, arrays) -> dict[str, mx.array]:
    """O, dQ, dK and dV of the case on the current backend; `arrays`: the result of Case.arrays."""
    inputs = [arrays[name] for name in "qkv"]
    outs, grads = mx.vjp(lambda *x: attention(*x, scale=case.scale, causal=case.causal), inputs, [arrays["d_o"]])
    return dict(zip(("O", "dQ", "dK", "dV"), (*outs, *grads)))
