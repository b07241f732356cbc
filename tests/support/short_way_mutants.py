"""Mistakes with the short ways of training and decoding; host_mutants.py has the others."""

from host_mutant import of

SHORT = "test_training_short_way.py::test_{}"
REFUSES = SHORT.format("derivatives_of_gradients_refuse_whichever_array_is_followed[{}]")

# fmt: off
SHORT_WAYS = of("short way", "autodiff/vjp.py",
    ("order-of-a-short-gradient", "*after([first], [q]), k, v,", "q, k, v,", REFUSES.format("short")),
    ("order-of-a-long-gradient", "(q,) = after([extras.pop()], [q])", "extras.pop()", REFUSES.format("long")),
    ("cotangent-unguarded", "*outputs, *self._guard(cotangents[0]))", "*outputs, cotangents[0])",
     REFUSES.format("short")),
    ("statistics-where-they-lie", "contiguous(one) if name in OWN else one for", "one for",
     SHORT.format("statistics_from_elsewhere_are_laid_out")),
    ("in-a-trace-of-the-built-in", "self._simple and trace.batched is trace.export is None and not trace.beyond:",
     "self._simple and trace.batched is trace.export is None:",
     SHORT.format("other_traces_take_the_long_way")),
    ("lengths-of-queries-alone", "shapes = q.shape, k.shape\n        found = self._short",
     "shapes = q.shape\n        found = self._short", SHORT.format("lengths_are_told_apart")),
    ("a-look-for-every-export", "not asked and self.backend.exported and in_export", "not asked and in_export",
     SHORT.format("an_export_is_looked_for_where_it_is_of_use[False]")),
    ("a-failed-kernel-all-the-same", "all(one.backend is self.backend for one in choices)", "True",
     SHORT.format("a_kernel_that_failed_its_test_has_no_short_way")),
) + of("short way", "autodiff/training.py",
    ("a-view-for-each-kernel", "as_bytes(k), as_bytes(v), as_bytes(d_o)", "k, as_bytes(v), as_bytes(d_o)",
     SHORT.format("each_view_is_made_once")),
    ("outputs-as-written", "self._cast if casts else self.backend.run",
     "self.backend.run", SHORT.format("launches_are_those_of_the_long_way[array-apple7]")),
) + of("short way", "autodiff/decoding.py",
    ("short-parts-as-they-are", "gathers and signature.query_heads * queries >= CONSTANT_BELOW", "gathers",
     "test_by_value.py::test_short_arrays_of_parts_are_padded"),
) + of("short way", "kernels/source.py",
    ("operands-as-bytes-in-decoding", "return kind is DECODE and LAYERS", "return kind is not DECODE and LAYERS",
     "test_by_value.py::test_a_growing_cache_makes_nothing[one part]"),
) + of("short way", "autodiff/operands.py",
    ("a-query-packed", "if kind is DECODE and problem.query_length > 1:", "if kind is DECODE:",
     "test_host_cost.py::test_operations_of_a_token"),
) + of("short way", "kernels/arguments.py",
    ("rows-of-one-head", '"Q_shape[1] / K_shape[1] * Q_shape[2]"', '"Q_shape[2]"',
     "test_decode.py::test_groups_queries_and_keys[apple9]"),
    ("stride-of-one-head", "Q_shape[1] / K_shape[1] * Q_strides[1], {ROW}", "Q_strides[1], {ROW}",
     "test_decode.py::test_groups_queries_and_keys[apple9]"),
    ("stride-of-a-row", "? Q_strides[2] : Q_strides[1]", "? Q_strides[2] : Q_strides[2]",
     "test_layouts.py::test_a_single_query_is_read_as_it_lies[apple9]"),
)
# fmt: on
