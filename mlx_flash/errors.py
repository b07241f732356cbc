"""The one error class of its own that mlx_flash raises; wrong arguments are plain ValueErrors."""


class UnsupportedProblem(ValueError):
    """A correct request that the chosen backend cannot serve. The message says why and what to do."""
