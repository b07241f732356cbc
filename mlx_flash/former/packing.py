"""The former name of `mlx_flash.sequences`, for code that imports it."""

from mlx_flash.sequences import merge as merge
from mlx_flash.sequences import segments as segments
