"""Helpers for every other folder: errors, numbers as people give them, and undocumented behaviour of MLX."""
