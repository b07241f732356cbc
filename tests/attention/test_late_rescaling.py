"""In 16 bits the forward kernels of Hopper and Apple keep the reference of a row's exponentials until the largest score
exceeds it by 2^8. Scores that grow with the keys have it late in most blocks, and the statistics have the largest score
all the same."""

import mlx.core as mx
import numpy as np
import pytest
from bounds import REORDERED, SHIFTED, near, ulp
from tensor_rows import small_rows
from watched import watched

from mlx_flash import attention, use_backend
from mlx_flash.problem.kinds import FORWARD
from mlx_flash.simulator import mode

pytestmark = pytest.mark.simulator

HEADS, QUERIES, KEYS, D = 2, 70, 280, 16
STEPS = (1 / 8, 1 / 2)  # from one key's score to the next: up to 2^50 and 2^201 times the first one's weight


def operands(step: float) -> list[mx.array]:
    """Every query's score of key j is j times the step, exactly; the values are small whole numbers."""
    q = mx.ones((1, HEADS, QUERIES, D), mx.float16)
    k = mx.broadcast_to((mx.arange(KEYS) * (step / D))[:, None], (1, HEADS, KEYS, D)).astype(mx.float16)
    v = (mx.arange(HEADS * KEYS * D) * 7 % 11 - 5).reshape(1, HEADS, KEYS, D).astype(mx.float16)
    return [q, k, v]


def forward(name: str, step: float, **options) -> list[np.ndarray]:
    """O, the largest scores, and the logarithms of the sums relative to them."""
    rows = small_rows(name, "narrow") if name == "wgmma" else use_backend("simulator", name)
    with mode("check"), rows, watched() as ran:
        out, (largest, rest) = attention(*operands(step), scale=1.0, return_lse="split", **options)
        found = [np.array(one, np.float64) for one in (out, largest, rest)]
    tiles = "wgmma" if name == "wgmma" else "simdgroup"
    assert [(one.kind, one.plan.config.tiles) for one in ran] == [(FORWARD, tiles)]
    return found


def exact(step: float, causal: bool, sink: float | None) -> list[np.ndarray]:
    scores = np.broadcast_to(np.arange(KEYS) * step, (QUERIES, KEYS))
    if causal:
        scores = np.where(np.arange(KEYS) <= np.arange(QUERIES)[:, None] + KEYS - QUERIES, scores, -np.inf)
    largest = np.maximum(scores.max(-1), -np.inf if sink is None else sink)
    weights = np.exp(scores - largest[:, None])
    total = weights.sum(-1) + (0 if sink is None else np.exp(sink - largest))
    values = np.array(operands(step)[2], np.float64)[0]
    return [(weights / total[:, None]) @ values, largest, np.log(total)]


@pytest.mark.parametrize("sink", (None, 3.0, 90.0))
@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ("wgmma", "apple7", "apple9"))
def test_scores_that_grow(name, step, causal, sink):
    options = {"causal": causal} | ({} if sink is None else {"sinks": mx.full((HEADS,), sink, mx.float16)})
    out, largest, rest = forward(name, step, **options)
    want_out, want_largest, want_rest = exact(step, causal, sink)
    assert np.array_equal(largest[0], np.broadcast_to(want_largest, (HEADS, QUERIES)))
    near(rest[0], np.broadcast_to(want_rest, (HEADS, QUERIES)), SHIFTED[True])
    assert np.abs(out[0] - want_out).max() <= REORDERED * ulp(np.abs(want_out).max(), "float16")


@pytest.mark.parametrize("name", ("apple7", "apple9"))
def test_rows_do_not_move_each_other(name):
    """Rows of one simdgroup look together whether a reference must move; each moves by its own scores alone."""
    random = np.random.default_rng(0)
    q, k, v = (mx.array(random.normal(size=(1, 1, rows, D)), mx.float16) for rows in (QUERIES, KEYS, KEYS))
    others = mx.arange(QUERIES)[:, None] % 3 > 0
    found = []
    with mode("check"), use_backend("simulator", name):
        for size in (1, 16, 4096):  # 16: scores that grow by more than 2^8; 4096: beyond what offsets may be
            out, (largest, rest) = attention(mx.where(others, q * size, q), k, v, return_lse="split")
            found.append([np.array(one)[:, :, ::3] for one in (out, largest, rest)])
    for other in found[1:]:
        assert all(np.array_equal(one, same) for one, same in zip(found[0], other))
