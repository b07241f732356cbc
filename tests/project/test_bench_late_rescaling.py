"""What bench/README.md says of rescaling O late follows from the results."""

import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
RESULTS = json.loads((BENCH / "results" / "cuda_late_rescaling.json").read_text(encoding="utf-8"))["results"]
CASES = ((4096, False), (4096, True), (16384, True))


def told(head_dim: int, text: str, other: str) -> str:
    """The text's times over those of `other`, a text or "cudnn", as the sentence has them."""
    found = {((one["N"], one["causal"]), one["text"]): one for one in RESULTS if one["D"] == head_dim}
    times = [found[case, text] for case in CASES]
    others = [one["cudnn_ms"] if other == "cudnn" else found[case, other]["ms"] for case, one in zip(CASES, times)]
    first, second, third = (f"{one['ms'] / there:.2f}" for one, there in zip(times, others))
    return f"{first}, {second} and {third}"


@pytest.mark.parametrize("head_dim, text, other, sentence", [
    (128, "late", "before", "{} of the time at D=128"),
    (256, "late, overlaps, ping-pong", "before", "{} at D=256"),
    (256, "late, overlaps, ping-pong", "cudnn", "{} of cuDNN's time in the same run"),
])  # fmt: skip
def test_ratios(head_dim, text, other, sentence):
    assert sentence.format(told(head_dim, text, other)) in (BENCH / "README.md").read_text(encoding="utf-8")
