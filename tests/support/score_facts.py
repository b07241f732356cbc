"""A score and a predicate as texts and by hand in numpy: values, and the slope of the score in s."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_flash import Score, Visible

SCORE = """
float t = s * temperature[h];
if (k % 3 == 0)
  t *= 0.5;
float d = abs(q - k);
return t + 2.0 * tanh(0.25 * t) - slope * sqrt(d) + bias[clamp(q - k, -8, 8) + 8][h];
"""
VISIBLE = "(q + k) / 16 % 2 == 0 || (k < some && h > 0)"
SOME, SLOPE = 20, 0.125


@dataclass(frozen=True)
class HandScore:
    """temperature [Hq], bias [17, Hq]; q [..., Lq, 1] are positions; s [B, Hq, Lq, Lk]."""

    temperature: np.ndarray
    bias: np.ndarray

    def _parts(self, s, q, k, xp=np):
        heads = self.temperature[:, None, None]
        factor = np.where(k % 3 == 0, 0.5, 1.0) * heads
        offset = np.clip(q - k, -8, 8).astype(int) + 8  # [B, 1, Lq, Lk]
        added = np.moveaxis(self.bias[offset[:, 0]], -1, 1) - SLOPE * np.sqrt(np.abs(q - k))
        if xp is mx:
            factor, added = (mx.array(one).astype(s.dtype) for one in (factor, added))
        return factor, added

    def value(self, s, q, k, xp=np):
        factor, added = self._parts(s, q, k, xp)
        t = s * factor
        return t + 2 * xp.tanh(t / 4) + added

    def slope(self, s, q, k):
        factor, _ = self._parts(s, q, k)
        return factor * (1 + 0.5 * (1 - np.tanh(s * factor / 4) ** 2))


def hand_visible(b, h, q, k):
    """bool, broadcast; / and % as in C."""
    tiles = np.fmod(np.trunc((q + k) / 16), 2)
    return (tiles == 0) | ((k < SOME) & (h > 0))


def score(temperature: np.ndarray, bias: np.ndarray) -> Score:
    return Score(SCORE, temperature=mx.array(temperature), bias=mx.array(bias), slope=SLOPE)


def visible() -> Visible:
    return Visible(VISIBLE, block=32, some=SOME)
