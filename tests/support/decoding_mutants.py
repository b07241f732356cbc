"""Mistakes in the templates of decoding and of the tests on array masks; mutants.py has the others."""

from mutant import of

TILES = "test_masks.py::test_tiles_that_are_hidden_shown_and_mixed[{}]"
VISITED = "test_work.py::test_tiles_that_an_array_mask_hides_are_not_visited[{}]"
DECODING = "test_decode.py::test_features_and_their_gradients[simulator-{}]"
SLICED = "test_key_slices.py::test_keys_that_end_in_each_slice[{}]"

# fmt: off
DECODE = of(
    "decode",
    ("first-head-of-every-group", "h = h_k * (rows / args.Lq);", "h = h_k;", DECODING.format("apple9-alibi")),
    ("sink-in-every-part", "i < R / 8 && part == 0 && slice == 0;", "i < R / 8 && slice == 0;",
     DECODING.format("apple9-sinks")),
    ("sink-in-every-slice", "part == 0 && slice == 0;", "part == 0;", DECODING.format("apple9-sinks")),
    ("more-parts-than-launched", "max(1, min(most, keys / least))", "most",
     "test_decode.py::test_groups_queries_and_keys[apple9]"),
    ("every-slice-writes", "if (!key_splits::join(o, state, scratch, slice, factor, lane)) return;",
     "key_splits::join(o, state, scratch, slice, factor, lane);", DECODING.format("apple9-wide-window"), "check"),
    ("part-without-an-end", "end = min(seen.end, begin + length);", "end = seen.end;",
     DECODING.format("apple7-softcap")),
    ("normalised-twice", "parts > 1 ? 1 : state.l[i] == 0",
     "state.l[i] == 0", DECODING.format("apple7-softcap")),
    ("part-of-another-batch-entry", "(long(part) * args.B + b)", "(long(b) * parts + part)",
     DECODING.format("apple7-softcap")),
    ("tile-over-two-blocks", "next = min(next, (c / BLOCK + 1) * BLOCK);", "", DECODING.format("apple7-blocks")),
    ("rows-of-the-first-block-only", "int(position.y) % blocks * BP", "0",
     "test_decode.py::test_groups_queries_and_keys[apple9]", "check"),
    ("copied-beyond-the-border", "tile::produce(k, v, c, next)", "tile::produce(k, v, c, end)",
     "test_tensor_decode.py::test_only_keys_in_reach_are_copied[mma-narrow]", "check"),
    ("producers-store-too", "if (SLICES == 1 && lane.produces()) return;", "",
     "test_tensor_decode.py::test_groups_queries_and_keys[mma-narrow]"),
    ("producers-miss-the-join", "if (SLICES == 1 && lane.produces())", "if (lane.produces())", SLICED.format(40),
     "check"),
    ("positions-of-the-first-slice", "own = c + slice % SLICES * BT;", "own = c;", SLICED.format(40)),
)

KEY_SPLITS = of(
    "key_splits",
    ("slices-not-weighed", "o.get(i, d) * weight.at[i];\n        }", "o.get(i, d);\n        }",
     DECODING.format("apple9-wide-window")),
    ("first-slice-not-weighed", "sum = o.get(i, d) * weight.at[i];", "sum = o.get(i, d);",
     DECODING.format("apple9-wide-window")),
    ("last-slice-forgotten", "for (int n = 1; n < SPLITS; n++)", "for (int n = 1; n < SPLITS - 1; n++)",
     DECODING.format("apple9-wide-window")),
    ("sum-of-the-first-slice", "state.l[i] = sum;", "", DECODING.format("apple9-wide-window")),
    ("slices-reference-of-nothing", "const float reference = largest == -INFINITY ? 0 : largest;",
     "const float reference = largest;", "test_decode.py::test_fully_masked_rows[simulator-apple9-bool]"),
    ("blocks-still-read", "threadgroup_barrier(mem_flags::mem_threadgroup);  // the memory held blocks of keys", "",
     "test_quantized.py::test_a_cache_is_read_in_place[apple7-nvfp44g16-2]", "check"),
    ("producers-join", "joins = !lane.produces(),", "joins = true,", SLICED.format(40), "check"),
    ("nothing-to-add", "adds = joins && slice > 0;", "adds = false;", SLICED.format(40), "check"),
)

COMBINE = of(
    "combine",
    ("parts-not-weighed",
     "const float weight = fast_exp2(softmax::exponent(args.L_parts[place], reference, factor));",
     "const float weight = 1;", DECODING.format("apple7-softcap")),
    ("plain-parts-without-the-scale", "softmax::factor_of(args.scale)", "M_LOG2E_F", DECODING.format("apple7-causal")),
    ("parts-weighed-after-the-factor", "softmax::exponent(args.L_parts[place], reference, factor)",
     "args.L_parts[place] * factor - reference * factor",
     "test_huge_scores.py::test_float32[apple9-decode-(17, 0.125)]"),
    ("sum-of-the-first-part", "l = simd_sum(l);", "l = simd_broadcast_first(l);",
     DECODING.format("apple7-softcap")),
    ("parts-beyond-the-lanes", "part < parts; part += 32) {", "part < min(parts, 32); part += 32) {",
     "test_decode.py::test_more_parts_than_a_simdgroup_has_lanes[apple7]"),
    ("reference-of-nothing", "const float reference = m == -INFINITY ? 0 : m;", "const float reference = m;",
     "test_decode.py::test_fully_masked_rows[simulator-apple9-bool]"),
)

ANY = "\n    const bool any = simd_any(some != 0);"  # the line behind the vote of a tile; other votes look alike
MASK_LOOK = of(
    "mask_look",
    ("look-past-the-last-row", "min(first_row + i * 8 + lane.row, last)", "first_row + i * 8 + lane.row",
     DECODING.format("apple9-bool"), "check"),
    ("look-past-the-last-column", "if (edge && column >= end) continue;", "", DECODING.format("apple9-bool"), "check"),
    ("look-transposed", "? visibility.mask_at(column, row) :", "? visibility.mask_at(row, column) :",
     TILES.format("apple9-bool")),
    ("every-tile-is-whole", f"all = simd_all(all);{ANY}", f"all = true;{ANY}", TILES.format("apple9-bool")),
    ("whole-for-one-lane", f"all = simd_all(all);{ANY}", ANY, TILES.format("apple9-additive")),
    ("no-tile-is-whole", f"all = simd_all(all);{ANY}", f"all = false;{ANY}",
     "test_work.py::test_a_mask_that_hides_nothing_of_a_tile_costs_no_care_for_hidden_nan[apple9-forward]"),
    ("no-tile-is-hidden", "const bool any = simd_any(some != 0);", "const bool any = true;",
     VISITED.format("bool-apple9-forward")),
    ("tile-of-one-lane", "const bool any = simd_any(some != 0);", "const bool any = some != 0;",
     TILES.format("apple9-bool"), "check"),
    ("infinity-is-a-number", "!(float(value) == -INFINITY)", "true", VISITED.format("additive-apple9-forward")),
    ("one-simdgroup-decides", "if (SIMDGROUPS > 1) return any_votes(any, scratch, lane);", "",
     TILES.format("apple7-bool"), "check"),
    ("votes-in-one-place", "turn = 1 - turn;", "", TILES.format("apple7-bool"), "check"),
    ("votes-of-three", "n < SIMDGROUPS; n++", "n < SIMDGROUPS - 1; n++", TILES.format("apple7-bool")),
    ("votes-unordered", "threadgroup_barrier(mem_flags::mem_threadgroup);", "", TILES.format("apple7-bool"), "check"),
)
PACKED = "test_tensor_quantized.py::test_accuracy[narrow-form0-2-64-32-float16]"
QUANTIZED_TENSOR = of(
    "quantized",
    ("quantized-row-too-few", "count = min(BT, end - begin);", "count = min(BT - 1, end - begin);", PACKED),
    ("quantized-first-columns-only", "column = int(index % SLOTS) * 8;", "column = 0;", PACKED, "check"),
    ("quantized-rows-too-near", "at = rows.below(at, STEP)", "at = rows.below(at, 1)", PACKED),
) + of(
    "nvidia_quantized",
    ("quantized-block-before-its-stage", "producer_acquire() * b.BLOCK", "producer_acquire() * 0 * b.BLOCK",
     "test_tensor_quantized.py::test_several_parts_and_every_schedule[narrow]", "check"),
)

SLICES = of(
    "nvidia",
    ("every-slice-the-first", "return thread_index / 32 % SLICES;", "return 0;", SLICED.format(40), "check"),
    ("keys-of-the-first-slice", "BLOCK_ELEMENTS + first * PANEL;", "BLOCK_ELEMENTS;", SLICED.format(40)),
    ("end-of-the-first-slice", "min(BT, end - row - first)", "min(BT, end - row)",
     "test_key_slices.py::test_visits_that_end_with_the_first_slice"),
    ("last-block-copied-whole", "SLICES == 1 || row0 + step * STEP < valid ? 16 : 0", "16",
     "test_tensor_decode.py::test_only_keys_in_reach_are_copied[mma-narrow]", "check"),
    ("last-block-of-the-first-thread", "row0 + step * STEP < valid ?", "step * STEP < valid ?", SLICED.format(128),
     "check"),
    ("second-panel-of-keys-in-the-first", "block + place<ROWS>(t * 16 + l / 16", "block + place<BT>(t * 16 + l / 16",
     SLICED.format(128)),
    ("second-panel-of-values-in-the-first", "block + place<ROWS>(t * 16 + l % 16", "block + place<BT>(t * 16 + l % 16",
     SLICED.format(128)),
) + of(
    "nan_safe",
    ("second-panel-not-searched", "panel * b.ROWS + row", "panel * BT + row",
     "test_key_slices.py::test_garbage_in_the_last_columns_of_a_hidden_key[nan]"),
) + of(
    "nvidia_quantized",
    ("first-slice-dequantized", "if (row >= ROWS ||", "if (row >= BT ||", PACKED),
    ("second-panel-dequantized-in-the-first", "place<ROWS>(row, column)", "place<BT>(row, column)",
     "test_tensor_quantized.py::test_accuracy[narrow-form1-2-96-64-bfloat16]"),
) + of(
    "mask",
    ("segments-of-the-first-slice", "place + BT * SLICES, range.end", "place + BT, range.end",
     "test_key_slices.py::test_keys_that_begin_in_each_slice[33-segments]"),
) + of(
    "mask_look",
    ("map-of-the-first-slice", "first_column + C * SLICES", "first_column + C",
     "test_key_slices.py::test_keys_that_begin_in_each_slice[33-mask]"),
)
# fmt: on
