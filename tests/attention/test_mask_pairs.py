"""Every two features that may meet in one call, forward and backward, each tensor within the criterion."""

import itertools

import feature_cases
import pytest
from cases import Case
from feature_cases import APART, FEATURES, MASKS, Variant, legal
from machines import CUDA, METAL, SIMULATED, label

PAIRS = [pair for pair in itertools.combinations(FEATURES, 2) if legal(pair)]
TYPES = ("float32", "float16", "float32", "bfloat16")


def cases() -> list:
    """(backend, variant): the simulated families take turns, other backends run every pair. Every second pair of the
    simulator's, each a kernel text of its own, waits for `pytest -m ""`."""
    found = []
    for index, pair in enumerate(PAIRS):
        group = 1 + index // 2 % 2
        case = Case(45, 70, 24, TYPES[index // 2 % 4], group=group, key_heads=2, batch=2)
        if set(pair) <= {"causal", "window", "alibi", "segments"}:
            case = Case(70, 45, 24, case.dtype, group=group, key_heads=2, batch=2)  # some queries see nothing
        variant = Variant(case, pair)
        turns = SIMULATED[index % len(SIMULATED)] if SIMULATED else None
        for choice in (turns, *METAL, *CUDA, ("reference", None)):
            if choice:
                waits = [pytest.mark.slow] if choice == turns and index % 4 in (1, 2) else []
                name = f"{label(choice)}-{'+'.join(pair)}-{case.dtype}"
                found.append(pytest.param(choice, variant, id=name, marks=waits))
    return found


@pytest.mark.parametrize("backend, variant", cases(), indirect=["backend"])
def test_pair(backend, variant):
    feature_cases.check(variant)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("group", [1, 3])
def test_every_pair_in_every_type_on_the_reference(reference, group, dtype):
    for pair in PAIRS:
        feature_cases.check(Variant(Case(33, 41, 24, dtype, group=group, key_heads=2), pair))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_every_pair_in_every_type_on_kernels(kernels, pair, dtype):
    for group in (1, 3):
        feature_cases.check(Variant(Case(33, 41, 24, dtype, group=group, key_heads=2), pair))


def test_every_legal_pair_is_there():
    """Fourteen features, of which four are masks, and two say where sequences end."""
    assert len(PAIRS) == 14 * 13 // 2 - 7 and len(set(PAIRS)) == len(PAIRS)
    together = {frozenset(pair) for pair in PAIRS}
    for one, other in itertools.combinations(FEATURES, 2):
        assert (frozenset((one, other)) in together) != ({one, other} in APART)


EVERYTHING = ("causal", "window", "softcap", "alibi", "sinks", "segments", "dropout", "lse")


@pytest.mark.parametrize("mask", MASKS)
def test_everything_at_once(backend, mask):
    feature_cases.check(Variant(Case(45, 70, 24, group=2, key_heads=2, batch=2), (mask, *EVERYTHING)))
