"""The picture of a BlockMask."""

from __future__ import annotations

import numpy as np

SHOWN = 1024  # elements a side: larger masks are drawn block by block


def plot(mask, path, batch: int, head: int):
    """See BlockMask.plot."""
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            '[mlx_flash.BlockMask] plot needs matplotlib: pip install "mlx-flash-attention[demo]"'
        ) from None
    states = np.minimum(mask.map[batch % mask.shape[0], head % mask.shape[1]], 2)
    rows, keys = mask.shape[2:]
    lines, columns = (blocks * mask.block for blocks in states.shape)  # the last blocks may reach past the end
    image = states.repeat(mask.block, 0).repeat(mask.block, 1)[:rows, :keys] if max(rows, keys) <= SHOWN else states
    if image is not states:
        image = np.where(image == 2, 2 + mask.visible(batch, head), image)
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axes = figure.subplots()
    colours = ["#f4f4f4", "#1f5fa8", "#cfe0f3", "#5b93d0"] if image is not states else ["#f4f4f4", "#1f5fa8", "#8fb7e3"]
    axes.imshow(
        image, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, interpolation="nearest",
        extent=(0, keys, rows, 0) if image is not states else (0, columns, lines, 0),
    )  # fmt: skip
    axes.set(xlim=(0, keys), ylim=(rows, 0))
    axes.set(xlabel="key", ylabel="query", title=f"{rows} x {keys}, blocks of {mask.block}: {mask.visited:.1%} visited")
    ticks = {"color": "#999999", "linewidth": 0.4}
    if max(states.shape) <= 64:
        for row in range(mask.block, rows, mask.block):
            axes.axhline(row, **ticks)
        for column in range(mask.block, keys, mask.block):
            axes.axvline(column, **ticks)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
