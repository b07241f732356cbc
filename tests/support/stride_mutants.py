"""Mistakes in templates that read one operand by another one's strides, or one axis by another's; mutants.py says what
they are."""

from mutant import of

OUTPUT = "test_variants.py::test_output[simulator-apple7-segments]"
APART = "test_operands_apart.py::test_every_operand_by_its_own_strides[37-simulator-apple7-{}]"
FEW_QUERIES = "test_operands_apart.py::test_every_operand_by_its_own_strides[3-simulator-apple7-{}]"
ENTRY = "test_operands_apart.py::test_every_batch_entry_has_its_own_option[37-simulator-apple7-blocks]"
PARTS = "test_operands_apart.py::test_every_part_of_a_quantized_cache_by_its_own_strides[37-simulator-apple7-affine]"
PAGES = "test_pages.py::test_quantized_pages[simulator-apple7-affine-2]"

# fmt: off
STRIDES = of(
    "quantized",
    ("biases-by-rows-of-scales", "bias_stride = view.biases.row_stride<Scale>();",
     "bias_stride = view.scales.row_stride<Scale>();", PARTS, "check"),
    ("scales-by-rows-of-codes", "scale_stride = view.scales.row_stride<Scale>();",
     "scale_stride = view.codes.row_stride<Scale>();", PARTS, "check"),
    ("codes-by-rows-of-scales", "word_stride = view.codes.row_stride<uint>();",
     "word_stride = view.scales.row_stride<uint>();", PARTS, "check"),
    ("scales-in-pages-by-rows-of-codes", "scale_stride = scale_pages.stride;", "scale_stride = word_pages.stride;",
     PAGES, "check"),
    ("biases-in-pages-by-rows-of-scales", "bias_stride = bias_pages.stride;", "bias_stride = scale_pages.stride;",
     PAGES, "check"),
) + of(
    "backward_key_value",
    ("heads-of-d_o-by-those-of-q", "d_o.next_head(args.dO)", "d_o.next_head(args.Q)", APART.format("bool"), "check"),
    ("heads-of-q-by-those-of-d_o", "q.next_head(args.Q)", "q.next_head(args.dO)", APART.format("bool"), "check"),
) + of(
    "row_delta",
    ("rows-of-d_o-by-those-of-o", "args.dO.row_stride<T>()", "args.O.row_stride<T>()", APART.format("bool"), "check"),
) + of(
    "mask",
    ("k-ids-by-strides-of-q-ids", "b * args.k_segments.strides[0]", "b * args.q_segments.strides[0]",
     OUTPUT, "check"),
    ("q-ids-by-strides-of-k-ids", "b * args.q_segments.strides[0]", "b * args.k_segments.strides[0]",
     APART.format("segments"), "check"),
    ("counts-by-strides-of-lists", "args.block_counts.at[b * count_strides[0]",
     "args.block_counts.at[b * list_strides[0]",
     ENTRY, "check"),
    ("lists-by-strides-of-counts", "args.block_lists.at + b * list_strides[0]",
     "args.block_lists.at + b * count_strides[0]", ENTRY, "check"),
    ("heads-of-lists-by-strides-of-counts", "h * list_strides[1]", "h * count_strides[1]", ENTRY, "check"),
    ("heads-of-a-mask-by-entries", "mask_head = mask_strides[1];", "mask_head = mask_strides[0];",
     FEW_QUERIES.format("bool"), "check"),
) + of(
    "mask_map",
    ("mapped-mask-transposed", "mask[i * strides[2] + j * strides[3]]", "mask[i * strides[3] + j * strides[2]]",
     "test_mask_map.py::test_the_same_bits_as_without_a_map[(2, 4, 70, 150)-mma-narrow]", "check"),
)
# fmt: on
