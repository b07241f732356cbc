"""A launch on an NVIDIA GPU depends on its call only, whatever was launched before: the keys of cached kernels,
prepared launches and plans hold everything that they depend on.

No GPU is needed and nothing is compiled: a kernel's code is its text here, and launches are recorded.
"""

import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from call_pairs import PAIRS, call, forget
from watched import chosen

from mlx_flash import attention
from mlx_flash.backends import Backend, cuda
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.metal.ptx import kernel as ptx_kernel
from mlx_flash.metal.ptx import metal_kernel
from mlx_flash.metal.ptx.ptx import Ptx

pytestmark = pytest.mark.long


@pytest.fixture
def launches(monkeypatch):
    """The recorded launches, each as (facts of the launch, numbers of its inputs)."""
    made = []

    def launch(*, inputs, stream, **facts):
        numbers = [(array.shape, str(array.dtype), bits(array)) for array in inputs]
        made.append(({name: str(fact) for name, fact in facts.items()}, numbers))
        return [mx.zeros(shape, dtype) for shape, dtype in zip(facts["output_shapes"], facts["output_dtypes"])]

    def built(text, name, variant, gpu):
        return Ptx(name, f"{text} {variant}".encode(), 0)

    def strides(arrays, stream):
        return [mx.array([array.size, *array.shape]) for array in arrays]

    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", launch)
    monkeypatch.setattr(ptx_kernel, "build", built)
    monkeypatch.setattr(ptx_kernel, "learned", strides)
    forget()
    yield made
    forget()


def launched(launches, call) -> list:
    launches.clear()
    call()
    assert launches
    return list(launches)


@pytest.mark.parametrize("decode", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("family", ["apple9", "sm90"])
@pytest.mark.parametrize("name", PAIRS)
def test_calls_that_differ_in_one_thing(launches, family, name, decode):
    backend = Backend("cuda", FAMILIES[family], cuda.run, decodes=True)
    with chosen(backend):
        alone = []
        for options in PAIRS[name]:
            forget()
            alone.append(launched(launches, lambda options=options: call(options, decode)))
        for order in ((0, 1), (1, 0)):
            forget()
            for number in order:
                assert launched(launches, lambda: call(PAIRS[name][number], decode)) == alone[number]  # noqa: B023


def test_a_growing_cache_finds_its_code(launches, monkeypatch):
    """A new length makes new facts only; it does not build the kernel's text, by which the code is found at first."""
    texts, plain = [], ptx_kernel.CudaKernel.text
    monkeypatch.setattr(ptx_kernel.CudaKernel, "text", lambda *given: texts.append(given[0].name) or plain(*given))
    q, cache = mx.zeros((1, 4, 1, 64), mx.float16), mx.zeros((1, 2, 300, 64), mx.float16)
    with chosen(Backend("cuda", FAMILIES["sm90"], cuda.run, decodes=True)):
        for keys in range(40, 240):
            attention(q, cache[:, :, :keys], cache[:, :, :keys], causal=True)
    assert len(launches) == 200 and len(texts) == 1
    assert len({numbers[-1] for _, numbers in launches}) == 200  # each length has facts of its own


X = mx.arange(64.0)
LAUNCH = {
    "inputs": [X], "grid": (64, 2, 1), "threadgroup": (32, 1, 1), "output_shapes": [(64,)],
    "output_dtypes": [mx.float32], "template": [("T", 1)],
}  # fmt: skip
CHANGES = {
    "grid-x": {"grid": (96, 2, 1)},
    "grid-y": {"grid": (64, 3, 1)},
    "grid-z": {"grid": (64, 2, 5)},
    "ragged-grid": {"grid": (70, 2, 1)},
    "folded-grid": {"grid": (64, 65537, 1)},
    "threadgroup": {"threadgroup": (64, 1, 1)},
    "threadgroup-y": {"threadgroup": (32, 2, 1)},
    "length": {"inputs": [mx.arange(65.0)]},
    "rank": {"inputs": [X.reshape(8, 8)]},
    "shape": {"inputs": [mx.arange(128.0)]},
    "dtype": {"inputs": [X.astype(mx.float16)]},
    "few-elements": {"inputs": [mx.arange(7.0)]},
    "number": {"inputs": [mx.array(3.0)]},
    "template": {"template": [("T", 2)]},
    "type-in-template": {"template": [("T", mx.float16)]},
    "truth-in-template": {"template": [("T", True)]},
    "output-dtype": {"output_dtypes": [mx.float16]},
    "output-shape": {"output_shapes": [(65,)]},
    "initial-value": {"init_value": 1},
}


@pytest.mark.parametrize("source", ["y[i] = x[i];", "y[i] = x[x_shape[0] - 1];", "y[i] = x[i * x_strides[0]];"])
@pytest.mark.parametrize("name", CHANGES)
def test_launches_of_one_kernel_that_differ_in_one_thing(launches, name, source):
    def made():
        body = f"uint i = thread_position_in_grid.x; {source}"
        return metal_kernel(
            name="probe", input_names=["x"], output_names=["y"], source=body, ensure_row_contiguous=False
        )

    both = LAUNCH, LAUNCH | CHANGES[name]
    alone = [launched(launches, lambda keywords=keywords: made()(**keywords)) for keywords in both]
    assert alone[0] != alone[1], "the pair would not tell one from the other"
    for order in ((0, 1), (1, 0)):
        kernel = made()
        for number in order:
            assert launched(launches, lambda: kernel(**both[number])) == alone[number]  # noqa: B023


LIMIT = 65535  # threadgroups of a CUDA launch along y and along z
GROUPS = [
    (1, LIMIT, 1), (1, 1, LIMIT), (1, LIMIT + 1, 1), (1, 1, LIMIT + 1), (2, 300, 300), (1, LIMIT, 2), (3, 2, 70000),
]  # fmt: skip


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("ragged", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str)
def test_grids_at_their_limits(launches, groups, ragged):
    """Every threadgroup is launched, no axis is longer than CUDA takes, and threads beyond a ragged edge return."""
    sizes = (32, 2, 2)
    grid = tuple(count * size - edge for count, size, edge in zip(groups, sizes, ragged))
    ((facts, _),) = launched(
        launches,
        lambda: metal_kernel(name="probe", input_names=["x"], output_names=["y"], source="y[0] = x[0];")(
            **LAUNCH | {"grid": grid, "threadgroup": sizes}
        ),
    )
    threads, block = eval(facts["grid"]), eval(facts["threadgroup"])
    blocks = [-(-count // size) for count, size in zip(threads, block)]
    assert max(blocks[1:]) <= LIMIT and np.prod(blocks) >= np.prod(groups)
    assert np.prod(block) == np.prod(np.minimum(sizes, grid)), "every thread of a threadgroup"
    cut = [
        edge for edge, count in zip(ragged, groups) if count > 1
    ]  # a single threadgroup is made as small as the grid
    assert ("ragged=True" in facts["compiled_source"]) == any(cut)
    assert ("folded=True" in facts["compiled_source"]) == (blocks[1:] != list(groups[1:]))
