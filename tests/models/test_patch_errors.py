"""patch() leaves to the built-in what cannot be served, and nothing else: a defect of ours raises."""

import mlx.core as mx
import pytest

import mlx_flash
from mlx_flash.common.errors import InvalidArgument, UnsupportedProblem
from mlx_flash.integrations import serve

Q = mx.random.normal((1, 2, 12, 16), key=mx.random.key(0))
KEPT = [mx.fast.scaled_dot_product_attention]


def call(**options):
    out = mx.fast.scaled_dot_product_attention(Q, Q, Q, **{"scale": 0.25} | options)
    mx.eval(out)
    return out


def raising(error):
    def attention(*arguments, **options):
        raise error

    return attention


@pytest.mark.parametrize("error", (TypeError("x"), ValueError("x"), KeyError("x"), RuntimeError("x")), ids=repr)
def test_a_defect_raises(reference, monkeypatch, error):
    monkeypatch.setattr(serve, "attention", raising(error))
    with mlx_flash.patch() as report, pytest.raises(type(error), match="x"):
        call()
    assert report.ours == report.built_in.total() == 0
    assert mx.fast.scaled_dot_product_attention is KEPT[0]


@pytest.mark.parametrize("kind", (InvalidArgument, UnsupportedProblem))
def test_a_call_that_is_not_served_does_not(reference, monkeypatch, kind):
    monkeypatch.setattr(serve, "attention", raising(kind("a sentence\nand more")))
    with mlx_flash.patch() as report:
        got = call()
    assert mx.array_equal(got, call()) and dict(report.built_in) == {"a sentence": 1}


WRONG = {
    "stream": {"stream": "cpu"},
    "scale": {"scale": object()},
    "scales": {"scale": mx.array([1.0, 2.0])},
    "mask": {"mask": [[True]]},
    "mask dtype": {"mask": mx.zeros((12, 12), mx.complex64)},
    "sinks": {"sinks": [0.0, 0.0]},
    "keyword": {"causal": True},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_get_the_built_in_s_own_error(reference, name):
    def outcome():
        try:
            return call(**WRONG[name])
        except Exception as error:
            return type(error), str(error).split("Invoked")[0]

    want = outcome()
    with mlx_flash.patch() as report:
        got = outcome()
    assert got == want and isinstance(want, tuple)
    assert report.ours == 0 and report.built_in.total() == 1


def test_wrong_arguments_are_invalid(reference):
    """The class by which patch() knows them; still a ValueError for everybody else."""
    assert issubclass(InvalidArgument, ValueError)
    for options in ({"scale": "x"}, {"mask": mx.zeros((5, 7))}, {"window": 3}, {"causal": "yes"}, {"sinks": Q}):
        with pytest.raises(InvalidArgument, match="expected"):
            mlx_flash.attention(Q, Q, Q, **options)
