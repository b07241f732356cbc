"""Every model family that mlx-lm's own tests build, from pages: those that pass handles on give the same tokens and
logits, and the others keep mlx-lm's caches and say why. The tests are mlx-lm's, as in test_models_families.py."""

import re
import sys
from collections import Counter
from pathlib import Path

import bounds
import mlx.core as mx
import numpy as np
import pytest

from mlx_flash import patch
from mlx_flash.lm import PagePool

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "bench"))
import mlx_lm_models  # noqa: E402


def from_pages(model, vocabulary: int) -> dict:
    """Replaces mlx_lm_models.compare."""
    prompts = mx.array(np.random.default_rng(0).integers(2, min(vocabulary, mlx_lm_models.VOCABULARY) - 1, (2, 17)))
    try:
        want, tokens = mlx_lm_models.run(model, prompts)
        assert mx.isfinite(want).all()
    except Exception as error:  # it cannot run here: not for us to judge
        return {"alone": f"{type(error).__name__}: {error}"}
    pool = PagePool(model, page=8, bytes=1 << 28)
    if not pool.paged:
        return {"paged": 0, "why": next(iter(pool.ordinary), "no layers of attention")}
    model.make_cache = pool.caches
    with patch():
        got, ours = mlx_lm_models.run(model, prompts)
    same = mx.array_equal(ours, tokens).item()
    return {"paged": pool.paged, "same_tokens": same, "difference": mlx_lm_models.distance(got, want)}


def judge(rows: list[dict]) -> tuple[int, int]:
    """(families in pages, families)"""
    paged = {row["family"]: row for row in rows if row.get("paged")}
    for row in paged.values():
        assert row["same_tokens"] and row["difference"] <= bounds.MODEL_LOGITS, row
    return len(paged), len({row["family"] for row in rows})


@pytest.mark.network
@pytest.mark.slow
def test_every_family(monkeypatch):
    monkeypatch.setattr(mlx_lm_models, "compare", from_pages)
    try:
        rows = mlx_lm_models.rows()
    except mlx_lm_models.Unavailable as error:
        pytest.skip(str(error))
    found = judge(rows)
    print(found, Counter(row.get("why") for row in rows))
    said = re.search(r"(\d+) of (\d+) model\s+families", (PROJECT / "mlx_flash/lm/paging/README.md").read_text())
    assert said and tuple(map(int, said.groups())) == found
