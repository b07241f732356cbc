"""Incoherent processing: a rotation that spreads outliers over all channels before a cache is quantized."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from .errors import wrong

ODD_PARTS = (1, 12, 20, 28)  # m of the dimensions m * 2^k that mx.hadamard_transform knows


class Rotation:
    """An orthogonal map of the last axis: random signs, then a Hadamard matrix over the root of the dimension.

    Rotate q and k alike, and their scores are what they were; rotate v, and `undo` the rotation of the output::

        rotation = Rotation(128, key=mx.random.key(0))
        cache = [mx.quantize(rotation(array), group_size=64, bits=4) for array in (k, v)]
        out = rotation.undo(quantized_attention(rotation(q), *cache))

    Channels that are much larger than the others cost the others their digits where they share a scale; rotated, every
    channel is a mean of all. bench/quantization.py measures what that gains. After QuaRot (Ashkboos et al. 2024) and
    FlashAttention-3 (Shah et al. 2024).

    Args:
        dimension: of the heads, m * 2^k with m of 1, 12, 20 or 28.
        key: mx.random key of the signs, which break patterns that a Hadamard matrix could concentrate; None: no signs.

    Raises:
        ValueError: for another dimension.
    """

    def __init__(self, dimension: int, key: mx.array | None = None):
        if not _known(dimension):
            raise wrong(
                "dimension", "m * 2^k with m of 1, 12, 20 or 28, up to 8192", repr(dimension), "Pad the heads.",
                "Rotation",
            )  # fmt: skip
        self.dimension = dimension
        self._signs = None if key is None else 1 - 2 * mx.random.bernoulli(0.5, (dimension,), key=key).astype(mx.int8)

    def __call__(self, array: mx.array) -> mx.array:
        """The rotated array, [..., dimension], in its own dtype."""
        return mx.hadamard_transform(self._signed(self._checked(array)))

    def undo(self, array: mx.array) -> mx.array:
        """What was rotated: the transposed map, which is the inverse."""
        array, matrix = self._checked(array), _matrix(self.dimension)
        return self._signed(mx.hadamard_transform(array) if matrix is None else array @ matrix.astype(array.dtype))

    def _checked(self, array: mx.array) -> mx.array:
        if array.shape[-1:] != (self.dimension,):
            expected = f"a last axis of {self.dimension}"
            raise wrong("array", expected, f"shape {array.shape}", "Rotate each head.", "Rotation")
        return array

    def _signed(self, array: mx.array) -> mx.array:
        return array if self._signs is None else array * self._signs.astype(array.dtype)


def _known(dimension) -> bool:
    if not isinstance(dimension, int) or isinstance(dimension, bool) or not 1 <= dimension <= 8192:
        return False
    return any(dimension % m == 0 and (dimension // m).bit_count() == 1 for m in ODD_PARTS)


@lru_cache
def _matrix(dimension: int) -> mx.array | None:
    """The transposed map where it is another one; None where the Hadamard matrix is symmetric."""
    columns = mx.hadamard_transform(mx.eye(dimension))
    return None if mx.array_equal(columns, columns.T).item() else columns.T
