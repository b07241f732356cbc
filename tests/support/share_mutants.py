"""Mistakes where threadgroups share an accumulator's columns; mutants.py says what a mutant is."""

from mutant import of

OPTIONS = "test_shared_columns.py::test_options[{}-2over1-b2-plain]"
TAIL = OPTIONS.format("mma-causal+lse+sinks-bhij-41x70-d72-float16-dense")
BEHIND = OPTIONS.format("mma-bool-bhij-41x70-d64v104-float16-dense")
ALL = OPTIONS.format("wgmma-causal+window+dropout-bhij-41x70-d128-bfloat16-dense")
WRITERS = "test_shared_columns.py::test_every_element_has_one_writer[mma]"

# fmt: off
SHARES = [
    *of(
        "nvidia",
        ("every-threadgroup-has-the-first-part", "self.own_part = position.x % PARTS;", "self.own_part = 0;", ALL),
        ("parts-count-as-blocks", "    position.x /= PARTS;\n", "", ALL, "check"),
        ("columns-behind-the-last-unfilled", "} else if (PARTS > 1) {", "} else if (false) {", BEHIND, "check"),
        ("first-columns-in-every-part", "view.head<T>(b, h) + begin();", "view.head<T>(b, h);", ALL),
        ("copied-past-the-last-column", "min(HELD<D>, D - begin()) : D; }", "HELD<D> : D; }", TAIL, "check"),
    ),
    *of(
        "nvidia_results",
        ("stored-past-the-last-column", "if (begin + d * 8 < D) *", "*", TAIL, "check"),
    ),
    *of(
        "mma",
        ("mma-columns-of-the-first-part", "b.transposed(t, first + d);", "b.transposed(t, d);", TAIL),
    ),
    *of(
        "wgmma",
        ("wgmma-columns-of-the-first-part", "b.block + (c.begin - b.begin()) * BT", "b.block", ALL),
    ),
    *of(
        "nan_safe",
        ("nan-safe-columns-of-the-first-part", "b.transposed(t, first + d / 2);", "b.transposed(t, d / 2);",
         "test_shared_columns.py::test_garbage_in_masked_keys[mma-nan]"),
    ),
    *of(
        "forward",
        ("statistics-by-every-part", "#if SPLITS_HEAD || PARTED", "#if SPLITS_HEAD", WRITERS, "check"),
    ),
    *of(
        "backward_query",
        ("delta-by-every-part", "#if SPLITS_HEAD || PARTED", "#if SPLITS_HEAD", WRITERS, "check"),
    ),
]  # fmt: skip
