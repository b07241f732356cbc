"""The former name of `mlx_flash.sequences`, for code that imports it."""

from .sequences import merge as merge
from .sequences import segments as segments
