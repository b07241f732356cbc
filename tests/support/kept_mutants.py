"""Mistakes in what gradients by five products keep, each with the test that notices it."""

from mutant import of

# fmt: off
KEPT_BITS = "test_kept.py::test_the_bits_of_seven_products[{}]"
KEPT_GRADIENTS = "test_kept.py::test_every_gradient[{}]"
KEPT = of(
    "kept",
    ("kept-of-the-first-head", "kept + (head_index * query_tiles", "kept + (0 * query_tiles",
     KEPT_BITS.format("wgmma-(70, 150)-dense")),
    ("kept-not-transposed", "nv::load_matrices_transposed(block + place", "nv::load_matrices(block + place",
     KEPT_BITS.format("mma-(70, 150)-dense")),
    ("kept-past-the-last-key", "if (t >= existing) continue;", "", KEPT_BITS.format("mma-(17, 1)-dense"), "check"),
    ("kept-past-the-last-query", "tiles = first < queries ? int(columns) : 0;", "tiles = int(columns);",
     KEPT_BITS.format("wgmma-(17, 1)-dense"), "check"),
    ("kept-read-past-the-last-query", "place < key_tiles * CHUNKS && row / KEPT + t < query_tiles",
     "place < key_tiles * CHUNKS", KEPT_BITS.format("mma-(70, 150)-dense"), "check"),
    ("kept-read-past-the-last-key", "place < key_tiles * CHUNKS && row", "row",
     KEPT_BITS.format("wgmma-(17, 1)-dense"), "check"),
    ("kept-head-after-head", "head += query_tiles * step;", "", KEPT_BITS.format("mma-(47, 31)-dense")),
)
BACKWARD_KEPT = of(
    "backward_kept",
    ("kept-and-never-written", "if (whole) return true;", "if (lane.thread_index < 4096u) return whole;",
     KEPT_BITS.format("wgmma-(70, 150)-causal")),
    ("kept-from-any-query", "range.begin / tile::KEPT * tile::KEPT", "range.begin", KEPT_GRADIENTS.format("many")),
    ("kept-unscaled", "factor.at[i] = args.scale;", "factor.at[i] = 1;", KEPT_BITS.format("mma-(47, 31)-dense")),
    ("kept-nan-of-hidden-rows", "(c, one, w, rows, whole)", "(c, one, w, rows, true)",
     "test_kept.py::test_nan_and_infinity_go_where_they_did[wgmma]"),
)
APPLE_LENGTHS = "test_kept_apple.py::test_lengths_that_end_within_tiles[{}]"
APPLE_KEPT = of(
    "simdgroup_kept",
    ("apple-kept-of-the-first-head", "kept + (head_index * matrices", "kept + (0 * matrices",
     APPLE_LENGTHS.format("apple7-(70, 150)-dense")),
    ("apple-kept-in-the-first-head", "kept + (head_index * kept_matrices", "kept + (0 * kept_matrices",
     APPLE_LENGTHS.format("apple9-(47, 31)-dense")),
    ("apple-kept-not-transposed", "Pair<T>(own[0], own[SIDE])", "Pair<T>(own[0], own[1])",
     APPLE_LENGTHS.format("apple9-(70, 150)-dense")),
    ("apple-kept-past-the-last-key", "if (edge && first + fixed + place >= keys) continue;", "",
     APPLE_LENGTHS.format("apple7-(17, 1)-dense"), "check"),
    ("apple-kept-pairs-past-the-last-key", " || (edge && first + at >= keys)", "",
     APPLE_LENGTHS.format("apple9-(17, 1)-dense"), "check"),
    ("apple-kept-past-the-last-query", "if (i >= groups) continue;", "", APPLE_LENGTHS.format("apple7-(47, 31)-dense"),
     "check"),
    ("apple-kept-read-past-the-last-query", "if (t < existing) ", "", APPLE_LENGTHS.format("apple7-(17, 1)-dense"),
     "check"),
    ("apple-kept-read-past-the-last-key", "min(first + int(lane.simdgroup) * R, columns * SIDE - R)",
     "first + int(lane.simdgroup) * R", APPLE_LENGTHS.format("apple7-(17, 1)-dense"), "check"),
    ("apple-kept-head-after-head", "head += matrices * step;", "", APPLE_LENGTHS.format("apple7-(47, 31)-causal")),
    ("apple-kept-narrow-groups", "fixed + place + 2 * j;", "fixed + place + j;",
     "test_kept_apple.py::test_blocks_that_are_no_multiple_of_a_read[apple7]"),
)
KEEPING = of(
    "backward_query",
    ("kept-from-any-key", "range.begin / tile::KEPT * tile::KEPT", "range.begin", KEPT_GRADIENTS.format("many")),
    ("kept-before-dropout", "kept_p.keep(dropped, c, edge)", "kept_p.keep(p, c, edge)", KEPT_GRADIENTS.format("many")),
    ("kept-p-for-ds", "kept_ds.keep(ds, c, edge)", "kept_ds.keep(p, c, edge)", KEPT_BITS.format("mma-(47, 31)-dense")),
)
# fmt: on
