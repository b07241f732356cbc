"""A model of mlx-lm, trained on sequences that two ranks share, learns as on one process."""

import bounds
import distributed_work
import mlx.core as mx
import numpy as np
import pytest
from ranks import on_ranks

from mlx_flash.lm import sharded

STEPS = 10


@pytest.mark.process
def test_losses_are_those_of_one_process():
    """45 predictions do not divide into pieces, so that rows are padded too."""
    want = distributed_work.trained(STEPS, shared=False)
    first, second = on_ranks(2, "distributed_work", "trained", steps=STEPS, shared=True)
    assert first == second
    assert np.abs(np.array(first) - want).max() <= bounds.SHARED_LOSS
    # The mistake that is hardest to see: every piece counts its positions from 0.
    (wrong, _) = on_ranks(2, "distributed_work", "trained", steps=1, shared=True, rope_from_zero=True)
    assert abs(wrong[0] - want[0]) > bounds.SHARED_LOSS


def test_wrong_tokens():
    with pytest.raises(ValueError, match=r"lm\.shard_batch\] tokens: expected an array \[batch, at least 2 tokens\]"):
        sharded.shard_batch(mx.zeros((3, 1), mx.int32))
