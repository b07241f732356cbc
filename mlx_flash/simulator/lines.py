"""Turns addresses of loaded kernels into lines of their Metal text (filled in with the checks)."""

import functools


class LineTable:
    """Nothing known yet."""

    def line(self, pc: int, anchor) -> int:
        """The line of an address."""
        return 0


@functools.cache
def line_table(path) -> LineTable:
    """The table of one library."""
    return LineTable()
