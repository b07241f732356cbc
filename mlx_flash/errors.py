"""The one error class of its own that mlx_flash raises; wrong arguments are plain ValueErrors."""


class UnsupportedProblem(ValueError):
    """A correct request that the chosen backend cannot serve. The message says why and what to do."""


def wrong(argument: str, expected: str, got: object, remedy: str, function: str = "attention") -> ValueError:
    """The ValueError of one wrong argument: what was expected, what came, what to do."""
    return ValueError(f"[mlx_flash.{function}] {argument}: expected {expected}, got {got}. {remedy}")
