"""What an attention call has besides q, k and v, as facts a kernel is specialised by. Values arrive as arguments."""

from __future__ import annotations

from dataclasses import dataclass

from .kinds import DECODE, FORWARD, Step
from .quantization import UNQUANTIZED, Quantization

METAL_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat", "bool": "bool"}


@dataclass(frozen=True)
class Features:
    """`mask`: element type of an array mask, "bool" or a float type that is added; `block`: rows and columns of a
    block of the block mask. Everything that is off leaves no code and no argument in the kernels.
    """

    causal: bool = False
    window: bool = False
    mask: str | None = None
    alibi: bool = False
    sinks: bool = False
    softcap: bool = False
    segments: bool = False
    block: int | None = None
    dropout: bool = False
    quantization: Quantization | None = None

    def inputs(self, step: Step) -> tuple[str, ...]:
        """Kernel arguments beyond the step's own, in order."""
        if not step.tiled:
            return ()
        blocks = ("block_map", "block_bitmaps", "block_lists", "block_counts")[: 2 if step is DECODE else 4]
        chosen = (
            (self.window, ("window",)),
            (self.mask, ("attention_mask",)),
            (self.alibi, ("slopes",)),
            (self.sinks and step in (FORWARD, DECODE), ("sinks",)),
            (self.softcap, ("softcap",)),
            (self.segments, ("q_segments", "k_segments")),
            (self.block, blocks),
            (self.dropout and step is not DECODE, ("dropout_key", "survivor_scale")),
        )
        packed = self.quantization.inputs if self.quantization else ()
        return packed + tuple(name for on, names in chosen if on for name in names)

    def holes(self, step: Step) -> dict[str, object]:
        """Constants of the shared templates; the sums over keys and queries are the same with sinks."""
        return {
            **(self.quantization.holes() if self.quantization else UNQUANTIZED),
            "PACKED": int(step is DECODE),
            "CAUSAL": self.causal,
            "HAS_WINDOW": int(self.window),
            "HAS_MASK": int(self.mask is not None),
            "ADDITIVE": self.mask not in (None, "bool"),
            "MASK_ELEMENT": METAL_TYPES[self.mask or "bool"],
            "HAS_ALIBI": int(self.alibi),
            "HAS_SINKS": int(self.sinks and step in (FORWARD, DECODE)),
            "HAS_SOFTCAP": int(self.softcap),
            "HAS_SEGMENTS": int(self.segments),
            "HAS_BLOCKS": int(self.block is not None),
            "BLOCK": self.block or 1,
            "HAS_DROPOUT": int(self.dropout and step is not DECODE),
        }

    def names(self, step: Step) -> list[str]:
        """Parts of a kernel's name: one per feature that changes its text."""
        chosen = (
            (self.window, "window"), (self.mask, f"mask_{self.mask}"), (self.alibi, "alibi"),
            (self.sinks and step in (FORWARD, DECODE), "sinks"), (self.softcap, "softcap"), (self.segments, "segments"),
            (self.block, f"blocks{self.block}"), (self.dropout and step is not DECODE, "dropout"),
        )  # fmt: skip
        packed = [str(self.quantization)] if self.quantization else []
        return [*packed, "causal" if self.causal else "dense", *(name for on, name in chosen if on)]
