"""Incoherent processing: a rotation that spreads outliers over all channels before a cache is quantized."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from .common.errors import wrong
from .common.scalars import evaluated, shown, whole

ODD_PARTS = (1, 12, 20, 28)  # mx.hadamard_transform serves dimensions m * 2^k with these m
SPREAD = 16.0  # largest ratio of two scales of a head, which serves sizes that differ by up to its square


class Rotation:
    """An orthogonal map of the last axis: random signs, then a Hadamard matrix over the root of the dimension.

    Rotate q and k alike, and their scores are what they were; rotate v, and `undo` the rotation of the output::

        rotation = Rotation(128, key=mx.random.key(0))
        cache = [mx.quantize(rotation(array), group_size=64, bits=4) for array in (k, v)]
        out = rotation.undo(quantized_attention(rotation(q), *cache))

    An outlier channel inflates the scale that its group shares and costs the other channels precision. After the
    rotation every channel is a mixture of all. `Balance` also learns which channels are large, and does better;
    bench/quantization.py measures both. After QuaRot (Ashkboos et al. 2024) and FlashAttention-3 (Shah et al. 2024).

    Args:
        dimension: of the heads, m * 2^k with m of 1, 12, 20 or 28.
        key: mx.random key of the signs, which break patterns that a Hadamard matrix could concentrate; None: no signs.

    Raises:
        ValueError: another dimension, or something else than a key.
    """

    def __init__(self, dimension: int, key: mx.array | None = None):
        size = whole(dimension)
        if size is None or not 1 <= size <= 8192 or _odd_part(size) is None:
            expected = "m * 2^k with m of 1, 12, 20 or 28, up to 8192"
            raise wrong("dimension", expected, shown(dimension), "Pad the heads.", "Rotation")
        self.dimension, self._signs = size, None
        if key is not None:
            if not isinstance(key, mx.array) or key.dtype != mx.uint32 or key.shape != (2,):
                remedy = "Pass mx.random.key(seed)."
                raise wrong("key", "an mx.random key (uint32 of shape (2,)) or None", shown(key), remedy, "Rotation")
            self._signs = evaluated(1 - 2 * mx.random.bernoulli(0.5, (size,), key=key).astype(mx.int8))

    def __call__(self, array: mx.array) -> mx.array:
        """The rotated array, [..., dimension], in its own dtype."""
        return self._transformed(self._signed(self._checked(array)), transposed=False)

    def undo(self, array: mx.array) -> mx.array:
        """The array before the rotation: the transposed map, which is the inverse."""
        return self._signed(self._transformed(self._checked(array), transposed=True))

    def _transformed(self, array: mx.array, transposed: bool) -> mx.array:
        """The Hadamard transform of the last axis. Its matrix of order m * 2^k is the Kronecker product of one of order
        m and one of order 2^k.

        MLX differentiates mx.hadamard_transform as if every matrix were symmetric, which holds for orders 2^k only. So
        the factor of order m is a matrix product, with right gradients in every transformation.
        """
        odd = _odd_part(self.dimension)
        power, scale = self.dimension // odd, self.dimension**-0.5
        if odd == 1:
            return mx.hadamard_transform(array, scale=scale)
        rows = _signs_matrix(odd) if transposed else _signs_matrix(odd).T
        # 16 bits are rounded only once. A reshape would fix a shapeless trace to the other axes of its first call; so
        # would, in MLX 0.32.0, a product whose second factor is the matrix.
        parts = mx.unflatten(array.astype(mx.float32), -1, (odd, power))
        parts = parts * scale if power == 1 else mx.hadamard_transform(parts, scale=scale)
        return mx.flatten(rows @ parts, -2, -1).astype(array.dtype)

    def _checked(self, array: mx.array) -> mx.array:
        if not isinstance(array, mx.array) or not mx.issubdtype(array.dtype, mx.floating):
            got = f"dtype {array.dtype}" if isinstance(array, mx.array) else type(array).__name__
            raise wrong("array", "an mlx.core.array of a float type", got, "Convert or cast it.", "Rotation")
        if array.shape[-1:] != (self.dimension,):
            expected = f"a last axis of {self.dimension}"
            raise wrong("array", expected, f"shape {array.shape}", "Rotate each head.", "Rotation")
        return array

    def _signed(self, array: mx.array) -> mx.array:
        return array if self._signs is None else array * self._signs.astype(array.dtype)


class Balance:
    """A rotation of channels that are first made more alike: each is divided by the root of its size in a sample.

    Keys are divided and queries multiplied, so that scores do not change; `undo` multiplies an output by the scales
    that its values were divided by. One Balance serves all tokens of a cache, including later ones::

        keys, values = Balance(k), Balance(v)  # k and v of a prompt
        cache = [mx.quantize(balance(array), group_size=64, bits=4) for balance, array in ((keys, k), (values, v))]
        out = values.undo(quantized_attention(keys.queries(q), *cache))

    Why the root: channels of sizes s_c, divided by d_c and rotated, all get the error sqrt(mean((s / d)^2)), which
    `undo` multiplies by d_c. The sum of its squares is smallest for d_c^2 = s_c; SmoothQuant (Xiao et al. 2023) uses
    the same root between activations and weights.

    Args:
        sample: [B, Hk, L, D], keys or values such as a prompt's, of any dtype; every head gets its own scales. D as in
            `Rotation`.
        key: mx.random key of the rotation's signs; None: no signs.

    Raises:
        ValueError: for a sample without tokens or of another shape.
    """

    def __init__(self, sample: mx.array, key: mx.array | None = None):
        if not isinstance(sample, mx.array) or sample.ndim != 4 or 0 in sample.shape:
            got = f"shape {sample.shape}" if isinstance(sample, mx.array) else type(sample).__name__
            expected = "keys or values, [batch, heads, length, dimension], of at least one token"
            raise wrong("sample", expected, got, "Pass a prompt's.", "Balance")
        self.rotation = Rotation(sample.shape[3], key)
        self.scales = evaluated(_balancing_scales(sample.astype(mx.float32)))

    def __call__(self, array: mx.array) -> mx.array:
        """Keys or values [B, Hk, L, D], balanced and rotated for quantization, in their own dtype."""
        return self.rotation(array * (1 / self._scales_of(array)).astype(array.dtype))

    def queries(self, q: mx.array) -> mx.array:
        """q [B, Hq, L, D], changed so that its scores with balanced keys are those of the originals."""
        return self.rotation(q * self._scales_of(q).astype(q.dtype))

    def undo(self, out: mx.array) -> mx.array:
        """The output [B, Hq, L, D] for balanced values, turned into that for the original values."""
        return self.rotation.undo(out) * self._scales_of(out).astype(out.dtype)

    def _scales_of(self, array: mx.array) -> mx.array:
        """The scales, [1, heads of the array, 1, D]; query heads get those of the key head that they share."""
        heads = self.scales.shape[1]
        array = self.rotation._checked(array)
        if array.ndim != 4 or array.shape[1] % heads:
            expected = f"[batch, heads, length, dimension], heads a multiple of the sample's {heads}"
            raise wrong("array", expected, f"shape {array.shape}", "Pass all heads.", "Balance")
        group = array.shape[1] // heads
        return self.scales if group == 1 else mx.repeat(self.scales, group, axis=1)


def _balancing_scales(sample: mx.array) -> mx.array:
    """[1, Hk, 1, D] of a float32 sample: the root of each channel's root mean square, 1 in heads of zeros."""
    peak = mx.abs(sample).max((0, 2, 3), keepdims=True)
    peak = mx.where(peak == 0, 1, peak)  # relative to it, no square overflows or vanishes
    squares = mx.square(sample / peak).mean((0, 2), keepdims=True)
    largest = squares.max(-1, keepdims=True)
    # A channel that is silent in the sample may be loud later: no scale is more than SPREAD times below another.
    squares = mx.where(largest == 0, 1, mx.maximum(squares, largest / SPREAD**4))
    return mx.sqrt(mx.sqrt(squares) * peak)


def _odd_part(dimension: int) -> int | None:
    """m of a dimension m * 2^k, None for another dimension."""
    parts = (m for m in ODD_PARTS if dimension % m == 0 and (dimension // m).bit_count() == 1)
    return next(parts, None)


@lru_cache
def _signs_matrix(order: int) -> mx.array:
    """MLX's Hadamard matrix of order 12, 20 or 28: row j is the transform of unit vector j. The array is made from host
    data, so that every thread and stream can use it."""
    return mx.array(np.sign(np.array(mx.hadamard_transform(mx.eye(order)))))
