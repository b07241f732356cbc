"""The demo: trains a small byte-level transformer on real text with mlx_flash.attention, then with MLX's attention.

Seed, data and steps are the same, so the two loss curves must agree. Everything it prints comes from the run.
"""

from ...common.errors import need


def demo(arguments) -> int:
    """Runs the demo with the command line's arguments and returns its exit status."""
    for module in ("rich.console", "matplotlib"):
        need(module, "demo")
    from .command import demo as run

    return run(arguments)
