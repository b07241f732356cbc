"""MLX's function transformations around attention: maps, exports and derivatives.

A trace of MLX cannot be told from any other from within, so mx.vmap and mx.export_function cannot serve a function that
calls attention. `vmap`, `export_function` and `exporter` can; they are otherwise MLX's own. Where other people's code
calls MLX's functions, put these in their place: for a block with ``with installed(): ...``, or from `install` to
`uninstall`. ``mlx_flash.patch()`` does so for as long as it holds.
"""

from .wrappers import export_function, exporter, in_place, vmap

__all__ = ["export_function", "exporter", "install", "installed", "uninstall", "vmap"]


def installed():
    """Context manager: mx.vmap, mx.checkpoint, mx.export_function and mx.exporter serve attention inside the block.

    Also replaced, to count what is being differentiated: mx.grad, mx.value_and_grad, mx.vjp and mx.jvp. Modules that
    hold these functions by name get the new ones too. On leaving the outermost block everything is as it was. The
    wrappers hold for all threads.
    """
    return in_place(holders=True)


_open: list = []  # the block that `install` opened, if any


def install() -> None:
    """`installed` without a block: holds until `uninstall`. A second call does nothing."""
    if not _open:
        block = installed()
        block.__enter__()
        _open.append(block)


def uninstall() -> None:
    """Takes `install` back. Without one it does nothing."""
    if _open:
        _open.pop().__exit__(None, None, None)
