"""Mistakes in the tile layer for float32 on tensor cores (mutants.py says how they are tested)."""

from mutant import of

TF32 = "test_tf32_layer.py::test_{}"

# fmt: off
TILE_TF32 = of(
    "tf32",
    ("low-part-of-rows-left-out", "    nv::multiply<float>(small_upper[0], small_lower[0], a.low, b.high);\n", "",
     TF32.format("ends_within_a_block[tf32-narrow-(70, 150)]")),
    ("low-part-of-columns-left-out", "    nv::multiply<float>(small_upper[1], small_lower[1], a.high, b.low);\n", "",
     TF32.format("ends_within_a_block[tf32-narrow-(70, 150)]")),
    ("tf32-rescale-skipped", "  c.multiply(factor);\n", "", TF32.format("ends_within_a_block[tf32-narrow-(70, 150)]")),
    ("steps-past-the-last", "if (!WHOLE && d + n >= STEPS<D>) continue;", "",
     TF32.format("ends_within_a_block[tf32-narrow-(70, 150)]"), "check"),
    ("scores-not-repaired", "if (!simd_all(zero[0] + zero[1] == 0)) repair_abt(s, a, b);", "",
     TF32.format("a_score_of_minus_infinity_hides_its_key[tf32-narrow]")),
    ("sums-not-repaired", "if (!simd_all(missed == 0)) repair_ab(c, rows, b, whole, missed);", "",
     TF32.format("infinities_follow_ieee[tf32-narrow]")),
    ("what-is-not-finite-added", "finite ? sums.upper : Pair<float>(0)", "sums.upper",
     TF32.format("garbage_in_masked_keys[tf32-narrow-nan]")),
    ("hidden-nan-added", "&& (whole || x != 0)) sum[e]", ") sum[e]",
     TF32.format("garbage_in_masked_keys[tf32-narrow-nan]")),
    ("columns-repaired-that-were-added", "    if ((missed >> d & 1) == 0) continue;\n", "",
     TF32.format("a_nan_reaches_the_rows_that_see_it[tf32-narrow]")),
    ("largest-numbers-split", "return abs(x) < SPLITS_BELOW;", "return isfinite(x);",
     TF32.format("the_largest_numbers[tf32-narrow]")),
) + of(
    "tf32_wgmma",
    ("low-part-of-queries-left-out",
     "      nv::multiply_registers<float, BT>(sum.at, rows[n].low, high.at(panel * BT * PANEL, n * DEPTH));\n", "",
     TF32.format("ends_within_a_block[tf32_wgmma-narrow-(70, 150)]")),
    ("low-part-of-keys-left-out",
     "      nv::multiply_registers<float, BT>(sum.at, rows[n].high, low.at(panel * BT * PANEL, n * DEPTH));\n", "",
     TF32.format("ends_within_a_block[tf32_wgmma-narrow-(70, 150)]")),
    ("low-parts-of-few-rows", "int row = index / 8;", "int row = index / 16;",
     TF32.format("ends_within_a_block[tf32_wgmma-narrow-(70, 150)]"), "check"),
    ("low-parts-past-the-last-step", "column < STEPS<D> * DEPTH", "column < PANELS<D> * PANEL",
     TF32.format("ends_within_a_block[tf32_wgmma-narrow-(70, 150)]"), "check"),
    ("tf32-product-not-waited-for", "    nv::wgmma_wait<0>();\n", "",
     TF32.format("ends_within_a_block[tf32_wgmma-narrow-(70, 150)]"), "check"),
)
# fmt: on
