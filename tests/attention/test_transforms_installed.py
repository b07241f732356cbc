"""Importing the package changes nothing in MLX; replaced functions of MLX come back as they were."""

import subprocess
import sys
import types

import mlx.core as mx
import pytest

from mlx_flash import attention, transforms
from mlx_flash.transforms.wrappers import NAMES

OWN = {name: getattr(mx, name) for name in NAMES}
Q = mx.random.normal((3, 1, 2, 5, 16), key=mx.random.key(0))


@pytest.fixture(autouse=True)
def everything_is_taken_back():
    yield
    assert [name for name in NAMES if getattr(mx, name) is not OWN[name]] == []


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@pytest.mark.process
def test_the_import_changes_nothing():
    """Nor do calls, gradients and explanations; MLX's own submodules included."""
    run(
        "import mlx.core as mx\n"
        "places = (mx, mx.fast, mx.random, mx.linalg, mx.fft)\n"
        "before = [(place, name, getattr(place, name)) for place in places for name in dir(place)]\n"
        "import mlx_flash\n"
        "q = mx.zeros((1, 1, 4, 8))\n"
        "with mlx_flash.use_backend('reference'):\n"
        "    mx.eval(mlx_flash.vmap(mx.grad(lambda q: mlx_flash.attention(q, q, q).sum()))(q[None]))\n"
        "with mlx_flash.transforms.installed(), mlx_flash.patch():\n"
        "    pass\n"
        "assert [name for place, name, own in before if getattr(place, name) is not own] == []\n"
        "assert sum(len(dir(place)) for place in places) == len(before)\n"
    )


@pytest.mark.process
@pytest.mark.process
def test_once_however_often_the_package_is_loaded():
    run(
        "import sys, mlx.core as mx\n"
        "own = [mx.vmap]\n"
        "for _ in range(3):\n"
        "    for name in [name for name in sys.modules if name.partition('.')[0] == 'mlx_flash']:\n"
        "        del sys.modules[name]\n"
        "    import mlx_flash\n"
        "    mlx_flash.transforms.install()\n"
        "    mlx_flash.transforms.install()\n"
        "    assert mx.vmap is not own[0] and mx.vmap.__wrapped__ is own[0]\n"
        "with mlx_flash.use_backend('reference'):\n"
        "    q = mx.zeros((2, 1, 1, 4, 8))\n"
        "    assert mx.vmap(lambda q: mlx_flash.attention(q, q, q))(q).shape == q.shape\n"
        "mlx_flash.transforms.uninstall()\n"
        "assert mx.vmap is own[0]\n"
        "mlx_flash.transforms.uninstall()\n"
    )


def test_blocks_nest(reference):
    with transforms.installed():
        with transforms.installed():
            pass
        assert mx.vmap(lambda q: attention(q, q, q))(Q).shape == Q.shape
        transforms.install()
    assert mx.vmap is not OWN["vmap"]
    transforms.uninstall()


def test_modules_that_hold_a_function_by_name(reference, monkeypatch):
    client = types.ModuleType("client_of_vmap")
    client.over, client.number = mx.vmap, 3
    monkeypatch.setitem(sys.modules, client.__name__, client)
    with transforms.installed():
        assert client.over(lambda q: attention(q, q, q))(Q).shape == Q.shape
    assert client.over is OWN["vmap"] and client.number == 3


def test_they_look_like_mlx_s_own():
    with transforms.installed():
        for name in NAMES:
            found = getattr(mx, name)
            assert found is not OWN[name] and (found.__name__, found.__doc__) == (name, OWN[name].__doc__)


def test_a_wrapper_by_another_stays():
    seen = []
    with transforms.installed():
        ours = mx.grad
        mx.grad = lambda *arguments: seen.append(1) or ours(*arguments)
        theirs = mx.grad
    try:
        assert mx.grad is theirs
        assert mx.grad(lambda x: x * x)(mx.array(3.0)) == 6 and seen == [1]
    finally:
        mx.grad = OWN["grad"]
