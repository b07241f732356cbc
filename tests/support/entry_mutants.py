"""Mistakes with entries of a batch and with mapped axes; host_mutants.py has the others."""

from host_mutant import of

APART = "test_operands_apart.py::test_every_batch_entry_has_its_own_option[37-reference-{}]"
AXES = "test_vmap.py::test_any_axis_of_any_argument[reference-{}]"
ALONE = "test_lengths.py::test_entries_are_as_alone_whatever_lies_behind_them[reference-{}]"
PAGES = "test_pages.py::test_pages_of_any_length[reference-(40, 40)]"

# fmt: off
ENTRIES = of("batch entry", "backends/reference/kernels.py",
    ("pages-of-entry-0", 'operands["pages"][:, first:last]', 'operands["pages"][:1, first:last]', PAGES),
    ("pages-as-many-as-in-entry-0", 'operands["lengths"].reshape(-1, 2)[:, 1:]',
     'operands["lengths"].reshape(-1, 2)[:1, 1:]', PAGES),
) + of("batch entry", "autodiff/operands.py",
    ("table-of-entry-0", "contiguous(pages), (problem.batch", "contiguous(pages[:1]), (problem.batch", PAGES),
    ("ends-of-entry-0", "< ends[:, None]", "< ends[:1, None]", "test_lengths.py::test_beside_segments[reference-True]"),
    ("shifts-all-in-entry-0", "batch = mx.arange(ids.shape[0])[:, None]",
     "batch = mx.zeros((ids.shape[0], 1), mx.int32)", APART.format("segments-and-causal")),
) + of("batch entry", "backends/reference/scores.py",
    ("score-of-entry-0", '"b": mx.arange(problem.batch)', '"b": 0 * mx.arange(problem.batch)',
     "test_score_tables.py::test_against_the_definition[reference-entry]"),
    ("positions-of-entry-0",
     "segment = self.problem, 0\n        shift = self.offset if self.shifts is None else self.shifts[:,",
     "segment = self.problem, 0\n        shift = self.offset if self.shifts is None else self.shifts[:1,",
     "test_score_values.py::test_pages_and_lengths[reference-40]"),
    ("text-reads-segments-of-entry-0", 'segment = self.extras["q_segments"][:, None',
     'segment = self.extras["q_segments"][:1, None',
     "test_score_values.py::test_the_segment_of_every_batch_entry[reference]"),
    ("sinks-of-queries-of-entry-0", "< self.lengths[0], m, -math.inf)", "< self.lengths[0][:1], m, -math.inf)",
     ALONE.format("window, alibi, sinks")),
    ("keys-as-many-as-in-entry-0", "keys.stop) < self.lengths[1]", "keys.stop) < self.lengths[1][:1]",
     ALONE.format("plain")),
    ("queries-as-many-as-in-entry-0", "[:, None] < self.lengths[0])", "[:, None] < self.lengths[0][:1])",
     ALONE.format("plain")),
) + of("batch entry", "masks.py",
    ("shown-of-entry-0", "map, block = self.map[batch % self.shape[0],", "map, block = self.map[0,",
     "test_block_mask.py::test_predicates"),
    ("plot-of-entry-0", "states = np.minimum(mask.map[batch % mask.shape[0],", "states = np.minimum(mask.map[0,",
     "test_block_mask.py::test_a_plot_of_any_layer[(1, 0)]"),
    ("array-of-entry-0", "lambda b, h, i, j: seen[b, h,", "lambda b, h, i, j: seen[0, h,",
     "test_block_mask.py::test_states_and_elements[32]"),
)
MAPPED = of("mapped axis", "autodiff/vmap.py",
    ("pool-for-every-entry", 'for name in names if problem.variants.page and name[0] in "KV"',
     "for name in names if False", "test_pages.py::test_mapped_tables"),
    ("texts-of-entry-0",
     "shared |= {name for text in problem.variants.texts for one in text.operands for name in (one, SUM + one)}",
     "pass", "test_score_values.py::test_vmap_of_operands_and_arrays[s - t[h] * abs(q - k)]"),
    ("number-of-a-folded-entry",
     'problem.variants.dropout or any("b" in text.names for text in problem.variants.texts)',
     "problem.variants.dropout", "test_score_values.py::test_vmap_of_operands_and_arrays[s * (1 + t[h] * b)]"),
    ("sums-of-all-entries", "counts = counts or problem.variants.seed", "counts = bool(counts)",
     "test_score_tables.py::test_under_vmap"),
    ("first-entry-for-all", "array[n] if moves else array for array", "array[0] if moves else array for array",
     AXES.format("slopes")),
    ("sum-over-the-mapped-axis", "return array.sum(1, keepdims=True)", "return array.sum(0, keepdims=True)",
     AXES.format("bias")),
    ("only-axes-in-front", "mx.moveaxis(array, axis, 0) for", "mx.moveaxis(array, 0, 0) if axis else array for",
     AXES.format("keys-alone")),
    ("entries-in-reverse", "[mx.stack(outputs) for outputs in zip(*entries)]",
     "[mx.stack(outputs[::-1]) for outputs in zip(*entries)]", AXES.format("sinks")),
)
# fmt: on
