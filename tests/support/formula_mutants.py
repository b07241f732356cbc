"""Mistakes in the templates of users' texts; mutants.py has the others."""

from mutant import of

OUTPUT, GRADIENTS = (f"test_variants.py::test_{name}[simulator-apple7-{{}}]" for name in ("output", "gradients"))

# fmt: off
FORMULA = of(
    "formula",
    ("read-beyond-the-end", "return inside ? found : NAN;", "return found;",
     "test_formula_meanings.py::test_meanings_in_metal[False]"),
    ("nan-made-an-integer", "return x == x ? int(clamp(x, -2147483648.0f, 2147483520.0f)) : 0;",
     "return x == x ? int(clamp(x, -2147483648.0f, 2147483520.0f)) : 1;",
     "test_formula_meanings.py::test_meanings_in_metal[False]"),
) + of(
    "dual",
    ("slope-of-tanh", "metal::fma(-u, u, 1.0f)", "metal::fma(u, u, 1.0f)",
     "test_formula_slopes.py::test_by_dual_numbers"),
    ("slope-of-a-quotient", "(a.slope - v * b.slope) / b.value", "(a.slope + v * b.slope) / b.value",
     "test_formula_slopes.py::test_by_dual_numbers"),
) + of(
    "texts",
    ("position-without-the-shift", "query + visibility.shift_of_query(query);", "query;", OUTPUT.format("score")),
    ("head-of-the-first-key", "visibility.texts.h + visibility.head_of(row)", "visibility.head_of(row)",
     OUTPUT.format("score")),
) + of(
    "score",
    ("slope-forgotten", "slope.at[i][c][e] = found.slope;", "slope.at[i][c][e] = 1;", GRADIENTS.format("score")),
) + of(
    "backward_mask",
    ("array-without-its-slope", "softmax::apply_slope(ds, slope);", "",
     "test_score_tables.py::test_against_the_definition[simulator-apple7-slope]"),
) + of(
    "mask",
    ("predicate-not-asked", "int(texts.visible.of(formula::pair(*this, row, j)))", "1",
     OUTPUT.format("visible")),
)
# fmt: on
