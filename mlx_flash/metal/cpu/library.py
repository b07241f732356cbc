"""MetalLibrary: a whole Metal source, as for Apple's compiler, with includes, entry points and function constants."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..frontend import constants
from ..frontend.errors import CompileError, ToolchainError, quoted, refused, undefined
from ..frontend.language import prefix
from ..frontend.text import beyond_ascii
from ..frontend.translate import translate
from ..frontend.translation import Parameter
from . import buffers, compiler, settings
from .dispatch import BuiltKernel, check_grid, check_threads, new_launch, run_bound
from .launch import DamagedError, missing_function
from .preprocess import preprocess
from .profile import record

_PRELUDE = "all.h"
# Text that is included after the translation only, see include/metal_tensor. The pragma survives the preprocessor.
_LATE = ("#pragma msl_tensors\n", "#include <shim/tensor_ops.h>\n")


class MetalLibrary:
    """A Metal source. `kernel` returns one of its kernels by host name, or by function name if it is not a template.

    `kernel` also instantiates a template: `kernel("scale<float, 4>")`.

    source: the text; it may include Metal's own headers and files below `include_dirs`.
    language: the version of the Metal Shading Language; the default is the current one, see `language`.
    """

    def __init__(
        self, source: str, include_dirs: Sequence[str | Path] = (), language: str | None = None, name: str = "library"
    ):
        if not isinstance(source, str):
            raise TypeError(f"The source of a library must be a string of Metal, not {type(source).__name__}.")
        self.name, self.language = name, language or settings.current_language()
        self.text, self.origin = preprocess(beyond_ascii(source), include_dirs, self.language)
        with self._named(name):
            self.translation = translate(self.text, float(self.language))
        self.translation.text = self.translation.text.replace(*_LATE)
        self._kernels: dict = {}

    @property
    def kernel_names(self) -> list[str]:
        """Host names of the instantiated kernels, and names of the kernels that are not templates."""
        hidden = self.translation.templates | self.translation.renamed
        plain = [name for name in self.translation.kernels if name not in hidden]
        return [*self.translation.instances, *plain]

    def kernel(self, name: str, constants: Mapping | None = None) -> "LibraryKernel":
        """The kernel `name` with values for its function constants, which are given by index or by name."""
        given = {str(key): value for key, value in (constants or {}).items()}
        key = (name, tuple(sorted(given.items())))
        if key not in self._kernels:
            if name not in self.kernel_names and self.translation.function(name) not in self._open_templates(name):
                raise ValueError(
                    f"There is no kernel '{name}' in '{self.name}'; there are {', '.join(self.kernel_names) or 'none'}."
                )
            self._kernels[key] = LibraryKernel(self, name, given)
        return self._kernels[key]

    def _open_templates(self, name: str) -> set:
        return self.translation.templates if name.endswith(">") else set()

    def check(self, names: Sequence[str] | None = None):
        """Compiles without running: the text, and the kernels `names` (by default all) with everything they
        instantiate."""
        chosen = self.kernel_names if names is None else names
        calls = [f"void msl_use_{i}() {{ {self.translation.call(name)}; }}" for i, name in enumerate(chosen)]
        entry = "".join(map(self.translation.within, chosen, calls))
        text = prefix(self.language) + constants.specialise(self.translation.text, self.translation.constants, {})
        with self._named(self.name):
            compiler.check(text, entry, _PRELUDE)

    def _named(self, name: str) -> "_InFiles":
        return _InFiles(self, name)


class _InFiles:
    """Turns a CompileError inside the block into one that names the files that the text was assembled from."""

    def __init__(self, library: MetalLibrary, name: str):
        self.library, self.name = library, name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, CompileError):
            message = self.library.origin.rewrite(quoted(str(error), self.library.text))
            raise CompileError(refused(f"'{self.name}'", message)) from None


class LibraryKernel:
    """One entry point of a MetalLibrary with its function constants set; it is called with buffers and a grid."""

    def __init__(self, library: MetalLibrary, name: str, values: Mapping):
        self.library, self.name = library, name
        translation = library.translation
        self._text = prefix(library.language) + constants.specialise(translation.text, translation.constants, values)
        self._entry = translation.entry(name)
        parameters = translation.kernels[translation.function(name)]
        self.buffers = [p for p in parameters if p.attribute == "buffer"]
        self.threadgroups = [p for p in parameters if p.attribute == "threadgroup"]
        indices = translation.constants
        absent = {n for n, index in indices.items() if not constants.lookup(values, n, index)}
        self._optional = {p.index for p in self.buffers if p.condition in absent}
        self._built: dict = {}

    def __call__(
        self,
        arguments: Mapping | Sequence,
        grid: Sequence[int],
        threadgroup: Sequence[int],
        threadgroup_memory: Mapping[int, int] | None = None,
    ) -> list[mx.array]:
        """Runs `grid` threads in groups of `threadgroup`; returns the new buffers the kernel wrote, by index.

        arguments: index of a buffer -> value, or the values in order. A value is an mx.array, a numpy array or scalar
            of any structure, or bytes; where the kernel writes it is a pair (shape, dtype), a new buffer, or a numpy
            array, which is written in place. None leaves a buffer without memory; the kernel must not touch it.
        threadgroup_memory: n -> bytes of the parameter [[threadgroup(n)]].
        """
        check_grid(grid, threadgroup)
        given = dict(arguments) if isinstance(arguments, Mapping) else dict(enumerate(arguments))
        bindings, made = [], []
        for parameter in self.buffers:
            if parameter.index not in given and parameter.index in self._optional:
                continue
            if parameter.index not in given:
                raise ValueError(
                    f"Kernel '{self.name}' needs buffer {parameter.index} ('{parameter.name}'); "
                    "pass None to leave it unbound."
                )
            value = given.pop(parameter.index)
            array, dtype = _memory(value, parameter, self.name)
            bindings.append((parameter.index, array, parameter.writable, dtype is None))
            if dtype is not None:
                made.append((parameter.index, array, dtype))
        if given:
            raise ValueError(f"Kernel '{self.name}' has no buffer {', '.join(map(str, given))}.")
        built = self._build()
        check_threads(threadgroup, built.max_threads)
        launch = new_launch(grid, threadgroup)
        for parameter in self.threadgroups:
            size = (threadgroup_memory or {}).get(parameter.index)
            if not size:
                raise ValueError(
                    f"threadgroup_memory has no size for [[threadgroup({parameter.index})]] '{parameter.name}'."
                )
            launch.variable_size[parameter.variable] = size
        run_bound(built, launch, bindings)
        return [buffers.to_mlx(array, dtype) for _, array, dtype in sorted(made, key=lambda made: made[0])]

    def _build(self) -> BuiltKernel:
        mode = settings.current_mode()
        key = (mode, record.counting())
        if key not in self._built:
            with self.library._named(self.name):
                self._built[key] = self._loaded(*key)
        return self._built[key]

    def _loaded(self, *key) -> BuiltKernel:
        try:
            return _LibraryBuilt(self, self._compiled(*key), lambda: self._compiled(*key, lines=True))
        except DamagedError:
            return _LibraryBuilt(self, self._compiled(*key), lambda: self._compiled(*key, lines=True))

    def _compiled(self, mode: str, count: bool, lines: bool = False) -> Path:
        return compiler.build(self._text, self._entry, _PRELUDE, mode == "check", count, lines)


class _LibraryBuilt(BuiltKernel):
    """Makes reports name files of the source instead of lines of the preprocessed text."""

    def __init__(self, kernel: LibraryKernel, path: Path, with_lines: Callable[[], Path]):
        translation = kernel.library.translation
        names = {p.index: p.name for p in kernel.buffers}
        names = [names.get(index, f"buffer {index}") for index in range(max(names, default=-1) + 1)]
        try:
            variables = translation.variable_names(kernel.name)
            super().__init__(kernel.name, kernel.library.text, path, names, variables, with_lines)
        except DamagedError:
            raise
        except ToolchainError as error:
            missing = str(error.__cause__)
            unset = [name for name in translation.constants if missing.endswith(f"undefined symbol: {name}")]
            if function := missing_function(error):
                raise CompileError(undefined(function)) from None
            if not unset:
                raise
            path.unlink(missing_ok=True)
            raise ValueError(
                f"Kernel '{kernel.name}' uses the function constant '{unset[0]}', which has no value."
            ) from None
        self.origin = kernel.library.origin

    def line(self, number: int) -> str:
        """A line of the preprocessed text, with its file and line in the source."""
        return f"{super().line(number)} ({self.origin.name(number)})"


def _memory(value, parameter: Parameter, kernel: str) -> tuple[np.ndarray, mx.Dtype | None]:
    """(memory of an argument, its dtype if it is a new buffer)."""
    what = f"buffer {parameter.index} ('{parameter.name}') of kernel '{kernel}'"
    if value is None:
        return np.empty(0, np.uint8), None
    if parameter.writable:
        if isinstance(value, np.ndarray):
            return value, None
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], mx.Dtype):
            return buffers.allocate(value[0], value[1], None), value[1]
        raise TypeError(
            f"The kernel may write {what}: pass a numpy array or a pair (shape, dtype), not {type(value).__name__}."
        )
    if isinstance(value, mx.array):
        mx.eval(value)
        return buffers.view(value), None
    if isinstance(value, (bytes, bytearray)):
        return np.frombuffer(value, np.uint8), None
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value), None
    raise TypeError(f"Pass {what} as an mx.array, a numpy array or scalar, or bytes, not {type(value).__name__}.")
