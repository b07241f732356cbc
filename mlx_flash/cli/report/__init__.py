"""`check --report`: what this machine makes of the kernels, as one block of Markdown for the tracker."""

from .report import report

__all__ = ["report"]
