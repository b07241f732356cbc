"""Mistakes with keys of caches: of calls that patch() leaves to the built-in, of launches and of what they run;
host_mutants.py has the others."""

from host_mutant import of

RULED = "test_patch_kept.py::test_whatever_rules_read_is_part_of_the_key[{}]"
KEPT = "test_patch_kept.py::test_{}"
LAUNCHED = "test_launch_keys.py::test_launches_of_one_kernel_that_differ_in_one_thing[{}-y[i] = x[i];]"
LENGTHS = "test_call_pairs.py::test_launches_that_differ_in_one_length[{}]"

# fmt: off
KEPT_CALLS = of("key of a cache", "integrations/kept.py",
    ("kept-by-any-width", "q.shape, v.shape, q.dtype", "q.shape[:3], v.shape, q.dtype", RULED.format("width")),
    ("kept-by-any-width-of-values", "q.shape, v.shape, q.dtype", "q.shape, v.shape[:3], q.dtype",
     RULED.format("value width")),
    ("kept-by-any-queries", "q.shape, v.shape, q.dtype", "(q.shape[1], q.shape[3]), v.shape, q.dtype",
     RULED.format("queries")),
    ("kept-by-any-query-heads", "q.shape, v.shape, q.dtype", "q.shape[2:], v.shape, q.dtype",
     RULED.format("query heads")),
    ("kept-by-any-mask", "v.dtype, kind, kwargs", "v.dtype, kwargs", RULED.format("array mask")),
    ("kept-by-any-sinks", 'kind, kwargs.get("sinks") is None, policy', "kind, policy", RULED.format("sinks")),
    ("kept-by-any-dtype", "v.shape, q.dtype, k.dtype, v.dtype, kind", "v.shape, kind", RULED.format("dtype")),
    ("kept-by-dtype-of-queries", "q.dtype, k.dtype, v.dtype, kind", "q.dtype, kind",
     KEPT.format("types_that_promote_to_another_are_decided_by_themselves")),
    ("kept-under-gradients", "policy, trace.gradients,", "policy,", KEPT.format("a_gradient_is_decided_by_itself")),
    ("kept-under-maps", "trace.batched is None,\n", "\n", KEPT.format("mapped_calls_are_others")),
    ("kept-by-any-policy", "is None, policy, trace", "is None, trace",
     KEPT.format("other_policies_and_backends_decide_by_themselves")),
    ("kept-on-any-backend", "found is not None and found[0] is current_backend()", "found is not None",
     KEPT.format("other_policies_and_backends_decide_by_themselves")),
)
LAUNCHES = of("key of a cache", "metal/ptx/kernel.py",
    ("prepared-for-any-output-dtype", "key = (signature, tuple(dtypes), tuple(grid)", "key = (signature, tuple(grid)",
     LAUNCHED.format("output-dtype")),
    ("prepared-for-any-threadgroup", "tuple(grid), tuple(threadgroup), chosen)", "tuple(grid), chosen)",
     LAUNCHED.format("threadgroup")),
    ("prepared-for-any-template", "tuple(threadgroup), chosen)\n", "tuple(threadgroup))\n",
     LAUNCHED.format("template")),
    ("prepared-for-any-shape", "tuple([(array.shape, array.dtype) for array in arrays])\n        chosen",
     "tuple([(array.dtype, array.ndim) for array in arrays])\n        chosen",
     "test_launch_keys.py::test_launches_of_one_kernel_that_differ_in_one_thing[length-y[i] = x[x_shape[0] - 1];]"),
    ("code-of-a-folded-grid", "place.folded, place.swapped, place.ragged, tuple", "place.swapped, place.ragged, tuple",
     LAUNCHED.format("folded-grid")),
    ("code-of-a-ragged-grid", "place.swapped, place.ragged, tuple", "place.swapped, tuple",
     LAUNCHED.format("ragged-grid")),
) + of("key of a cache", "masks.py",
    ("layers-of-any-batch", "self._repeated.get((batch, heads))", "next(iter(self._repeated.values()), None)",
     "test_block_mask.py::test_layers_in_memory_are_those_of_the_batch_and_the_heads"),
) + of("key of a cache", "kernels/plan.py",
    ("launch-of-any-mask", "problem.mask_shape if kind in (BACKWARD_MASK, MASK_MAP) else parts", "parts",
     LENGTHS.format("batch-of-mask-backward_mask")),
    ("parts-of-any-queries", "rule = self.resources.get(length)",
     "rule = next((one for name, one in self.resources.items() if type(name) is int), None)",
     LENGTHS.format("number-of-queries-decode")),
)
# fmt: on
