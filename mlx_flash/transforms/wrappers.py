"""Wrappers of MLX's transformations that tell attention which of them trace.

MLX maps the operations inside a custom function before it asks the function for its rule, and a Metal kernel has no
rule. Nor can MLX export a custom function. So while a function is traced for a map, attention leaves a stand-in: a
custom function without operations inside, whose rule runs the kernels on the folded arrays. An export is traced as the
only entry of a map, so that the same rule removes the custom functions of differentiated calls from the graph.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from ..common.errors import UnsupportedProblem, wrong
from ..common.mlx_private import in_trace
from ..common.scalars import shown
from .replacement import Replacement, original, replaced
from .trace import ASKING, BUSY, GRADIENT, Alone, Export, changed, trace

NAMES = ("vmap", "checkpoint", "export_function", "exporter", "grad", "value_and_grad", "vjp", "jvp")
MLX = {name: original(getattr(mx, name)) for name in NAMES}


def _leaves(tree) -> list[mx.array]:
    return [leaf for _, leaf in tree_flatten(tree) if isinstance(leaf, mx.array)]


def _mapped_leaf(outside: tuple, inside: tuple) -> mx.array | None:
    """A mapped array as the traced function sees it, with one axis fewer and without gradients; None if none is
    mapped."""
    pairs = zip(_leaves(outside), _leaves(inside))
    found = next((inner for outer, inner in pairs if inner.ndim != outer.ndim), None)
    return None if found is None else mx.stop_gradient(found)


def _check_function(fun, function: str) -> None:
    if not callable(fun):
        raise wrong("fun", "a function of arrays", shown(fun), "Pass the function itself.", function)


def vmap(fun: Callable, in_axes=0, out_axes=0) -> Callable:
    """mx.vmap, for functions that call attention.

    While ``fun`` is traced, the wrappers take the place of MLX's functions, so that maps and checkpoints inside of it
    work too. Make checkpoints inside of ``fun``, or under ``mlx_flash.transforms.installed()``.

    Args:
        fun: a function of arrays, or of lists, tuples and dicts of arrays.
        in_axes, out_axes: the axis of each argument and of each result that is mapped, as in mx.vmap; None: not mapped.

    Returns:
        The mapped function, which takes its arguments by position.

    Raises:
        ValueError: `fun` is no function. TypeError: axes that mx.vmap does not take; keyword arguments of a call.
    """
    _check_function(fun, "vmap")
    MLX["vmap"](fun, in_axes, out_axes)  # so that wrong arguments raise here, as in mx.vmap

    def mapped(*args, **named):
        if named:
            raise TypeError("[mlx_flash.vmap] keyword arguments are not mapped, as in mx.vmap: pass them by position.")

        def traced(*inside):
            with changed(batched=_mapped_leaf(args, inside)), in_place():
                return fun(*inside)

        return MLX["vmap"](traced, in_axes, out_axes)(*args)

    return mapped


def _checkpoint(built_in: Callable) -> Callable:
    def checkpoint(fun: Callable) -> Callable:
        """mx.checkpoint; inside a map or an export the function itself, since MLX maps a checkpoint by tracing the
        function again, unseen by the wrappers, and cannot export one. Elsewhere the second trace counts the derivatives
        of the first."""

        def checkpointed(*args, **kwargs):
            if trace.batched is not None or trace.export is not None:
                return fun(*args, **kwargs)
            depths = {"gradients": trace.gradients, "forward_mode": trace.forward_mode}

            def again(*inside, **named):
                deepest = {name: max(depth, getattr(trace, name)) for name, depth in depths.items()}
                with changed(**deepest):
                    return fun(*inside, **named)

            return built_in(again)(*args, **kwargs)

        return checkpointed

    return checkpoint


def _exported(fun: Callable) -> Callable:
    """The function, traced as a graph without custom functions. Each trace calls the function once."""

    def traced_once(*args, **kwargs):
        export, outputs = Export(), None

        def traced(entry):
            nonlocal outputs
            export.entry = mx.stop_gradient(entry)
            with in_place():
                outputs = fun(*args, **kwargs)
            export.entry = None
            return [entry, *(_leaves(outputs) if export.differentiated else ())]

        try:
            with changed(export=export, batched=None, gradients=0, forward_mode=0):
                _, *mapped = MLX["vmap"](traced)(mx.zeros((1,)))
        except ValueError as error:
            # A transformation that MLX's own function made earlier is not seen, so the call left a kernel in the graph.
            if not export.met or not str(error).startswith("[Primitive::"):
                raise
            raise UnsupportedProblem(
                "[mlx_flash.export_function] fun: a derivative or map that was made outside of it cannot reach "
                f"attention inside of it ({error}). Export lambda *args: mx.grad(loss)(*args), or make it under "
                "`with mlx_flash.transforms.installed():`."
            ) from error
        if not export.differentiated:
            return outputs
        found = iter(mapped)
        return tree_map(lambda leaf: next(found).squeeze(0) if isinstance(leaf, mx.array) else leaf, outputs)

    return traced_once


def export_function(file_or_callback, fun: Callable, *args, **kwargs) -> None:
    """mx.export_function, for functions that call attention. The function runs once.

    On Linux the kernels of a Mac can be exported too: see `use_backend`.

    Args:
        file_or_callback: the name of the file to write, or a function that gets what would be written.
        fun: the function; args, kwargs: arrays like those that it will be called with, and shapeless, as in
            mx.export_function. Values of arrays do not matter.

    Raises:
        ValueError: a file or function that is none. UnsupportedProblem: shapeless=True, or a derivative that was made
            outside of `fun`.
    """
    _check_function(fun, "export_function")
    if not isinstance(file_or_callback, str) and not callable(file_or_callback):
        expected, remedy = "the name of a file, or a function", "Pass a path as text."
        raise wrong("file_or_callback", expected, shown(file_or_callback), remedy, "export_function")
    return MLX["export_function"](file_or_callback, _exported(fun), *args, **kwargs)


def exporter(file, fun: Callable, **kwargs):
    """mx.exporter, for functions that call attention: writes one file with a trace for each call::

        with exporter("attention.mlxfn", attention) as export:
            export(q, k, v)
            export(q[:, :, -1:], k, v)

    Args:
        file: the name of the file.
        fun: the function; kwargs: as in mx.exporter.

    Raises:
        ValueError: a file or function that is none.
    """
    _check_function(fun, "exporter")
    if not isinstance(file, str):
        raise wrong("file", "the name of a file", shown(file), "Pass a path as text.", "exporter")
    return MLX["exporter"](file, _exported(fun), **kwargs)


def _counted(name: str, built_in: Callable) -> Callable:
    """The derivative `built_in`, which counts itself in the trace while it traces its function. It costs 1 us in every
    step of a training."""
    depth, step = ("forward_mode", 0) if name == "jvp" else ("gradients", GRADIENT)
    returns = name in ("grad", "value_and_grad")  # a function, which traces when it is called
    entered, left = BUSY.append, BUSY.pop  # found once

    def derivative(fun, *args, **kwargs):
        def traced(*inside, **named):
            facts = trace.__dict__  # of this thread; vars(trace) takes longer
            before, situation = facts[depth], facts["situation"]
            entered(None)
            facts[depth], facts["situation"] = before + 1, situation + step
            try:
                return fun(*inside, **named) if named else fun(*inside)
            finally:
                facts[depth], facts["situation"] = before, situation
                left()

        fun_or_traced = traced if callable(fun) else fun
        if returns:
            made = built_in(fun_or_traced, *args, **kwargs)

            def gradient(*given, **named):
                return _alone(made, given, named) if trace.asks else made(*given, **named)

            return gradient
        if step and trace.asks:
            return _alone(built_in, (fun_or_traced, *args), kwargs)
        return built_in(fun_or_traced, *args, **kwargs) if kwargs else built_in(fun_or_traced, *args)

    return derivative


def _alone(gradient: Callable, args: tuple, kwargs: dict):
    """`gradient(*args, **kwargs)`, with `trace.alone` set if nothing else traces: calls in its function then leave out
    what refuses other transformations. One that the wrappers do not see, since it was made before they were in place,
    may trace inside of it and meet a kernel without rules. Then all is traced again, and nothing left out.
    """
    if in_trace():
        return gradient(*args, **kwargs)
    alone = trace.alone = Alone()
    try:
        return gradient(*args, **kwargs)
    except ValueError as error:
        if not alone.used or not str(error).startswith("[Primitive::"):
            raise
    finally:
        trace.alone = None
        trace.asks = ASKING if alone.used else trace.asks - 1
    return gradient(*args, **kwargs)


def wrapper(name: str, built_in: Callable) -> Callable:
    """The replacement of mx's function of that name. `built_in`: the function that it replaces."""
    if name in PUBLIC:
        return PUBLIC[name]
    if name == "checkpoint":
        return _checkpoint(built_in)
    return _counted(name, built_in)


PUBLIC = {"vmap": vmap, "export_function": export_function, "exporter": exporter}
REPLACEMENTS = [Replacement(mx, name, wrapper, own=name not in PUBLIC) for name in NAMES]


def in_place(holders: bool = False):
    """Puts the wrappers in place for a block. `holders`: also where modules hold MLX's functions by name."""
    return replaced(REPLACEMENTS, holders)
