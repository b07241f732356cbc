"""The commands of `python -m mlx_flash`."""
