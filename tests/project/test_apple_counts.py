"""The tool that counts M1 instructions: what it reads from a listing, and what it says without a compiler."""

import csv
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
MOST = 1.05  # instructions of a user's text over those of the built-in option that computes the same
# A traversal with whole blocks in blocks 1 to 6, a rolled loop over head blocks in block 2, and a block that is not
# visited in 5. Of the condition in block 3 the way with memory is usual, of the one in block 1 that with products.
LISTING = """
block0 {
   r0 = mov_imm #0
} -> block1

block1 {
   threadgroup_barrier
   if_icmp r0, r1
} -> block2 block5

block2 {
   r2 = local_load r0
   r3 = simd_matmul r2, r2, r3
   r3 = simd_matmul r2, r2, r3
   r4 = stack_load #4
} -> block2 block3

block3 {
   if_icmp r0, r1
} -> block4 block6

block4 {
   r5 = device_load r0
   wait #0
   r5 = fadd r5, #-0.000000
   r6 = bitop r5, #0, #a
} -> block6

block5 {
   r3 = device_load r2
} -> block6

block6 {
   r0 = iadd r0, #1
} -> block1 block7

block7 {
   stop
}
"""


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import apple_counts
    import apple_listing

    yield apple_counts, apple_listing
    for name in ("apple_counts", "apple_listing"):
        sys.modules.pop(name, None)


def test_one_visit_of_a_block(tool):
    _, listing = tool
    code = listing.parse(LISTING)
    (outer,) = listing.loops_of(code)
    (inner,) = outer.inner
    assert (outer.head, inner.head) == (1, 2)
    inner.trips = 4
    counts = listing.UsualPath(code).counts(outer)
    assert {name: count for name, count in counts.items() if count} == {
        "barrier": 1, "branch": 2, "tg_load": 4, "matmul": 8, "spill_load": 4, "dev_load": 1, "wait": 1, "convert": 1,
        "move": 1, "int": 1,
    }  # fmt: skip


def test_an_exchange_of_two_registers_is_three_moves(tool):
    """Where no third register is free; other uses of xor are arithmetic."""
    _, listing = tool
    swap = "r8 = xor r8, r9\n   r9 = xor r8, r9\n   r8 = xor r8, r9\n   "
    for text, moves, others in ((swap, 3, 0), (swap.replace("r9 = ", "r7 = "), 0, 3)):
        counts = listing.parse(LISTING.replace("stop", f"{text}stop"))[7].counts
        assert (counts["move"], counts["int"]) == (moves, others)


def test_the_last_listing_counts(tool):
    _, listing = tool
    before = LISTING.replace("stop", "stop\n   nop\n   nop")
    assert sum(listing.parse(before + LISTING)[7].counts.values()) == 1


def test_a_text_without_blocks(tool):
    _, listing = tool
    with pytest.raises(ValueError, match="no block in the listing"):
        listing.parse("error: no such instruction")


def test_without_a_compiler(tool, monkeypatch):
    counts, _ = tool
    monkeypatch.delenv(counts.COMPILER, raising=False)
    with pytest.raises(SystemExit, match=f"set {counts.COMPILER} to a command"):
        counts.compiler()


@pytest.mark.process
def test_a_compiler_that_fails(tool, monkeypatch):
    counts, _ = tool
    monkeypatch.setenv(counts.COMPILER, "false")
    with pytest.raises(SystemExit, match="ended with 1"):
        counts.listing_of("kernel void nothing() {}", 32)


def test_products_of_a_block(tool):
    """Forward at 64 columns, all in registers: two products of 64 x 8 x 64, no rolled loop."""
    counts, _ = tool
    kernel = counts.kernel_of(counts.FORWARD, 64, "float16")
    assert kernel.matmuls() == 2 * kernel.row.traversal // 8 * 8 and kernel.head_loops() == []
    paged = counts.kernel_of(counts.FORWARD, 384, "float16")
    assert paged.head_loops() == [384 // paged.row.head] * 2


@pytest.mark.all_values  # families split the keys of decoding each in its way
@pytest.mark.parametrize("whose", ("apple9 forward", "apple9 backward_key_value", "apple7 decode", "apple9 decode"))
def test_lines_are_counted_again_as_the_kernels_that_they_name(tool, whose):
    (counts, _), (family, kind) = tool, whose.split()
    with open(counts.RESULTS / "apple_rows.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["family"], line["kind"]) == (family, kind)]
    found = counts.kernels_of_lines([kind], family)
    assert len(found) == len(lines) > 0
    for kernel, line in zip(found, lines):
        assert kernel.plan.family.name == family
        assert {name: str(value) for name, value in counts.facts_of(kernel).items()} == {
            name: line[name] for name in counts.FACTS
        }
    named = {str(counts.facts_of(kernel)): kernel.row for kernel in found}
    table = {str(counts.facts_of(kernel)): kernel.row for kernel in counts.kernels_of_the_table([kind], family)}
    assert table.items() <= named.items()


def ratios() -> list:
    with open(BENCH / "results" / "apple_texts.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    return [pytest.param(line, id=f"{line['option']}-{line['kind']}") for line in lines]


@pytest.mark.parametrize("line", ratios())
def test_users_texts_cost_no_more_than_options(line):
    assert round(int(line["text"]) / int(line["built_in"]), 3) == float(line["ratio"])
    assert float(line["ratio"]) <= MOST
