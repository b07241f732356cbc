"""The demo: trains a small byte-level transformer on real text through mlx_flash.attention, then through MLX's.

Same seed, same data, same steps: the two loss curves must agree. Everything shown comes from the run.
"""

from .command import demo

__all__ = ["demo"]
