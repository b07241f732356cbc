"""Changes in templates that make kernels slower, and leave most numbers right: the budgets of issued work notice each.

mutants.py says what they are.
"""

from mutant import of

BYTES, ACCESSES, COUNTS, SLOW = (
    f"test_budgets.py::{name}[apple7-forward]"
    for name in (
        "test_bytes_of_a_product", "test_accesses_of_a_product", "test_exponentials_shuffles_and_barriers",
        "test_slow_operations",
    )
)  # fmt: skip

EVERY_BLOCK = "test_budgets.py::test_rescaling_in_every_block[apple7]"

# fmt: off
BUDGETS = of(
    "simdgroup_operands",
    ("fragments-are-read-one-by-one", "if (count == MOST) {\n    group =", "if (count > MOST) {\n    group =",
     ACCESSES),
    ("blocks-are-copied-element-by-element",
     "      *(threadgroup Run<T, N>*)(b.scratch + (row0 * B::HEAD_BLOCK + c) + n * STEP * B::HEAD_BLOCK) = values;",
     "      for (int e = 0; e < N; e++) b.scratch[(row0 + n * STEP) * B::HEAD_BLOCK + c + e] = values.at[e];",
     ACCESSES),
    ("waits-once-more-a-block", "    }\n  }\n  block_barrier();\n}",
     "    }\n  }\n  block_barrier();\n  block_barrier();\n}", COUNTS),
    ("blocks-are-multiplied-out", "    edge = edge_;\n    pass();\n    valid",
     "    edge = edge_;\n    start(row + BT);\n    valid", SLOW),
    ("places-are-divided-out-in-each-pass", "if (b.valid == BT || n * STEP < b.valid - row0)",
     "if (b.valid == BT || n * STEP < b.valid - row0 % b.valid)", SLOW),
    ("cached-rows-are-read-again",
     "if constexpr (CACHED) return cached[i][d];\n    return read_pair(row[i] + d * 8);\n  }\n\n  template",
     "return read_pair(row[i] + d * 8);\n  }\n\n  template", BYTES),
) + of(
    "online_softmax",
    ("divides-in-each-block", "correction.at[i] = fast_exp2(exponent(state.m[i], reference.at[i], factor));",
     "correction.at[i] = 1 / fast_exp2(exponent(reference.at[i], state.m[i], factor));", EVERY_BLOCK),
    ("exponentials-of-a-row-for-each-fragment", "      l += s.at[i][c][0] + s.at[i][c][1];",
     "      l += s.at[i][c][0] + s.at[i][c][1];\n"
     "      correction.at[i] = fast_exp2(exponent(state.m[i] - c, reference.at[i] - c, factor));", EVERY_BLOCK),
    ("a-maximum-for-each-fragment", "most = max(most, max(s.at[i][c][0], s.at[i][c][1]));",
     "most = tile::row_max(max(most, max(s.at[i][c][0], s.at[i][c][1])));", EVERY_BLOCK),
    ("divides-beside-late-rescaling", "offset.at[i] = state.m[i] * factor;",
     "offset.at[i] = state.m[i] / (1 / factor);", SLOW),
    ("exponentials-beside-late-rescaling", "      sum += s.at[i][c][0] + s.at[i][c][1];",
     "      sum += (s.at[i][c][0] + s.at[i][c][1]) * fast_exp2(offset.at[i] - offset.at[i]);", COUNTS),
    ("a-maximum-in-each-block", "stays(state.m[i], state.largest[i], factor);",
     "stays(state.m[i], tile::row_max(state.largest[i]), factor);", COUNTS),
) + of(
    "forward",
    ("products-past-what-own-rows-see", "k.trim(own.end - c);", "k.trim(BT);",
     "test_work.py::test_windows_visit_only_keys_in_reach[512-0-apple7-forward]"),
)
# fmt: on
