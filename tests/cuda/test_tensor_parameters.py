"""The rows of the tensor-core layers: each fits its GPU, illegal ones are refused, and what they cannot serve falls
back."""

import re
from dataclasses import replace

import pytest
from problems import make_problem, with_variants

from mlx_flash.kernels.apple import TABLE
from mlx_flash.kernels.config import FULL, MIXED, TileConfig
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import lookup, prove_table, splits_dk_dv
from mlx_flash.kernels.neural import PRODUCT_COLUMNS
from mlx_flash.kernels.nvidia import TENSOR_TABLE, prove_tensor_row, thread_registers
from mlx_flash.kernels.original import ORIGINAL
from mlx_flash.kernels.plan import key_value_kinds, plan_of, reads_codes
from mlx_flash.kernels.source import build
from mlx_flash.kernels.tile_layers import LAYERS, consumer_registers, register_reallocation, tensor_bytes
from mlx_flash.problem.kinds import (
    ACCUMULATORS,
    BACKWARD_KEY,
    BACKWARD_KEY_VALUE,
    BACKWARD_QUERY,
    BACKWARD_VALUE,
    DECODE,
    FORWARD,
)
from mlx_flash.problem.problem import Problem
from mlx_flash.problem.quantization import Quantization
from mlx_flash.problem.variants import Variants

GPUS = [family for family in FAMILIES.values() if not family.apple]
DTYPES = {FULL: "float32", MIXED: "float16"}
ROWS = [
    pytest.param(
        step,
        DTYPES[precision],
        family,
        row.for_scores(plain),
        id=f"{step}-{DTYPES[precision]}-{family.name}-{row.tiles}-{row.max_head}{'-plain' if plain else ''}",
    )
    for family in GPUS
    for (step, precision, tensor), rows in TENSOR_TABLE.items()
    if tensor in family.matrix_units
    for row in rows
    for plain in (False, *([True] if row.plain else []))
]


def problem(head_dim: int, dtype="bfloat16", value_dim=None, **options) -> Problem:
    return make_problem(1, 4, 2, 300, 300, head_dim, value_dim or head_dim, dtype, variants=options)


SUMMED = {FORWARD: "V", BACKWARD_VALUE: "dO"}


@pytest.mark.parametrize("step, dtype, family, row", ROWS)
def test_every_row_fits(step, dtype, family, row):
    """Memory and registers are summed by hand: panels of 128 bytes, 1 KB of barriers for each traversed operand;
    fragments and 32 more registers. The kernel's text requests exactly that memory. Beyond 256 columns a threadgroup
    has a part of the accumulator's, whole panels, and of an operand that nothing else needs; others have room for all
    parts."""
    size = 4 if dtype == "float32" else 2
    panels = -(-size * row.max_head // 128) * 128
    kept = [name for name in step.cacheable if name in step.inputs and name not in row.cached]
    walked = {"Q", "K", "V", "dO"} & set(step.inputs) - set(step.cacheable) - set(step.shapes)
    parts = -(-row.max_head // 256)
    part = -(-panels // parts // 128) * 128
    widths = [part if name == SUMMED.get(step) else parts * part for name in walked]
    taken = panels * len(kept) * row.parallel + sum(width * row.stages * row.traversal + 1024 for width in widths)
    if {"P", "dS"} & set(step.inputs):  # which have the threadgroup's rows for columns
        taken += 2 * row.parallel * row.stages * row.traversal + 1024
    if row.tiles == "wgmma" and step is BACKWARD_KEY_VALUE:  # m, log2 l and delta of each query
        taken += 12 * row.stages * row.traversal
    if row.tiles == "tf32_wgmma":  # the low parts of keys
        taken += panels * row.stages * row.traversal
    assert taken == tensor_bytes(step, row, row.max_head, row.max_head) <= family.threadgroup_bytes
    warps = {"wgmma": 4, "tf32_hopper": 4, "tf32_wgmma": 4, "mma": 1, "tf32": 1, "dequantizing": 2}[row.tiles]
    consumers, producers = row.parallel * 2, 32 * warps
    even = 65536 // -(-(consumers + producers) // 128 * 128) // 8 * 8
    kept = 24 if len(set(row.cached) & {"dK", "dV"}) == 2 or consumers == 384 else 40  # by a producer thread
    claimed = (even * (consumers + producers) - kept * producers) // consumers // 8 * 8
    given = claimed if warps == 4 and even < 248 else min(even, 255)
    assert thread_registers(step, row, row.max_head) <= given == consumer_registers(row) <= 255
    assert row.threads == consumers + producers <= 1024
    kernel = build(step, row, family, dtype, row.max_head, row.max_head, Variants(), None, readable=True)
    assert f"SCRATCH = {taken // size};" in kernel.header and f"STAGES = {row.stages};" in kernel.header


OPTIONS = ({"softcap": 5.0}, {"window": (7, 0)}, {"mask": "bool"}, {"alibi": True}, {"segments": True})


@pytest.mark.parametrize("head_dim, kind, blocks", [
    (64, FORWARD, (192, 128, 3)), (64, BACKWARD_QUERY, (128, 128, 2)), (128, BACKWARD_QUERY, (128, 128, 2)),
    (64, BACKWARD_KEY_VALUE, (128, 96, 2)), (128, BACKWARD_KEY_VALUE, (128, 64, 2)),
])  # fmt: skip
def test_plain_scores_have_larger_blocks(head_dim, kind, blocks):
    """An option takes registers, which larger blocks would spill."""
    family = FAMILIES["sm90"]
    for causal in (False, True):
        row = plan_of(kind, problem(head_dim, causal=causal), family).config
        assert (row.parallel, row.traversal, row.stages) == blocks
        for option in OPTIONS:
            chosen = plan_of(kind, problem(head_dim, causal=causal, **option), family)
            listed = lookup(kind, "bfloat16", family, head_dim)
            assert chosen.config == replace(listed, plain=None) and chosen.table_row is listed


def steps_of(asked: Problem, family) -> list:
    return [FORWARD, BACKWARD_QUERY, *key_value_kinds(asked.signature, family)]


@pytest.mark.parametrize("block", [32, 64, 96, 128, 192, 320])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_visits_fit_the_blocks_of_a_block_mask(family, block):
    """A block is visited no more often than the table's row requires, and less than a fragment of each visit is
    wasted."""
    for head_dim in (64, 128, 192, 256):
        asked = problem(head_dim, block=block)
        for step in steps_of(asked, family):
            chosen = plan_of(step, asked, family)
            row, config, fragment = chosen.table_row, chosen.config, LAYERS[chosen.table_row.tiles].fragment_rows
            fragment = PRODUCT_COLUMNS if row.tiles == "nax" else fragment
            visits = -(-block // config.traversal)
            assert visits == -(-block // row.traversal) and config.traversal <= row.traversal
            assert 0 <= visits * config.traversal - block < visits * fragment and config.traversal % fragment == 0
            assert block % config.parallel == 0


@pytest.mark.parametrize("head_dim, most", [(64, [3, 3, 2]), (128, [2, 2, 2]), (256, [1, 1, 1, 1])])
def test_small_threadgroups_share_a_core(head_dim, most):
    """Threadgroups with one consumer warpgroup share a core, as many as its memory and registers allow."""
    family, resident = FAMILIES["sm90"], []
    for step in steps_of(problem(head_dim), family):
        whole, half = (plan_of(step, problem(head_dim, block=block), family).config for block in (128, 64))
        assert (whole.resident, whole.threads, half.threads) == (1, 384, 256)
        resident.append(half.resident)
        if half.resident > 1:
            (kept, given), even = register_reallocation(half), 65536 // (half.resident * half.threads) // 8 * 8
            assert thread_registers(step, half, head_dim) <= given and 128 * (given + kept) <= half.threads * even
            taken = tensor_bytes(step, half, head_dim, head_dim) + 1024
            assert half.resident * taken <= 228 * 1024
    assert resident == most


LEGAL = TileConfig(64, 64, 32, 64, ("O",), 16, "mma", 2)
JOINT = replace(LEGAL, parallel=128, tiles="wgmma")
SPLIT = replace(LEGAL, tiles="tf32")
ILLEGAL = [
    (FORWARD, LEGAL, {"simdgroup_rows": 8}, "16 rows by 16"),
    (FORWARD, LEGAL, {"traversal": 24}, "16 rows by 16"),
    (FORWARD, LEGAL, {"parallel": 40}, "whole simdgroups"),
    (FORWARD, JOINT, {"parallel": 96}, "whole simdgroups"),
    (FORWARD, LEGAL, {"cached": ("O", "K")}, "may be cached"),
    (BACKWARD_QUERY, LEGAL, {}, "may be cached"),
    (FORWARD, LEGAL, {"cached": ("Q",)}, "must be cached"),
    (FORWARD, SPLIT, {"cached": ("Q", "O")}, "read from threadgroup memory"),
    (FORWARD, SPLIT, {"simdgroup_rows": 32}, "16 rows and 256 columns"),
    (FORWARD, SPLIT, {"max_head": 264}, "16 rows and 256 columns"),
    (BACKWARD_KEY_VALUE, LEGAL, {"cached": ("dK",)}, "must be cached"),
    (FORWARD, LEGAL, {"stages": 1}, "two stages"),
    (FORWARD, LEGAL, {"stages": 16}, "threadgroup bytes exceed"),
    (FORWARD, LEGAL, {"max_head": 512, "columns": 512}, "registers a thread exceed"),
    (FORWARD, replace(LEGAL, max_head=128), {"parallel": 512}, "registers a thread exceed 56"),
    (FORWARD, JOINT, {"simdgroup_rows": 32}, "16 of the 64 rows"),
    (FORWARD, JOINT, {"cached": ("Q", "O")}, "from threadgroup memory"),
    (FORWARD, JOINT, {"parallel": 256, "traversal": 16}, "more consumers than three"),
    (BACKWARD_QUERY, JOINT, {"cached": ("dQ",), "overlaps": True}, "no products of this kernel overlap"),
    (DECODE, LEGAL, {"cached": ("O",), "splits": 2}, "have q in registers"),
    (FORWARD, LEGAL, {"overlaps": True}, "no products of this kernel overlap"),
    (BACKWARD_KEY_VALUE, LEGAL, {"cached": ("dK", "dV"), "overlaps": True}, "no products of this kernel overlap"),
]


@pytest.mark.parametrize("step, row, changes, complaint", ILLEGAL, ids=lambda value: str(value).replace(" ", "_"))
def test_illegal_rows_are_refused(step, row, changes, complaint):
    roomy = replace(FAMILIES["sm90"], threadgroup_bytes=10**5 if "bytes" in complaint else 10**6)
    prove_tensor_row(FORWARD, roomy, row)
    with pytest.raises(ValueError, match=complaint):
        prove_tensor_row(step, roomy, replace(row, **changes))


def test_the_proof_is_asked_at_import(monkeypatch):
    key = (FORWARD, MIXED, "sm80")
    monkeypatch.setitem(TENSOR_TABLE, key, (replace(LEGAL, traversal=24),))
    with pytest.raises(ValueError, match="16 rows by 16"):
        prove_table()


@pytest.mark.parametrize("family", GPUS, ids=lambda family: family.name)
def test_lookup_takes_the_first_row_that_covers_the_head_dimension(family):
    for (step, precision, tensor), rows in TENSOR_TABLE.items():
        lowest = 1
        for row in rows if tensor == family.tensor else ():
            for dtype in ("float32",) if precision == FULL else ("float16", "bfloat16"):
                assert lookup(step, dtype, family, lowest) is lookup(step, dtype, family, row.max_head) is row
            lowest = row.max_head + 1


@pytest.mark.parametrize("family", GPUS, ids=lambda family: family.name)
def test_problems_that_tensor_cores_do_not_serve(family):
    """More columns than the last row has, and few queries in float32, run on 8x8 matrices."""
    steps = (FORWARD, DECODE, BACKWARD_QUERY, BACKWARD_KEY_VALUE)
    assert lookup(DECODE, "float32", family, 64).tiles == "simdgroup"
    for step in steps:
        beyond = 264 if step is DECODE else 584
        assert lookup(step, "float32", family, 264).tiles == "simdgroup"
        assert lookup(step, "float16", family, beyond).tiles == "simdgroup"
        rows = ORIGINAL.get((step, MIXED, "apple9"), TABLE[step, MIXED, "apple9"])
        assert lookup(step, "float16", family, beyond) in rows
        assert plan_of(step, problem(64), family).config.tiles != "simdgroup"
    assert not splits_dk_dv("float32", family, 264) and not splits_dk_dv("float16", family, 520)


@pytest.mark.parametrize("family", GPUS, ids=lambda family: family.name)
def test_quantized_operands_have_a_layer_of_their_own(family):
    """Where tensor cores serve the dtype and the head dimension; elsewhere 8x8 matrices do, through shared memory."""
    for head_dim, dtype, served in ((64, "float16", True), (256, "bfloat16", True), (64, "float32", False)):
        asked = problem(head_dim, dtype, quantization=Quantization("affine", 4, 64))
        for step in (FORWARD, DECODE):
            chosen = plan_of(step, asked, family)
            assert chosen.config.tiles == ("dequantizing" if served else "simdgroup")
            assert chosen.effective_family.uses_threadgroup_memory
        assert reads_codes(asked.signature, family) == served


@pytest.mark.parametrize("family", GPUS, ids=lambda family: family.name)
@pytest.mark.parametrize(
    "group, queries, owned", [(1, 1, 16), (4, 4, 16), (17, 1, 32), (8, 5, 48), (8, 8, 64), (16, 8, 64)]
)
def test_a_decoding_threadgroup_has_as_many_rows_as_it_needs(family, group, queries, owned):
    """Rows come in fragments of 16, whatever their number, and the memory of a core holds several threadgroups of 16
    rows, in which two simdgroups share blocks of 64 keys."""
    core, fit = {"sm80": (100, 2), "sm90": (228, 3)}[family.name]  # in KB; a threadgroup costs another one
    for head_dim in (40, 64, 128, 192, 256):
        asked = make_problem(1, group, 1, queries, 300, head_dim, head_dim, "bfloat16")
        row = plan_of(DECODE, asked, family).config
        slices = 2 if owned == 16 and head_dim <= {"sm80": 64, "sm90": 128}[family.name] else 1
        assert (row.tiles, row.parallel, row.simdgroup_rows) == ("mma", owned, 16)
        assert row.splits == slices and row.threads == 2 * owned * slices + 32
        taken = tensor_bytes(DECODE, row.shrink_to(16), row.max_head, row.max_head)
        assert fit * (taken / 1024 + 1) <= core


@pytest.mark.parametrize("group", [4, 17])
def test_quantized_keys_are_summed_in_the_order_of_plain_ones(group):
    """With the same blocks and slices, and so the same bits where codes are exact. Hopper's blocks of plain keys are
    longer beyond 64 columns."""
    for name, head_dims in (("sm80", (16, 64, 128, 256)), ("sm90", (16, 64))):
        for head_dim in head_dims:
            asked = make_problem(1, group, 1, 1, 300, head_dim, head_dim, "float16")
            coded = with_variants(asked, quantization=Quantization("affine", 4, 32))
            plain, quantized = (plan_of(DECODE, one, FAMILIES[name]).config for one in (asked, coded))
            assert (quantized.traversal, quantized.splits) == (plain.traversal, plain.splits)


@pytest.mark.parametrize("family", GPUS, ids=lambda family: family.name)
def test_separate_dk_and_dv_kernels_beyond_128_columns(family):
    apart, together = (BACKWARD_KEY, BACKWARD_VALUE), (BACKWARD_KEY_VALUE,)
    for head_dim, value_dim in ((136, 64), (64, 136), (256, 256), (384, 72)):
        steps = key_value_kinds(problem(head_dim, value_dim=value_dim).signature, family)
        assert steps == apart
        assert all(plan_of(step, problem(head_dim), family).config.tiles == LAYERS_OF[family.name] for step in steps)
        assert {name for step in steps for name in step.outputs} == {"dK", "dV"} <= ACCUMULATORS
    for asked in (problem(128), problem(520), problem(264, "float32"), problem(64, "float32")):
        assert key_value_kinds(asked.signature, family) == together
    for apple in (family for family in FAMILIES.values() if family.tensor in ("", "nax")):
        wanted = apart if apple.tensor else together  # those of neural accelerators are together up to 96 columns
        assert key_value_kinds(problem(256).signature, apple) == wanted
        assert key_value_kinds(problem(264).signature, apple) == together
    assert key_value_kinds(problem(256).signature, None) == together


LAYERS_OF = {"sm80": "mma", "sm90": "wgmma"}


@pytest.mark.parametrize("block", [32, 64, 96, 128, 192])
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.tensor != "nax"])
def test_a_threadgroup_stays_in_one_block_of_a_mask(family, block):
    """A threadgroup walks the list of one row of blocks."""
    for head_dim in (64, 128, 256):
        asked, machine = problem(head_dim, block=block), FAMILIES[family]
        for step in (FORWARD, BACKWARD_QUERY, *key_value_kinds(asked.signature, machine)):
            row = plan_of(step, asked, machine).config
            assert block % row.parallel == 0, (step, row)
            if row.tiles != "simdgroup":
                assert row.parallel % LAYERS[row.tiles].mma_rows == 0
                prove_tensor_row(step, machine, replace(row, max_head=head_dim))
            assert (row.tiles != "simdgroup") == bool(machine.tensor)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.apple])
def test_statistics_are_loaded_before_the_products_that_hide_their_latency(family, head_dim):
    """Loaded later, they would delay the exponentials: a whole gradient took 12 to 26 % longer on an H200."""
    for kind in key_value_kinds(problem(head_dim).signature, FAMILIES[family]):
        if family == "sm90" and kind is BACKWARD_KEY_VALUE:
            continue  # they come with dO, as the next test says
        row = plan_of(kind, problem(head_dim), FAMILIES[family]).config
        kernel = build(kind, row, FAMILIES[family], "bfloat16", head_dim, head_dim, Variants(), None, readable=True)
        text = kernel.header[kernel.header.index("void backward_key_value(") :]
        product = re.search(r"tile::(multiply|begin)_abt\(p,", text).start()
        assert text.index("softmax::read_reference<BT>(") < text.index("q.acquire(") < product
        assert kind is BACKWARD_VALUE or text.index("softmax::read_columns(") < product


def test_statistics_of_dk_and_dv_come_with_the_pipeline_on_hopper():
    """Consumers that load them wait for device memory, or hold them in registers during the products: 8 to 26 % of
    the kernel's time on an H200. Each is read before the stage is released."""
    for head_dim in (64, 96, 128):
        for variants in (Variants(), Variants(dropout=0.5)):  # whose products overlap, and do not
            row = plan_of(BACKWARD_KEY_VALUE, problem(head_dim), FAMILIES["sm90"]).config
            arguments = (FAMILIES["sm90"], "bfloat16", head_dim, head_dim, variants, None)
            kernel = build(BACKWARD_KEY_VALUE, row, *arguments, readable=True)
            text = kernel.header[kernel.header.index("void backward_key_value(") :]
            assert "tile::produce(q, d_o, statistics, r, range.end)" in text and "read_columns" not in text
            assert text.count("args.L +") == text.count("args.delta") == 1
            last = max(text.rindex("statistics.delta_column()"), text.rindex("read_reference(statistics)"))
            assert text.index("statistics.acquire()") < text.index("d_o.acquire(") < last < text.index("d_o.release()")
