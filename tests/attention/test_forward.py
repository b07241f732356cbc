"""O of every head dimension, dtype, length, grouping, mask and kind of scores, against the oracle."""

import itertools
import math

import bounds
import cases
import mlx.core as mx
import numpy as np
import oracle
import pytest
from cases import CASES, VALUE_DIMS, Case, expected
from machines import across_backends

from mlx_flash import attention


def waits(index: int) -> bool:
    """Two of the three types of each head dimension run in the full run only; which two alternates."""
    return index < len(CASES) - len(VALUE_DIMS) and index % 3 != (index // 3 + 1) % 3


@pytest.mark.all_values
@pytest.mark.parametrize("backend, case", across_backends(CASES, waits), indirect=["backend"])
def test_output(backend, case):
    arrays = case.arrays()
    out = attention(arrays["q"], arrays["k"], arrays["v"], scale=case.scale, causal=case.causal)
    expected(case, arrays).check(O=out)


def test_the_cases_cover_what_they_claim():
    values = {
        "head_dim": cases.HEAD_DIMS, "dtype": cases.DTYPES, "causal": (False, True), "group": cases.GROUPS,
        "scores": tuple(cases.SCORES), "query_length": cases.LENGTHS, "key_length": cases.LENGTHS,
    }  # fmt: skip
    for first, second in itertools.combinations(values, 2):
        if first == "head_dim" and second not in ("dtype", "causal"):
            continue
        met = {(getattr(case, first), getattr(case, second)) for case in CASES}
        missing = set(itertools.product(values[first], values[second])) - met
        assert not missing, f"{first} x {second}: {missing}"
    on_family = {(choice.values[0][1], choice.values[1].head_dim) for choice in across_backends(CASES)}
    assert set(itertools.product(("apple7", "apple9"), cases.HEAD_DIMS)) <= on_family


def test_scale_defaults_to_one_over_the_root_of_the_head_dimension(backend):
    """The head dimension is the caller's, not the padded one."""
    case = Case(9, 10, head_dim=33)
    arrays = case.arrays()
    out = attention(arrays["q"], arrays["k"], arrays["v"])
    expected(case, arrays, scale=1 / math.sqrt(33)).check(O=out)


def test_mask_word_means_causal(backend):
    q, k, v = (Case(9, 12, 33).arrays()[name] for name in "qkv")
    by_word = attention(q, k, v, mask="causal")
    assert np.array_equal(np.array(by_word), np.array(attention(q, k, v, causal=True)))
    assert not np.array_equal(np.array(by_word), np.array(attention(q, k, v)))


def test_agrees_with_mlx(backend):
    """A drop-in for mx.fast.scaled_dot_product_attention; each within the bound of the oracle, so of one another."""
    case = Case(65, 129, 64, "float32", True, group=4, key_heads=2)
    q, k, v = (case.arrays()[name] for name in "qkv")
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=case.scale, mask="causal")
    ours = attention(q, k, v, scale=case.scale, mask="causal")
    bounds.check("O", ours, bounds.float64(theirs), str(case), case.dtype)


@pytest.mark.parametrize("lengths", [(1, 1), (1, 9), (9, 1), (9, 3), (3, 9), (33, 17)], ids=str)
def test_causal_alignment(backend, lengths):
    """Keys marked one-hot in V, all scores equal: O says exactly which keys each query averaged."""
    query_length, key_length = lengths
    width = 64
    q, k = mx.zeros((1, 1, query_length, width)), mx.zeros((1, 1, key_length, width))
    v = mx.eye(key_length, width)[None, None]
    seen = np.array(attention(q, k, v, causal=True))[0, 0, :, :key_length] > 0
    assert np.array_equal(seen, oracle.visibility(query_length, key_length, True))
