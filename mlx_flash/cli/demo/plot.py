"""The two loss curves as a PNG, and where it may go."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ...common.errors import CommandError, need

NAME = "mlx_flash_demo.png"
TITLE = "mlx_flash demo"  # stored in the file, so that a later run recognises its own plot
SIGNATURE = b"\x89PNG\r\n\x1a\n"
OURS, THEIRS, INK = "#1f6fb4", "#e07b1a", "#444444"


def destination(out: str) -> Path:
    """The file to write; its folder is created if missing. Raises CommandError rather than overwrite another file."""
    path = Path(out)
    try:
        if path.suffix.lower() != ".png" or path.is_dir():
            path = path / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            foreign = path.exists() and not _ours(path)
    except OSError as error:
        raise CommandError(
            f"--out {out}: cannot be written ({error.strerror}). Name a PNG file or a folder you may write to."
        ) from error
    if foreign:
        raise CommandError(f"--out {path}: exists and is not a plot of this demo. Name another file.")
    return path


def _ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(1024)
    return start.startswith(SIGNATURE) and TITLE.encode() in start


def save(path: Path, outcome, backend: str, compared: int) -> None:
    """Draws both curves over the panel of their difference."""
    matplotlib = need("matplotlib", "demo")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    steps = range(1, len(outcome.losses) + 1)
    figure = Figure(figsize=(8, 5.6), dpi=150, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    top.plot(steps, outcome.expected, color=THEIRS, lw=5, alpha=0.45, label="mx.fast.scaled_dot_product_attention")
    top.plot(steps, outcome.losses, color=OURS, lw=1.8, marker="o", ms=3, label=f"mlx_flash.attention ({backend})")
    top.set_ylabel("loss (nats per byte)")
    top.set_title("One model trained twice: same seed, same text, two attentions", loc="left", fontsize=12)
    top.legend(frameon=False)
    _draw_difference(bottom, steps, outcome, compared)
    for panel in (top, bottom):
        panel.grid(color="#e4e4e4", lw=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=INK)
    try:
        figure.savefig(path, metadata={"Title": TITLE})
    except OSError as error:
        raise CommandError(f"--out {path}: cannot be written ({error.strerror}). Name another file.") from error


def _draw_difference(panel, steps, outcome, compared: int) -> None:
    from matplotlib.ticker import MaxNLocator

    floor = 1e-8  # equal losses are drawn here, because zero has no logarithm
    difference = [abs(a - b) for a, b in zip(outcome.losses, outcome.expected)]
    unequal = [(step, value) for step, value in zip(steps, difference) if value > 0]
    equal = [step for step, value in zip(steps, difference) if value == 0]
    panel.set_yscale("log")
    panel.vlines([step for step, _ in unequal], floor, [value for _, value in unequal], color=OURS, lw=1.5)
    panel.plot(*zip(*unequal) if unequal else ((), ()), color=OURS, ls="none", marker="o", ms=4)
    panel.plot(equal, [floor] * len(equal), color=OURS, ls="none", marker="o", ms=4, mfc="white", label="equal")
    if equal:
        panel.legend(frameon=False, loc="upper right", fontsize=9, handletextpad=0)
    panel.axhline(outcome.limit, color="#b22222", lw=1.2, ls="--")
    panel.annotate(
        f"limit {outcome.limit:g} over {min(compared, len(steps))} steps", (0.01, outcome.limit),
        xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", color="#b22222", fontsize=9,
    )  # fmt: skip
    panel.set_ylim(floor / 2, max(30 * outcome.limit, *difference))
    panel.set_ylabel("difference")
    panel.set_xlabel("step")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
