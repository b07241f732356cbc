"""What attention has to know of MLX's function transformations, and MLX does not tell.

MLX maps and exports the operations inside a custom function before it asks the function itself, and a Metal kernel can
be neither mapped nor, inside a custom function, exported. So while a function is traced for mx.vmap, attention leaves a
stand-in: a custom function with no operations inside, whose rule runs the kernels on the folded arrays. A trace cannot
be told from any other from within; that is why importing mlx_flash wraps mx.vmap, mx.jvp, mx.checkpoint,
mx.export_function and mx.exporter. What they do for everything else stays as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map


class _Trace(threading.local):
    """Of the trace this thread is in. `witness`: an array that is mapped, None outside mx.vmap. `bare`: no custom
    functions may remain in the graph, as in an export. `forward_mode`: the trace is one of mx.jvp. `called`,
    `differentiated`: whether attention, or its gradient, was asked for."""

    witness: mx.array | None = None
    bare = False
    forward_mode = False
    called = False
    differentiated = False


trace = _Trace()


@contextmanager
def _set(**facts) -> Iterator[None]:
    before = {name: getattr(trace, name) for name in facts}
    vars(trace).update(facts)
    try:
        yield
    finally:
        vars(trace).update(before)


def _leaves(tree) -> list[mx.array]:
    return [leaf for _, leaf in tree_flatten(tree) if isinstance(leaf, mx.array)]


def _mapped_leaf(outside: tuple, inside: tuple) -> mx.array | None:
    """A mapped array as the traced function sees it: one axis fewer. Gradients do not flow to it as a witness."""
    pairs = zip(_leaves(outside), _leaves(inside))
    found = next((inner for outer, inner in pairs if inner.ndim != outer.ndim), None)
    return None if found is None else mx.stop_gradient(found)


def _vmap(fun: Callable, in_axes=0, out_axes=0) -> Callable:
    _built_in["vmap"](fun, in_axes, out_axes)  # refuses what it refuses at once

    def mapped(*args):
        def traced(*inside):
            with _set(witness=_mapped_leaf(args, inside)):
                return fun(*inside)

        return _built_in["vmap"](traced, in_axes, out_axes)(*args)

    return mapped


def _jvp(*args, **kwargs):
    with _set(forward_mode=True):
        return _built_in["jvp"](*args, **kwargs)


def _checkpoint(fun: Callable) -> Callable:
    """Inside mx.vmap the function itself: MLX maps a checkpoint so too, but traces the function anew, out of sight."""
    built_in = _built_in["checkpoint"](fun)

    def checkpointed(*args, **kwargs):
        return (built_in if trace.witness is None else fun)(*args, **kwargs)

    return checkpointed


def _bare(fun: Callable) -> Callable:
    """The function as a graph without custom functions: those that hold a gradient are mapped away, over one entry."""

    def exported(*args, **kwargs):
        with _set(called=False, differentiated=False):
            outputs = fun(*args, **kwargs)
            called, differentiated = trace.called, trace.differentiated
        if not called:
            return outputs
        with _set(bare=True):
            if not differentiated:
                return fun(*args, **kwargs)
            outputs = _vmap(lambda _: fun(*args, **kwargs))(mx.zeros((1,)))
        return tree_map(lambda array: array.squeeze(0), outputs)

    return exported


def _export_function(file_or_callback, fun, *args, **kwargs):
    return _built_in["export_function"](file_or_callback, _bare(fun), *args, **kwargs)


def _exporter(file, fun, **kwargs):
    return _built_in["exporter"](file, _bare(fun), **kwargs)


_WRAPPERS = {
    "vmap": _vmap, "jvp": _jvp, "checkpoint": _checkpoint, "export_function": _export_function, "exporter": _exporter,
}  # fmt: skip
_built_in = {name: getattr(mx, name) for name in _WRAPPERS}


def install() -> None:
    """Puts the wrappers in the place of MLX's functions."""
    for name, wrapper in _WRAPPERS.items():
        setattr(mx, name, wraps(_built_in[name])(wrapper))
