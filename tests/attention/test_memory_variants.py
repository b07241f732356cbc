"""Every byte that masks and variants ask for at 65536 queries and keys, added up: launches' outputs and operands."""

import itertools
import math

import bounds
import mlx.core as mx
import numpy as np
import pytest
from bounds import slope
from problems import launch_of

from mlx_flash import BlockMask, attention
from mlx_flash.autodiff.operands import kernel_inputs, operands
from mlx_flash.backends.reference import kernels as reference_kernels
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import ACCUMULATORS, BACKWARD_KEY_VALUE, BACKWARD_MASK, BACKWARD_QUERY, TRAINING
from mlx_flash.problem.problem import problem_of

N, B, HQ, HK = 65536, 2, 4, 2


def diagonal_blocks(length: int, block: int) -> BlockMask:
    """A causal mask, its map written down: evaluating a predicate on 2^32 pairs is no test of memory."""
    blocks = length // block
    map = (np.tri(blocks, k=-1, dtype=np.int32) + 2 * np.eye(blocks, dtype=np.int32))[None, None]
    return BlockMask((1, 1, length, length), block, map, np.tri(block, dtype=np.uint8)[None])


def ids(*shape) -> mx.array:
    return mx.broadcast_to(mx.arange(shape[-1]) // 1000, shape)


OPTIONS = {
    "plain": lambda n: {},
    "causal": lambda n: {"causal": True},
    "window": lambda n: {"window": (512, 0)},
    "bool": lambda n: {"mask": mx.arange(n) < n // 2},
    "additive": lambda n: {"mask": mx.zeros((HQ, 1, n), mx.float16)},
    "additive-column": lambda n: {"mask": mx.zeros((B, 1, n, 1), mx.float16)},
    "alibi": lambda n: {"alibi_slopes": mx.ones(HQ)},
    "sinks": lambda n: {"sinks": mx.zeros(HQ, mx.float16)},
    "softcap": lambda n: {"softcap": 30.0},
    "segments": lambda n: {"segments": (ids(n), ids(n))},
    "segments-of-each-entry": lambda n: {"segments": (mx.contiguous(ids(B, n)), mx.contiguous(ids(B, n)))},
    "blocks": lambda n: {"mask": diagonal_blocks(n, 128)},
    "dropout": lambda n: {"dropout": 0.1, "key": mx.random.key(0)},
}
SMALL = 64  # bytes of numbers and keys, which no length changes


def problem(options: dict, length: int, dtype: str, head_dim: int):
    """A problem of lazy arrays: no array of q's size is ever made."""
    q, k = (mx.zeros((B, heads, length, head_dim), getattr(mx, dtype)) for heads in (HQ, HK))
    return problem_of(q, k, k, scale=None, **options)


def operand_bytes(problem, options: dict) -> int:
    """The bytes of the operands of all kernels beyond the arrays that were passed: views need none."""
    given = [array for value in options.values() for array in (value if isinstance(value, tuple) else (value,))]
    mx.eval([array for array in given if isinstance(array, mx.array)])
    mx.clear_cache()
    before = mx.get_active_memory()
    made = operands(problem, **options)
    kept = [made] + [kernel_inputs(kind, problem, made) for kind in (BACKWARD_QUERY, BACKWARD_KEY_VALUE)]
    mx.eval([array for inputs in kept for array in inputs.values() if isinstance(array, mx.array)])
    return mx.get_active_memory() - before


def allowed(problem, options: dict, plans) -> int:
    """Outputs, 12 bytes a query and head (m, log2 l, delta), block lists, float32 pages of paged accumulators."""
    total = 12 * B * HQ * problem.query_length + SMALL
    if isinstance(options.get("mask"), BlockMask):
        total += sum(array.nbytes for array in options["mask"].arrays.values())
    for one in plans:
        for name, shape in zip(one.kind.outputs, one.launch(problem).output_shapes):
            if name in ACCUMULATORS:
                paged = name in one.config.paged(one.kind)
                total += math.prod(shape) * (4 if paged else getattr(mx, problem.dtype).size)
            elif name == "dM":
                total += math.prod(shape) * 4
    return total


def steps(problem):
    return [step for step in TRAINING if step is not BACKWARD_MASK or problem.variants.additive]


@pytest.mark.parametrize("dtype, head_dim", [("float16", 64), ("float16", 512), ("float32", 64)])
@pytest.mark.parametrize("family", ["apple7", "apple9"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_allocation(name, family, dtype, head_dim):
    options = OPTIONS[name](N)
    options = {key: value.astype(getattr(mx, dtype)) if key in ("mask", "sinks") and "bool" not in name and
               isinstance(value, mx.array) else value for key, value in options.items()}  # fmt: skip
    asked = problem(options, N, dtype, head_dim)
    plans = [plan_of(step, asked, FAMILIES[family]) for step in steps(asked)]
    outputs = sum(one.launch(asked).output_bytes for one in plans)
    made = operand_bytes(asked, options)
    found, limit = outputs + made, allowed(asked, options, plans)
    assert found <= limit, f"{(found - limit) / 2**20:.2f} MiB more than allowed"
    assert made < N * N / 8, "less than an Lq x Lk array of bits"


def test_only_paged_accumulators_are_float32():
    """float16: O, dQ, dK and dV are written in float16 where their table row caches them."""
    met = set()
    for head_dim, step in itertools.product((64, 512), TRAINING[:-1]):
        chosen = plan_of(step, problem({}, N, "float16", head_dim), FAMILIES["apple9"])
        launch = launch_of(step, problem({}, N, "float16", head_dim), FAMILIES["apple9"])
        for name, dtype in zip(step.outputs, launch.output_dtypes):
            cached = name in ACCUMULATORS and name in chosen.config.cached
            assert dtype == (mx.float16 if cached else mx.float32), name
            met.add(cached)
    assert met == {True, False}


def peak(length: int, options: dict) -> int:
    q = mx.random.normal((1, 1, length, 8))
    mx.eval(q)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(lambda *x: attention(*x, **options).sum(), argnums=(0, 1, 2))(q, q, q))
    return mx.get_peak_memory() - before


PEAKS = {
    "bool": lambda n: {"mask": mx.arange(n) < n // 2, "causal": True},
    "additive": lambda n: {"mask": mx.zeros((1, n)), "softcap": 3.0},
    "segments": lambda n: {"segments": (ids(n), ids(n)), "alibi_slopes": mx.ones(1)},
    "blocks": lambda n: {"mask": diagonal_blocks(n, 128), "sinks": mx.zeros(1)},
    "dropout": lambda n: {"dropout": 0.1, "key": mx.random.key(0), "window": (200, 0)},
}


@pytest.mark.long
@pytest.mark.parametrize("name", PEAKS)
def test_reference_peak_is_linear(reference, monkeypatch, name):
    """Forward and backward in small blocks: no mask is written out at Lq x Lk."""
    monkeypatch.setattr(reference_kernels, "BLOCK", 64)
    lengths = [512, 2048]
    peaks = [peak(length, PEAKS[name](length)) for length in lengths]
    assert slope(lengths, peaks) <= bounds.PEAK_SLOPE, f"peaks {peaks}"
    assert peaks[-1] < 4 * lengths[-1] ** 2 / 4, "a quarter of the scores of one head"


def test_a_mask_written_out_would_be_seen():
    """The sum counts what operands allocate: ids that must be converted do."""
    options = {"segments": (ids(N).astype(mx.int16), ids(N).astype(mx.int16))}
    assert operand_bytes(problem(options, N, "float16", 64), options) == 2 * 4 * N
