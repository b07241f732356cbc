"""The demo: trains a small byte-level transformer on real text through mlx_flash.attention, then through MLX's.

Same seed, same data, same steps: the two loss curves must agree. Everything shown comes from the run.
"""

from ...errors import need


def demo(arguments) -> int:
    """Runs the demo with the command line's arguments and returns its exit status."""
    for module in ("rich.console", "matplotlib"):
        need(module, "demo")
    from .command import demo as run

    return run(arguments)
