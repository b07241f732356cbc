"""metal_kernel: the signature, the checks and the wording of `mx.fast.metal_kernel`, run on the CPU."""

import ctypes
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from . import buffers, compiler, settings
from .errors import CompileError
from .launch import Launch, Library, execute, raise_reports
from .lines import line_at
from .profile import record
from .signature import kernel_name, kernel_text, shape_facts
from .translate import translate

_TAG = "[metal_kernel]"
_MAX_THREADS = 1024


class BuiltKernel:
    """A kernel specialised for dtypes and template arguments, compiled and loaded."""

    def __init__(self, name: str, text: str, buffer_names: list[str], mode: str, count: bool):
        self.name, self.text, self.buffer_names = name, text, buffer_names
        try:
            translation = translate(text)
            path = compiler.build(translation.text, translation.entry(), "mlx.h", mode == "check", count)
        except CompileError as error:
            raise CompileError(f"{_TAG} Kernel '{name}' is not valid Metal:\n{error}") from None
        self.variable_names = translation.variables
        self.max_threads = translation.max_threads
        self.path = path
        self.library = Library(path)

    def line(self, number: int) -> str:
        """A line of the Metal text."""
        lines = self.text.splitlines()
        return lines[number - 1].strip() if 0 < number <= len(lines) else ""

    def line_of(self, pc: int) -> int:
        """The line an address of the loaded code comes from; 0 if unknown."""
        return line_at(self.path, pc - self.library.base)


_built: dict = {}


def _build(name, text, buffer_names, mode, count) -> BuiltKernel:
    key = (text, mode, count)
    kernel = _built.get(key)
    if kernel is None:
        kernel = _built[key] = BuiltKernel(name, text, buffer_names, mode, count)
    return kernel


class MetalKernel:
    """What metal_kernel returns: call it with keywords, as MLX's own."""

    def __init__(self, name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, compile_options):
        if not output_names:
            raise ValueError(f"{_TAG} Must specify at least one output.")
        _check_options(compile_options)
        self.name, self.source, self.header = name, source, header
        self.input_names, self.output_names = list(input_names), list(output_names)
        self.ensure_row_contiguous, self.atomic_outputs = ensure_row_contiguous, atomic_outputs
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
        """Runs the kernel at once and returns its outputs."""
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
        if stream is not None and "cpu" in str(stream):
            raise ValueError(f"{_TAG} Only supports the GPU.")
        _check_grid(grid, threadgroup)
        shapes = [tuple(shape) for shape in output_shapes]

        def run(*arrays):
            return self._run(arrays, shapes, output_dtypes, grid, threadgroup, template or [], init_value, verbose)

        return list(_without_gradient(run, arrays))

    def _text(self, arrays, template, output_dtypes) -> tuple[str, list[str]]:
        inputs = tuple((a.dtype, a.ndim, a.size) for a in arrays)
        small = tuple((d, min(n, 1), min(s, 8)) for d, n, s in inputs)
        key = (small, tuple((n, type(v), v) for n, v in template), tuple(output_dtypes))
        if key not in self._texts:
            function = kernel_name(self.name, template, inputs, output_dtypes)
            text = kernel_text(
                function, self.header, self.source, self.input_names, inputs, self.output_names, output_dtypes, template, self.atomic_outputs
            )
            names = []
            for name, array, facts in zip(self.input_names, arrays, self.facts):
                names.append(name)
                names += [f"{name}_{what}" for wanted, what in zip(facts, ("shape", "strides", "ndim")) if wanted and array.ndim]
            self._texts[key] = (text, names + self.output_names)
        return self._texts[key]

    def _run(self, arrays, shapes, dtypes, grid, threadgroup, template, init_value, verbose):
        _evaluate(arrays, self.name)
        text, names = self._text(arrays, template, dtypes)
        if verbose:
            print(f"Generated source code for `{self.name}`:\n```\n{text}\n```")
        mode = settings.current_mode()
        kernel = _build(self.name, text, names, mode, record.counting())
        threads = threadgroup[0] * threadgroup[1] * threadgroup[2]
        if threads > kernel.max_threads:
            raise ValueError(
                f"Thread group size ({threads}) is greater than  the maximum allowed threads per threadgroup ({kernel.max_threads})."
            )
        launch = _launch(grid, threadgroup, mode)
        outputs = [buffers.allocate(shape, dtype, init_value) for shape, dtype in zip(shapes, dtypes)]
        keep, fetch, window = [], [], None
        if mode == "check":
            window = buffers.Window(kernel.library, len(names))
            launch.window, launch.window_bits = window.base, window.bits
        try:
            for array, writable in [*((a, False) for a in self._input_buffers(arrays)), *((o, True) for o in outputs)]:
                keep.append(array)
                fetch.append(buffers.bind(launch, launch.buffer_count, array, writable, window))
                launch.buffer_count += 1
            execute(kernel.library, launch)
            for place in fetch:
                if place:
                    ctypes.memmove(*place)
        finally:
            if window:
                window.close()
        record.add(kernel, launch)
        raise_reports(kernel, launch)
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


def _check_grid(grid, threadgroup):
    for name, triple in (("grid", grid), ("threadgroup", threadgroup)):
        if len(triple) != 3:
            raise TypeError(f"{_TAG} `{name}` must be three integers, not {triple!r}.")
        if min(triple) < 1:
            raise ValueError(f"{_TAG} Every entry of `{name}` must be at least 1, not {tuple(triple)}.")
    threads = threadgroup[0] * threadgroup[1] * threadgroup[2]
    if threads > _MAX_THREADS:
        raise ValueError(f"Thread group size ({threads}) is greater than  the maximum allowed threads per threadgroup ({_MAX_THREADS}).")


def _launch(grid, threadgroup, mode) -> Launch:
    launch = Launch()
    launch.total = 1
    for axis in range(3):
        group = min(threadgroup[axis], grid[axis])
        launch.grid[axis], launch.group[axis] = grid[axis], group
        launch.groups[axis] = -(-grid[axis] // group)
        launch.total *= launch.groups[axis]
    launch.check = mode == "check"
    launch.schedule, launch.seed = settings.current_schedule()
    launch.stride = _coprime(launch.total)
    return launch


def _coprime(total: int) -> int:
    """A step that visits every threadgroup once, far from in order."""
    stride = int(total * 0.618) | 1
    while np.gcd(stride, total) != 1:
        stride += 2
    return stride


def _evaluate(arrays, name: str):
    try:
        mx.eval(*arrays)
    except ValueError as error:
        if "function transformations" not in str(error):
            raise
        raise ValueError(
            f"{_TAG} The simulator runs kernel '{name}' at once and so cannot be traced: call it outside mx.compile and mx.vmap."
        ) from None


def _without_gradient(run, arrays):
    """As MLX's own kernels: no gradient unless the caller wraps the kernel in mx.custom_function, never a silent zero."""
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
    return MetalKernel(name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, compile_options)


