"""Tests of numbers, whose kernels run in the simulator's mode `fast`: they take half the time to compile.

What they compute is compared as everywhere. That no kernel reads or writes where it must not is shown under other
tests: test_forward.py, test_gradients.py, test_variants.py, test_masks.py, test_mask_pairs.py (every two options),
test_decode.py, test_quantized.py, test_lengths.py, test_latent.py, test_layouts.py, test_isolation.py and the tests of
tensor cores run the same templates in mode `check`. `MLX_FLASH_SIMULATOR=check pytest` checks these files too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

FILES = frozenset({
    "test_batch_invariance.py", "test_check_fuzz.py", "test_cli.py", "test_decoding_sessions.py",
    "test_delta_inside.py", "test_demo.py", "test_distributed.py", "test_dropout.py", "test_empty_rows.py",
    "test_export.py", "test_extremes.py", "test_formula_meanings.py", "test_formula_slopes.py", "test_fuzz.py",
    "test_gallery.py", "test_hadamard.py", "test_huge_scores.py", "test_kept_arrays.py", "test_lse.py",
    "test_models_inference.py", "test_models_lm.py", "test_numbers.py", "test_patch.py",
    "test_patch_answers.py", "test_patch_derivatives.py", "test_rotation_gradients.py", "test_score_tables.py",
    "test_score_values.py", "test_segments.py", "test_shifted_rows.py", "test_sinks.py", "test_threads.py",
    "test_transforms.py", "test_vmap.py",
})  # fmt: skip
_VARIABLE = "MLX_FLASH_SIMULATOR"


@contextmanager
def unchecked(item) -> Iterator[None]:
    """The mode of a test: the variable also tells threads and processes, and gives way to `with mode(...)`."""
    fast = item.path.name in FILES and _VARIABLE not in os.environ
    with patch.dict(os.environ, {_VARIABLE: "fast"} if fast else {}):
        yield
