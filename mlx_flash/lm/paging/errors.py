"""Errors of a pool of pages. Not ValueErrors, so that patch() raises them instead of calling the built-in function."""


class PagePoolError(RuntimeError):
    """A cache or a handle that was released or is out of date, or two threads inside one pool at the same time."""


class PagePoolFull(PagePoolError):
    """The pool has no room for more tokens. Nothing was written: release caches, or let fewer requests in."""
