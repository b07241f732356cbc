"""Mistakes in the package's Python of kinds that tests once missed, each with the test that notices it.

`old` occurs once in its file below mlx_flash/. test_host_mutants.py makes each mistake in a copy of the package.
"""

from typing import NamedTuple


class HostMutant(NamedTuple):
    kind: str
    file: str  # below mlx_flash/
    name: str
    old: str
    new: str
    killed_by: str  # id of a test below tests/


def of(kind: str, file: str, *mutants: tuple) -> list[HostMutant]:
    return [HostMutant(kind, file, *mutant) for mutant in mutants]


APART = "test_operands_apart.py::test_every_batch_entry_has_its_own_option[37-reference-{}]"
FEW = "test_operands_apart.py::test_options_of_few_elements[{}]"
AXES = "test_vmap.py::test_any_axis_of_any_argument[reference-{}]"
PAIR = "test_call_pairs.py::test_calls_that_differ_in_one_thing[reference-{}]"
SERVED = "test_patch_answers.py::test_served_calls_have_our_numbers[{}]"

# fmt: off
BATCH_ENTRY = of("batch entry", "backends/reference/scores.py",
    ("blocks-of-entry-0", 'self.extras["block_map"][:, :, i', 'self.extras["block_map"][:1, :, i',
     APART.format("blocks")),
    ("queries-of-entry-0", 'self.extras["q_segments"][:, rows], ', 'self.extras["q_segments"][:1, rows], ',
     APART.format("segments")),
    ("keys-of-entry-0", 'self.extras["k_segments"][:, keys]', 'self.extras["k_segments"][:1, keys]',
     APART.format("segments")),
    ("shifts-of-entry-0", 'extras["q_segments"][:, problem.query_length :]',
     'extras["q_segments"][:1, problem.query_length :]', APART.format("segments-and-causal")),
    ("dropout-of-entry-0", "mx.arange(problem.batch * problem.query_heads).astype(mx.uint32)",
     "(mx.arange(problem.batch * problem.query_heads) % problem.query_heads).astype(mx.uint32)",
     "test_dropout.py::test_heads_and_batch_entries_differ[reference]"),
    ("lengths-of-entry-0", "self.lengths = [ends[:, n].reshape(-1, 1, 1, 1, 1) for n in (0, 1)]",
     "self.lengths = [ends[:1, n].reshape(-1, 1, 1, 1, 1) for n in (0, 1)]",
     "test_lengths.py::test_entries_are_as_alone_whatever_lies_behind_them[reference-causal]"),
) + of("batch entry", "masks.py",
    ("map-of-entry-0", "found[name] = mx.broadcast_to(found[name],", "found[name] = mx.broadcast_to(found[name][:1],",
     APART.format("blocks")),
) + of("batch entry", "autodiff/operands.py",
    ("ids-of-entry-0", "contiguous(_int32(name, ids))", "contiguous(_int32(name, ids[:1] if ids.ndim == 2 else ids))",
     APART.format("segments")),
    ("mask-of-entry-0", 'arrays["attention_mask"] = mask.reshape(problem.mask_shape)',
     'arrays["attention_mask"] = mx.broadcast_to(mask.reshape(problem.mask_shape)[:1], problem.mask_shape)',
     APART.format("bool")),
    ("segments-shifted-as-entry-0", "mx.take_along_axis(last_key - last_query, numbers, axis=1)",
     "mx.take_along_axis(mx.broadcast_to((last_key - last_query)[:1], numbers.shape), numbers, axis=1)",
     APART.format("segments-and-causal")),
)
MAPPED_AXES = of("mapped axis", "autodiff/vmap.py",
    ("axis-swapped", "mx.moveaxis(array, axis, 0) for", "mx.swapaxes(array, axis, 0) for", AXES.format("bias")),
    ("slopes-of-entry-0", 'frozenset({"slopes", "sinks",', 'frozenset({"sinks",', AXES.format("slopes")),
    ("sinks-of-entry-0", '"slopes", "sinks", "dropout_key"', '"slopes", "dropout_key"', AXES.format("sinks")),
    ("entries-of-none", "    if size == 0:\n", "    if size < 0:\n",
     "test_vmap.py::test_nothing_to_map_and_nothing_to_attend_to[reference]"),
    ("copies-of-one-entry", "if moves else mx.broadcast_to(array, (size, *array.shape))).flatten(0, 1)",
     "if moves else array[None]).flatten(0, 1)", AXES.format("queries-alone")),
    ("gradient-of-a-shared-mask-summed", "spread = kind is BACKWARD_MASK", "spread = False",
     AXES.format("bias-shared")),
    ("entries-of-a-mask-not-summed", 'if name == "dM" and problem.mask_shape[0] == 1:', "if False:",
     AXES.format("bias")),
    ("batch-before-the-mapped-axis", "array.reshape(size, problem.batch, *array.shape[1:])",
     "array.reshape(problem.batch, size, *array.shape[1:]).swapaxes(0, 1)", AXES.format("all-in-front")),
    ("one-pattern-for-all", "counts = problem.variants.dropout or any(", "counts = any(",
     AXES.format("dropout-shared-key")),
    ("mask-of-one-entry", "array = mx.broadcast_to(array, (*array.shape[:-4], problem.batch, *array.shape[-3:]))",
     "pass", AXES.format("bias")),
)
KEYS = of("key of a cache", "autodiff/call.py",
    ("side-of-blocks", "return kind, value.block", "return kind", PAIR.format("side-of-blocks")),
    ("dtype-of-operands", "q.dtype, heads, width, k.dtype, k_heads, k_width, v.dtype, v_heads,",
     "heads, width, k_heads, k_width, v_heads,",
     PAIR.format("dtype")),
    ("key-heads", "k.dtype, k_heads, k_width, v.dtype, v_heads, v_width", "k.dtype, k_width, v.dtype, v_width",
     PAIR.format("key-heads")),
    ("columns", "v.dtype, v_heads, v_width", "v.dtype, v_heads", PAIR.format("width-of-v")),
    ("a-length-too", "key = (form, backend,", "key = (form, k.shape, backend,",
     "test_host_cost.py::test_a_growing_cache_builds_nothing"),
    ("lengths-of-the-call-before", "last is not None and last[0] == shapes", "last is not None",
     PAIR.format("number-of-queries")),
    ("dtype-of-mask", "return value.dtype, value.ndim", "return value.ndim", PAIR.format("dtype-of-mask")),
    ("statistics", "where, return_lse, page, *given)", "where, page, *given)", PAIR.format("statistics")),
    ("values-of-numbers", "(name, type(value), value) if type", "(name, type(value)) if type",
     PAIR.format("softcap")),
    ("names-of-arguments", "else (name, _static(value, name))\n", "else (_static(value, name),)\n",
     PAIR.format("name-of-an-array")),
    ("page", "where, return_lse, page, *given)", "where, return_lse, *given)",
     PAIR.format("rows-of-a-page")),
) + of("key of a cache", "kernels/plan.py",
    ("batch-of-a-launch", "key = (problem.batch, length,", "key = (length,",
     "test_call_pairs.py::test_calls_that_differ_in_one_thing[simulator-apple7-batch]"),
    ("length-of-a-launch", "key = (problem.batch, length,", "key = (problem.batch,",
     "test_call_pairs.py::test_calls_that_differ_in_one_thing[simulator-apple7-number-of-queries]"),
)
PATCH = of("patch that the built-in answers", "integrations/serve.py",
    ("causal", "    if forced:\n", '    if isinstance(mask, str):\n        raise NotServed("")\n    if forced:\n',
     SERVED.format("causal")),
    ("arrays", "    if forced:\n", '    if isinstance(mask, mx.array):\n        raise NotServed("")\n    if forced:\n',
     SERVED.format("bool")),
    ("added", "    if forced:\n",
     '    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:\n        raise NotServed("")\n    if forced:\n',
     SERVED.format("additive")),
    ("sinks", "    if forced:\n", '    if sinks is not None:\n        raise NotServed("")\n    if forced:\n',
     SERVED.format("sinks")),
    ("one-query", "    if forced:\n", '    if q.shape[2] == 1:\n        raise NotServed("")\n    if forced:\n',
     SERVED.format("one-query")),
    ("few-queries", "    if forced:\n", '    if 1 < q.shape[2] < 9:\n        raise NotServed("")\n    if forced:\n',
     SERVED.format("few-queries")),
    ("half", "    if forced:\n", '    if q.dtype == mx.float16:\n        raise NotServed("")\n    if forced:\n',
     SERVED.format("half")),
    ("one-head", "    if forced:\n", '    if q.shape[1] == k.shape[1]:\n        raise NotServed("")\n    if forced:\n',
     SERVED.format("one-head")),
    ("gradient", "    if forced:\n", '    if trace.gradients:\n        raise NotServed("")\n    if forced:\n',
     SERVED.format("gradient")),
    ("quantized-one-query", "    if reason := unavailable(gradients=0):",
     '    if queries.shape[2] == 1:\n        raise NotServed("")\n    if reason := unavailable(gradients=0):',
     SERVED.format("quantized-cache-one-query")),
)
GRIDS = of("grid at its limits", "kernels/launch.py",
    ("last-block-forgotten", "blocks = -(-length // config.parallel)\n    batch",
     "blocks = length // config.parallel or 1\n    batch",
     "test_variants.py::test_output[simulator-apple7-plain]"),
    ("one-block-of-keys-only", "        length, heads = problem.key_length, problem.key_heads\n",
     "        length, heads = min(problem.key_length, config.parallel), problem.key_heads\n",
     "test_variants.py::test_gradients[simulator-apple7-plain]"),
    ("heads-of-keys", "length, heads = problem.query_length, problem.query_heads",
     "length, heads = problem.query_length, problem.key_heads",
     "test_variants.py::test_output[simulator-apple7-plain]"),
    ("one-batch-entry", "    batch = problem.batch\n", "    batch = 1\n",
     "test_variants.py::test_output[simulator-apple7-plain]"),
    ("rows-of-a-mask", "blocks = -(-rows // config.parallel) * -(-columns",
     "blocks = max(rows // config.parallel, 1) * -(-columns",
     "test_variants.py::test_gradients[simulator-apple7-additive]"),
    ("columns-of-a-mask", "* -(-columns // config.traversal)", "* max(columns // config.traversal, 1)",
     "test_variants.py::test_gradients[simulator-apple7-additive]"),
    ("heads-of-a-mask", "batch, heads, rows, columns = problem.mask_shape",
     "batch, _, rows, columns = problem.mask_shape",
     "test_variants.py::test_gradients[simulator-apple7-additive-by-query]"),
    ("heads-for-batch-entries", "grid=(blocks * config.threads, heads, batch),",
     "grid=(blocks * config.threads, batch, heads),", "test_variants.py::test_output[simulator-apple7-plain]"),
    ("one-part-only", "blocks, heads = parts, problem.key_heads", "blocks, heads = 1, problem.key_heads",
     "test_decode.py::test_features_and_their_gradients[simulator-apple7-causal]"),
    ("rows-of-one-block", "problem.key_heads * -(-gqa_rows(problem) // config.parallel)", "problem.key_heads",
     "test_decode.py::test_groups_queries_and_keys[apple9]"),
)
SMALL_VIEWS = of("view of a small operand", "kernels/launch.py",
    ("slopes-where-they-lie", 'if kept.endswith("*"))})', 'if kept.endswith("*") and name != "slopes")})',
     "test_operands_apart.py::test_views_of_numbers_of_heads[37-alibi_slopes-simulator-apple7-every-second]"),
    ("sinks-where-they-lie", 'if kept.endswith("*"))})', 'if kept.endswith("*") and name != "sinks")})',
     "test_operands_apart.py::test_views_of_numbers_of_heads[37-sinks-simulator-apple7-every-second]"),
    ("slopes-of-a-reversed-view", 'if kept.endswith("*"))})', 'if "float" not in kept)})',
     "test_operands_apart.py::test_views_of_numbers_of_heads[3-alibi_slopes-simulator-apple7-reversed]"),
    ("sinks-of-a-column", 'if kept.endswith("*"))})', 'if "float" not in kept)})',
     "test_operands_apart.py::test_views_of_numbers_of_heads[37-sinks-simulator-apple7-column]"),
    ("nothing-made-contiguous", "        value = contiguous(value)\n", "        pass\n",
     "test_operands_apart.py::test_views_of_numbers_of_heads[3-sinks-simulator-apple7-reversed]"),
    ("padded-in-front", "mx.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, 8)])",
     "mx.pad(value, [(0, 0)] * (value.ndim - 1) + [(8, 0)])",
     FEW.format("(9, 5)-simulator-apple9-alibi")),
    ("statistics-padded-by-row", "mx.reshape(value, (-1,)) if name in STATISTICS else value", "value",
     FEW.format("(3, 5)-simulator-apple7-additive")),
    ("short-ones-as-constants", "NEEDS_DEVICE_ADDRESS_SPACE and value.size < CONSTANT_BELOW:",
     "NEEDS_DEVICE_ADDRESS_SPACE and value.size < 0:", FEW.format("(9, 5)-simulator-apple9-alibi")),
    ("operands-padded-in-front", "mx.pad(value, [(0, 0)] * 3 + [(0, 8)])", "mx.pad(value, [(0, 0)] * 3 + [(8, 0)])",
     "test_operands_apart.py::test_a_cache_of_one_key[simulator-apple7-affine]"),
) + of("view of a small operand", "autodiff/operands.py",
    ("ids-where-they-lie", "contiguous(_int32(name, ids))", "_int32(name, ids)",
     "test_operands_apart.py::test_ids_that_lie_apart[simulator-apple7-37]"),
)
# fmt: on
HOST_MUTANTS = [*BATCH_ENTRY, *MAPPED_AXES, *KEYS, *PATCH, *GRIDS, *SMALL_VIEWS]
