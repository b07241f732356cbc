"""Clients that bind a replaced function by name: served for as long as a patch lasts, and the report names them."""

import functools
import sys
import types

import mlx.core as mx
import pytest

import mlx_flash
from mlx_flash import integrations

KEPT = [mx.fast.scaled_dot_product_attention]
Q = mx.random.normal((1, 2, 12, 16), key=mx.random.key(0))


@pytest.fixture
def client(monkeypatch):
    """Makes a module that is imported now, with the names that a text binds."""

    def make(text: str, name: str = "client", kind=types.ModuleType):
        module = kind(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(text, vars(module))
        return module

    return make


BY_NAME = "from mlx.core.fast import scaled_dot_product_attention as attend\n"


def call(client):
    mx.eval(client.attend(Q, Q, Q, scale=0.25))


def test_a_module_imported_before(reference, client):
    early = client(BY_NAME + "again = __private = attend\n")
    for _ in range(2):
        with mlx_flash.patch() as report:
            call(early)
            assert vars(early)["__private"] is early.attend is not KEPT[0]
        assert report.ours == 1 and "client" in report.reached
        (line,) = (line for line in str(report).splitlines() if "also in the place of the built-in in" in line)
        assert "client" in line
        assert early.attend is KEPT[0] and early.again is KEPT[0]
        assert vars(early)["__private"] is KEPT[0]
        call(early)
        assert report.ours == 1


def test_a_module_imported_while_a_patch_is_active(reference, client):
    """The module keeps that patch's function, which serves during every later patch and not between patches."""
    with mlx_flash.patch() as first:
        late = client(BY_NAME)
        call(late)
    call(late)
    with mlx_flash.patch(min_queries=13) as second, mlx_flash.patch() as third:
        call(late)
    with mlx_flash.patch(min_queries=13) as fourth:
        call(late)
    assert (first.ours, second.ours, third.ours, fourth.ours) == (1, 0, 1, 0)
    assert dict(fourth.built_in) == {"fewer than 13 queries": 1}, "counted once"


def test_patches_that_nest_give_back_at_the_end(reference, client):
    early = client(BY_NAME)
    outer = mlx_flash.patch()
    with mlx_flash.patch() as inner:
        call(early)
    call(early)
    outer.undo()
    assert (outer.ours, inner.ours) == (1, 1) and early.attend is KEPT[0]
    assert "client" in outer.reached and "client" in inner.reached


def test_what_a_client_changes_in_the_meantime_stays(reference, client):
    early = client(BY_NAME)
    with mlx_flash.patch():
        early.attend = len
    assert early.attend is len


class Frozen(types.ModuleType):
    def __setattr__(self, name, value):
        raise AttributeError(f"{name} is read-only")


PLACES = {
    "a default": "def layer(q, attend=attend): return attend(q, q, q, scale=0.25)\ndel attend\n",
    "a class": "class Layer:\n    attend = staticmethod(attend)\ndel attend\n",
    "a default by name": "def layer(q, *, attend=attend): return attend(q, q, q, scale=0.25)\ndel attend\n",
    "a closure": "def made(f):\n    return lambda q: f(q, q, q, scale=0.25)\nlayer = made(attend)\ndel attend\n",
    "a table": "layer = {'fast': attend}\ndel attend\n",
    "a list": "layer = [attend]\ndel attend\n",
    "a class's default": "class Layer:\n    def forward(self, q, attend=attend): return attend(q, q, q)\ndel attend\n",
    "a partial": "import functools\nlayer = functools.partial(attend, scale=0.25)\ndel attend\n",
}


@pytest.mark.parametrize("name", PLACES)
def test_what_cannot_be_changed_is_named(reference, client, name):
    client(BY_NAME + PLACES[name])
    with mlx_flash.patch() as report:
        pass
    place = "client.Layer" if name.startswith("a class") else "client.layer"
    assert place in report.out_of_reach and f"out of reach: {place} holds the built-in itself" in str(report)


def test_a_module_that_refuses_is_named(reference, client):
    frozen = client(BY_NAME, kind=Frozen)
    with mlx_flash.patch() as report:
        call(frozen)
    assert report.ours == 0 and "client.attend" in report.out_of_reach and frozen.attend is KEPT[0]


def test_functions_for_quantized_caches_of_any_package(reference, client, monkeypatch):
    """A table that users extend; a module that is imported after patch() is found at the next call."""
    monkeypatch.setattr(integrations, "QUANTIZED", integrations.QUANTIZED)
    integrations.QUANTIZED.append(("client.base", "attend_quantized"))
    try:
        with mlx_flash.patch() as report:
            base = client(
                "from mlx_lm.models.base import quantized_scaled_dot_product_attention as attend_quantized",
                "client.base",
            )
            mx.eval(mx.fast.scaled_dot_product_attention(Q, Q, Q, scale=0.25))
            k = mx.quantize(mx.random.normal((1, 2, 20, 64), key=mx.random.key(1)), group_size=64, bits=8)
            q = mx.random.normal((1, 4, 12, 64), key=mx.random.key(2))
            mx.eval(base.attend_quantized(q, k, k, 0.125, "causal"))
            mx.eval(base.attend_quantized(q, k, k, 0.125, mx.ones((12, 20), mx.int32), 64, bits=8))
    finally:
        integrations.QUANTIZED.pop()
    assert dict(report.served) == {"prefill": 1, "quantized prefill": 2}


def test_a_wrapper_made_by_functools_is_not_taken_for_ours(reference):
    """functools.wraps copies what we mark our function with."""
    first, seen = mlx_flash.patch(), []
    ours = mx.fast.scaled_dot_product_attention

    @functools.wraps(ours)
    def wrapper(*arguments, **options):
        seen.append(1)
        return ours(*arguments, **options)

    mx.fast.scaled_dot_product_attention = wrapper
    try:
        first.undo()
        with mlx_flash.patch(min_queries=13):
            mx.eval(mx.fast.scaled_dot_product_attention(Q, Q, Q, scale=0.25))
        assert seen == [1] and mx.fast.scaled_dot_product_attention is wrapper
    finally:
        mx.fast.scaled_dot_product_attention = KEPT[0]


def test_looking_for_holders_runs_nobody_s_code(monkeypatch):
    """Deprecated objects, lazy modules and classes with a metaclass act on any attribute that is asked for."""

    class Refuses:
        def __getattribute__(self, name):
            raise AssertionError(f"{name} was asked for")

    class Meta(type):
        def __getattribute__(cls, name):
            raise AssertionError(f"{name} was asked for")

    class Lazy(types.ModuleType):
        def __getattribute__(self, name):
            raise AssertionError(f"{name} was asked for")

    client = types.ModuleType("client_of_deprecated_things")
    client.old, client.made = Refuses(), Meta("Made", (), {})
    monkeypatch.setitem(sys.modules, "client_of_deprecated_things", client)
    monkeypatch.setitem(sys.modules, "lazy_client", Lazy("lazy_client"))
    monkeypatch.setitem(sys.modules, "no_module", Refuses())
    q = mx.random.normal((1, 2, 9, 16))
    with mlx_flash.use_backend("reference"), mlx_flash.patch() as report:
        mx.fast.scaled_dot_product_attention(q, q, q, scale=0.25)
    assert report.ours == 1
