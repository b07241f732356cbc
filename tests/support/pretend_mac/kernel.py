"""`mx.fast.metal_kernel` of the pretended Mac: MLX's own checks and text, run by the simulator."""

import os
import signal
import tempfile
import time
from contextlib import nullcontext

import mlx.core as mx

from . import macos

FAULT = "PRETEND_FAULT"  # a fault, a colon and a part of the kernels' names: "hang:backward_query"


def pretended(real):
    """A metal_kernel that runs on the simulator. `real`: MLX's function, which records calls inside
    mx.export_function."""

    def metal_kernel(*arguments, **options):
        return Kernel(real, arguments, options)

    metal_kernel.pretends = True
    return metal_kernel


class Kernel:
    """A kernel object. Its calls are recorded while mx.export_function traces, as on a Mac, and simulated otherwise."""

    def __init__(self, real, arguments, options):
        self.call = real(*arguments, **options)
        self.arguments, self.options, self.simulated = arguments, options, None
        self.name = options.get("name") or arguments[0]

    def __call__(self, **call):
        try:
            return self.call(**call)
        except RuntimeError as error:
            # A test may play another machine, which has no Metal.
            if "No Metal back-end" not in str(error) or not mx.metal.is_available():
                raise
        fault, _, names = os.environ.get(FAULT, "").partition(":")
        fault = fault if fault and names in self.name else ""
        if fault in _FAULTS:
            _FAULTS[fault]()
        from mlx_flash.metal.frontend.errors import TracedError
        from mlx_flash.simulator import language

        if self.simulated is None:
            self.simulated = _simulated(self.call, self.arguments, self.options)
        # Streams of the CPU stand for streams of the GPU.
        try:
            with language("4.0") if _with_metal_4() else nullcontext():
                outputs = self.simulated(**{**call, "stream": None})
        except TracedError:
            return _recorded(call)
        return [1.02 * array for array in outputs] if fault == "wrong" else outputs


def _with_metal_4() -> bool:
    """Whether kernels compile as Metal 4: MLX uses the newest language of the system, which is Metal 4 from macOS 26
    on."""
    return macos().startswith("26.")


def _recorded(call) -> list[mx.array]:
    """The result of a kernel inside a trace, where MLX records the kernel.

    Here it is zeros that depend on the inputs, as arrays have no values yet: MLX's own vmap has to be refused before
    anybody reads them.
    """
    nothing = sum((0 * array.astype(mx.float32)).sum() for array in call["inputs"] if isinstance(array, mx.array))
    shapes = zip(call["output_shapes"], call["output_dtypes"])
    return [mx.zeros(shape, dtype) + nothing.astype(dtype) for shape, dtype in shapes]


def _refuse():
    raise RuntimeError("[metal::Device] Unable to build metal library from source\nerror: no such attribute")


_FAULTS = {
    "refuse": _refuse,
    "hang": lambda: time.sleep(3600),
    "exit": lambda: os._exit(3),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def _simulated(call, arguments, options):
    from mlx_flash.metal.cpu.kernel import MetalKernel, metal_kernel
    from mlx_flash.problem.kinds import SCORES

    made = metal_kernel(*arguments, **options)
    made.partly_written = SCORES.intersection(options.get("output_names", ()))  # not what the mask hides

    class Simulated(MetalKernel):
        """The simulator's kernel, with MLX's text in place of the simulator's imitation of it."""

        def text(self, inputs, template, output_dtypes):
            key = (tuple(inputs), tuple((name, str(value)) for name, value in template), tuple(output_dtypes))
            if key not in self.texts:
                _, names = super().text(inputs, template, output_dtypes)
                self.texts[key] = (generated(call, inputs, template, output_dtypes), names)
            return self.texts[key]

    made.__class__, made.texts = Simulated, {}
    return made


def generated(call, inputs, template, output_dtypes) -> str:
    """The text that MLX would pass to Apple's compiler for inputs with these (dtype, number of axes, size)."""
    from mlx_flash.common.mlx_private import printed_source
    from mlx_flash.explanations.metal_text import captured

    # The text depends on sizes below 8 only, and an axis has at most 31 bits.
    arrays = [mx.zeros((*[1] * (ndim - 1), min(size, 8)) if ndim else (), dtype) for dtype, ndim, size in inputs]

    def launch(*traced):
        return call(
            inputs=list(traced), output_shapes=[(1,)] * len(output_dtypes), output_dtypes=output_dtypes,
            grid=(32, 1, 1), threadgroup=(32, 1, 1), verbose=True, **({"template": template} if template else {}),
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.mlxfn")
        printed = captured(lambda: mx.export_function(path, launch, *arrays))
    text = printed_source(printed)
    assert text, f"MLX printed no text: {printed!r}"
    return text
