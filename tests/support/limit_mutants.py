"""Mistakes with grids at their limits, with operands that are small or lie apart, and calls under patch() that the
built-in answers; host_mutants.py has the others."""

from host_mutant import of

GRIDS = "test_launch_keys.py::test_grids_at_their_limits[{}]"
MAPPED = "test_mask_map.py::test_the_same_bits_as_without_a_map[(2, 4, 70, 150)-mma-narrow]"
PARTS = "test_decode.py::test_number_of_splits"
FEW = "test_operands_apart.py::test_options_of_few_elements[{}]"
IDS = "test_operands_apart.py::test_ids_that_lie_apart[simulator-apple7-37]"
TABLES = "test_pages.py::test_tables_of_few_pages[simulator-apple7-{}]"
SERVED = "test_patch_answers.py::test_served_calls_have_our_numbers[{}]"

# fmt: off
LIMITS = of("grid at its limits", "metal/ptx/kernel.py",
    ("threadgroups-rounded-down", "tuple(-(-threads // size) for", "tuple(max(threads // size, 1) for",
     GRIDS.format("(1, 0, 0)-(3, 2, 70000)")),
    ("folded-and-rounded-down", "-(-y * z // _MOST_GROUPS)", "max(y * z // _MOST_GROUPS, 1)",
     GRIDS.format("(0, 0, 0)-(3, 2, 70000)")),
    ("folded-one-too-late", "max(self.groups[1:]) > _MOST_GROUPS", "max(self.groups[1:]) > _MOST_GROUPS + 1",
     GRIDS.format("(0, 0, 0)-(1, 65536, 1)")),
    ("folded-along-z-only", "max(self.groups[1:]) > _MOST_GROUPS", "self.groups[2] > _MOST_GROUPS",
     GRIDS.format("(0, 0, 0)-(1, 65536, 1)")),
    ("folded-along-y-only", "max(self.groups[1:]) > _MOST_GROUPS", "self.groups[1] > _MOST_GROUPS",
     GRIDS.format("(0, 0, 0)-(1, 1, 65536)")),
    ("ragged-along-x-only",
     "return any(threads % size for threads, size in zip(self.threads, self.threadgroup))",
     "return bool(self.threads[0] % self.threadgroup[0])", GRIDS.format("(0, 0, 1)-(3, 2, 70000)")),
    ("blocks-of-one-row", "size = prod(self.threadgroup)", "size = self.threadgroup[0]",
     GRIDS.format("(0, 0, 0)-(1, 65535, 1)")),
) + of("grid at its limits", "kernels/mask_map.py",
    ("map-without-the-last-rows", "return batch, heads, -(-rows // BLOCK), -(-columns",
     "return batch, heads, max(rows // BLOCK, 1), -(-columns", MAPPED),
    ("map-without-the-last-columns", "-(-rows // BLOCK), -(-columns // BLOCK)",
     "-(-rows // BLOCK), max(columns // BLOCK, 1)", MAPPED),
) + of("grid at its limits", "kernels/split_kv.py",
    ("parts-rounded-down", "return -(-seen // part_length(seen, rule, config))",
     "return max(seen // part_length(seen, rule, config), 1)", PARTS),
    ("keys-of-a-part-rounded-down", "return -(-keys // (parts_wanted(keys, rule) * unit)) * unit",
     "return max(keys // (parts_wanted(keys, rule) * unit), 1) * unit", PARTS),
    ("never-in-parts", "if keys <= rule.unsplit or keys < 2 * rule.least:", "if True:", PARTS),
    ("blocks-of-rows-rounded-down", "blocks = -(-gqa_rows(problem) // config.parallel)",
     "blocks = max(gqa_rows(problem) // config.parallel, 1)", PARTS),
)
SMALL = of("view of a small operand", "kernels/launch.py",
    ("statistics-as-constants", "NEEDS_DEVICE_ADDRESS_SPACE = STATISTICS | {", "NEEDS_DEVICE_ADDRESS_SPACE = {",
     FEW.format("(1, 1)-simulator-apple9-sinks")),
    ("strided-ones-as-constants", 'kept.startswith(("const device", "Strided"))', 'kept.startswith("const device")',
     FEW.format("(1, 1)-simulator-apple7-bool")),
    ("pointers-as-constants", 'kept.startswith(("const device", "Strided"))', 'kept.startswith("Strided")',
     FEW.format("(9, 5)-simulator-apple9-alibi")),
    ("operands-as-constants", "return value if value.size >= CONSTANT_BELOW else mx.pad",
     "return value if True else mx.pad", "test_operands_apart.py::test_a_cache_of_one_key[simulator-apple7-affine]"),
    ("pages-as-constants", 'kept.startswith(("const device", "Strided"))),',
     'kept.startswith(("const device", "Strided")) and name != "pages"),', TABLES.format("1")),
    ("pages-padded-by-columns", "mx.pad(value, [(0, CONSTANT_BELOW), (0, 0)])",
     "mx.pad(value, [(0, 0), (0, CONSTANT_BELOW)])", TABLES.format("1")),
    ("pages-padded-in-front", "mx.pad(value, [(0, CONSTANT_BELOW), (0, 0)])",
     "mx.pad(value, [(CONSTANT_BELOW, 0), (0, 0)])", TABLES.format("1")),
) + of("view of a small operand", "common/mlx_private.py",
    ("four-to-seven-as-constants", "CONSTANT_BELOW = 8", "CONSTANT_BELOW = 4",
     "test_variants.py::test_output[simulator-apple7-sinks]"),
) + of("view of a small operand", "autodiff/operands.py",
    ("text-data-by-columns", "mx.view(mx.reshape(array, (-1,), stream=stream), mx.int32, stream=stream)",
     "mx.view(array.T.flatten(), mx.int32, stream=stream)",
     "test_score_tables.py::test_against_the_definition[simulator-apple7-offset]"),
    ("pages-where-they-lie", "mx.broadcast_to(contiguous(pages),", "mx.broadcast_to(pages,",
     "test_pages.py::test_tables_whose_entries_lie_apart[simulator-apple7-every-second]"),
    ("ids-of-keys-where-they-lie", "contiguous(_int32(name, ids))",
     '(contiguous if name[0] == "q" else mx.stop_gradient)(_int32(name, ids))', IDS),
    ("ids-of-queries-where-they-lie", "contiguous(_int32(name, ids))",
     '(contiguous if name[0] == "k" else mx.stop_gradient)(_int32(name, ids))', IDS),
)


def left(name: str, condition: str, call: str) -> tuple[str, ...]:
    """The mutant that leaves calls of this condition to the built-in."""
    before = "    if forced:\n"
    return name, before, f'    if {condition}:\n        raise NotServed("")\n{before}', SERVED.format(call)


SERVED_CALLS = of("patch that the built-in answers", "integrations/serve.py",
    left("unmasked", "mask is None and q.shape[2] > 8", "prefill"),
    left("view-of-a-cache", "k.shape[2] % 8", "view-of-a-cache"),
    left("one-query-masked", "q.shape[2] == 1 and mask is not None", "one-query-masked"),
    left("several-entries", "q.shape[0] > 1", "prefill"),
    left("one-entry", "q.shape[0] == 1", "one-entry"),
    left("grouped-heads", "q.shape[1] > k.shape[1]", "prefill"),
    left("stream-given", "stream is not None", "stream"),
    left("integers-added", "isinstance(mask, mx.array) and mx.issubdtype(mask.dtype, mx.integer)", "integers"),
    left("other-types", "k.dtype != q.dtype or v.dtype != q.dtype", "mixed-types"),
    left("other-width-of-values", "v.shape[3] != q.shape[3]", "width-of-values"),
    left("more-queries-than-keys", "q.shape[2] > k.shape[2]", "more-queries-than-keys"),
    left("bfloat", "q.dtype == mx.bfloat16", "bfloat"),
    left("odd-width", "q.shape[3] % 8", "odd-width"),
    left("negative-scale", "scale < 0", "negative-scale"),
    left("mapped", "trace.batched is not None", "mapped"),
)
# fmt: on
