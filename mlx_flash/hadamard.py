"""The former name of `mlx_flash.rotations`, for code that imports it."""

from .rotations import Balance as Balance
from .rotations import Rotation as Rotation
