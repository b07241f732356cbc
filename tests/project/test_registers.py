"""Register demand as the table estimates it against what an offline compiler for the M1 instruction set counted."""

import csv
from pathlib import Path

import pytest

from mlx_flash.kernels.apple import TABLE
from mlx_flash.kernels.config import TileConfig, precision_of
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import candidates
from mlx_flash.kernels.registers import register_demand
from mlx_flash.kernels.split_kv import decoding_config
from mlx_flash.problem.kinds import DECODE, DECODING, KEPT_KINDS, TRAINING

COUNTED = Path(__file__).parents[2] / "bench" / "results" / "apple_rows.csv"
KINDS = {kind.name: kind for kind in (*TRAINING, *KEPT_KINDS, *DECODING)}
HOT_CODE = COUNTED.with_name("apple_hot_code.csv")
INSTRUCTION_CACHE = 12 * 1024  # bytes, of M1
NEAR = 16  # 16-bit registers
MOST_SPILLED, FEW = 0.3, 0.03  # instructions a product, where the last head block is narrower and elsewhere


def counted() -> list[tuple]:
    """(kind, precision, row at the head dimension it was compiled for, registers, whether its loop spills), of M1."""
    found = []
    with open(COUNTED, newline="") as file:
        for line in csv.DictReader(file):
            if line["family"] != "apple7":
                continue
            blocks = (int(line[name]) for name in ("head_dim", "parallel", "traversal", "head"))
            row = TileConfig(*blocks, tuple(line["cached"].split()), int(line["simdgroup_rows"]))
            spills = float(line["spilled_in_loop"] or 0)
            found.append((KINDS[line["kind"]], precision_of(line["dtype"]), row, int(line["registers"]), spills))
    return found


def of_the_table(kind, precision: str, row: TileConfig) -> bool:
    """Is it a row of the table, compiled for a head dimension that the row serves?"""
    least = 0
    rows = candidates(kind, precision, FAMILIES["apple7"])
    for own in rows:
        if kind is DECODE and row.parallel == row.simdgroup_rows:
            own = decoding_config(own, row.parallel, FAMILIES["apple7"])
        same = (own.traversal, own.head, own.cached, own.simdgroup_rows) == (
            row.traversal, row.head, row.cached, row.simdgroup_rows,
        )  # fmt: skip
        last = own.max_head == rows[-1].max_head
        if same and least < row.max_head and (row.max_head <= own.max_head or last):
            return True
        least = own.max_head
    return False


CHOSEN = [line for line in counted() if of_the_table(*line[:3])]


@pytest.mark.parametrize("kind, precision, row, registers, spilled", CHOSEN, ids=str)
def test_estimate_is_near_the_count(kind, precision, row, registers, spilled):
    assert abs(register_demand(kind, row, precision, row.max_head) - registers) <= NEAR


@pytest.mark.parametrize("kind, precision, row, registers, spilled", CHOSEN, ids=str)
def test_hot_loops_do_not_spill(kind, precision, row, registers, spilled):
    ragged = row.max_head % row.head_block(row.max_head) != 0
    assert spilled <= (MOST_SPILLED if ragged else FEW), "instructions a product"


def test_hot_paths_fit_the_instruction_cache():
    with open(HOT_CODE, newline="") as file:
        lines = list(csv.DictReader(file))
    assert {"forward", "backward_query", "backward_key_value", "decode"} <= {line["kind"] for line in lines}
    for line in lines:
        assert 0 < int(line["hot_bytes"]) <= min(INSTRUCTION_CACHE, int(line["code_bytes"])), line


def test_every_row_was_counted():
    """Rows of decoding twice: where simdgroups share keys, and as few queries need them."""
    rows = [
        (kind, precision, one)
        for (kind, precision, family), rows in TABLE.items()
        for row in rows
        if family == "apple7" and kind.tiled and kind.name != "backward_mask"
        for one in ([row, decoding_config(row, 8, FAMILIES[family])] if kind is DECODE else [row])
    ]
    missing = {named(*row) for row in rows} - {named(*line[:3]) for line in CHOSEN}
    assert not missing


def named(kind, precision: str, row: TileConfig) -> tuple:
    return kind, precision, row.parallel, row.traversal, row.head, row.cached
