"""Every two features that may meet in one call, forward and backward, each tensor within the criterion."""

import itertools
import random

import feature_cases
import pytest
from cases import SEED, Case
from feature_cases import APART, FEATURES, MASKS, Variant, legal
from machines import CUDA, METAL, SIMULATED, across_backends, label

PAIRS = [pair for pair in itertools.combinations(FEATURES, 2) if legal(pair)]
TYPES = ("float32", "float16", "float32", "bfloat16")


def cases() -> list:
    """(backend, variant): the simulated families take turns, other backends run every pair. On the simulator each pair
    has kernels of its own to compile and waits for `pytest -m ""`; the default run has pairs in bundles."""
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
                waits = [pytest.mark.slow if choice == turns else pytest.mark.long]
                name = f"{label(choice)}-{'+'.join(pair)}-{case.dtype}"
                found.append(pytest.param(choice, variant, id=name, marks=waits))
    return found


@pytest.mark.parametrize("backend, variant", cases(), indirect=["backend"])
def test_pair(backend, variant):
    feature_cases.check(variant)


def meetings(bundle) -> set:
    """For every two features, whether each of them is in the case."""
    return set(itertools.combinations([(name, name in bundle) for name in FEATURES], 2))


def bundles() -> list[tuple[str, ...]]:
    """Few sets of features in which every two meet: both, each without the other, and neither."""
    draw = random.Random(SEED)
    wanted = {
        tuple(zip(pair, states))
        for pair in itertools.combinations(FEATURES, 2)
        for states in itertools.product((True, False), repeat=2)
        if not all(states) or set(pair) not in APART
    }
    chosen = []
    while wanted:
        candidates = []
        while len(candidates) < 300:
            names = [name for name in FEATURES if name in MASKS or draw.random() < 0.6]
            mask = draw.choice([*MASKS, None])
            names = tuple(name for name in names if name not in MASKS or name == mask)
            if legal(names):
                candidates.append(names)
        chosen.append(max(candidates, key=lambda names: len(meetings(names) & wanted)))
        wanted -= meetings(chosen[-1])
    return chosen


BUNDLES = bundles()


@pytest.mark.all_values
@pytest.mark.parametrize("backend, number", across_backends(range(len(BUNDLES))), indirect=["backend"])
def test_bundle(backend, number):
    case = Case(45, 70, 24, TYPES[number % 4], group=1 + number % 2, key_heads=2, batch=2)
    feature_cases.check(Variant(case, BUNDLES[number]))


def test_every_two_features_meet_in_a_bundle():
    met = set().union(*map(meetings, BUNDLES))
    for one, other in itertools.combinations(FEATURES, 2):
        for states in itertools.product((True, False), repeat=2):
            assert (tuple(zip((one, other), states)) in met) == (not all(states) or {one, other} not in APART)


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
