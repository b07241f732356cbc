"""Mistakes in the templates for neural accelerators; mutants.py explains their form."""

from mutant import of

NEURAL = "test_neural_kernels.py::test_{}"
ENDS = NEURAL.format("ends_within_a_block[(70, 150)]")
HALVES = NEURAL.format("options_of_a_row[forward-halves]")

# fmt: off
NAX_OPERANDS = of(
    "nax_operands",
    ("nax-rows-in-order", "first = ((lane.row & 2) << 2) | ((lane.row & 4) >> 1) | (lane.row & 1);",
     "first = lane.row;", ENDS),
    ("nax-second-row-eight-below", "four(t * 16 + first + 4, d)", "four(t * 16 + first + 8, d)", ENDS, "check"),
    ("nax-columns-of-8x8", "(lane.row & 1);\n    column = first_column<D>(lane);",
     "(lane.row & 1);\n    column = lane.column;", ENDS),
    ("nax-halves-of-rows-exchanged", "joined(read_four<D>(row[2 * i], from, true), read_four<D>(row[2 * i + 1]",
     "joined(read_four<D>(row[2 * i + 1], from, true), read_four<D>(row[2 * i]", ENDS),
    ("nax-half-a-step-of-the-next-row", "if (exists && (WHOLE_STEPS<D> || column < D))", "if (exists)", ENDS,
     "check"),
    ("nax-rows-past-the-end", "valid == BT || row < valid);", "true);", ENDS, "check"),
    ("nax-rescale-skipped", "if (simd_all(unchanged)) return;", "return;", ENDS),
    ("nax-parts-of-the-first-columns", "return lane.part() * STEPS<D> * 16 + 2 * lane.column;",
     "return 2 * lane.column;", HALVES, "check"),
    ("nax-stores-whole-simdgroups", "if (i * 8 + row >= rows) continue;", "if (i * 8 >= rows) continue;", ENDS,
     "check"),
)
NAX_PRODUCTS = of(
    "nax_products",
    ("nax-not-transposed", "multiply_wide<true>(left, right, rows[i], upper, lower);",
     "multiply_wide<false>(left, right, rows[i], upper, lower);", ENDS),
    ("nax-pairs-by-elements", "T(tile.at[2 * i + e / 4][2 * c + e / 2 % 2][e % 2])",
     "T(tile.at[2 * i + e / 4][2 * c + e % 2][e / 2 % 2])", ENDS),
    ("nax-first-rows-twice", "rows[0][i][n], rows[1][i][n], upper", "rows[0][i][n], rows[0][i][n], upper", ENDS),
    ("nax-rest-left-out", "taken == x ? 0 : x - taken;", "0;",
     NEURAL.format("errors_beside_those_of_8x8_matrices[40-float16]")),
    ("nax-rest-of-an-infinity", "taken == x ? 0 : x - taken;", "x - taken;",
     NEURAL.format("infinite_gradients_of_scores")),
    ("nax-part-of-the-sum", "s.at[i][c] += other[", "s.at[i][c] += 0 * other[", HALVES),
    ("nax-own-part-twice", "(1 - lane.part()) * SIZE", "lane.part() * SIZE", HALVES),
    ("nax-sums-before-all-have-written",
     "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  for", "  for", HALVES, "check"),
    ("nax-sums-while-others-read",
     "  threadgroup_barrier(mem_flags::mem_threadgroup);  // the next sum goes through the same memory\n", "", HALVES,
     "check"),
    ("nax-infinity-a-number", "& 0x7fff) >= infinity;", "& 0x7fff) > infinity;",
     NEURAL.format("garbage_in_masked_keys[inf-40]")),
    ("nax-infinities-left-out", "    add_not_finite(c, p, b);\n", "", NEURAL.format("infinities_follow_ieee")),
    ("nax-weight-of-another-key", "b.lane.holder(k)", "b.lane.holder(0)", NEURAL.format("infinities_follow_ieee")),
    ("nax-sixteen-keys-of-32", "if (b.valid < BT && t * 16 >= b.valid) continue;\n    Matrix<Narrow>",
     "if (b.valid < BT && t * 16 + 16 >= b.valid) continue;\n    Matrix<Narrow>", ENDS),
)
NAX_FORWARD = of(
    "forward",
    ("nax-statistics-written-twice", "    if (lane.part() > 0) continue;\n", "", HALVES, "check"),
)
# fmt: on
