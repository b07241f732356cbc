"""What the package keeps between calls serves every thread and stream, whichever used it first.

An array belongs to the thread that made it until it is evaluated. Each order of threads starts in a new process, since
what is kept is kept for its lifetime."""

import subprocess
import sys

import pytest

CODE = """
import sys, threading
import mlx.core as mx
import numpy as np
import mlx_flash
from mlx_flash import BlockMask, Score, Visible, attention, quantized_attention
from mlx_flash.rotations import Balance, Rotation
from mlx_flash.sequences import segments

backend, order = sys.argv[1:]
q = mx.random.normal((1, 2, 40, 64), key=mx.random.key(0))
narrow = [mx.random.normal((1, 2, 40, width), key=mx.random.key(1)) for width in (20, 24, 56)]
slopes = mx.array([0.5, 0.25])
parts = mx.quantize(q, group_size=64, bits=8)
key = mx.random.key(3)
mx.eval(q, narrow, slopes, parts, key)
made = {}


def make(name, function):
    if name not in made:
        made[name] = function()
    return made[name]


def work():
    blocks = make("blocks", lambda: BlockMask.causal(40, 40, block=32))
    ids = make("ids", lambda: segments([25, 15]))
    score = make("score", lambda: Score("s + t[k]", t=mx.arange(40).astype(mx.float32) / 40))
    visible = make("visible", lambda: Visible("seen[k]", seen=mx.arange(40) % 3 < 2))
    results = [
        attention(q, q, q, causal=True), attention(q, q, q, window=(8, 0), softcap=20.0, alibi_slopes=slopes),
        attention(q, q, q, score=score), attention(q, q, q, visible=visible),
        attention(q, q, q, mask=blocks), attention(q, q, q, segments=ids), attention(q[:, :, :1], q, q),
        attention(q, q, q, dropout=0.25, key=key), quantized_attention(q, parts, parts, bits=8, group_size=64),
        mx.grad(lambda q: mx.square(attention(q, q, q, sinks=slopes, scale=-0.1)).sum())(q),
        mlx_flash.vmap(lambda q: attention(q[None], q[None], q[None]))(q),
    ]
    for array in narrow:
        width = array.shape[3]
        rotation = make(("rotation", width), lambda: Rotation(width, mx.random.key(4)))
        balance = make(("balance", width), lambda: Balance(array, mx.random.key(5)))
        results += [attention(array, array, array), rotation.undo(rotation(array)), balance.undo(balance(array))]
        results.append(mx.grad(lambda x: mx.square(rotation(x)).sum())(array))
    with mlx_flash.patch() as report:
        results.append(mx.fast.scaled_dot_product_attention(q, q, q, scale=0.125, mask="causal"))
    assert report.ours == 1
    with mx.stream(mx.new_stream(mx.default_device())):
        results.append(attention(q, q, q, causal=True))
    mx.eval(results)
    return [np.array(one).tobytes() for one in results]


found, errors = [], []


def run():
    try:
        with mlx_flash.use_backend(backend):
            found.append(work())
    except BaseException as error:
        errors.append(error)


for who in order:
    if who == "m":
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    if errors:
        raise errors[0]
assert len(found) == len(order) and all(one == found[0] for one in found)
"""


@pytest.mark.process
@pytest.mark.parametrize("order", ("wm", "mw", "wwm"), ids=("worker first", "main first", "two workers first"))
def test_whichever_thread_is_first(order):
    check("reference", order)


@pytest.mark.process
def test_kernels_that_a_worker_used_first(kernels):
    if kernels.name == "simulator":
        check("simulator", "wm")


def check(backend: str, order: str):
    done = subprocess.run([sys.executable, "-c", CODE, backend, order], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
