"""metal_kernel with the signature, checks and error messages of `mx.fast.metal_kernel`, run on the CPU."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...common.mlx_private import says_traced
from ..frontend.errors import CompileError, ToolchainError, TracedError, quoted, refused, undefined
from ..frontend.language import prefix
from ..frontend.signature import kernel_name, kernel_text, shape_facts
from ..frontend.translate import translate
from . import buffers, compiler, settings
from .dispatch import THREADGROUP_BYTES, BuiltKernel, check_grid, check_threads, new_launch, run_bound
from .launch import DamagedError, missing_function
from .profile import record

_TAG = "[metal_kernel]"
_built: dict = {}
_translated = lru_cache(maxsize=16)(translate)  # of texts that are built in several modes one after another


# The only effect of the math mode here is the macro that a kernel can test.
FAST_MATH = '#define __FAST_MATH__ 1\n#line 1 "metal"\n'


def _build(name, text, buffer_names, mode, count, fast_math=False) -> BuiltKernel:
    key = (text, mode, count, fast_math, settings.current_language())
    if key not in _built:
        remembered = compiler.recall(*key) if text.isascii() else None
        path, facts = remembered or _compile(name, *key)

        def with_lines() -> Path:
            return _compile(name, *key, lines=True)[0]

        more = buffer_names, facts["variables"], with_lines, facts["max_threads"]
        try:
            try:
                _built[key] = BuiltKernel(name, text, path, *more)
            except DamagedError:
                _built[key] = BuiltKernel(name, text, _compile(name, *key)[0], *more)
        except ToolchainError as error:
            if function := missing_function(error):
                raise CompileError(refused(f"{_TAG} Kernel '{name}'", undefined(function))) from None
            raise
    return _built[key]


def _compile(name, text, mode, count, fast_math, language, lines=False) -> tuple[Path, dict]:
    try:
        # A text with other characters is translated every time, so that each translation warns about them.
        translation = (_translated if text.isascii() else translate)(text, float(language))
        text_in_mode = prefix(language) + (FAST_MATH if fast_math else "") + translation.text
        path = compiler.build(text_in_mode, translation.entry(), "mlx.h", mode == "check", count, lines)
    except CompileError as error:
        raise CompileError(refused(f"{_TAG} Kernel '{name}'", quoted(str(error), text))) from None
    except OSError as error:
        raise ToolchainError(
            f"{_TAG} Kernel '{name}' cannot be built: {error}. If the folder of built kernels cannot be written, "
            "set MLX_FLASH_CACHE to another."
        ) from error
    facts = {"variables": translation.variable_names(), "max_threads": translation.max_threads}
    if not lines:
        compiler.remember(path, facts, text, mode, count, fast_math, language)
    return path, facts


class MetalKernel:
    """The kernel that metal_kernel returns; it is called with the same keywords as MLX's own."""

    def __init__(
        self, name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, compile_options
    ):
        for what, text in (("name", name), ("source", source), ("header", header)):
            if not isinstance(text, str):
                raise TypeError(f"{_TAG} `{what}` must be a string, not {type(text).__name__}.")
        for what, names in (("input_names", input_names), ("output_names", output_names)):
            if not isinstance(names, (list, tuple)) or not all(isinstance(one, str) for one in names):
                raise TypeError(f"{_TAG} `{what}` must be a list of strings, not {type(names).__name__}.")
        if not output_names:
            raise ValueError(f"{_TAG} Must specify at least one output.")
        _check_options(compile_options)
        self.name, self.source, self.header = name, source, header
        self.fast_math = (compile_options or {}).get("math_mode") == "fast"
        self.input_names, self.output_names = list(input_names), list(output_names)
        self.ensure_row_contiguous, self.atomic_outputs = ensure_row_contiguous, atomic_outputs
        self.partly_written: frozenset[str] = frozenset()  # outputs of which a kernel may leave elements unwritten
        self.threadgroup_bytes = THREADGROUP_BYTES  # that the GPU grants
        self.facts = shape_facts(self.input_names, source)
        self._texts: dict = {}

    def __call__(
        self,
        *,
        inputs,
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: list | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream=None,
    ) -> list[mx.array]:
        """Runs the kernel and returns its outputs."""
        arrays = [value if isinstance(value, mx.array) else mx.array(value) for value in inputs]
        for what, given, wanted in (
            ("inputs", arrays, self.input_names),
            ("output_shapes", output_shapes, self.output_names),
            ("output_dtypes", output_dtypes, self.output_names),
        ):
            if len(given) != len(wanted):
                raise ValueError(f"{_TAG} Expected `{what}` to have size {len(wanted)} but got size {len(given)}.\n")
        for _, value in template or ():
            if not isinstance(value, (bool, int, mx.Dtype)):
                raise ValueError(f"{_TAG} Invalid template argument. Must be `mlx.core.Dtype`, `int` or `bool`.")
        if _chosen_cpu(stream):
            raise ValueError(f"{_TAG} Only supports the GPU.")
        check_grid(grid, threadgroup)
        shapes = [tuple(shape) for shape in output_shapes]
        return self.launch(
            arrays, shapes, output_dtypes, grid, threadgroup, template or [], init_value, verbose, stream
        )

    def launch(self, arrays, shapes, dtypes, grid, threadgroup, template, init_value, verbose, stream):
        """Runs at once what the call has checked."""

        def run(*arrays):
            return self._run(arrays, shapes, dtypes, grid, threadgroup, template, init_value, verbose)

        return list(_without_gradient(run, arrays))

    def text(self, inputs, template, output_dtypes) -> tuple[str, list[str]]:
        """(the Metal text for inputs with these (dtype, ndim, size), the names of its buffers)."""
        small = tuple((d, min(n, 1), min(s, 8)) for d, n, s in inputs)
        key = (small, tuple((n, type(v), v) for n, v in template), tuple(output_dtypes))
        if key not in self._texts:
            function = kernel_name(self.name, template, inputs, output_dtypes)
            text = kernel_text(
                function,
                self.header,
                self.source,
                self.input_names,
                inputs,
                self.output_names,
                output_dtypes,
                template,
                self.atomic_outputs,
            )
            names = []
            for name, (_, ndim, _), facts in zip(self.input_names, inputs, self.facts):
                names.append(name)
                names += [
                    f"{name}_{what}" for wanted, what in zip(facts, ("shape", "strides", "ndim")) if wanted and ndim
                ]
            self._texts[key] = (text, names + self.output_names)
        return self._texts[key]

    def _run(self, arrays, shapes, dtypes, grid, threadgroup, template, init_value, verbose):
        _evaluate(arrays, self.name)
        text, names = self.text(tuple((a.dtype, a.ndim, a.size) for a in arrays), template, dtypes)
        if verbose:
            print(f"Generated source code for `{self.name}`:\n```\n{text}\n```")
        mode = settings.current_mode()
        kernel = _build(self.name, text, names, mode, record.counting(), self.fast_math)
        check_threads(threadgroup, kernel.max_threads)
        outputs = [buffers.allocate(shape, dtype, init_value) for shape, dtype in zip(shapes, dtypes)]
        bound = [
            *((memory, False, True) for memory in self._input_buffers(arrays)),
            *(
                (o, True, init_value is not None or name in self.partly_written)
                for name, o in zip(self.output_names, outputs)
            ),
        ]
        launch = new_launch(grid, threadgroup, self.threadgroup_bytes)
        run_bound(kernel, launch, [(index, *facts) for index, facts in enumerate(bound)])
        return [buffers.to_mlx(array, dtype) for array, dtype in zip(outputs, dtypes)]

    def _input_buffers(self, arrays):
        for array, (shape, strides, ndim) in zip(arrays, self.facts):
            memory = buffers.view(array)
            if self.ensure_row_contiguous and not buffers.row_contiguous(memory):
                memory = np.ascontiguousarray(memory)
            yield memory
            if array.ndim:
                if shape:
                    yield np.array(memory.shape, np.int32)
                if strides:
                    yield np.array([s // memory.itemsize for s in memory.strides], np.int64)
                if ndim:
                    yield np.array(array.ndim, np.int32)


def _chosen_cpu(stream) -> bool:
    """Whether the caller chose the CPU. On a machine without a GPU the default device stands for the GPU of a Mac."""
    device = mx.default_device()
    default = isinstance(stream, mx.Device) and stream == device
    default = default or (isinstance(stream, mx.Stream) and stream == mx.default_stream(device))
    return stream is not None and not default and "cpu" in str(stream)


def _check_options(options):
    if options is None:
        return
    if not isinstance(options, dict):
        raise ValueError(f"{_TAG} Expected `compile_options` to be a dict.")
    for key, value in options.items():
        if key != "math_mode":
            raise ValueError(f"{_TAG} Unknown compile option `{key}`.")
        if value not in ("safe", "relaxed", "fast"):
            raise ValueError(f"{_TAG} Expected math_mode to be 'safe', 'relaxed', or 'fast'.")


def _evaluate(arrays, name: str):
    try:
        mx.eval(*arrays)
    except ValueError as error:
        if not says_traced(error):
            raise
        raise TracedError(
            f"{_TAG} The simulator runs kernel '{name}' at once and so cannot be traced: "
            "call it outside mx.compile and mx.vmap."
        ) from None


def _without_gradient(run, arrays):
    """Runs a kernel so that derivatives of it are an error, as with MLX's kernels, and never silently zero.

    Callers that need gradients wrap the kernel in mx.custom_function.
    """
    call = mx.custom_function(run)

    def refuse(*_):
        raise ValueError("[Primitive::vjp] Not implemented for CustomKernel.")

    call.vjp(refuse)
    call.jvp(refuse)
    return call(*arrays) if arrays else run()


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: dict | None = None,
) -> MetalKernel:
    """`mx.fast.metal_kernel` on the CPU: same arguments, same text, same errors; runs when called instead of lazily."""
    return MetalKernel(
        name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, compile_options
    )
