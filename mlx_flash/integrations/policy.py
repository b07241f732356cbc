"""The rules by which patch() serves a call or leaves it to MLX's built-in attention, for each family of GPUs.

The built-in keeps a call where it is one fused kernel, needs memory linear in the lengths, and is measured or known to
be as fast; on NVIDIA GPUs also short calls whose scores it keeps, where it was measured to be faster. The first rule
that fits decides; where none fits, attention serves. Where both need linear memory, times that `tune` took on the same
machine come first.

Sources: MLX's code and its 0.32.4 binary for the calls that it fuses (mlx/fast.cpp,
mlx/backend/metal/scaled_dot_product_attention.cpp, mlx/backend/cuda), and bench/results/cuda_speed.json for times on
NVIDIA GPUs (H200, bfloat16, 16 heads). No time was taken on a Mac.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import mlx.core as mx

from ..backends import named
from ..kernels.devices import Family

POLICIES = ("fastest", "always")
HALVES = (mx.float16, mx.bfloat16)
VERSION = tuple(map(int, re.findall(r"\d+", mx.__version__)[:3]))
STEEL = (64, 72, 80, 96, 128)  # head dimensions of Metal's full kernel
VECTOR = (64, 96, 128, 192, 256, 512)  # head dimensions of its kernel for at most 8 queries


class Asked(NamedTuple):
    """One call of the built-in. `mask`: None, "causal" or "array". `training`: whether a gradient of it is traced;
    `mapped`: whether it is inside mx.vmap."""

    dtype: mx.Dtype
    head_dim: int
    value_dim: int
    queries: int
    keys: int
    group: int = 1
    mask: str | None = None
    sinks: bool = False
    training: bool = False
    mapped: bool = False

    @property
    def dims(self) -> tuple[int, int]:
        return self.head_dim, self.value_dim

    @property
    def plain(self) -> bool:
        """No array mask, and every query sees a key."""
        return self.mask != "array" and (self.mask is None or self.queries <= self.keys)


@dataclass(frozen=True)
class Rule:
    """`ours`: whether attention serves the calls that fit. `why`: a sentence for the report."""

    name: str
    ours: bool
    why: str
    fits: Callable[[Asked], bool]
    fused: bool = False  # the built-in is fused too, so that measured times may overrule a rule of ours

    @cached_property
    def refusal(self) -> str:
        """Why a call that fits goes to the built-in."""
        return f'rule "{self.name}": {self.why}'


def _matching(asked: Asked, dimensions: tuple[int, ...], *pairs: tuple[int, int]) -> bool:
    return asked.dims in pairs or (asked.head_dim == asked.value_dim and asked.head_dim in dimensions)


MAPPED = Rule(
    "mapped", True, "the built-in's own mx.vmap does not return with grouped heads", lambda a: a.mapped and a.group > 1
)
ARRAY_GRADIENT = Rule(
    "array mask under a gradient", True, "the built-in keeps all scores in memory",
    lambda a: a.training and a.mask == "array",
)  # fmt: skip
ARRAY = Rule("array mask", True, "attention reads it through its strides", lambda a: a.mask == "array")
SHORT_GRADIENT = Rule(
    "few queries under a gradient", True, "the built-in's kernel for few queries has no gradient on Metal",
    lambda a: a.training and a.queries <= 8,
)  # fmt: skip
SINKS_GRADIENT = Rule(
    "sinks under a gradient", True, "the built-in has no gradient there", lambda a: a.training and a.sinks
)
OLD_GRADIENT = Rule(
    "gradient before MLX 0.32.4", True, "the built-in keeps all scores in memory",
    lambda a: a.training and VERSION < (0, 32, 4),
)  # fmt: skip
METAL_DECODE = Rule(
    "decoding", False, "the built-in has a fused kernel for at most 8 queries",
    lambda a: a.queries <= min(8, a.keys) and a.queries * a.group <= 32
    and _matching(a, VECTOR, (96, 64), (192, 128)),
)  # fmt: skip
METAL_FORWARD = Rule(
    "fused forward", False, "the built-in is one fused kernel",
    lambda a: a.queries > 8 and not a.training and a.plain and _matching(a, STEEL, (96, 64)),
)  # fmt: skip
METAL_LARGE = Rule(
    "fused forward at D = 256", False, "the built-in is fused for long causal calls in 16 bits",
    lambda a: not a.training and a.dims == (256, 256) and a.mask == "causal" and a.dtype in HALVES
    and a.queries == a.keys >= 2048,
)  # fmt: skip
METAL_BACKWARD = Rule(
    "blocked backward", False, "the built-in's gradient is blocked, and linear in memory",
    lambda a: a.training and a.plain and _matching(a, (*STEEL, 192, 256), (96, 64)),
)  # fmt: skip
ACCELERATOR = Rule(
    "fused forward of the M5", False, "the built-in uses the neural accelerators",
    lambda a: a.queries > 8 and not a.training and a.plain and a.dtype in HALVES
    and _matching(a, (*STEEL, 192, 256, 512), (96, 64)),
)  # fmt: skip


def _fused_by_cudnn(a: Asked) -> bool:
    even = a.head_dim % 8 == a.value_dim % 8 == 0
    return a.plain and not a.sinks and a.dtype in HALVES and max(a.dims) <= 128 and even


CUDA_DECODE = Rule(
    "decoding", False, "the built-in's kernel for few queries is 9 to 30 % faster (H200)",
    lambda a: not a.training and not a.sinks and a.queries < 4 and a.plain and _matching(a, (64, 96, 128)),
)  # fmt: skip
LONG_FORWARD = Rule(
    "long causal forward of 96 columns", True, "8 to 14 % faster than cuDNN from 4096 queries on (H200)",
    lambda a: not a.training and a.mask == "causal" and a.dims == (96, 96) and a.queries >= 4096, fused=True,
)  # fmt: skip
CUDA_FORWARD = Rule(
    "fused forward", False, "cuDNN is as fast, and faster below 16384 queries (H200)",
    lambda a: not a.training and a.queries > 1 and _fused_by_cudnn(a),
)  # fmt: skip
# Above D = 256 attention takes 1.2 times the built-in's time forward and 2.9 with gradients; in float32, which MLX
# multiplies as TF32 by default, 1.7 and 2.4. It leaves out half of causal work, and the built-in does not.
SHORT_UNFUSED = Rule(
    "unfused, up to 4096 queries", False, "its separate products are faster, and all scores are few (H200)",
    lambda a: (a.dtype == mx.float32 or max(a.dims) > 256) and a.plain and not a.sinks
    and 32 < a.queries <= 4096 and a.keys <= 4096 and (a.training or a.mask is None),
)  # fmt: skip
RAGGED = Rule(
    "ragged training", True, "the built-in's gradient keeps all scores unless queries are a multiple of 128",
    lambda a: a.training and a.queries % 128 != 0,
)  # fmt: skip
LONG_CAUSAL = Rule(
    "long causal training", True, "14 to 34 % faster than cuDNN from 4096 queries on (H200)",
    lambda a: a.training and a.mask == "causal" and a.queries >= 4096, fused=True,
)  # fmt: skip
CUDA_BACKWARD = Rule(
    "fused gradient", False, "cuDNN's gradient is faster (H200)",
    lambda a: a.training and _fused_by_cudnn(a),
)  # fmt: skip
# Short gradients beyond a head dimension of 128 are among these. In compiled steps attention takes 0.4 to 0.7 of the
# built-in's time; called one by one up to 1.8 times as long below 1024 queries: results/cuda_short_gradients.json.
ELSEWHERE = Rule("elsewhere", True, "the built-in has no fused kernel for it", lambda a: True)
ALWAYS = Rule("always", True, "every call that can be", lambda a: True)

QUANTIZED_CACHE = Rule("quantized cache", True, "mlx-lm's function keeps all scores in memory", lambda a: True)

_GRADIENTS = (MAPPED, ARRAY_GRADIENT, SINKS_GRADIENT)
_METAL = (*_GRADIENTS, SHORT_GRADIENT, OLD_GRADIENT, METAL_DECODE, ARRAY, METAL_FORWARD)
_CUDA = (
    *_GRADIENTS, ARRAY, CUDA_DECODE, CUDA_FORWARD, SHORT_UNFUSED, RAGGED, LONG_CAUSAL, CUDA_BACKWARD, ELSEWHERE,
)  # fmt: skip
_BEFORE_M5 = (*_METAL, METAL_LARGE, METAL_BACKWARD, ELSEWHERE)
RULES: dict[str, tuple[Rule, ...]] = {
    "apple7": _BEFORE_M5,
    "apple8": _BEFORE_M5,
    "apple9": _BEFORE_M5,
    "apple10": (*_METAL, ACCELERATOR, METAL_BACKWARD, ELSEWHERE),
    "sm80": _CUDA,
    "sm90": (LONG_FORWARD, *_CUDA),
}


@lru_cache(maxsize=4096)  # deciding for the built-in should cost next to nothing
def rule_of(family: str, asked: Asked) -> Rule:
    """The rule that decides on a GPU of the family."""
    return next(rule for rule in RULES[family] if rule.fits(asked))


def decide(policy: str | None, family: Family | None, asked: Asked) -> Rule:
    """The rule for a call on a backend with the kernels of a family. Without a policy, a backend that was chosen by
    name serves every call, and so does one without a GPU, which has no family."""
    family = ruled_by(policy, family)
    if family is None:
        return ALWAYS
    return measured_rule(family, asked) if family.tuned.calls else rule_of(family.name, asked)


def ruled_by(policy: str | None, family: Family | None) -> Family | None:
    """The family whose rules decide, or None where every call is served."""
    return None if policy == "always" or (policy is None and named()) else family


@lru_cache(maxsize=4096)
def measured_rule(family: Family, asked: Asked) -> Rule:
    """The rule by the tuner's times on this machine, where both functions need memory linear in the lengths and a
    similar call was timed: the nearest in length, within a factor of 2. Else the family's rule."""
    rule = rule_of(family.name, asked)
    if not (rule.fused or not rule.ours) or asked.sinks or asked.mapped or asked.head_dim != asked.value_dim:
        return rule
    wanted = (str(asked.dtype).removeprefix("mlx.core."), asked.head_dim, asked.mask, asked.training)
    distances = {
        call: max(_apart(call.queries, asked.queries), _apart(call.keys, asked.keys))
        for call in family.tuned.calls
        if (call.dtype, call.head_dim, call.mask, call.training) == wanted
    }
    call = min(distances, key=distances.get, default=None)
    if call is None or distances[call] > 2:
        return rule
    why = f"`tune` timed {call.ms:.3g} ms here, the built-in {call.built_in_ms:.3g} ms ({call.keys} keys)"
    return Rule("timed on this machine", call.ms <= call.built_in_ms, why, lambda a: True)


def _apart(one: int, other: int) -> float:
    return max(one, other) / max(min(one, other), 1)
