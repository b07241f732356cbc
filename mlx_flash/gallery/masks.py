"""Masks of papers and models as texts, for ``attention(..., visible=...)``. Blocks that they hide as a whole are never
visited; ``.block_mask(Lq, Lk)`` says which these are.

Sizes of grids stand in the text, where divisions by them cost little; numbers that change from call to call, such as
the length of a prefix, are operands. Positions count from the lower right. `block`: rows and columns of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod

import mlx.core as mx
import numpy as np

from ..common.errors import wrong
from ..common.scalars import listed, shown
from ..problem.formulas.score import Visible
from .checks import MOST, axes, count, counts, flag


def causal(*, block: int = 128) -> Visible:
    """Keys up to the query's own position."""
    return Visible("k <= q", block=block)


def window(left: int, right: int = 0, *, block: int = 128) -> Visible:
    """`left` keys before the own position and `right` after it."""
    return Visible("q - k <= left && k - q <= right", left=left, right=right, block=block)


def dilated_window(width: int, step: int, *, block: int = 128) -> Visible:
    """Every `step`-th of the `width` keys before the own position. Longformer (Beltagy et al. 2020)."""
    return Visible(f"k <= q && q - k <= width && (q - k) % {count('step', step)} == 0", width=width, block=block)


def sink_window(width: int, sinks: int = 4, *, block: int = 128) -> Visible:
    """Causal, `width` keys back, and the first keys of all. StreamingLLM (Xiao et al. 2024)."""
    return Visible("k <= q && (q - k <= width || k < sinks)", width=width, sinks=sinks, block=block)


def local_global(width: int, anchors: int, *, block: int = 128) -> Visible:
    """Keys within `width` on both sides; the first `anchors` tokens see all and are seen by all. Longformer."""
    return Visible("abs(q - k) <= width || q < anchors || k < anchors", width=width, anchors=anchors, block=block)


def strided(step: int, *, block: int = 128) -> Visible:
    """Causal: the last `step` keys, and every `step`-th before them. Sparse Transformer (Child et al. 2019)."""
    return Visible(f"k <= q && (q - k < {count('step', step)} || (q - k) % {count('step', step)} == 0)", block=block)


def prefix(length: int, *, block: int = 128) -> Visible:
    """Causal, and everybody sees the first `length` keys. Prefix language models (Raffel et al. 2020)."""
    return Visible("k <= q || k < length", length=length, block=block)


def document(lengths: Sequence[int], *, causal: bool = True, block: int = 128) -> Visible:
    """Documents of these lengths, packed one after another; each sees only itself."""
    each = counts("lengths", lengths if listed(lengths) else [lengths], 0)
    if not 0 < sum(each) <= MOST:
        raise wrong("lengths", f"1 to {MOST} tokens together", sum(each), "Pass lengths of documents.", "gallery")
    ids = mx.array(np.repeat(np.arange(len(each), dtype=np.int32), each))
    return Visible("id[q] == id[k]" + (" && k <= q" if flag("causal", causal) else ""), id=ids, block=block)


def axial(rows: int, columns: int, *, block: int = 128) -> Visible:
    """Tokens of a grid, row by row, see their own row and column. Ho et al. 2019."""
    count("rows", rows)
    w = count("columns", columns)
    return Visible(f"q / {w} == k / {w} || q % {w} == k % {w}", block=block)


def neighbourhood(
    shape: Sequence[int] | int, kernel: Sequence[int] | int, dilation: Sequence[int] | int = 1,
    causal: Sequence[bool] | bool = False, *, block: int = 128,
) -> Visible:  # fmt: skip
    """The nearest kernel[0] x kernel[1] x ... tokens of a grid of 1 to 3 axes, as NATTEN defines them: at borders the
    neighbourhood moves inwards and keeps its size; with dilation it takes every dilation-th token. Hassani et al. 2023.

    shape: of the grid, whose tokens go row by row. kernel: odd along every axis, kernel * dilation at most the shape's.
    causal: along an axis, the last kernel tokens up to the own one.
    """
    sizes = axes("shape", shape)
    kernels, steps = axes("kernel", kernel, len(sizes)), axes("dilation", dilation, len(sizes))
    ends = causal if isinstance(causal, (tuple, list)) else [causal] * len(sizes)
    if len(ends) != len(sizes):
        raise wrong("causal", f"{len(sizes)} bools", shown(causal), "Give one for each axis of the grid.", "gallery")
    lines, stride, outside = [], prod(sizes), []
    for n, (size, width, step, end) in enumerate(zip(sizes, kernels, steps, ends)):
        if width % 2 == 0 or width * step > size:
            expected = f"an odd number, at most {size} with dilation {step}"
            raise wrong("kernel", expected, width, "Choose a smaller one.", "gallery.neighbourhood")
        stride //= size
        lines.append(f"int q{n} = q / {stride} % {size}; int k{n} = k / {stride} % {size};")
        lines += _near(n, size, width, step, flag("causal", end))
        outside += [f"d{n}"]
    # Without branches: lanes of a simdgroup that part would cost more than the arithmetic.
    furthest = reduce(lambda found, one: f"max({found}, {one})", outside)
    return Visible(" ".join([*lines, f"return {furthest} <= 0;"]), block=block)


def _near(n: int, size: int, width: int, step: int, causal: bool) -> list[str]:
    """Statements for dn, above 0 where the coordinates qn and kn are no neighbours."""
    q, k, length, lines, differs = f"q{n}", f"k{n}", str(size), [], ""
    if step > 1:  # neighbours within the tokens that leave the same remainder
        lines.append(f"int n{n} = ({size - 1 + step} - {q} % {step}) / {step};")
        differs = f"{size} * abs({q} % {step} - {k} % {step}) + "
        q, k, length = f"{q} / {step}", f"{k} / {step}", f"n{n}"
    if causal:
        return [*lines, f"int d{n} = {differs}max({k} - {q}, {q} - {k} - {width - 1});"]
    half = width // 2
    return [*lines, f"int d{n} = {differs}abs(clamp({q}, {half}, {length} - {half + 1}) - {k}) - {half};"]


def sliding_tiles(
    shape: Sequence[int], kernel: Sequence[int], tile: Sequence[int], text: int = 0, *, block: int = 128
) -> Visible:
    """A neighbourhood of whole tiles: tokens go tile by tile, and a tile sees the kernel / tile nearest tiles along
    every axis. `text` tokens behind the grid see all and are seen by all. Zhang et al. 2025."""
    sizes, text = axes("shape", shape), count("text", text, 0)
    kernels, tiles = axes("kernel", kernel, len(sizes)), axes("tile", tile, len(sizes))
    if any(size % one or width % one for size, width, one in zip(sizes, kernels, tiles)):
        raise wrong("tile", "a divisor of shape and kernel", tuple(tiles), "Choose another.", "gallery.sliding_tiles")
    total, volume = prod(sizes), prod(tiles)
    stride, lines = total // volume, [f"if (q >= {total} || k >= {total}) return max(q, k) < {total + text};"]
    for n, (size, width, one) in enumerate(zip(sizes, kernels, tiles)):
        number, reach = size // one, width // one
        stride //= number
        left, right = reach // 2, reach // 2 + reach % 2 - 1
        lines.append(f"int q{n} = clamp(q / {volume * stride} % {number}, {left}, {number - 1 - right});")
        lines.append(f"int k{n} = k / {volume * stride} % {number};")
        lines.append(f"if (k{n} < q{n} - {left} || k{n} > q{n} + {right}) return false;")
    return Visible(" ".join([*lines, "return true;"]), block=block)


def swin_window(shape: tuple[int, int], size: int = 7, shift: int = 0, *, block: int = 128) -> Visible:
    """Swin's windows of size x size on a grid, row by row, moved by `shift` (0 <= shift < size); at the border they are
    cut, as the masks of cyclic shifts cut them. Liu et al. 2021."""
    (_, columns), w, shift = axes("shape", shape, 2), count("size", size), count("shift", shift, 0)
    if shift >= w:
        raise wrong("shift", f"less than size, {w}", shift, "Take half of size.", "gallery.swin_window")
    move = w - shift if shift else 0
    rows_agree = f"(q / {columns} + {move}) / {w} == (k / {columns} + {move}) / {w}"
    return Visible(f"{rows_agree} && (q % {columns} + {move}) / {w} == (k % {columns} + {move}) / {w}", block=block)


def video(frames: int, tokens: int, reach: int = 1, *, block: int = 128) -> Visible:
    """Frames of `tokens` each: a token sees the frames within `reach`, and its own place in all frames."""
    count("frames", frames)
    n = count("tokens", tokens)
    return Visible(f"abs(q / {n} - k / {n}) <= reach || q % {n} == k % {n}", reach=reach, block=block)


def spatial_head(tokens: int, width: int, prompt: int = 0, *, block: int = 128) -> Visible:
    """Sparse VideoGen's spatial heads: near tokens, `width` frames of them; the prompt sees all and is seen by all."""
    near = count("width", width) * count("tokens", tokens)
    return Visible("abs(q - k) < near || q < prompt || k < prompt", near=near, prompt=prompt, block=block)


def temporal_head(tokens: int, near: int, prompt: int = 0, *, block: int = 128) -> Visible:
    """Sparse VideoGen's temporal heads: places of all frames less than `near` apart; the prompt as in spatial heads."""
    n = count("tokens", tokens)
    text = f"q < prompt || k < prompt || abs((q - prompt) % {n} - (k - prompt) % {n}) < near"
    return Visible(text, near=near, prompt=prompt, block=block)


def image_intervals(intervals, tokens: int, query_length: int, *, block: int = 128) -> Visible:
    """Text that looks at images: image n, `tokens` keys long, is seen by the rows from intervals[n][0] up to, but not
    including, intervals[n][1]. Flamingo (Alayrac et al. 2022). `query_length`: of the text."""
    pairs = [counts("intervals", pair, 0) for pair in listed(intervals) or [intervals]]
    if any(len(pair) != 2 for pair in pairs):
        raise wrong("intervals", "pairs [begin, end)", shown(intervals), "Pass one pair an image.", "gallery")
    ends, n = mx.array(np.array(pairs, np.int32)), count("tokens", tokens)
    before = len(pairs) * n - count("query_length", query_length)  # a row's position is the row + Lk - Lq
    return Visible(
        f"q - before >= ends[k / {n}][0] && q - before < ends[k / {n}][1]", ends=ends, before=before, block=block
    )


def draft_tree(parents: Sequence[int], context: int, *, block: int = 128) -> Visible:
    """Drafts as a tree behind `context` accepted tokens: each sees the context, its ancestors and itself. parents[n]:
    the index of draft n's parent, -1 for a root. SpecInfer (Miao et al. 2024)."""
    parents, context = counts("parents", parents, -1), count("context", context, 0)
    sees = np.eye(len(parents), dtype=bool)
    for n, parent in enumerate(parents):
        if not -1 <= parent < n:
            raise wrong("parents", "parents before their children, -1 for roots", parent, "Sort.", "gallery.draft_tree")
        sees[n] |= sees[parent] if parent >= 0 else False
    text = "k < context ? k <= q : tree[q - context][k - context]"
    return Visible(text, tree=mx.array(sees), context=context, block=block)
