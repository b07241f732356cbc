"""The text the simulator compiles is the text MLX would hand to Apple's compiler, over random signatures."""

import os
import random
import sys
import tempfile

import mlx.core as mx
import pytest

from mlx_flash.metal.frontend.signature import ATTRIBUTES, kernel_name, kernel_text

DTYPES = (
    mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64,
    mx.float16, mx.bfloat16, mx.float32, mx.complex64,
)  # fmt: skip


def text_of_mlx(kernel, arrays, **call) -> str:
    """MLX prints the text on the C++ stdout while an export records the call, with or without a GPU."""

    def function(*inputs):
        return kernel(inputs=list(inputs), verbose=True, grid=(1, 1, 1), threadgroup=(1, 1, 1), **call)

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as captured:
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(captured.fileno(), 1)
        try:
            mx.export_function(os.path.join(folder, "f.mlxfn"), function, *arrays)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        captured.seek(0)
        return captured.read()


def random_signature(seed: int):
    """A random kernel: few and many inputs, scalars, small and large arrays, shape words, attributes, templates."""
    choose = random.Random(seed)
    inputs = [f"in{i}" for i in range(choose.randint(1, 4))] + choose.sample(
        ["k", "mask", "scale"], choose.randint(0, 2)
    )
    outputs = [f"out{i}" for i in range(choose.randint(1, 3))]
    arrays = [
        mx.zeros(choose.choice([(), (1,), (7,), (8,), (2, 3), (2, 4), (3, 4, 5)]), choose.choice(DTYPES))
        for _ in inputs
    ]
    words = choose.sample([name for name, _ in ATTRIBUTES], choose.randint(0, 4))
    words += [f"{name}_{what}" for name in inputs for what in ("shape", "strides", "ndim") if choose.random() < 0.25]
    template = choose.choice(
        [[], [("T", choose.choice(DTYPES)), ("N", choose.randint(0, 99)), ("B", choose.random() < 0.5)]]
    )
    source = "  " + "; ".join(words) + ";  // body\n"
    return (
        inputs,
        outputs,
        arrays,
        source,
        template,
        [choose.choice(DTYPES) for _ in outputs],
        choose.random() < 0.3,
        choose.random() < 0.5,
    )


@pytest.mark.parametrize("seed", range(60))
def test_text_is_mlx_text(seed):
    inputs, outputs, arrays, source, template, dtypes, atomic, with_header = random_signature(seed)
    header = "// header\nint helper();\n[[max_total_threads_per_threadgroup(64)]]\n" if with_header else ""
    kernel = mx.fast.metal_kernel(
        name="probe", input_names=inputs, output_names=outputs, source=source, header=header, atomic_outputs=atomic
    )
    printed = text_of_mlx(
        kernel, arrays, output_shapes=[(9,)] * len(outputs), output_dtypes=dtypes, template=template or None
    )
    facts = [(a.dtype, a.ndim, a.size) for a in arrays]
    function = kernel_name("probe", template, facts, dtypes)
    ours = kernel_text(function, header, source, inputs, facts, outputs, dtypes, template, atomic)
    assert printed == f"Generated source code for `probe`:\n```\n{ours}\n```\n"
