"""Mistakes in the templates, each with the test of the suite that notices it.

`old` occurs once in its template. With `new` in its place the kernels still compile, but are wrong or do needless work.
test_mutants.py makes each mistake and runs its test.
"""

from budget_mutants import BUDGETS
from decoding_mutants import COMBINE, DECODE, KEY_SPLITS, MASK_LOOK, QUANTIZED_TENSOR, SLICES
from flight_mutants import FLIGHTS
from formula_mutants import FORMULA
from kept_mutants import APPLE_KEPT, BACKWARD_KEPT, KEEPING, KEPT
from mutant import Mutant, of
from neural_mutants import NAX_FORWARD, NAX_OPERANDS, NAX_PRODUCTS
from share_mutants import SHARES
from stride_mutants import STRIDES
from tf32_mutants import TILE_TF32

__all__ = ["MUTANTS", "Mutant"]


def output(name: str, family: str = "apple7") -> str:
    """The test of the forward kernel alone, for mistakes in code that all kernels share."""
    return f"test_variants.py::test_output[simulator-{family}-{name}]"


def gradients(name: str, family: str = "apple7") -> str:
    return f"test_variants.py::test_gradients[simulator-{family}-{name}]"


TABLES = "test_pages.py::test_pages_of_any_length[simulator-apple7-({}, {})]"
PLAIN, CAUSAL, SHARED = gradients("plain"), gradients("causal"), output("plain")
DIRECT, DIRECT_OUTPUT = gradients("plain", "apple9"), output("plain", "apple9")  # operands are read directly
HEADS = "test_regressions.py::test_query_head_to_key_head[simulator-apple9]"
BLIND = "test_regressions.py::test_causal_rows_before_the_first_key[simulator-apple9]"
PAGED = "test_regressions.py::test_ordinary_case[simulator-apple7-mlx-2409-one-query]"
PADDED = "test_regressions.py::test_ordinary_case[simulator-apple9-flash-attention-2896-dq-of-padded-72]"
ALIGNED = "test_forward.py::test_causal_alignment[simulator-apple9-(1, 9)]"
UNALIGNED = (
    "test_layouts.py::test_views_equal_their_copies[simulator-apple7-odd_start-33x65-d64-float16-dense-4over2-b2-plain]"
)
HIDDEN = "test_isolation.py::test_garbage_in_masked_keys[simulator-{}]"
NAN = "test_isolation.py::test_a_nan_reaches_the_rows_that_see_it[simulator-{}]"
PAST = "test_work.py::test_windows_visit_only_keys_in_reach[512-0-apple9-{}]"
REACH = "test_work.py::test_windows_visit_only_keys_in_reach[3-77-apple9-{}]"
OTHER = "test_work.py::test_blocks_of_other_segments_are_not_visited[apple9-{}]"
SCHEDULES = "test_schedules.py::test_every_schedule_gives_the_same_bits[apple7-plain]"

QUANTIZED_ACCURACY = "test_quantized.py::test_accuracy[simulator-{}]"
CODES = "test_quantized.py::test_every_code_and_scale[simulator-apple9-{}]"
TENSOR = "test_tensor_layers.py::test_{}"
GATHERED = "test_tensor_decode.py::test_views_equal_their_copies[mma-narrow-every_second_column-1]"
BETWEEN = "test_result_layout.py::test_heads_lie_between_the_rows[{}-narrow]"
HUGE = "test_huge_scores.py::test_float32[{}]"
HUGE_TENSOR = "test_huge_scores.py::test_bfloat16[wgmma-forward-(30, 1.0)]"
SHIFTED = "test_shifted_rows.py::test_output_and_gradients[{}]"
TILES = "test_masks.py::test_tiles_that_are_hidden_shown_and_mixed[{}]"
INSIDE = "test_delta_inside.py::test_the_bits_of_the_separate_kernels[apple9]"
DECODING = "test_decode.py::test_features_and_their_gradients[simulator-{}]"

# fmt: off
FORWARD = of(
    "forward",
    ("block-of-a-hidden-one", "            k.pass();\n", "", TILES.format("apple9-bool")),
    ("rescale-skipped", "(o, correction, p, v, whole)", "(o, tile::RowVector<R>{{1}}, p, v, whole)", SHARED),
    ("empty-row-divided", "state.l[i] == 0 ? 0 : 1 / state.l[i]", "1 / state.l[i]", BLIND),
    ("one-row-too-many", "if (row < args.Lq && lane", "if (row <= args.Lq && lane", SHARED, "check"),
    ("not-normalised", "o.store(O + at.row0 * DV, DV, at.first, normaliser)",
     "o.store(O + at.row0 * DV, DV, at.first, tile::RowVector<R>{{1}})", SHARED),
    ("sink-of-the-first-head", "args.sinks[at.h]", "args.sinks[0]", output("sinks")),
)
QUERY_BLOCK = of(
    "query_block",
    ("key-head-by-modulo", "h / (args.Hq / args.Hk)", "h % args.Hk", HEADS),
    ("dq-key-head-by-modulo", "h / (args.Hq / args.Hk)", "h % args.Hk", PLAIN),
    ("first-block-forgotten", "blocks - 1 - x", "blocks - x", output("causal"), "check"),
    ("rows-of-key-heads", "(long(b) * args.Hq + h) * args.Lq", "(long(b) * args.Hk + h) * args.Lq", SHARED, "check"),
)
BACKWARD_QUERY = of(
    "backward_query",
    ("dq-forgets-scale", "at.row0 * D, D, at.first, scale_row)", "at.row0 * D, D, at.first, one)", PLAIN),
    ("dq-delta-of-the-first-row", "delta[at.row0 + min(group + lane.row, last)]",
     "delta[at.row0 + min(at.first, last)]", PLAIN),
    ("dq-own-delta-of-another-row", "if (lane.row == r) delta_row", "if (lane.row == 7 - r) delta_row", INSIDE),
    ("delta-of-the-last-row-forgotten", "group + r <= last) delta[", "group + r < last) delta[", INSIDE),
    ("delta-past-the-last-row", "&& group + r <= last) delta[", "&& true) delta[", INSIDE, "check"),
    ("dq-without-the-slope", "softmax::apply_slope(ds, slope);", "", gradients("softcap")),
    ("dq-drops-nothing", "dropout::apply(ds, drop, at.first, c, lane);", "", gradients("dropout")),
)
BACKWARD_KEY_VALUE = of(
    "backward_key_value",
    ("dk-forgets-scale", "step * D, first, scale_row)", "step * D, first, one)", PLAIN),
    ("dv-scaled", "multiply_ab<Element>(d_v, one, p,", "multiply_ab<Element>(d_v, scale_row, p,", PLAIN),
    ("first-head-of-the-group-only", "n < group; n++", "n < 1; n++", PLAIN),
    ("statistics-of-key-heads", "(long(b) * args.Hq + first_head) * Lq", "(long(b) * args.Hk + h_k) * Lq", PLAIN),
    ("transposed-mask-swapped", "mask::apply(p, visibility, look, r, first,",
     "mask::apply(p, visibility, look, first, r,", CAUSAL),
    ("transposed-dropout-swapped", "dropout::apply(kept, drop, r, first,",
     "dropout::apply(kept, drop, first, r,", gradients("dropout")),
    ("dk-without-the-slope", "softmax::apply_slope(ds, slope);\n\n", "\n\n", gradients("softcap")),
)
DELTA = of(
    "row_delta",
    ("delta-columns-too-many", "d < COLUMNS; d += 128", "d <= COLUMNS; d += 128", PLAIN, "check"),
    ("delta-four-at-once-from-anywhere", "% sizeof(vec<T, 4>) == 0", "% sizeof(vec<T, 4>) < 99",
     UNALIGNED, "check"),
    ("delta-of-one-lane", "return simd_sum(sum);", "return sum;", PLAIN),
)
BACKWARD_MASK = of(
    "backward_mask",
    ("mask-sums-one-head", "heads == 1 ? args.Hq : h0 + 1", "h0 + 1", gradients("additive-by-query")),
    ("mask-sums-one-batch-entry", "batches == 1 ? args.B : b0 + 1", "b0 + 1", gradients("additive-by-key")),
    ("mask-keeps-the-last-sum", "tile::add(total, ds);", "total = ds;", gradients("additive-by-key")),
    ("mask-place-transposed", "place % column_blocks * BT",
     "place / column_blocks * BT", gradients("additive"), "check"),
    ("mask-sums-other-columns", "min(seen.end, columns == 1 ? Lk : column + BT)", "seen.end", gradients("additive")),
)
QUANTIZED = of(
    "quantized",
    ("bias-forgotten", "return scale * float(code) + bias;", "return scale * float(code);",
     QUANTIZED_ACCURACY.format("apple7-0")),
    ("scale-of-the-first-group", "row * scale_stride + column / GROUP", "row * scale_stride",
     QUANTIZED_ACCURACY.format("apple9-2")),
    ("every-second-word-forgotten", "codes.at[e * BITS / 32]", "codes.at[0]", CODES.format("mxfp88g32")),
    ("codes-from-the-top", "(e * BITS % 32)) &", "(32 - BITS - e * BITS % 32)) &", CODES.format("nvfp44g16")),
    ("exponent-off-by-one", "(exponent + 120)", "(exponent + 121)", CODES.format("mxfp88g32")),
    ("code-without-a-number", "(code & 127) == 127 ? NAN : normal", "normal", CODES.format("mxfp88g32")),
    ("largest-code", "float(m) - 2 : 6", "float(m) - 2 : 5", CODES.format("mxfp44g32")),
    ("smallest-scale", "scale == 0 ? 0x400000u : uint(scale) << 23", "uint(scale) << 23", CODES.format("mxfp44g32")),
)
EXP2 = of(
    "exp2",
    ("scale-forgotten", "return scale * M_LOG2E_F;", "return M_LOG2E_F;", SHARED),
    ("difference-after-the-factor", "return (s - m) * factor;", "return s * factor - m * factor;",
     HUGE.format("apple7-forward-(17, 0.125)")),
)
SOFTMAX = of(
    "softmax",
    ("large-cap-caps", "abs(t * inverse) < 0.000244140625f", "false",
     "test_shifted_rows.py::test_a_large_softcap_caps_nothing[1e+300-apple9]"),
    ("cap-without-scale", "cap(s, slope, args.scale, args.softcap)",
     "cap(s, slope, 1, args.softcap)", output("softcap")),
    ("slope-of-another-function", "slope.at[i][c] = 1 - u * u;", "slope.at[i][c] = 1 - u;", gradients("softcap")),
)
ONLINE_SOFTMAX = of(
    "online_softmax",
    ("log-of-the-sum-in-natural-units", "to[1] = l == 0 ? 0 : log2(l);", "to[1] = l == 0 ? 0 : log(l);", PLAIN),
    ("empty-row-in-forward", "reference.at[i] = m.at[i] == -INFINITY ? 0 : m.at[i];",
     "reference.at[i] = m.at[i];", BLIND),
    ("row-sum-of-one-lane", "l[i] = tile::row_sum(l[i]);", "l[i] = l[i];", SHARED),
    ("sink-counted-by-every-lane", "if (!adds) l[i] = 0;", "", output("sinks")),
    ("sum-not-rescaled", "state.l[i] * correction.at[i] +", "state.l[i] +", SHARED),
    ("sink-not-counted", "l[i] = sink == -INFINITY ? 0 : 1;", "l[i] = 0;", output("everything")),
    ("sink-in-base-2", "m[i] = sink;", "m[i] = sink * M_LOG2E_F;", output("everything")),
    ("sum-rescaled-after-the-factor", "fast_exp2(exponent(state.m[i], reference.at[i], factor))",
     "fast_exp2(state.m[i] * factor - reference.at[i] * factor)", HUGE.format("apple9-decode-(17, 0.125)")),
    ("offsets-of-any-size", "if (simd_all(small)) return offset;", "return offset;", HUGE_TENSOR),
    ("scores-not-shifted", "s.at[i][c] -= m.at[i];", ";", HUGE_TENSOR),
    ("shifted-scores-keep-an-offset", "    offset.at[i] = 0;\n", "", HUGE_TENSOR),
    ("offset-without-the-factor", "offset.at[i] = m.at[i] * factor;", "offset.at[i] = m.at[i];",
     TENSOR.format("whole_panels[mma-narrow]")),
)
SOFTMAX_GRADIENT = of(
    "softmax_gradient",
    ("one-column-for-two", "[COUNT * (fixed + 1)]", "[COUNT * fixed]", PLAIN),
    ("statistics-past-the-end", "if (edge && fixed >= last) return", "if (false) return", PLAIN, "check"),
    ("p-in-base-e", "fast_exp2((s - m) * factor - log_l)", "exp((s - m) * factor - log_l)", PLAIN),
    ("recomputed-after-the-factor", "(s - m) * factor - log_l", "s * factor - m * factor - log_l",
     HUGE.format("apple7-forward-(17, 0.125)")),
    ("log-of-the-sum-in-base-e", "log_l.at[n] = log_l_n;", "log_l.at[n] = log_l_n * M_LOG2E_F;",
     SHIFTED.format("forward-apple9")),
    ("log-of-the-sum-forgotten", "(s - m) * factor - log_l", "(s - m) * factor", PLAIN),
    ("statistics-added-up", "(s - m) * factor - log_l", "s * factor - (m * factor + log_l)",
     SHIFTED.format("forward-apple7")),
    ("nan-behind-a-mask", "whole ? ds : select(ds, tile::Pair<float>(0), p == 0)", "ds",
     NAN.format("apple7-('v', 'blocks')")),
    ("delta-added", "p * (dp - delta)", "p * (dp + delta)", PLAIN),
    ("slope-of-a-hidden-nan", "select(ds.at[i][c] * slope.at[i][c], tile::Pair<float>(0), ds.at[i][c] == 0)",
     "ds.at[i][c] * slope.at[i][c]", HIDDEN.format("apple7-('with', 'bool')")),
)
MASK = of(
    "mask",
    ("last-page-left-out", "(keys + PAGE - 1) / PAGE", "keys / PAGE", TABLES.format(40, 40)),
    ("lengths-of-the-first-entry", "args.lengths[2 * b + 1]", "args.lengths[1]", output("lengths")),
    ("queries-as-long-as-keys", "args.lengths[2 * b]", "args.lengths[2 * b + 1]", output("lengths")),
    ("lengths-past-the-array", "keys = clamp(args.lengths[2 * b + 1], 0, keys);", "keys = args.lengths[2 * b + 1];",
     "test_lengths.py::test_forms_of_lengths[simulator-apple7]", "check"),
    ("queries-behind-the-end-see", "if (query_of(row) >= queries) return {0, 0};", "", output("lengths")),
    ("keys-behind-the-end-taken-whole", "covers(place, place + BT - 1, first, last);  // keys",
     "covers(place, place + BT - 1, first, min(last, keys - 1));  // keys", gradients("long-lengths")),
    ("gqa-rows-by-own-lengths", "return row % all_queries;", "return row % max(queries, 1);",
     "test_lengths.py::test_decoding[simulator-apple7-5]"),
    ("diagonal-hidden", "min(seen.end, last + 1);", "min(seen.end, last);", ALIGNED),
    ("causal-to-the-upper-left", "min(last_query, queries - 1) + largest_shift()", "min(last_query, queries - 1)",
     ALIGNED),
    ("window-right-off-by-one", "min(seen.end, last + right + 1)", "min(seen.end, last + right)", output("window")),
    ("whole-tile-right-of-the-window", "farthest > right", "nearest > right", output("wide-window")),
    ("window-starts-late", "max(0, first - left)", "max(0, first - left + 1)", output("window")),
    ("window-ends-early", "min(queries, last + left + 1)", "min(queries, last + left)", gradients("window")),
    ("queries-start-late", "seen.begin = max(0, first);", "seen.begin = max(0, first + 1);", CAUSAL),
    ("future-keys-visited", "if (CAUSAL) seen.end = min(seen.end, last + 1);", "", PAST.format("forward")),
    ("past-queries-visited", "if (CAUSAL) seen.begin = max(0, first);", "", PAST.format("backward_key_value")),
    ("window-ignored-by-loops", "seen = Range{max(0, first - left), min(seen.end, last + right + 1)};", "",
     REACH.format("forward")),
    ("keys-past-the-end", "if (key >= keys) return {0, 0};", "",
     "test_lengths.py::test_entries_are_as_alone_whatever_lies_behind_them[simulator-apple7-plain]"),
    ("whole-tile-past-the-diagonal", "CAUSAL && farthest > 0", "CAUSAL && nearest > 0", output("causal")),
    ("whole-tile-past-the-window", "nearest < -left", "farthest < -left", output("wide-window")),
    ("segment-span-of-one-lane", "found.end = simd_max(found.end);", "", output("segments")),
    ("segment-span-with-gaps", "i < end; i += 32", "i < end; i += 64", output("segments")),
    ("last-segment-skipped", "tile_segments.begin > row_segments.end ||",
     "tile_segments.begin >= row_segments.end ||", output("segments")),
    ("segments-whole-by-own-span",
     "(row_segments.begin != row_segments.end || tile_segments.begin != tile_segments.end)",
     "(row_segments.begin != row_segments.end)",
     "test_segments.py::test_ids_at_the_ends_of_their_range[simulator-apple9]"),
    ("segments-never-skipped",
     "return tile_segments.begin > row_segments.end || tile_segments.end < row_segments.begin;",
     "return false;", OTHER.format("forward")),
    ("partial-block-taken-whole", "return block_is_full;", "return true;", gradients("blocks")),
    ("block-ends-early", "((last >> 1) + 1) * BLOCK)}", "((last >> 1) + 1) * BLOCK - 1)}", output("blocks")),
    ("list-count-off-by-one", "h * count_strides[1] + row / BLOCK];",
     "h * count_strides[1] + row / BLOCK] - 1;", output("blocks"), "check"),
    ("list-of-the-first-row", "row / BLOCK * list_strides[2]", "0", output("blocks"), "check"),
    ("bitmap-transposed", "i % BLOCK * BLOCK + j % BLOCK]", "j % BLOCK * BLOCK + i % BLOCK]", output("blocks")),
    ("every-block-entered", "const int first = block_list[n];", "const int first = block_list[0];", output("blocks")),
    ("mask-rows-by-the-column-stride", "mask_row = mask_strides[2]",
     "mask_row = mask_strides[3]", output("bool")),
    ("mask-of-the-first-head", " + h * mask_strides[1]", "", output("additive")),
    ("added-in-base-2", "float(mask_at(row, j));", "float(mask_at(row, j)) * M_LOG2E_F;", output("additive")),
    ("alibi-signed", "float(abs(distance(query_of(row), j)))", "float(distance(query_of(row), j))", output("alibi")),
    ("gqa-rows-are-queries", "return row % queries;", "return row;", DECODING.format("apple7-causal"), "check"),
    ("gqa-rows-of-one-head", "return row / queries;", "return 0;", DECODING.format("apple7-bool-by-head")),
    ("gqa-rows-seen-whole", "first_query = 0;", "first_query = queries - 1;", DECODING.format("apple7-causal")),
    ("blocks-of-the-last-head", "found = found || block != 0;", "found = block != 0;",
     DECODING.format("apple7-blocks")),
    ("blocks-of-all-heads-full", "if (block != 1) block_is_full = false;", "",
     "test_decode.py::test_fully_masked_rows[simulator-apple9-blocks]"),
)
MASK_APPLY = of(
    "mask_apply",
    ("whole-although-an-array-hides", "HIDES_AT_EDGES = false;", "HIDES_AT_EDGES = true;",
     TENSOR.format("garbage_in_masked_keys[nan-wgmma-narrow]")),
    ("queries-before-the-diagonal", "HAS_WINDOW || (TRANSPOSED && CAUSAL)", "HAS_WINDOW", CAUSAL),
    ("rows-past-the-end-of-a-mask", "row = min(own_row, last_row)", "row = own_row",
     DECODING.format("apple9-additive"), "check"),
    ("no-bias-in-whole-tiles", "#if !ADDITIVE && !HAS_ALIBI", "#if 1", output("alibi")),
    ("columns-of-another-visit", "min(seen.end - first_column, valid)", "(seen.end - first_column)",
     TABLES.format(40, 40)),
    ("columns-past-the-end-of-segments", "edge ? min(own_column, last_column) : own_column", "own_column",
     output("segments"), "check"),
    ("bias-added-to-a-hidden-nan", "visible = (int(visible) & int(bias != -INFINITY)) != 0;", "",
     TENSOR.format("garbage_in_masked_keys[added-mma-narrow]")),
)
PAGES = of(
    "tile",
    ("pages-of-the-first-entry", "pages.at + b * pages.strides[0]", "pages.at", TABLES.format(40, 2)),
    ("rows-of-a-page-not-counted-anew", "j % PAGE * stride", "j * stride", TABLES.format(40, 2), "check"),
    ("entries-side-by-side", "b) * length * heads + h;", "b) * heads + h;", BETWEEN.format("mma"), "check"),
    ("heads-in-a-row", "length * heads + h;", "length * heads + h * length;", BETWEEN.format("tf32"), "check"),
    ("pages-side-by-side", "table[j / PAGE] * page_stride", "j / PAGE * page_stride", TABLES.format(40, 2)),
)
DROPOUT = of(
    "dropout",
    ("survivors-not-scaled", "p.at[i][c][e] * dropout.scale", "p.at[i][c][e]", output("dropout")),
    ("nine-rounds", "round < 10", "round < 9", output("dropout")),
    ("one-pattern-for-all-batches", "b * args.Hq + h", "h", output("dropout")),
    ("query-and-key-swapped", "first_query + (TRANSPOSED ? column : row)", "first_query + row", gradients("dropout")),
)
TILE_SIMDGROUP = of(
    "simdgroup",
    ("places-in-a-row", "return fixed_part<WIDE_ROWS>(f);", "return f * 8;", CAUSAL),
    ("row-sum-of-two-lanes", "return x + simd_shuffle_xor(x, ushort(8));", "return x;", SHARED),
    ("row-max-of-two-lanes", "return max(x, simd_shuffle_xor(x, ushort(8)));", "return x;", SHARED),
    ("morton-order-broken", "((lane >> 2) & 4) + ((lane >> 1) & 3)", "((lane >> 1) & 7)", DIRECT_OUTPUT, "check"),
)
SIMDGROUP_OPERANDS = of(
    "simdgroup_operands",
    ("loaded-before-all-have-read", "* STEP : 0);\n  block_barrier();", "* STEP : 0);", SCHEDULES, "check"),
    ("read-before-all-is-copied", "= values;\n    }\n  }\n  block_barrier();",
     "= values;\n    }\n  }", SCHEDULES, "check"),
    ("barrier-orders-nothing", "#else\n  threadgroup_barrier(mem_flags::mem_threadgroup);",
     "#else\n  threadgroup_barrier(mem_flags::mem_none);", SCHEDULES, "check"),
    ("simdgroup-barrier-forgotten", "  simdgroup_barrier(mem_flags::mem_threadgroup);", "",
     "test_quantized.py::test_a_cache_is_read_in_place[apple7-nvfp44g16-2]", "check"),
    ("row-past-the-end", "min(first + i * 8 + lane.row, rows - 1) * stride",
     "(first + i * 8 + lane.row) * stride", DIRECT_OUTPUT, "check"),
    ("edge-row-read", "if (!exists) return {};", "", DIRECT_OUTPUT, "check"),
    ("edge-pair-read", "if (existing > 1) lower", "if (existing > 0) lower", ALIGNED, "check"),
    ("copied-past-the-last-row", "if (b.valid == BT || n * STEP < b.valid - row0) values", "values", SHARED, "check"),
)
SIMDGROUP_RESULTS = of(
    "simdgroup_results",
    ("every-row-stored", "if (i * 8 >= rows) continue;", "", SHARED, "check"),
    ("page-not-cleared", "        set(i, begin, min(BH, D - begin), d - begin / 8, Pair<float>(0));\n", "", PAGED),
)
SIMDGROUP_PRODUCTS = of(
    "simdgroup_products",
    ("float32-sums-run-on", "block[i][d] = Pair<float>(0);", "block[i][d] = c.get(i, column, H, d) * factor.at[i];",
     "test_gradients.py::test_long_sums[simulator-apple7-(33, 16384)]"),
    ("last-fragment-read-whole", "t * 8 + 8 > b.valid) continue;\n    for (int i = 0; i < R / 8; i++) sum",
     "t * 8 >= b.valid) continue;\n    for (int i = 0; i < R / 8; i++) sum", DIRECT, "check"),
    ("last-fragment-forgotten", "  put(s, sum, last);", "", DIRECT_OUTPUT),
    ("last-head-block-forgotten", "if constexpr (REST > 0) head_block_abt<REST>(s, a, b, FULL);", "", PADDED),
    ("hidden-nan-multiplied", "fragment = without(fragment, bad);", "", HIDDEN.format("apple7-('alone', 'bool')")),
    ("weight-of-another-column", "b.lane.holder(k)", "b.lane.holder(0)", NAN.format("apple7-('v', 'blocks')")),
    ("seen-nan-swallowed", "add_not_finite<H>(block, p, b, column);", "", NAN.format("apple7-('v', 'blocks')")),
)
TILE_SUMS = of(
    "sums",
    ("column-sum-of-other-lanes", "return x + simd_shuffle_xor(x, ushort(16));",
     "return x + simd_shuffle_xor(x, ushort(1));", gradients("additive-by-key")),
)
VIEWS = of(
    "views",
    ("strides-swapped", "b * batch + h * heads", "h * batch + b * heads", SHARED, "check"),
)
TILE_TENSOR = of(
    "nvidia",
    ("producers-count-from-zero", "\n        lane.thread_index - 32 * CONSUMER_WARPS", "lane.thread_index",
     TENSOR.format("ends_within_a_block[mma-narrow-(70, 150)]")),
    ("copied-past-the-end", " && (SLICES > 1 || valid >= COUNT)", "",
     TENSOR.format("whole_panels[mma-narrow]")),
    ("copied-by-16-bytes-from-anywhere", " && (ulong(from) | ulong(stride * sizeof(T))) % 16 == 0;",
     ";", TENSOR.format("views_that_are_not_aligned[mma-narrow-odd_rows]")),
    ("strided-columns-copied-at-once", "aligned = column_stride == 1 &&", "aligned =", GATHERED),
    ("columns-gathered-as-neighbours", "source[(column + e) * column_stride]", "source[column + e]", GATHERED),
    ("pairs-gathered-as-neighbours", "row[(column + 1) * column_stride]", "row[column * column_stride + 1]", GATHERED),
    ("next-row-in-the-last-half-step", "const bool read = exists && column < columns;",
     "const bool read = exists;",
     TENSOR.format("ends_within_a_block[wgmma-narrow-(70, 150)]")),
)
TILE_NAN_SAFE = of(
    "nan_safe",
    ("infinity-a-number", "(pairs[e] & 0x7fff7fffu) + step", "(pairs[e] & 0x7fff7fffu)",
     TENSOR.format("garbage_in_masked_keys[nan-mma-narrow]")),
    ("every-part-the-first", "+ part * (4 * PANEL / 8)", "",
     TENSOR.format("garbage_in_masked_keys[nan-wgmma-narrow]")),
    ("nan-of-the-upper-rows", "sign * INFINITY), lower_seen > 0)", "sign * INFINITY), upper_seen > 0)",
     TENSOR.format("a_nan_reaches_the_rows_that_see_it[mma-narrow]")),
    ("nan-safe-first-columns-only", "c.set(2 * i, d, upper);", "c.set(2 * i, 0, upper);",
     TENSOR.format("a_nan_reaches_the_rows_that_see_it[mma-narrow]")),
)
TILE_MMA = of(
    "mma",
    ("mma-rescale-skipped", "c.multiply(factor);", "", TENSOR.format("ends_within_a_block[mma-narrow-(70, 150)]")),
)
TILE_WGMMA = of(
    "wgmma",
    ("product-in-flight-not-rescaled", "  c.multiply(factor);\n  if (!in_flight) {", "  if (!in_flight) {",
     "test_late_rescaling.py::test_scores_that_grow[wgmma-0.5-False-None]"),
    ("wgmma-adds-to-anything", "d > 0);", "true);",
     TENSOR.format("ends_within_a_block[wgmma-wide-(33, 31)]")),
    ("wgmma-multiplies-hidden-nan", "  if (!safe) {", "  if (false) {",
     TENSOR.format("garbage_in_masked_keys[nan-wgmma-narrow]")),
)
MUTANTS = [
    *BUDGETS, *KEPT, *BACKWARD_KEPT, *APPLE_KEPT, *KEEPING,
    *FORWARD,
    *QUERY_BLOCK,
    *BACKWARD_QUERY,
    *BACKWARD_KEY_VALUE,
    *DELTA,
    *BACKWARD_MASK,
    *DECODE,
    *FORMULA,
    *KEY_SPLITS,
    *COMBINE,
    *QUANTIZED,
    *QUANTIZED_TENSOR,
    *EXP2,
    *SOFTMAX,
    *ONLINE_SOFTMAX,
    *SOFTMAX_GRADIENT,
    *MASK,
    *MASK_APPLY,
    *PAGES,
    *MASK_LOOK,
    *DROPOUT,
    *TILE_SIMDGROUP,
    *SIMDGROUP_OPERANDS,
    *SIMDGROUP_RESULTS,
    *SIMDGROUP_PRODUCTS,
    *TILE_SUMS,
    *SLICES,
    *VIEWS,
    *TILE_TENSOR,
    *TILE_NAN_SAFE,
    *TILE_MMA,
    *TILE_WGMMA,
    *FLIGHTS,
    *TILE_TF32,
    *NAX_OPERANDS,
    *NAX_PRODUCTS,
    *NAX_FORWARD,
    *SHARES,
    *STRIDES,
]
# fmt: on
