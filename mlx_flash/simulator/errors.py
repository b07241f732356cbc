"""What the simulator raises."""


class SimulatorError(RuntimeError):
    """A kernel did what a GPU would silently do wrong; `reports` lists every finding."""

    def __init__(self, message: str, reports=()):
        super().__init__(message)
        self.reports = tuple(reports)


class CompileError(RuntimeError):
    """The text is not valid Metal; the message names the line of the Metal text."""


class ToolchainError(RuntimeError):
    """No compiler that can build kernels was found."""
