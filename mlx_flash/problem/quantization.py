"""How mx.quantize stores keys and values: the formats that the kernels read, and the checks of the arrays."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..common.errors import wrong
from ..common.scalars import shown, whole, word

FUNCTION = "quantized_attention"
# mode: (bits of an element, elements that share a scale), the defaults first
FORMATS = {
    "affine": ((4, 8, 2, 3, 5, 6), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}
PARTS = {"affine": ("codes", "scales", "biases")}  # the arrays of one operand; other modes have no biases


@dataclass(frozen=True)
class Quantization:
    """One of FORMATS. In mode "affine" an element is scale * code + bias, both in the queries' dtype. In the others it
    is scale * code, where the code is a float of `bits` bits and the scale a float of 8 bits."""

    mode: str
    bits: int
    group_size: int

    @property
    def parts(self) -> tuple[str, ...]:
        return PARTS.get(self.mode, ("codes", "scales"))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The kernel arguments besides K and V, which hold the codes."""
        return (*self.inputs_of("K"), *self.inputs_of("V"))

    def inputs_of(self, name: str) -> tuple[str, ...]:
        """Those of K or of V."""
        return tuple(f"{name}_{part}" for part in self.parts[1:])

    def holes(self) -> dict[str, object]:
        """Constants of quantized.metal."""
        return {
            "QUANTIZED": 1, "AFFINE": int(self.mode == "affine"), "FLOAT_SCALES": self.mode == "nvfp4",
            "BITS": self.bits, "GROUP": self.group_size, "WHOLE_WORDS": int(self.bits % 4 == 0),
        }  # fmt: skip

    def __str__(self):
        return f"{self.mode}{self.bits}g{self.group_size}"

    def dequantized(self, rows: slice, dtype: mx.Dtype, *parts: mx.array) -> mx.array:
        """Some rows of an operand, in plain mx operations: computed in float32 and rounded once, as in the kernels."""
        codes, *rest = (part[:, :, rows] for part in parts)
        rest = [part.astype(mx.float32) for part in rest] if self.mode == "affine" else rest
        exact = mx.dequantize(
            codes, *rest, group_size=self.group_size, bits=self.bits, mode=self.mode, dtype=mx.float32
        )
        return exact.astype(dtype)


UNQUANTIZED = {"QUANTIZED": 0, "AFFINE": 0, "FLOAT_SCALES": False, "BITS": 4, "GROUP": 8, "WHOLE_WORDS": 1}


def quantization_of(mode, bits, group_size) -> Quantization:
    """The checked format, with defaults filled in. Raises ValueError for one that no kernel reads."""
    if isinstance(mode, str) and mode == "fp8":  # its data: bench/results/fp8.json
        raise wrong(
            "mode", ", ".join(FORMATS), "'fp8'",
            "Up to 128 columns an H200 attends at most 1.3 times as fast in e4m3 as in bfloat16, with 8 to 16 times "
            'the error, so no kernel does: use "mxfp8" to halve a cache, or attention in bfloat16.', FUNCTION,
        )  # fmt: skip
    known_bits, known_groups = FORMATS[word("mode", mode, FORMATS, FUNCTION)]
    bits = known_bits[0] if bits is None else bits
    group_size = known_groups[0] if group_size is None else group_size
    for name, value, known in (("bits", bits, known_bits), ("group_size", group_size, known_groups)):
        if whole(value) not in known:
            raise wrong(
                name, f"{' or '.join(map(str, known))} in mode {mode!r}", shown(value),
                "Quantize the cache so, or dequantize it and call attention.", FUNCTION,
            )  # fmt: skip
    return Quantization(mode, whole(bits), whole(group_size))


def shape_of(name: str, parts, quantization: Quantization, dtype: mx.Dtype) -> tuple[int, int, int, int]:
    """The shape [B, heads, length, dimension] of an operand, from its quantized parts.

    Raises ValueError unless the parts are as mx.quantize returns them for an operand of that shape and dtype.
    """
    expected = quantization.parts
    if not isinstance(parts, (tuple, list)) or len(parts) != len(expected):
        got = f"{len(parts)} arrays" if isinstance(parts, (tuple, list)) else type(parts).__name__
        raise wrong(
            name, f"({', '.join(expected)}) as mx.quantize returns in mode {quantization.mode!r}", got,
            "Pass the tuple of a quantized cache.", FUNCTION,
        )  # fmt: skip
    dtypes = (mx.uint32, *[dtype if quantization.mode == "affine" else mx.uint8] * (len(expected) - 1))
    for part, array, wanted in zip(expected, parts, dtypes):
        if not isinstance(array, mx.array) or array.ndim != 4 or array.dtype != wanted:
            got = f"{array.dtype} of shape {array.shape}" if isinstance(array, mx.array) else type(array).__name__
            raise wrong(
                f"{name} {part}", f"{wanted} with 4 axes [batch, heads, length, columns]", got,
                "Quantize in q's dtype, along the last axis.", FUNCTION,
            )  # fmt: skip
    dimension = parts[0].shape[3] * 32 // quantization.bits
    grouped = (*parts[0].shape[:3], dimension // quantization.group_size)
    for part, array in zip(expected[1:], parts[1:]):
        if array.shape != grouped or dimension % quantization.group_size:
            raise wrong(
                f"{name} {part}", f"shape {grouped}: one for every {quantization.group_size} of {dimension} columns",
                f"{array.shape}", "Pass the bits and group_size it was quantized with.", FUNCTION,
            )  # fmt: skip
    return (*parts[0].shape[:3], dimension)
