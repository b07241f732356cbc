"""Mistakes in the tile layer for float32 on tensor cores (mutants.py says how they are tested)."""

from mutant import of

TF32 = "test_tf32_layer.py::test_{}"

# fmt: off
TILE_TF32 = of(
    "tf32",
    ("low-part-of-rows-left-out", "    nv::multiply<float>(small_upper, small_lower, a.low, b.high);\n", "",
     TF32.format("ends_within_a_block[tf32-narrow-(70, 150)]")),
    ("low-part-of-columns-left-out", "    nv::multiply<float>(small_upper, small_lower, a.high, b.low);\n", "",
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
)
# fmt: on
