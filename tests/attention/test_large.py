"""Many batches, heads and keys, and elements far apart in memory: beyond 16, 31 and 32 bits.

Views that span terabytes cost only the pages they touch: like a GPU, the simulator gets addresses, so it takes an
operand spread over address space in which nothing has been stored.
"""

import mmap

import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from machines import BACKENDS, KERNELS, each_simulated_family, label

from mlx_flash import attention, use_backend
from mlx_flash.metal.cpu.kernel import MetalKernel
from mlx_flash.simulator import mode

RESERVE_NOTHING = 0x4000  # MAP_NORESERVE: address space without memory behind it
CASE = Case(9, 13, 16, group=2, key_heads=2, batch=2)
DECODING = Case(2, 13, 16, group=2, key_heads=2, batch=2)
# Bytes between neighbours along the last four axes: every one beyond 32 bits, also where elements have 4 bytes. Cut off
# to 32 bits each would still be a place of the same region, where zeros lie.
APART = {"batch": 5 * 2**38 + 2**17, "head": 5 * 2**36 + 2**16, "row": 5 * 2**32 + 2**13}
ROWS = ("Q", "K", "V", "O", "dO", "attention_mask")
IDS = ("q_segments", "k_segments")
THREADS = {
    "Q": "flash-attention-1500", "K": "flash-attention-2260", "V": "flash-attention-1311", "O": "flash-attention-483",
    "dO": "fla-769-1080", "attention_mask": "mlx-2903-and-pytorch-197636", "q_segments": "tabpfn-1184",
    "k_segments": "tabpfn-1184-keys",
}  # fmt: skip


def far_apart(name: str, array: np.ndarray) -> np.ndarray:
    """The same numbers in a view whose outer axes have strides of gigabytes."""
    outer = list(APART.values()) if name in ROWS else [APART["batch"]]
    strides = (*outer, *array.strides[len(outer) :])
    size = sum((extent - 1) * stride for extent, stride in zip(array.shape, strides)) + array.itemsize
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | RESERVE_NOTHING)
    view = np.lib.stride_tricks.as_strided(np.frombuffer(region, array.dtype, 1), array.shape, strides)
    view[...] = array
    return view


@pytest.fixture
def spread(monkeypatch):
    """Makes operands of these names far apart; the set of those that were."""
    original, met = MetalKernel._input_buffers, set()

    def apply(*names: str) -> set[str]:
        met.clear()

        def buffers(self, arrays):
            handed, facts = iter(list(original(self, arrays))), zip(self.input_names, self.facts, arrays)
            for name, (shape, strides, _), array in facts:
                memory = next(handed)
                if name in names:
                    memory = far_apart(name, memory)
                    met.add(name)
                yield memory
                if array.ndim and shape:
                    yield next(handed)
                if array.ndim and strides:
                    next(handed)
                    yield np.array([stride // memory.itemsize for stride in memory.strides], np.int64)

        monkeypatch.setattr(MetalKernel, "_input_buffers", buffers)
        return met

    return apply


@each_simulated_family
@pytest.mark.parametrize("name", [*ROWS, *IDS], ids=THREADS.get)
def test_operands_of_terabytes(spread, family, name):
    """Rows, heads and batch entries each more than 2^32 elements apart: the same bits."""
    feature = {"attention_mask": "additive"}.get(name, "segments" if name in IDS else "causal")
    for case in (CASE, DECODING):
        variant = Variant(case, (feature,))
        arguments, _ = feature_cases.build(variant)
        with use_backend("simulator", family), mode("fast"):
            spread()
            want = feature_cases.backward(variant, case.arrays(), arguments)
            met = spread(name)
            got = feature_cases.backward(variant, case.arrays(), arguments)
        assert met == {name}, "no kernel read it"
        assert [tensor for tensor in want if bits(got[tensor]) != bits(want[tensor])] == []


@pytest.mark.long
@pytest.mark.parametrize("choice", [BACKENDS[-1], *KERNELS], ids=label)
def test_a_mask_of_more_elements_than_31_bits_count(choice):
    """One number seen as [70000, 70000] through strides of 0, and no row of 70000 queries loses it."""
    length, seen = 70000, mx.broadcast_to(mx.array(True), (70000, 70000))
    assert seen.size > 2**31
    v = mx.broadcast_to((mx.arange(length) % 251).astype(mx.float32)[None, None, :, None], (1, 1, length, 8))
    q = mx.zeros((1, 1, 1, 8))
    with use_backend(*choice), mode("fast"):
        out = attention(*(mx.broadcast_to(q, v.shape),) * 2, v, mask=seen, window=(0, 0))
        assert bits(out) == bits(v), "each query sees its own key"


# Minutes of threadgroups on the simulator: heads wait for the full run.
@pytest.mark.parametrize("axis", ["batch", pytest.param("heads", marks=pytest.mark.slow)])
@pytest.mark.parametrize("choice", [BACKENDS[-1], KERNELS[-1]], ids=label)
@pytest.mark.reported("pytorch-142228", "flashinfer-3125")
def test_grids_beyond_16_bits(choice, axis):
    """65537 batch entries, or heads, each with a number of its own: the grid's axes must carry them all."""
    shape = (65537, 1, 1, 8) if axis == "batch" else (1, 65537, 1, 8)
    # A prime number of different ones, so that entry 65536 is not entry 0; small, so that sums are exact.
    numbers = mx.broadcast_to((mx.arange(65537.0) % 251).reshape(*shape[:2], 1, 1), shape)
    with use_backend(*choice), mode("fast"):
        (out,), gradients = mx.vjp(lambda *x: attention(*x), [numbers, numbers, numbers], [numbers])
        mx.eval(out, gradients)
    assert bits(out) == bits(numbers), "one key each: its value"
    assert bits(gradients[2]) == bits(numbers), "and its whole cotangent"
    assert not np.array(gradients[0]).any() and not np.array(gradients[1]).any()
