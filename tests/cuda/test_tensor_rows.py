"""The rows of NVIDIA's table as they are, on the simulator: threadgroups with as much memory as those GPUs grant."""

import feature_cases
import pytest
from cases import Case, expected
from feature_cases import Variant
from watched import kinds, watched

from mlx_flash import attention, use_backend
from mlx_flash.kernels.nvidia import TENSOR_TABLE
from mlx_flash.kernels.tile_layers import tensor_bytes
from mlx_flash.simulator import mode

pytestmark = pytest.mark.simulator
BOTH, SEPARATE = ["backward_key_value"], ["backward_key", "backward_value"]
# Of Hopper's first row four whole blocks of keys, whose products overlap; of the other rows edges.
ROWS = [
    ("sm90", Case(40, 512, 64, "float16"), BOTH),
    ("sm90", Case(33, 50, 256, "bfloat16", causal=True), SEPARATE),
    ("sm80", Case(33, 70, 128, "float16", causal=True, group=2), BOTH),
    ("sm90", Case(33, 150, 128, "float32", causal=True), SEPARATE),
    ("sm80", Case(33, 70, 64, "float32", group=2), BOTH),
]


def check_rows(ran, family: str):
    """Every kernel has a row of the table, and one of them more memory than an Apple GPU grants."""
    rows = [row for (*_, name), rows in TENSOR_TABLE.items() if name == family for row in rows]
    for one in ran:
        row, config = one.plan.table_row.for_scores(plain=True), one.plan.config
        assert one.plan.table_row in rows
        assert (row.traversal, row.stages) == (config.traversal * config.splits, config.stages)
    taken = [tensor_bytes(one.plan.kind, one.plan.config, one.plan.head_dim, one.plan.head_dim) for one in ran]
    assert max(taken) > 32768


@pytest.mark.parametrize("family, case, last", ROWS, ids=str)
def test_output_and_gradients(family, case, last):
    with use_backend("simulator", family), mode("check"), watched() as ran:
        feature_cases.check(Variant(case, ("causal",) if case.causal else ()), stored_output=True)
    assert kinds(ran) == ["forward", "backward_query_delta", *last]
    check_rows(ran, family)


def test_decoding():
    case = Case(1, 150, 128, "float16", group=4, key_heads=2)
    arrays = case.arrays()
    with use_backend("simulator", "sm90"), mode("check"), watched() as ran:
        out = attention(*(arrays[name] for name in "qkv"), scale=case.scale)
    expected(case, arrays).check(O=out)
    assert kinds(ran)[0] == "decode"
    check_rows(ran[:1], "sm90")
