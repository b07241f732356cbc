"""What bench/README.md says of fences and products in flight in the kernel of dK and dV follows from the results."""

import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
RESULTS = json.loads((BENCH / "results" / "cuda_fences.json").read_text(encoding="utf-8"))["results"]
CASES = {"dense": (4096, False), "causal": (16384, True)}


def least(head_dim: int, case: str, fences: int, in_flight: bool) -> float:
    """Milliseconds with the best row."""
    length, causal = CASES[case]
    facts = {
        "kernel": "backward_key_value", "head_dim": head_dim, "length": length, "causal": causal, "fences": fences,
        "dk_in_flight": in_flight,
    }  # fmt: skip
    return min(one["ms"] for one in RESULTS if facts.items() <= one.items())


@pytest.mark.parametrize(
    "head_dim, text", [(128, "{dense} and {causal} times as long"), (64, "D=64 {dense} and {causal}")]
)
def test_a_product_in_flight(head_dim, text):
    ratios = {case: f"{least(head_dim, case, 1, True) / least(head_dim, case, 1, False):.2f}" for case in CASES}
    assert text.format(**ratios) in (BENCH / "README.md").read_text(encoding="utf-8")


def test_one_fence():
    dense, causal = (least(128, case, 1, False) / least(128, case, 2, False) for case in CASES)
    told = f"{dense:.2f} of the time at D=128, dense, N=4096, and {causal:.2f} causal, N=16384, with one proxy fence"
    assert told in (BENCH / "README.md").read_text(encoding="utf-8")
