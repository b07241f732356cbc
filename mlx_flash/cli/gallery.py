"""Draws every score and mask of the gallery on a small problem, with the share of blocks that kernels visit."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..common.errors import CommandError, need
from ..gallery import masks, scores
from ..problem.formulas.evaluate import evaluate
from ..problem.formulas.score import Score, Visible

SIDE, BLOCK = 256, 32
TABLE = mx.sin(mx.arange(33)[:, None] * mx.array([0.4]))
SLOPE = mx.array([0.03])


def examples() -> dict[str, tuple[Score | Visible, int, int]]:
    """name: (the text, queries, keys)"""
    grid = (16, 16)
    square = {
        "causal": masks.causal(block=BLOCK),
        "window": masks.window(60, 20, block=BLOCK),
        "dilated_window": masks.dilated_window(120, 4, block=BLOCK),
        "sink_window": masks.sink_window(40, 8, block=BLOCK),
        "local_global": masks.local_global(20, 16, block=BLOCK),
        "strided": masks.strided(16, block=BLOCK),
        "prefix": masks.prefix(90, block=BLOCK),
        "document": masks.document([70, 40, 100, 46], block=BLOCK),
        "axial": masks.axial(*grid, block=BLOCK),
        "neighbourhood_1d": masks.neighbourhood(SIDE, 41, block=BLOCK),
        "neighbourhood_2d": masks.neighbourhood(grid, 5, block=BLOCK),
        "neighbourhood_2d_dilated": masks.neighbourhood(grid, 5, 3, block=BLOCK),
        "neighbourhood_3d": masks.neighbourhood((4, 8, 8), (3, 3, 3), block=BLOCK),
        "sliding_tiles": masks.sliding_tiles(grid, (8, 8), (4, 4), block=BLOCK),
        "swin_window": masks.swin_window(grid, 4, block=BLOCK),
        "swin_window_shifted": masks.swin_window(grid, 4, 2, block=BLOCK),
        "video": masks.video(8, 32, block=BLOCK),
        "spatial_head": masks.spatial_head(24, 2, 16, block=BLOCK),
        "temporal_head": masks.temporal_head(24, 3, 16, block=BLOCK),
        "alibi": scores.alibi(SLOPE),
        "offset_bias": scores.offset_bias(TABLE),
        "t5_bias": scores.t5_bias(TABLE[:32]),
        "t5_bias_bidirectional": scores.t5_bias(TABLE[:32], bidirectional=True),
        "swin_bias": scores.swin_bias(mx.sin(mx.arange(31 * 31) * 0.05)[:, None], grid),
        "pair_bias": scores.pair_bias(mx.sin(mx.arange(SIDE)[:, None] * mx.arange(SIDE) * 0.002)),
        "position_temperature": scores.position_temperature(1 + mx.arange(SIDE) / SIDE),
        "log_length": scores.log_length(64),
        "distance_penalty": scores.distance_penalty(0.1, 0.5),
        "kerple": scores.kerple(mx.array([0.5]), mx.array([0.2])),
        "softcap": scores.softcap(2.0),
    }
    found = {name: (text, SIDE, SIDE) for name, text in square.items()}
    tree = [-1, 0, 0, 1, 1, 2, 2, 3, 4, 5]
    found["draft_tree"] = masks.draft_tree(tree, 54, block=BLOCK), len(tree), 64
    found["image_intervals"] = masks.image_intervals([[0, 70], [20, 70], [70, 120]], 32, 120, block=BLOCK), 120, 96
    return found


def scores_of(score: Score, queries: int, keys: int) -> mx.array:
    """The scores [Lq, Lk] that a function makes of plain ones, in the first head; for softcap, of -6 to 6."""
    plain = mx.ones((queries, keys))
    if "tanh" in score.formula.text:
        plain = mx.broadcast_to(mx.linspace(-6, 6, keys), (queries, keys))
    places = {
        "s": plain, "b": 0, "h": 0, "q": mx.arange(queries)[:, None] + keys - queries, "k": mx.arange(keys),
        "segment": 0,
    }  # fmt: skip
    return mx.broadcast_to(
        evaluate(score.formula.body, {**score.formula.values, **score.arrays, **places}), plain.shape
    )


def draw(out: str) -> int:
    """Writes OUT/NAME.png for every example, and prints what each visits."""
    figures = need("matplotlib.figure", "gallery")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {out}: {error.strerror or error}") from None
    for name, (text, queries, keys) in examples().items():
        path = folder / f"{name}.png"
        if isinstance(text, Visible):
            mask = text.block_mask(queries, keys)
            mask.plot(str(path))
            seen = float(mask.visible().mean())
            print(f"{path}: {mask.visited:.1%} of the blocks of {text.block} visited, {seen:.1%} of the pairs seen")
            continue
        figure = figures.Figure(figsize=(5.4, 4.6), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(scores_of(text, queries, keys), cmap="RdBu_r", interpolation="nearest")
        axes.set(xlabel="key", ylabel="query", title=f"{name}, s = {'-6 to 6' if name == 'softcap' else 1}")
        figure.colorbar(image)
        figure.savefig(path, dpi=150)
        print(f"{path}: a score, drawn for one head")
    return 0
