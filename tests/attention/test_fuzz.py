"""Random problems, forward and backward. The kernels are few, so that nearly all the time goes into running them."""

import bounds
import feature_cases
import mlx.core as mx
import pytest
from cases import SEED, Case, backward, expected
from feature_cases import Variant
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from machines import BACKENDS, KERNELS
from views import VIEWS

from mlx_flash import use_backend

# Head dimensions that pad to 40 in float16 and to 64 in float32: two texts for each step, mask and family.
EACH_WIDTH = (
    st.tuples(st.just("float16"), st.integers(33, 40)), st.tuples(st.just("float32"), st.integers(57, 64))
)  # fmt: skip
WIDTHS = st.one_of(EACH_WIDTH)
EITHER = st.booleans()
LENGTH = st.one_of(st.integers(1, 9), st.integers(1, 140))


@st.composite
def cases(draw, widths=WIDTHS, causal=EITHER) -> Case:
    dtype, head_dim = draw(widths)
    return Case(
        query_length=draw(LENGTH),
        key_length=draw(LENGTH),
        head_dim=head_dim,
        dtype=dtype,
        causal=draw(causal),
        group=draw(st.integers(1, 4)),
        scores=draw(st.sampled_from(["plain", "plain", "negative", "large"])),
        key_heads=draw(st.integers(1, 2)),
        batch=draw(st.integers(1, 2)),
    )


def fuzz(examples: int):
    """Failures are not shrunk: cases are small, and where no kernel compiles it would take minutes."""

    def decorate(test):
        configured = settings(
            max_examples=examples, deadline=None, derandomize=SEED == 0, suppress_health_check=list(HealthCheck),
            database=None, phases=(Phase.generate,),
        )(test)  # fmt: skip
        return configured if SEED == 0 else seed(SEED)(configured)

    return decorate


def on_kernels(problems, kinds):
    """(problem, backend), of `problems(width, kind)`: on a backend each kind has one of the widths, on the next one the
    other, so that half as many kernels are compiled for as many problems."""
    return st.one_of([
        st.tuples(problems(EACH_WIDTH[(number + turn) % 2], kind), st.just(choice))
        for turn, choice in enumerate(KERNELS)
        for number, kind in enumerate(kinds)
    ])  # fmt: skip


@pytest.mark.kernels
@fuzz(60)
@given(on_kernels(cases, [st.just(False), st.just(True)]), st.tuples(*[st.sampled_from([None, *VIEWS])] * 4))
def test_any_problem_on_kernels(problem, views):
    check(*problem, views)


@pytest.mark.long
@fuzz(110)
@given(cases(), st.sampled_from(BACKENDS[-1:]), st.tuples(*[st.sampled_from([None, *VIEWS])] * 4))
def test_any_problem_on_the_reference(case, choice, views):
    check(case, choice, views)


@st.composite
def variants(draw, widths, sets) -> Variant:
    """Any features that may meet, masks broadcast along any axes, windows of any reach."""
    features = draw(sets)
    return Variant(
        draw(cases(widths)),
        tuple(name for name in feature_cases.FEATURES if name in features),
        draw(st.sampled_from(["bhij", "hij", "ij", "bhj", "i", "j", ""])),
        draw(st.tuples(SIDE, SIDE)),
    )


SIDE = st.one_of(st.none(), st.integers(0, 9), st.integers(0, 140))
ANY = st.sets(st.sampled_from(feature_cases.FEATURES)).filter(feature_cases.legal)
# What kernels are compiled for here; the pairs of features have theirs in test_mask_pairs.py.
FEW = [{"window", "additive", "sinks", "lse"}, {"blocks", "segments", "alibi", "softcap", "dropout"}]


@pytest.mark.long
@fuzz(340)
@given(variants(WIDTHS, ANY))
def test_any_features_on_the_reference(variant):
    with use_backend("reference"):
        feature_cases.check(variant, stored_output=True)


@pytest.mark.kernels
@fuzz(40)
@given(on_kernels(variants, list(map(st.just, FEW))))
def test_features_on_kernels(problem):
    variant, choice = problem
    with use_backend(*choice):
        feature_cases.check(variant, stored_output=True)


def check(case: Case, choice, views):
    arrays = case.arrays()
    judge = expected(case, arrays, stored_output=True)
    viewed = {name: view(array) if view else array for (name, array), view in zip(arrays.items(), views)}
    with use_backend(*choice):
        judge.check(**backward(case, viewed))


def test_views_hold_what_they_view():
    """The fuzzer trusts them."""
    array = Case(5, 5, 40, "float16").arrays()["q"]
    for view in VIEWS:
        assert (bounds.float64(view(array)) == bounds.float64(mx.array(array))).all()
