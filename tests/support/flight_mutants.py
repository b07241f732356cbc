"""Mistakes with products in flight, stages of pipelines and late rescaling, which a GPU shows, or the simulator's
account of them."""

from mutant import of

WHOLE = (
    "test_tensor_rows.py::test_output_and_gradients"
    "[sm90-40x512-d64-float16-dense-1over1-b1-plain-['backward_key_value']]"
)
ENDS = "test_tensor_layers.py::test_ends_within_a_block[{}-narrow-(70, 150)]"

GROWING = "test_late_rescaling.py::test_scores_that_grow[wgmma-{}-False-None]"
APART = "test_late_rescaling.py::test_scores_that_grow[apple7-{}-False-None]"
DIAGONAL = "test_late_rescaling.py::test_scores_that_grow[apple7-0.125-True-None]"
NEIGHBOURS = "test_late_rescaling.py::test_rows_do_not_move_each_other[apple7]"
HUGE = "test_huge_scores.py::test_bfloat16[apple7-forward-(100, 64.0)]"

# fmt: off
FLIGHTS = [
    *of(
        "online_softmax",
        ("rescales-far-too-late", "float LATE = 8;", "float LATE = 800;", GROWING.format("0.5")),
        ("largest-of-the-last-block", "max(state.largest[i], tile::row_max(most))", "tile::row_max(most)",
         "test_late_rescaling.py::test_scores_that_grow[wgmma-0.125-False-90.0]"),
        ("sum-relative-to-the-reference", "log2(l) + (largest", "log2(l) + 0 * (largest", GROWING.format("0.125")),
        ("sum-relative-in-natural-units", "(m - largest) * factor)", "m - largest)",
         GROWING.format("0.125")),
        ("sinks-without-a-largest-score", "#if RESCALES_LATE\n    largest[i] = m[i];\n#endif\n", "",
         "test_late_rescaling.py::test_scores_that_grow[wgmma-0.125-False-90.0]"),
    ),
    *of(
        "online_softmax",
        ("references-stay-for-ever", "-(m * factor)) <= LATE", "-(m * factor)) <= 100 * LATE", APART.format("0.5")),
        ("sum-apart-not-rescaled", "      state.l[i] *= correction.at[i];\n", "", APART.format("0.125")),
        ("reference-of-one-lane", "largest = tile::row_max(state.largest[i]);", "largest = state.largest[i];",
         APART.format("0.125")),
        ("largest-score-of-one-lane", "largest[i] = tile::row_max(largest[i]);", ";", APART.format("0.125")),
        ("references-move-together", "stays(before, largest, factor) ? before : largest", "largest", NEIGHBOURS),
        ("large-offsets-are-rounded", "abs(m * factor) < LARGEST_OFFSET &&", "true &&", HUGE),
        ("large-references-not-subtracted", "s.at[i][c] -= reference;", ";", HUGE),
        ("large-references-subtracted-twice", "      else offset.at[i] = 0;\n", "", HUGE),
    ),
    *of(
        "wgmma",
        ("block-released-in-flight", "  b.held = true;\n", "  b.release();\n", WHOLE, "check"),
        ("scores-not-waited-for", "nv::wgmma_wait<LATER>();", "nv::wgmma_wait<LATER + 1>();", WHOLE, "check"),
        ("scores-not-committed", "        d > 0);\n  }\n  nv::wgmma_commit();", "        d > 0);\n  }", WHOLE, "check"),
        ("output-not-waited-for", "  nv::wgmma_wait<0>();\n", "", WHOLE, "check"),
        ("held-block-released-before-its-product", "  finish_ab(c);\n  b.release_held();",
         "  b.release_held();\n  finish_ab(c);", WHOLE, "check"),
    ),
    *of(
        "simdgroup_operands",
        ("copies-for-own-rows-alone", "    filled = valid;\n    if (edge) valid = min(valid, rows);",
         "    if (edge) valid = min(valid, rows);\n    filled = valid;", DIAGONAL),
    ),
    *of(
        "forward",
        ("own-keys-of-the-first-row", "keys_of(at.first, at.first + R - 1);", "keys_of(at.first, at.first);", DIAGONAL),
        ("keys-released-before-their-product", "          tile::finish_abt<0>(s, q, k);\n          k.release();",
         "          k.release();\n          tile::finish_abt<0>(s, q, k);", WHOLE, "check"),
        ("values-never-released", "          v.release_held();\n", "", ENDS.format("wgmma"), "check"),
        ("output-stored-in-flight", "        tile::leave_ab(o, v, in_flight);\n", "", WHOLE, "check"),
        ("keys-never-released", "          k.release();\n", "", ENDS.format("mma"), "check"),
        ("values-released-before-they-are-read",
         "          tile::multiply_ab<Element>(o, correction, p, v, whole);\n          v.release();",
         "          v.release();\n          tile::multiply_ab<Element>(o, correction, p, v, whole);",
         ENDS.format("mma"), "check"),
    ),
    *of(
        "backward_key_value",
        ("gradient-of-p-not-waited-for", "tile::finish_abt<1>(ds, v, d_o);", "tile::finish_abt<2>(ds, v, d_o);", WHOLE,
         "check"),
        ("gradients-of-outputs-released-in-flight", "tile::begin_ab(d_v, p, d_o);\n",
         "tile::begin_ab(d_v, p, d_o);\n              d_o.release();\n", WHOLE, "check"),
    ),
    *of(
        "statistics",
        ("statistics-in-the-first-stage", "block = stages + visited % STAGES * SIZE;", "block = stages;",
         ENDS.format("wgmma")),
        ("statistics-past-rows", "from = min(row + own, last);", "from = row + own;", ENDS.format("wgmma"), "check"),
        ("deltas-of-other-queries", "block + 2 * BT + 8 * c + lane.column", "block + 2 * BT + 8 * c",
         ENDS.format("wgmma")),
    ),
    *of(
        "nvidia",
        ("released-held-or-not", "if (held) pipe.consumer_release();", "pipe.consumer_release();", WHOLE, "check"),
        ("held-from-the-first", "    held = false;\n    stages", "    held = true;\n    stages", WHOLE, "check"),
        ("next-block-in-the-same-stage", "stages + pipe.consumer_wait() * BLOCK_ELEMENTS +",
         "stages + 0 * pipe.consumer_wait() +", ENDS.format("mma"), "check"),
    ),
]
# fmt: on
