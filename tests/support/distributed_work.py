"""The work of the ranks in tests: each function runs in a process of its own and returns numpy arrays."""

import math
import os
import socket
import struct
from contextlib import suppress
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from mlx_flash import attention as plain
from mlx_flash import distributed, use_backend


def drawn(shape: dict, dtype: str = "float32") -> dict[str, mx.array]:
    """q, k, v, d_o and d_lse of a whole sequence, the same on every rank."""
    batch, heads, key_heads, rows, width = (shape[name] for name in ("batch", "heads", "key_heads", "rows", "width"))
    keys, kind = mx.random.split(mx.random.key(7), 5), getattr(mx, dtype)
    sizes = {"q": (heads, rows, width), "k": (key_heads, rows, width), "v": (key_heads, rows, width)}
    sizes |= {"d_o": (heads, rows, width), "d_lse": (heads, rows)}
    arrays = {name: mx.random.normal((batch, *size), key=key) for (name, size), key in zip(sizes.items(), keys)}
    return {name: array if name == "d_lse" else array.astype(kind) for name, array in arrays.items()}


def options_of(named: dict) -> dict:
    """The options with numpy arrays converted to MLX arrays, as attention takes them."""
    return {name: mx.array(value) if isinstance(value, np.ndarray) else value for name, value in named.items()}


def results(call, arrays: dict, extra: dict | None = None) -> dict[str, np.ndarray]:
    """O, LSE and the gradients of q, k, v and of the arrays in `extra`."""
    extra = extra or {}
    names = ["q", "k", "v", *extra]
    leaves = [*(arrays[name] for name in "qkv"), *extra.values()]
    outs, grads = mx.vjp(
        lambda *x: list(call(*x[:3], **dict(zip(extra, x[3:])))), leaves, [arrays["d_o"], arrays["d_lse"]]
    )
    named = dict(zip(("O", "LSE"), outs)) | {f"d{name}": grad for name, grad in zip(names, grads)}
    mx.eval(named)
    return {name: np.array(array.astype(mx.float32)) for name, array in named.items()}


def whole(shape: dict, options: dict, backend=("reference", None), dtype: str = "float32") -> dict[str, np.ndarray]:
    """The results of one process."""
    with use_backend(*backend):
        options = options_of(options)
        if "segments" in options:
            options["segments"] = (options["segments"],) * 2
        extra = {name: options.pop(name) for name in ("sinks", "mask") if name in options}
        if "mask" in extra and extra["mask"].dtype == mx.bool_:
            options["mask"] = extra.pop("mask")
        return results(
            lambda q, k, v, **more: plain(q, k, v, return_lse=True, **options, **more), drawn(shape, dtype), extra
        )


def shared(
    shape: dict, options: dict, sharing: dict, backend=("reference", None), dtype: str = "float32", wrap: str = ""
) -> dict:
    """This rank's results, gathered to the whole sequence on every rank. `wrap`: "compile" or "checkpoint"."""
    layout = {"layout": sharing.get("layout", "zigzag")}
    with use_backend(*backend):
        options = options_of(options)
        if "segments" in options:
            ids = distributed.shard(options["segments"], options["segments"].ndim - 1, **layout)
            options["segments"] = (ids, ids)
        extra = {name: options.pop(name) for name in ("sinks", "mask") if name in options}
        if "mask" in extra and extra["mask"].dtype == mx.bool_:
            options["mask"] = extra.pop("mask")
        arrays = {name: distributed.shard(array, 2, **layout) for name, array in drawn(shape, dtype).items()}

        def call(q, k, v, **more):
            return distributed.attention(q, k, v, return_lse=True, **options, **more, **sharing)

        if wrap:
            call = {"compile": mx.compile, "checkpoint": mx.checkpoint}[wrap](call)
        found, joined = results(call, arrays, extra), {}
        for name, array in found.items():
            if name in ("dsinks", "dmask"):  # Gradients of arrays that all ranks share: their parts are summed.
                joined[name] = np.array(mx.distributed.all_sum(mx.array(array)))
            else:
                joined[name] = np.array(distributed.unshard(mx.array(array), 2, **layout))
        return joined


def bytes_received() -> int:
    """The bytes that the TCP sockets of this process have received (Linux)."""
    total = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            one = socket.socket(fileno=os.dup(int(number)))
            with one:
                total += struct.unpack_from("Q", one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 128)[0]
    return total


def counted(shape: dict, sharing: dict, dtype: str) -> list[int]:
    """Bytes received by one forward call, and by one forward and backward call, without LSE."""
    arrays = {name: distributed.shard(array, 2) for name, array in drawn(shape, dtype).items()}
    q, k, v, d_o = (arrays[name] for name in ("q", "k", "v", "d_o"))
    mx.eval(q, k, v, d_o)
    found = []

    def call(*x):
        return distributed.attention(*x, causal=True, **sharing)

    with use_backend("reference"):
        for work in (lambda: call(q, k, v), lambda: mx.vjp(call, [q, k, v], [d_o])):
            mx.eval(mx.distributed.all_sum(mx.ones(1)))
            before = bytes_received()
            mx.eval(work())
            mx.eval(mx.distributed.all_sum(mx.ones(1)))
            found.append(bytes_received() - before)
    return found


class NoKernels:
    """Replaces the kernels: results have the right shapes and are allocated once the operands exist, so that MLX's
    counters show the memory that sharing itself holds.
    """

    def __init__(self, *_):
        pass

    def run(self, kind, *arrays):
        q, *others = arrays
        if kind.name == "forward":
            return self._made([q.shape[:3] + others[1].shape[-1:], (*q.shape[:3], 2)], [q.dtype, mx.float32], arrays)
        return self._made([q.shape[:3] if kind.name == "delta" else q.shape], [q.dtype], arrays)

    def key_value(self, arrays):
        return self._made([one.shape for one in arrays[1:3]], [one.dtype for one in arrays[1:3]], arrays)

    def _made(self, shapes, dtypes, after):
        return mx.depends([mx.zeros(*one) for one in zip(shapes, dtypes)], list(after))


def peak_memory(
    shape: dict,
    sharing: dict,
    dtype: str = "float32",
    layers: int = 1,
    gradients: bool = True,
    waits: bool = True,
    runs: int = 1,
    enough: float = 0,
) -> tuple[int, int]:
    """(bytes of the operands, bytes beyond them at the peak) of consecutive layers, with gradients or without.

    waits: sets MLX's memory limit to the operands. MLX allocates ahead of the running operations until its limit is
    reached, and how far ahead depends on the load of the machine too.

    runs, enough: the result is the least of several runs, which end when at most `enough` bytes were seen on every
    rank.
    """
    from mlx_flash.distributed import parallel

    parallel.attend = NoKernels
    arrays = {name: distributed.shard(array, 2) for name, array in drawn(shape, dtype).items()}
    q, k, v, d_o = (mx.contiguous(arrays.pop(name)) for name in ("q", "k", "v", "d_o"))
    mx.eval(q, k, v, d_o)
    del arrays
    operands = mx.get_active_memory()
    if waits:
        mx.set_memory_limit(operands)

    def call(q, k, v):
        for _ in range(layers):
            q = distributed.attention(q, k, v, causal=True, **sharing)
        return q

    with use_backend("reference"):
        least = math.inf
        for run in range(1 + runs):
            mx.clear_cache()
            mx.reset_peak_memory()
            mx.eval(mx.vjp(call, [q, k, v], [d_o]) if gradients else call(q, k, v))
            if run > 0:  # the first run also makes objects that later runs keep
                least = min(least, mx.get_peak_memory() - operands)
                if mx.distributed.all_max(mx.array(float(least))).item() <= enough:
                    break
    return operands, int(least)


def decoded(caches: list[int], options: dict, dtype: str = "float32") -> tuple[list, list]:
    """Results of decode with this rank's part of the cache, and of attention with the whole cache."""
    options, total = options_of(options), sum(caches)
    q, k, v = (
        drawn({"batch": 2, "heads": 4, "key_heads": 2, "rows": total, "width": 16}, dtype)[name] for name in "qkv"
    )
    rank = mx.distributed.init().rank()
    own = slice(sum(caches[:rank]), sum(caches[: rank + 1]))
    with use_backend("reference"):
        got = distributed.decode(q[:, :, :3], k[:, :, own], v[:, :, own], **options)
        want = plain(q[:, :, :3], k, v, return_lse=True, **options)
    return tuple([np.array(array.astype(mx.float32)) for array in pair] for pair in (got, want))


def refused(shape: dict, per_rank: list[dict]) -> str:
    """The error of a call whose shapes or options differ by rank. per_rank: changes of the options; "rows": of q."""
    changes = dict(per_rank[mx.distributed.init().rank()])
    rows = changes.pop("rows", shape["rows"])
    q, k, v = (drawn(shape | {"rows": rows})[name] for name in "qkv")
    try:
        with use_backend("reference"):
            mx.eval(distributed.attention(q, k, v, **changes))
    except ValueError as error:
        return str(error)
    return "no error"


def moved(rows: int, layout: str) -> dict:
    """shard, unshard and their gradients, of the sequence 0, 1, 2 ..."""
    sequence = mx.arange(rows, dtype=mx.float32)[None]
    own = distributed.shard(sequence, layout=layout)
    weights = mx.arange(1, rows + 1, dtype=mx.float32)[None]
    # The sum of the losses of all ranks; each rank weights the whole sequence by its own number.
    rank = mx.distributed.init().rank()
    gradient = mx.grad(lambda x: (distributed.unshard(x, layout=layout) * weights).sum() * (rank + 1))(own)
    return {
        "whole": np.array(distributed.unshard(own, layout=layout)),
        "gradient": np.array(distributed.unshard(gradient, layout=layout)),
        "positions": list(distributed.positions(own.shape[1], layout=layout)),
        "own": np.array(own),
    }


def waits_for_ever(shape: dict) -> None:
    """Rank 1 ends without a message after the ranks have met; the other ranks continue."""
    mx.eval(mx.distributed.all_sum(mx.ones(1)))
    if mx.distributed.init().rank() == 1:
        os._exit(0)
    q, k, v = (drawn(shape)[name] for name in "qkv")
    with use_backend("reference"):
        mx.eval(distributed.attention(q, k, v, causal=True))


def shared_awaited(**arguments) -> dict:
    """`shared`, where the host waits before every collective as it does before large ones with CUDA."""
    from mlx_flash.distributed import collectives

    collectives.AWAITED_BYTES, collectives.host_waits = 0, lambda: True
    return shared(**arguments)


def shared_without_positions(**arguments) -> dict:
    """The results of `shared` if the package ignores the positions of this rank's rows."""
    from mlx_flash.distributed import parallel

    parallel._Local._shift = lambda self, offset, places: mx.zeros((self.batch, places.stop - places.start), mx.int32)
    return shared(**arguments)


def shared_by_mlx(**arguments) -> dict:
    """The results of `shared` with MLX's own gradient of all_gather, and of kernels on sequences in order."""
    from mlx_flash.distributed import parallel
    from mlx_flash.problem.shards import in_order

    class InOrder(parallel.Collectives):
        def gather(self, *arrays):
            return super().gather(*arrays, arrange=lambda shards: in_order(shards, 2, 2))

    kernels = parallel._Local._attention
    parallel.custom, parallel.Collectives = lambda function, *_: function, InOrder
    parallel._Local._attention = lambda self, own, names, shards: kernels(self, own, names, False)
    return shared(**arguments)


def trained(steps: int, shared: bool, rope_from_zero: bool = False) -> list[float]:
    """Losses of a tiny Llama, mlx-lm's own model, trained in one process or shared by all ranks."""
    from mlx import nn, optimizers
    from tiny_models import tiny

    from mlx_flash.lm import sharded as recipe

    model, group = tiny("llama"), mx.distributed.init()
    optimizer, losses = optimizers.Adam(1e-3), []
    if rope_from_zero:
        recipe._PieceRope.__call__ = lambda self, x, offset=0: self._rope(x, offset=offset)
    step = nn.value_and_grad(model, recipe.sharded_loss)
    with use_backend("reference"):
        for number in range(steps):
            tokens = mx.random.randint(0, 64, (2, 46), key=mx.random.key(number))
            if shared:
                with recipe.sharded(model, group=group):
                    loss, gradients = recipe.summed(step(model, *recipe.shard_batch(tokens, group=group)), group)
            else:
                loss, gradients = step(model, tokens[:, :-1], tokens[:, 1:], mx.ones((2, 45)), 90)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            losses.append(loss.item())
    return losses


def generated(prompt: list[int], tokens: int, layout: str = "zigzag") -> tuple[list, list, int]:
    """Tokens of a tiny Llama whose prompt all ranks share, tokens of mlx-lm alone, and rows that this rank cached."""
    from mlx_lm.generate import generate_step
    from tiny_models import tiny

    from mlx_flash.lm import sharded_generation

    model, held = tiny("llama"), []
    made = sharded_generation.sharded_caches
    watched = patch.object(sharded_generation, "sharded_caches", lambda *given: held.extend(made(*given)) or held)
    with use_backend("reference"), watched:
        got = list(sharded_generation.generate(model, mx.array(prompt), tokens, layout=layout))
        want = [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=tokens)]
    return got, [int(token) for token in want], held[0].state[0].shape[2]
