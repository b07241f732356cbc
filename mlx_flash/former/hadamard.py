"""The former name of `mlx_flash.rotations`, for code that imports it."""

from mlx_flash.rotations import Balance as Balance
from mlx_flash.rotations import Rotation as Rotation
