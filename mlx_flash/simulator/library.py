"""MetalLibrary: a whole Metal source, as one would give it to Apple's compiler, with includes, entry points and function constants."""

import ctypes
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from . import buffers, compiler, settings
from .errors import CompileError
from .kernel import BuiltKernel, check_grid, new_launch, run_bound
from .preprocess import preprocess
from .translate import Translation, translate

_PRELUDE = "all.h"


class MetalLibrary:
    """A Metal source. Its kernels are found by host name or function name with `kernel`.

    source: the text; it may include Metal's own headers and files below `include_dirs`.
    language: the version of the Metal Shading Language as text, "3.1".
    """

    def __init__(self, source: str, include_dirs: Sequence[str | Path] = (), language: str = "3.1", name: str = "library"):
        self.name = name
        self.text, self.origin = preprocess(source, include_dirs, language)
        try:
            self.translation = translate(self.text)
        except CompileError as error:
            raise CompileError(f"'{name}' is not valid Metal:\n{self._with_origin(error)}") from None
        self._kernels: dict = {}

    @property
    def kernel_names(self) -> list[str]:
        """Host names of the instantiated kernels, and names of those that are no templates."""
        return [*self.translation.instances, *(n for n in self.translation.kernels if n not in self.translation.templates)]

    def kernel(self, name: str, constants: Mapping | None = None) -> "LibraryKernel":
        """The kernel `name` with values for its function constants, given by index or by name."""
        given = {str(key): value for key, value in (constants or {}).items()}
        key = (name, tuple(sorted(given.items())))
        if key not in self._kernels:
            if name not in self.kernel_names:
                raise ValueError(f"There is no kernel '{name}' in '{self.name}'; there are {', '.join(self.kernel_names) or 'none'}.")
            self._kernels[key] = LibraryKernel(self, name, given)
        return self._kernels[key]

    def check(self, names: Sequence[str] | None = None):
        """Compiles the source without running it: the text, and every kernel of `names` with all that it instantiates."""
        entries = "\n".join(
            f"void msl_use_{i}() {{ {self.translation.call(name)}; }}" for i, name in enumerate(names if names is not None else self.kernel_names)
        )
        try:
            compiler.check(self.translation.specialised({}), entries, _PRELUDE)
        except CompileError as error:
            raise CompileError(f"'{self.name}' is not valid Metal:\n{self._with_origin(error)}") from None

    def _with_origin(self, error: CompileError) -> str:
        return self.origin.rewrite(str(error))


class LibraryKernel:
    """One entry point with its function constants set."""

    def __init__(self, library: MetalLibrary, name: str, constants: Mapping):
        self.library, self.name = library, name
        translation = library.translation
        self.text = translation.specialised(constants)
        self.entry = translation.entry(name)
        self.parameters = [p for p in translation.parameters(name) if p.attribute in ("buffer", "threadgroup")]
        absent = {n for n, c in translation.constants.items() if _value(constants, n, c) in (None, False, 0)}
        self.optional = {p.index for p in self.parameters if p.condition and p.condition in absent}
        self._built: dict = {}

    def __call__(
        self,
        arguments: Mapping | Sequence,
        grid: Sequence[int],
        threadgroup: Sequence[int],
        threadgroup_memory: Mapping[int, int] | None = None,
    ) -> list[mx.array]:
        """Runs the kernel over `grid` threads; returns what it wrote to new buffers, in order of their indices.

        arguments: buffer index -> value, or the values in order. A value is an mx.array, a numpy array or scalar (of any structure),
            bytes, or for a buffer the kernel writes a pair (shape, dtype), which makes a new buffer, or a numpy array, which is
            written in place.
        threadgroup_memory: bytes of every [[threadgroup(n)]] parameter.
        """
        check_grid(grid, threadgroup)
        given = dict(arguments) if isinstance(arguments, Mapping) else dict(enumerate(arguments))
        mode = settings.current_mode()
        launch = new_launch(grid, threadgroup, mode)
        bindings, made = [], []
        for parameter in self.parameters:
            if parameter.attribute == "threadgroup":
                size = (threadgroup_memory or {}).get(parameter.index)
                if size is None:
                    raise ValueError(f"threadgroup_memory has no size for [[threadgroup({parameter.index})]] '{parameter.name}'.")
                launch.variable_size[self.library.translation.variable_of(self.name, parameter)] = size
                continue
            value = given.pop(parameter.index, None)
            if value is None:
                if parameter.index not in self.optional:
                    raise ValueError(f"Kernel '{self.name}' needs buffer {parameter.index} ('{parameter.name}').")
                continue
            array, dtype = _array(value, parameter, self.name)
            bindings.append((parameter.index, array, parameter.writable, dtype is None))
            if dtype is not None:
                made.append((array, dtype))
        if given:
            raise ValueError(f"Kernel '{self.name}' has no buffer {', '.join(map(str, given))}.")
        run_bound(self._build(mode), launch, bindings, mode)
        return [buffers.to_mlx(array, dtype) for array, dtype in made]

    def _build(self, mode: str) -> "BuiltKernel":
        from .profile import record

        key = (mode, record.counting())
        if key not in self._built:
            names = {p.index: p.name for p in self.parameters if p.attribute == "buffer"}
            names = [names.get(i, f"buffer {i}") for i in range(max(names, default=-1) + 1)]
            try:
                path = compiler.build(self.text, self.entry, _PRELUDE, mode == "check", record.counting())
            except CompileError as error:
                raise CompileError(f"Kernel '{self.name}' is not valid Metal:\n{self.library._with_origin(error)}") from None
            self._built[key] = _LibraryBuilt(self, path, names)
        return self._built[key]
