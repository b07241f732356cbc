"""Every pair of small lengths, and all pairs around the edges of blocks, on the kernels: forward and backward."""

import itertools

import oracle
import pytest
from cases import Case, backward, expected
from machines import KERNELS, label

from mlx_flash import use_backend
from mlx_flash.simulator import mode

SMALL = tuple(range(1, 10))
# Blocks of the kernels below have 16, 32, 64 and 128 rows; twice a block is two of them, or the next larger one.
EDGES = (15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)


def check(choice, lengths, causal):
    with use_backend(*choice), mode("check"):
        for rows, columns in lengths:
            case = Case(rows, columns, 16, "float32", causal)
            arrays = case.arrays()
            expected(case, arrays).check(**backward(case, arrays))


@pytest.mark.parametrize("rows", SMALL)
@pytest.mark.parametrize("choice", KERNELS, ids=label)
def test_all_small_lengths(choice, rows):
    """Causal or dense by turns; what is causal with more rows than columns has rows that see nothing."""
    check(choice, ((rows, columns) for columns in SMALL if (rows + columns) % 2), True)
    check(choice, ((rows, columns) for columns in SMALL if (rows + columns) % 2 == 0), False)


@pytest.mark.parametrize("choice", KERNELS, ids=label)
def test_edges_of_blocks(choice):
    """Every fifth pair of edges, causal and dense alternating; the full run takes all of them."""
    pairs = list(itertools.product(EDGES, EDGES))
    check(choice, pairs[::10], True)
    check(choice, pairs[5::10], False)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("choice", KERNELS, ids=label)
def test_every_pair_of_lengths(choice, causal):
    check(choice, itertools.product((*SMALL, *EDGES), repeat=2), causal)


@pytest.mark.slow
@pytest.mark.parametrize("rows", range(1, 66, 4))
@pytest.mark.parametrize("choice", KERNELS, ids=label)
def test_two_blocks_and_one_row(choice, rows):
    """Every pair of up to two blocks and one row of queries with up to two blocks and one row of keys."""
    pairs = itertools.product(range(rows, min(rows + 4, 66)), range(1, 130))
    for causal, some in itertools.groupby(pairs, lambda pair: pair[1] % 2 == 0):
        check(choice, some, causal)


@pytest.mark.slow
@pytest.mark.parametrize("width", range(8, 257, 8))
@pytest.mark.parametrize("choice", KERNELS, ids=label)
def test_every_head_dimension(choice, width):
    """The widths from 1 to 256, eight of which are padded alike."""
    dtype = ("float32", "float16", "bfloat16")[width // 8 % 3]
    with use_backend(*choice), mode("check"):
        for head_dim in range(width - 7, width + 1):
            case = Case(17, 35, head_dim, dtype, True, group=2)
            arrays = case.arrays()
            expected(case, arrays).check(**backward(case, arrays))


def test_the_oracle_hides_what_it_should():
    assert not oracle.visibility(3, 1, True)[:2].any() and oracle.visibility(3, 1, True)[2].all()
