"""Mistakes in the templates for neural accelerators; mutants.py says what they are."""

from mutant import of

NEURAL = "test_neural_kernels.py::test_{}"
ENDS = NEURAL.format("ends_within_a_block[(70, 150)]")

# fmt: off
NAX_OPERANDS = of(
    "nax_operands",
    ("nax-rows-in-order", "first = ((lane.row & 2) << 2) | ((lane.row & 4) >> 1) | (lane.row & 1);",
     "first = lane.row;", ENDS),
    ("nax-second-row-eight-below", "four(t * 16 + first + 4, d)", "four(t * 16 + first + 8, d)", ENDS, "check"),
    ("nax-columns-of-8x8", "(lane.row & 1);\n    column = 2 * lane.column;",
     "(lane.row & 1);\n    column = lane.column;", ENDS),
    ("nax-halves-of-rows-exchanged", "joined(read_four<D>(row[2 * i], from, true), read_four<D>(row[2 * i + 1]",
     "joined(read_four<D>(row[2 * i + 1], from, true), read_four<D>(row[2 * i]", ENDS),
    ("nax-half-a-step-of-the-next-row", "if (exists && (D % 16 == 0 || column < D))", "if (exists)", ENDS,
     "check"),
    ("nax-rows-past-the-end", "valid == BT || row < valid);", "true);", ENDS, "check"),
    ("nax-rescale-skipped", "if (simd_all(unchanged)) return;", "return;", ENDS),
    ("nax-stores-whole-simdgroups", "if (i * 8 + row >= rows) continue;", "if (i * 8 >= rows) continue;", ENDS,
     "check"),
)
NAX_PRODUCTS = of(
    "nax_products",
    ("nax-not-transposed", "multiply_wide<true>(left, right, rows[i], upper, lower);",
     "multiply_wide<false>(left, right, rows[i], upper, lower);", ENDS),
    ("nax-pairs-by-elements", "T(tile.at[2 * i + e / 4][2 * c + e / 2 % 2][e % 2])",
     "T(tile.at[2 * i + e / 4][2 * c + e % 2][e / 2 % 2])", ENDS),
    ("nax-first-rows-twice", "rows[0][i], rows[1][i], upper", "rows[0][i], rows[0][i], upper", ENDS),
    ("nax-infinity-a-number", "& 0x7fff) >= infinity;", "& 0x7fff) > infinity;",
     NEURAL.format("garbage_in_masked_keys[inf-40]")),
    ("nax-infinities-left-out", "    add_not_finite(c, p, b);\n", "", NEURAL.format("infinities_follow_ieee")),
    ("nax-weight-of-another-key", "b.lane.holder(k)", "b.lane.holder(0)", NEURAL.format("infinities_follow_ieee")),
    ("nax-sixteen-keys-of-32", "if (b.valid < BT && t * 16 >= b.valid) continue;\n    Matrix<Narrow>",
     "if (b.valid < BT && t * 16 + 16 >= b.valid) continue;\n    Matrix<Narrow>", ENDS),
)
# fmt: on
