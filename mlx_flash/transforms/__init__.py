"""MLX's function transformations around attention: maps, exports and derivatives.

A function cannot find out which transformation of MLX traces it, so mx.vmap and mx.export_function cannot serve a
function that calls attention. `vmap`, `export_function` and `exporter` can, and are otherwise MLX's own. Where other
code calls MLX's functions, put these in their place: for a block by ``with installed(): ...``, or from `install` to
`uninstall`. ``mlx_flash.patch()`` does so for as long as it is active.
"""

from .wrappers import export_function, exporter, in_place, vmap

__all__ = ["export_function", "exporter", "install", "installed", "uninstall", "vmap"]


def installed():
    """Context manager: mx.vmap, mx.checkpoint, mx.export_function and mx.exporter serve attention inside the block.

    mx.grad, mx.value_and_grad, mx.vjp and mx.jvp are replaced too, to count nested derivatives. Modules that hold these
    functions by name get the new ones. Leaving the outermost block restores everything. The wrappers hold for all
    threads.
    """
    return in_place(holders=True)


_open: list = []  # holds the block that `install` has opened


def install() -> None:
    """`installed` without a block, until `uninstall`::

        install()
        outs = mx.vmap(lambda one: attention(one, k, v))(mx.stack([q, q]))
        uninstall()

    A second call does nothing.
    """
    if not _open:
        block = installed()
        block.__enter__()
        _open.append(block)


def uninstall() -> None:
    """Reverts `install`. Without one it does nothing."""
    if _open:
        _open.pop().__exit__(None, None, None)
