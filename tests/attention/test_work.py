"""Blocks that masks hide are not computed: counted 8x8x8 matmuls of each kernel, against closed forms."""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case, backward
from launches import by_step, launched
from machines import each_simulated_family

from mlx_flash import BlockMask, attention, use_backend
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import lookup
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_MASK, FORWARD, TRAINING
from mlx_flash.simulator import mode, profile

MATMULS = [step for step in TRAINING if step.matmuls and step is not BACKWARD_MASK]
LENGTH, WIDTH = 512, 16  # of the problems with masks
MOST = 0.6  # of the dense count: half of the tiles, and the diagonal blocks in full


@cache
def counted(family: str, query_length: int, key_length: int, head_dim: int, causal: bool) -> dict[str, int]:
    """Matmuls of each step; on zeros, as the count does not depend on the numbers."""
    case = Case(query_length, key_length, head_dim, causal=causal)
    arrays = {name: mx.zeros(shape) for name, shape in case.shapes.items()}
    with use_backend("simulator", family), mode("check"), launched() as profiled:
        mx.eval(list(backward(case, arrays).values()))
    return by_step(profiled)


def dense(step, query_length: int, key_length: int, head_dim: int) -> int:
    """Each of the step's products has Lq x Lk x D elements' worth of multiplications, in fragments of 8."""
    fragments = -(-query_length // 8) * -(-key_length // 8) * -(-head_dim // 8)
    return step.matmuls * fragments


def traversed(rows: int, block: int, family: str) -> int:
    """Fragments that a walk over this many rows visits, block by block. Where one 16-byte read serves two fragments of
    float32, they hold every second pair of 16 rows: of a group that is not full, both are visited past two rows."""
    wide = 2 if FAMILIES[family].uses_threadgroup_memory else 1
    last = rows % block
    partial = last // (8 * wide) * wide + min(wide, -(-(last % (8 * wide)) // 2))
    return rows // block * (block // 8) + partial


@pytest.mark.parametrize("step", MATMULS, ids=str)
@each_simulated_family
def test_causal_skips_what_cannot_be_seen(family, step):
    length, head_dim = 1024, 16
    causal, whole = (counted(family, length, length, head_dim, flag)[step.name] for flag in (True, False))
    assert whole == dense(step, length, length, head_dim)
    assert 0.5 * whole < causal <= MOST * whole, f"{causal / whole:.3f} of the dense count"


@pytest.mark.parametrize("step", MATMULS, ids=str)
@each_simulated_family
def test_the_edge_of_the_traversal_costs_no_whole_block(family, step):
    """65 queries and 129 keys: the traversed length is rounded up to fragments, the parallel one to blocks."""
    parallel = lookup(step, "float32", FAMILIES[family], 64).parallel
    found = counted(family, 65, 129, 64, False)[step.name]
    assert found >= dense(step, 65, 129, 64)
    if step.name == "backward_key_value":
        assert found <= dense(step, 65, 129 + parallel - 1, 64)
    else:
        assert found <= dense(step, 65 + parallel - 1, 129, 64)


@pytest.mark.simulator
def test_delta_multiplies_no_matrices():
    """Delta has a kernel of its own here, as it has where the LSE has a gradient too."""
    q = mx.zeros((1, 1, 65, 16))
    with use_backend("simulator", "apple9"), mode("check"), launched() as profiled:
        mx.eval(mx.grad(lambda q: sum(one.sum() for one in attention(q, q, q, return_lse=True)))(q))
    assert [one["matmuls"] for one in profiled.launches if "flash_delta_" in one["kernel"]] == [0]


@pytest.mark.simulator
def test_work_beyond_the_diagonal_is_never_done():
    """There are twice as many queries as keys: the first half sees nothing, and its tiles are never visited."""
    square, tall = (counted("apple9", length, 128, 64, True) for length in (128, 256))
    for step in MATMULS:
        assert tall[step.name] == square[step.name], step


def masked(family: str, **options) -> dict[str, int]:
    """Matmuls of each step at LENGTH queries and keys."""
    q = mx.zeros((1, 1, LENGTH, WIDTH))
    with use_backend("simulator", family), mode("check"), launched() as profiled:
        mx.eval(mx.vjp(lambda *x: attention(*x, **options), [q, q, q], [q])[1])
    return by_step(profiled)


@pytest.mark.parametrize("step", MATMULS, ids=str)
@each_simulated_family
@pytest.mark.parametrize("left, right", [(LENGTH, 0), (40, 0), (3, 77)])
def test_windows_visit_only_keys_in_reach(family, step, left, right):
    """Each block of the parallel dimension meets the traversed rows in reach, rounded up to fragments, no more. Where
    blocks are copied, forward kernels end at what a simdgroup's own rows reach."""
    row = lookup(step, "float32", FAMILIES[family], WIDTH)
    trims = step is FORWARD and FAMILIES[family].uses_threadgroup_memory
    rows = row.simdgroup_rows if trims else row.parallel
    before, after = (right, left) if step is BACKWARD_KEY_VALUE else (left, right)
    fragments = 0
    for first in range(0, LENGTH, rows):
        reach = min(LENGTH, first + rows + after) - max(0, first // row.parallel * row.parallel - before)
        fragments += rows // 8 * traversed(reach, row.traversal, family)
    options = {"causal": True} if left == LENGTH else {"window": (left, right)}
    assert masked(family, **options)[step.name] == step.matmuls * fragments * (WIDTH // 8)


@pytest.mark.parametrize("step", MATMULS, ids=str)
@each_simulated_family
def test_empty_blocks_are_never_visited(family, step):
    """A diagonal of blocks of 32: every row of blocks lists one block of 16."""
    diagonal = BlockMask.from_predicate(lambda i, j: i // 32 == j // 32, LENGTH, LENGTH, block=32)
    assert masked(family, mask=diagonal)[step.name] * (LENGTH // 32) == dense(step, LENGTH, LENGTH, WIDTH)


@pytest.mark.parametrize("step", MATMULS, ids=str)
@each_simulated_family
def test_blocks_of_other_segments_are_not_visited(family, step):
    """Eight segments of 64: a block of queries sees one or two of them, and the blocks of keys at their ends."""
    row = lookup(step, "float32", FAMILIES[family], WIDTH)
    reach = 64 + row.parallel + 2 * row.traversal
    ids = mx.arange(LENGTH) // 64
    found = masked(family, segments=(ids, ids))[step.name]
    assert 64 / LENGTH <= found / dense(step, LENGTH, LENGTH, WIDTH) <= reach / LENGTH < 1


@pytest.mark.parametrize("step", MATMULS, ids=str)
@each_simulated_family
@pytest.mark.parametrize("additive", [False, True], ids=["bool", "additive"])
def test_tiles_that_an_array_mask_hides_are_not_visited(family, step, additive):
    """Blocks of 64 along the diagonal: of each block of rows, or of each simdgroup where these walk alone, the tiles in
    which any pair is visible."""
    ids = np.arange(LENGTH) // 64
    keep = ids[:, None] == ids
    mask = mx.array(np.where(keep, 0, -np.inf).astype(np.float32) if additive else keep)
    row = lookup(step, "float32", FAMILIES[family], WIDTH)
    rows = row.parallel if FAMILIES[family].uses_threadgroup_memory else row.simdgroup_rows
    tiles = keep.T if step is BACKWARD_KEY_VALUE else keep
    seen = tiles.reshape(LENGTH // rows, rows, LENGTH // row.traversal, row.traversal).any((1, 3)).sum()
    fragments = int(seen) * (rows // 8) * (row.traversal // 8) * (WIDTH // 8)
    assert masked(family, mask=mask)[step.name] == step.matmuls * fragments


LEFT_PADDED = (16, 128, 500, 1024)  # keys of four prompts that are served together


@pytest.mark.parametrize("additive", [False, True], ids=["bool", "additive"])
@each_simulated_family
def test_padding_on_the_left_is_not_read(family, additive):
    """Decoding of a batch: whole blocks of hidden keys cost nothing, and the mask itself is read at most twice."""
    keep = np.arange(1024) >= 1024 - np.array(LEFT_PADDED)[:, None]
    mask = np.where(keep, 0, -np.inf).astype(np.float16) if additive else keep
    q, k, v = (mx.zeros((4, heads, rows, 64), mx.float16) for heads, rows in ((8, 1), (2, 1024), (2, 1024)))
    with use_backend("simulator", family), mode("check"), profile() as profiled:
        mx.eval(attention(q, k, v, mask=mx.array(mask)[:, None, None]))
    decode, block = profiled.launches[0], 32 if FAMILIES[family].uses_threadgroup_memory else 64
    visited = 2 * sum(-(-keys // block) * block for keys in LEFT_PADDED)  # rows of two key heads
    assert [decode["buffers"][name]["loaded"] for name in "KV"] == [visited * 64 * 2] * 2
    assert decode["matmuls"] == 2 * visited // 8 * (64 // 8)
    lanes = 8 * 2 * mask.nbytes  # eight rows of a fragment, for each key head
    assert lanes <= decode["buffers"]["attention_mask"]["loaded"] <= 2 * lanes


@pytest.mark.parametrize("queries", [3, 40], ids=["decode", "forward"])
@each_simulated_family
def test_a_mask_that_hides_nothing_of_a_tile_costs_no_care_for_hidden_nan(family, queries):
    """A weight of 0 times infinity is NaN in the plain product; where keys may be hidden, it counts as nothing."""
    q, k, v = (np.ones((1, 1, length, 16), np.float32) for length in (queries, 128, 128))
    k[0, 0, 5], v[0, 0, 5] = -100, np.inf
    q, k, v = map(mx.array, (q, k, v))
    with use_backend("simulator", family):
        shown = attention(q, k, v, mask=mx.ones((128,), mx.bool_))
        hiding = attention(q, k, v, mask=mx.array(np.arange(128) != 6))
        plain = attention(q, k, v)
    assert bits(shown) == bits(plain) and np.isnan(np.array(plain)).all()
    assert np.isfinite(np.array(hiding)).all()
