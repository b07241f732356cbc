"""The variants of a call: masks and options besides q, k and v, as checked values, and their effect on a kernel's text.

One field of `Variants` is one variant. Its metadata names the kernel arguments that it adds, the constant that switches
it on in the templates, and its part of a kernel's name. A variant that is off adds neither code nor arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import mlx.core as mx
import numpy as np

from ..common.errors import UnsupportedProblem, wrong
from ..common.scalars import listed, real, shown, truth, whole
from .formulas.program import Formula
from .formulas.score import Score, Visible, checked
from .kinds import BACKWARD_KEY_VALUE, BACKWARD_KINDS, DECODE, KernelKind
from .masks import BlockMask
from .quantization import UNQUANTIZED, Quantization
from .rows import check_form, check_pages

METAL_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat", "bool": "bool"}
FLOATS = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
MOST_BUFFERS, OWN_BUFFERS = 31, 15  # arguments: the most of a Metal function; those of dK and dV without variants
UNBOUNDED = 2**30  # a side of a window without a bound: longer than any sequence, and sums with it fit 32 bits


def _variant(default, hole: str, *arguments: str, name: str | None = None, without: tuple[KernelKind, ...] = ()):
    """A field of Variants.

    hole: its constant in the templates.
    arguments: the kernel arguments that it adds, as Metal declares them.
    name: its part of a kernel's name, formatted with the value; by default the hole in lower case.
    without: kinds of kernels that it does not change.
    """
    types = {declared.rsplit(" ", 1)[1]: declared.rsplit(" ", 1)[0] for declared in arguments}
    facts = {"hole": hole, "inputs": tuple(types), "types": types, "name": name or hole.lower(), "without": without}
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Variants:
    """The variants of one call. A kernel reads some values as arguments (the window's sides, the cap, the probability,
    a text's numbers); these do not change its text, see `text`.

    window: keys before and after a query's own position, both finite.
    mask: the element type of the array mask: "bool", or a float type that is added.
    shifts: an array gives the positions of queries among the keys.
    lengths: batch entries have lengths of their own.
    page: rows of a page of keys and values.
    latent: values are the first columns of keys.
    pieces: (ranks, pieces per rank) of traversed operands that are shards.
    block: rows and columns of a block of the block mask.
    score, visible: users' texts.
    seed: the number, from 1 on, of the score's array whose gradient a kernel sums; 0: none.
    quantization: the format of keys and values.
    """

    causal: bool = _variant(False, "CAUSAL")
    window: tuple[int, int] | None = _variant(None, "HAS_WINDOW", "const constant int* window", name="window")
    mask: str | None = _variant(None, "HAS_MASK", "Strided<MaskElement> attention_mask", name="mask_{}")
    alibi: bool = _variant(False, "HAS_ALIBI", "const device float* slopes", name="alibi")
    sinks: bool = _variant(False, "HAS_SINKS", "const device float* sinks", name="sinks", without=BACKWARD_KINDS)
    softcap: float | None = _variant(None, "HAS_SOFTCAP", "float softcap", name="softcap")
    segments: bool = _variant(
        False, "HAS_SEGMENTS", "Strided<int> q_segments", "Strided<int> k_segments", name="segments"
    )
    shifts: bool = _variant(False, "HAS_SHIFTS", "const device int* shifts", name="shifts")
    lengths: bool = _variant(False, "HAS_LENGTHS", "const device int* lengths", name="lengths")
    page: int | None = _variant(None, "HAS_PAGES", "Strided<int> pages", name="pages{}", without=BACKWARD_KINDS)
    latent: bool = _variant(False, "LATENT", name="latent", without=BACKWARD_KINDS)
    pieces: tuple[int, int] | None = _variant(None, "HAS_PIECES", name="pieces{0[0]}x{0[1]}", without=(DECODE,))
    block: int | None = _variant(
        None, "HAS_BLOCKS", "Strided<int> block_map", "const device uint8_t* block_bitmaps",
        "Strided<int> block_lists", "Strided<int> block_counts", name="blocks{}",
    )  # fmt: skip
    dropout: float = _variant(
        0.0, "HAS_DROPOUT", "const constant uint* dropout_key", "float survivor_scale", name="dropout",
        without=(DECODE,),
    )  # fmt: skip
    score: Formula | None = _variant(None, "HAS_SCORE", "const device int* formula_data", name="score_{}")
    seed: int = _variant(0, "SEEDED", name="seed{}")
    visible: Formula | None = _variant(None, "HAS_VISIBLE", "const device int* formula_data", name="visible_{}")
    quantization: Quantization | None = None

    @property
    def additive(self) -> bool:
        """Whether the array mask is added to the scores, and so has a gradient."""
        return self.mask not in (None, "bool")

    @property
    def scaled_first(self) -> bool:
        """Whether kernels scale scores before they compare them, because something is added to the scores or caps them.

        Then a row's maximum is a scaled score. Otherwise it lacks the scale, which enters with the exponents.
        """
        return self.additive or self.alibi or self.computes_scores

    @property
    def computes_scores(self) -> bool:
        """Whether scores are a function of Q K^T."""
        return bool(self.softcap) or self.score is not None

    @cached_property
    def plain(self) -> bool:
        """Whether kernels read the arrays of a call unchanged, and no number besides the scale."""
        given = (self.mask, self.block, self.shifts, self.lengths, self.window, self.softcap, self.dropout, self.texts)
        return not any(given)

    @cached_property
    def bare(self) -> bool:
        """Whether a call has no array besides q, k and v, and no number that depends on their lengths."""
        given = (
            self.mask, self.alibi, self.sinks, self.segments, self.lengths, self.page, self.block, self.dropout,
            self.texts,
        )  # fmt: skip
        return not any(given)

    @property
    def alike(self) -> bool:
        """Whether a kernel computes the same for every head, apart from q, k, v and what follows from them."""
        return not any((self.mask, self.alibi, self.block, self.dropout, self.texts))

    @cached_property
    def buffers(self) -> int:
        """The number of arguments of the kernel of dK and dV: one for each array, and one more for its strides. Kernels
        that dequantize, which are forward only, have fewer of their own; scales and biases have strides."""
        names, own = self.inputs(BACKWARD_KEY_VALUE), self.quantization.inputs if self.quantization else ()
        strided = [name in own or ARGUMENT_TYPES[name].startswith("Strided") for name in names]
        return OWN_BUFFERS + len(names) + sum(strided)

    @cached_property
    def text(self) -> Variants:
        """These variants without the values that kernels read as arguments: calls with equal ones share kernels."""
        return replace(
            self, window=self.window and (0, 0), softcap=self.softcap and 1.0, dropout=0.5 if self.dropout else 0.0,
            score=self.score and self.score.neutral, visible=self.visible and self.visible.neutral,
        )  # fmt: skip

    def _active(self, kind: KernelKind):
        """(value, metadata) of the variants that are on and change the text of this kind of kernel."""
        for one in fields(self):
            value = getattr(self, one.name)
            if value and one.metadata and kind not in one.metadata["without"]:
                yield value, one.metadata

    def inputs(self, kind: KernelKind) -> tuple[str, ...]:
        """The kernel arguments that the variants add to the kind's own, in order."""
        if not kind.tiled:
            return ()
        found = [*(self.quantization.inputs if self.quantization else ())]
        for _, variant in self._active(kind):
            # Decoding does not traverse lists of blocks: it looks up every block of its keys in the map.
            found += variant["inputs"][:2] if kind is DECODE else variant["inputs"]
        if self.visible and "block_bitmaps" in found:
            found.remove("block_bitmaps")  # the text decides the pairs of a block that is visible in part
        if self.segments and "shifts" in found:
            found.remove("shifts")  # they follow the queries' segments in the same operand
        return tuple(dict.fromkeys(found))  # both texts read one buffer

    @property
    def seeded(self) -> str:
        """The operand of the score with respect to which a kernel differentiates."""
        return self.score.operands[self.seed - 1]

    @cached_property
    def texts(self) -> tuple[Formula, ...]:
        """The texts of users that are compiled into the kernels."""
        return tuple(one for one in (self.score, self.visible) if one)

    def absent(self, kind: KernelKind) -> tuple[str, ...]:
        """Arguments of the kind that the kernel does not have, because its values are columns of keys."""
        parts = self.quantization.inputs if self.quantization else ()
        own = self.latent and kind not in BACKWARD_KINDS
        return ("V", *(name for name in parts if name.startswith("V"))) if own else ()

    def holes(self, kind: KernelKind) -> dict[str, object]:
        """The constants of the shared templates."""
        on = {variant["hole"] for _, variant in self._active(kind)}
        named = {one.metadata["hole"]: int(one.metadata["hole"] in on) for one in fields(self) if one.metadata}
        return {
            **(self.quantization.holes() if self.quantization else UNQUANTIZED),
            **named,
            "CAUSAL": self.causal,
            "GQA_PACKED": int(kind is DECODE),
            "ADDITIVE": self.additive,
            "MASK_ELEMENT": METAL_TYPES[self.mask or "bool"],
            "BLOCK": self.block or 1,
            "PAGE": self.page or 1,
            "SCATTERED": int(bool(named["HAS_PAGES"] or named["HAS_PIECES"])),
            **dict(zip(("RANKS", "RANK_PIECES"), self.pieces or (1, 1))),
            "HAS_TEXTS": int(bool(self.texts)),
            "SCORE_HIDES": int(bool(self.score and self.score.hides)),
            "WANTS_SLOPE": int(bool(self.score) and kind in BACKWARD_KINDS),
        }

    def names(self, kind: KernelKind) -> list[str]:
        """The parts of a kernel's name, one for each variant that changes its text."""
        found = [str(self.quantization)] if self.quantization else []
        found += ["causal" if self.causal else "dense"]
        return found + [one["name"].format(value) for value, one in self._active(kind) if one["hole"] != "CAUSAL"]


# The Metal type of every kernel argument that a variant adds; the variants that are numbers of a call.
ARGUMENT_TYPES = {name: kept for one in fields(Variants) for name, kept in one.metadata.get("types", {}).items()}
NUMBERS = tuple(one.name for one in fields(Variants) if one.type.startswith("float"))

# Arguments of `attention` that are arrays. Their dtypes and static axes decide which kernels run, their values do not.
ARRAYS = ("mask", "alibi_slopes", "sinks", "segments", "lengths", "pages", "key")


def variants_of(
    heads: int, dtype: mx.Dtype, *, mask=None, causal=False, window=None, softcap=None, alibi_slopes=None, sinks=None,
    segments=None, lengths=None, pages=None, dropout=0.0, key=None, page=None, latent=False, score=None, visible=None,
) -> Variants:  # fmt: skip
    """The variants of a call from its arguments, checked as far as lengths do not matter. Raises ValueError.

    `page`: rows of a page, where there are pages. `latent`: values are columns of keys.
    """
    if isinstance(mask, str) and mask != "causal":
        raise wrong("mask", 'None, "causal", an array or a BlockMask', repr(mask), "Check the spelling.")
    if truth(causal) is None:
        raise wrong("causal", "True or False", shown(causal), "Pass a bool.")
    for name, array in (("alibi_slopes", alibi_slopes), ("sinks", sinks)):
        if array is not None:
            _check_per_head(name, array, heads, dtype)
    if segments is not None:
        check_segments(segments)
    if lengths is not None:
        check_form(lengths, segments)
    if pages is not None:
        check_pages(pages, page, lengths, isinstance(mask, BlockMask), dropout)
    causal, window = truth(causal) or isinstance(mask, str), _window(window)
    score, visible = _texts(heads, score, visible, mask)
    # With one array of ids for queries and keys, every segment begins and ends at the same rows of both: no shifts.
    positions = causal or window is not None or alibi_slopes is not None or score is not None or visible is not None
    found = Variants(
        causal=causal,
        window=window,
        mask=None if mask is None or isinstance(mask, (str, BlockMask)) else _mask_type(mask, dtype),
        alibi=alibi_slopes is not None,
        sinks=sinks is not None,
        softcap=_softcap(softcap),
        segments=segments is not None,
        shifts=segments is not None and positions and segments[0] is not segments[1],
        lengths=lengths is not None,
        page=None if pages is None else page,
        latent=latent,
        block=mask.block if isinstance(mask, BlockMask) else visible.block if visible and pages is None else None,
        dropout=_dropout(dropout, key),
        score=score and score.formula,
        visible=visible and visible.formula,
    )
    _check_buffers(found)
    return found


def check_lengths(variants: Variants, shape: tuple[int, int, int, int], mask, segments) -> tuple[int, ...] | None:
    """The array mask's own four axes, each 1 or the full length; None without one.

    `shape`: (B, Hq, Lq, Lk). Raises ValueError where the mask or the segments do not fit it.
    """
    if variants.segments:
        for name, ids, length in zip(("q_ids", "k_ids"), segments, shape[2:]):
            if tuple(ids.shape) not in ((length,), (1, length), (shape[0], length)):
                raise wrong(
                    f"segments {name}", f"shape [B, length] = {[shape[0], length]} or [{length}]", f"{ids.shape}",
                    "Give every position an id.",
                )  # fmt: skip
    if variants.block and not variants.visible:
        mask.check(shape)
    if variants.mask is None:
        return None
    axes = (1, 1, 1, 1, *mask.shape)[-4:]
    fits = mask.ndim <= 4
    for own, full in zip(axes, shape):
        fits = fits and (own == 1 or own == full)
    if not fits:
        raise wrong(
            "mask", f"a shape that broadcasts to [B, Hq, Lq, Lk] = {list(shape)}", f"shape {tuple(mask.shape)}",
            "Add or slice axes.",
        )  # fmt: skip
    return axes


def _mask_type(mask, dtype) -> str:
    if not isinstance(mask, mx.array):
        raise wrong(
            "mask", 'None, "causal", an mlx.core.array or a BlockMask', type(mask).__name__, "Wrap it in mx.array(...)."
        )
    if mask.dtype != mx.bool_ and mask.dtype not in FLOATS:
        raise wrong("mask", "dtype bool (True = keep) or a float type that is added", mask.dtype, "Cast the mask.")
    if mask.dtype != mx.bool_ and mx.result_type(mask, mx.zeros((), dtype)) != dtype:
        raise wrong("mask", f"a dtype that promotes to q's {dtype}", mask.dtype, f"Cast it with .astype({dtype}).")
    return "bool" if mask.dtype == mx.bool_ else FLOATS[mask.dtype]


def _check_per_head(name, array, heads, dtype):
    if not isinstance(array, mx.array) or array.dtype not in FLOATS:
        got = array.dtype if isinstance(array, mx.array) else type(array).__name__
        raise wrong(name, "an mlx.core.array of a float type", got, "Convert it with mx.array(...).")
    if array.shape != (heads,):
        raise wrong(name, f"shape ({heads},), one number per query head", f"{array.shape}", "Reshape it.")
    if name == "sinks" and mx.result_type(array, mx.zeros((), dtype)) != dtype:
        raise wrong(name, f"a dtype that promotes to q's {dtype}", array.dtype, f"Cast it with .astype({dtype}).")


def _window(window) -> tuple[int, int] | None:
    if window is None:
        return None
    pair = listed(window) if isinstance(window, (tuple, list, np.ndarray, mx.array)) else None
    if pair is None or len(pair) != 2:
        raise wrong("window", "(left, right), each a number of keys or None", shown(window), "Pass a pair.")
    sides = [-1 if side is None else whole(side) for side in pair]  # -1 is no bound elsewhere, as None is here
    if any(side is None or side < -1 for side in sides):
        raise wrong("window", "sides of at least 0, or None or -1 for no bound", shown(window), "Pass whole numbers.")
    if sides == [-1, -1]:
        return None
    left, right = (UNBOUNDED if side == -1 else min(side, UNBOUNDED) for side in sides)
    return left, right


def _texts(heads: int, score, visible, mask) -> tuple[Score | None, Visible | None]:
    """The texts of a call, checked against its heads."""
    score = None if score is None else checked("score", score, Score)
    visible = None if visible is None else checked("visible", visible, Visible)
    for text in (score, visible):
        if text is not None:
            text.check_heads(heads)
    if visible is not None and isinstance(mask, BlockMask):
        raise wrong("visible", "one way to say which blocks are visited", "a BlockMask too", "Join them in one.")
    return score, visible


def _check_buffers(variants: Variants) -> None:
    """Raises UnsupportedProblem for more masks and texts at once than a kernel has arguments for."""
    if variants.buffers > MOST_BUFFERS:
        raise UnsupportedProblem(
            f"[mlx_flash.attention] options: expected at most {MOST_BUFFERS} arguments of a kernel, got "
            f"{variants.buffers}. Leave out a mask, or write softcap, alibi_slopes or window into the text of score or "
            "visible."
        )


def _softcap(softcap) -> float | None:
    """The checked cap; None for 0, which switches it off, as in other libraries."""
    number = 0.0 if softcap is None else real(softcap)
    if number is None or not (math.isfinite(number) and number >= 0):
        expected = "a finite number above 0, or None or 0 for no cap"
        raise wrong("softcap", expected, shown(softcap), "Pass a float such as 50.0.")
    return number or None


def check_segments(segments) -> None:
    """Raises ValueError unless `segments` is a pair of integer arrays."""
    if not isinstance(segments, (tuple, list)) or len(segments) != 2:
        raise wrong("segments", "(q_ids, k_ids)", type(segments).__name__, "Pass a pair of integer arrays.")
    for name, ids in zip(("q_ids", "k_ids"), segments):
        integers = isinstance(ids, mx.array) and mx.issubdtype(ids.dtype, mx.integer)
        if not integers and not (isinstance(ids, np.ndarray) and np.issubdtype(ids.dtype, np.integer)):
            got = ids.dtype if isinstance(ids, (mx.array, np.ndarray)) else type(ids).__name__
            raise wrong(f"segments {name}", "an integer array", got, "Cast it to mx.int32.")


def _dropout(dropout, key) -> float:
    """The checked probability. With 0 a key is allowed but not used, so that one line serves training and
    evaluation."""
    probability = real(dropout)
    if probability is None or not 0 <= probability < 1:
        raise wrong("dropout", "a probability of at least 0 and below 1", shown(dropout), "Pass 0.0 to switch it off.")
    if probability > 0 and key is None:
        raise wrong("key", "an mx.random key when dropout > 0", "None", "Pass key=mx.random.key(seed).")
    if key is not None and (not isinstance(key, mx.array) or key.dtype != mx.uint32 or key.shape != (2,)):
        raise wrong("key", "an mx.random key (uint32 of shape (2,))", shown(key), "Pass mx.random.key(seed).")
    return probability
