"""Every model family that mlx-lm's own tests build: the same tokens and logits under patch(), every call served.

The tests are mlx-lm's: they come with its source distribution, which pip fetches, or from the folder that
MLX_FLASH_MLX_LM_TESTS names. Without either the long test is skipped, with the reason.
"""

import json
import sys
from pathlib import Path

import bounds
import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import mlx_lm_models  # noqa: E402

# These compute no attention, or in code of their own; bitnet needs a GPU, and phi3small's new logits are not finite.
WITHOUT = {"mamba", "mamba2", "rwkv7", "gemma2", "bitnet", "phi3small"}


def judge(rows: list[dict]) -> str:
    """Fails unless each family that calls the function is served, always and rightly; the README's words for it."""
    silent = set()
    for row in rows:
        if "alone" in row or not row["served"]:
            silent.add(row["family"])
            continue
        assert row["same_tokens"] and not row["built_in"], row
        assert row["difference"] <= bounds.MODEL_LOGITS < row["broken"], row
    families = {row["family"] for row in rows}
    assert silent == WITHOUT and len(families) > 90
    return f"{len(families - silent)} of {len(families)} model"


def test_the_results_say_so():
    said = judge(json.loads(mlx_lm_models.RESULTS.read_text())["models"])
    assert said in (BENCH / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_family():
    try:
        rows = mlx_lm_models.rows()
    except mlx_lm_models.Unavailable as error:
        pytest.skip(str(error))
    judge(rows)
