"""A model of mlx-lm, trained on sequences that two ranks share, learns as on one process."""

import re

import bounds
import distributed_work
import mlx.core as mx
import numpy as np
import pytest
from ranks import on_ranks

from mlx_flash.cli import main as cli
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


@pytest.mark.process
def test_the_command(capsys):
    """Losses of two processes started by mlx.launch beside those of one, and the memory that a rank needs."""
    assert cli.main(["lm", "--shards", "2", "--steps", "2", "--length", "200"]) == 0
    said = capsys.readouterr().out
    assert "2 processes" in said and "the losses differ by at most" in said
    assert len([line for line in said.splitlines() if line[:1].isdigit()]) == 2
    alone, rank = re.search(r"beside the model: ([\d.]+) MB, of a rank ([\d.]+) MB", said).groups()
    assert float(rank) < 0.8 * float(alone)


@pytest.mark.parametrize(
    "given, text", [(["--shards", "1"], "at least 2"), (["--shards", "2", "--kv-bits", "4"], "tiny")]
)
def test_wrong_commands(given, text, capsys):
    assert cli.main(["lm", *given]) == 2
    assert text in capsys.readouterr().err
