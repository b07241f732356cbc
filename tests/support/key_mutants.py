"""Mistakes with keys of caches of launches, of their code and of a mask's layers; host_mutants.py has the others."""

from host_mutant import of

LAUNCHED = "test_launch_keys.py::test_launches_of_one_kernel_that_differ_in_one_thing[{}-y[i] = x[i];]"
LENGTHS = "test_call_pairs.py::test_launches_that_differ_in_one_length[{}]"

# fmt: off
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
    ("code-of-any-output-dtype", "key = (forms, chosen, tuple(dtypes), place", "key = (forms, chosen, place",
     LAUNCHED.format("output-dtype")),
    ("code-of-any-size", "(dtype, ndim, min(size, CONSTANT_BELOW)) for", "(dtype, ndim) for",
     LAUNCHED.format("few-elements")),
    ("code-of-any-type-in-a-template",
     "chosen = tuple([(name, type(value), value) for name, value in template])\n        key = (forms",
     "chosen = tuple([(name, value) for name, value in template])\n        key = (forms",
     LAUNCHED.format("truth-in-template")),
    ("code-of-a-folded-grid", "place.folded, place.swapped, place.ragged, tuple", "place.swapped, place.ragged, tuple",
     LAUNCHED.format("folded-grid")),
    ("code-of-a-ragged-grid", "place.swapped, place.ragged, tuple", "place.swapped, tuple",
     LAUNCHED.format("ragged-grid")),
) + of("key of a cache", "problem/masks.py",
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
