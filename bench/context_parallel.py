"""Times and memory of causal attention over a shared sequence: one JSON line from rank 0.

Started once by every rank: with mlx.launch (ring, mpi, jaccl), or with NCCL_HOST_IP, NCCL_PORT, MLX_WORLD_SIZE,
MLX_RANK and one CUDA_VISIBLE_DEVICES a rank (NCCL_NVLS_ENABLE=0 where NVLink multicast is off). Alone, it measures one
process. `--check` compares this rank's rows, to the bit, with one process's results, which must fit into memory.
"""

import argparse
import json
import time

import mlx.core as mx

from mlx_flash import attention, distributed
from mlx_flash.backends import current_backend


def drawn(options) -> list[mx.array]:
    """q, k, v and d_o of the whole sequence, the same on every rank."""
    keys, dtype = mx.random.split(mx.random.key(0), 4), getattr(mx, options.dtype)
    heads = (options.heads, options.key_heads, options.key_heads, options.heads)
    shapes = [(1, count, options.length, options.width) for count in heads]
    return [mx.random.normal(shape, key=key).astype(dtype) for shape, key in zip(shapes, keys)]


def timed(work, repeats: int) -> tuple[float, int]:
    """(median seconds of a call, bytes beyond the operands at its peak)."""
    mx.eval(work())
    before, seconds = mx.get_active_memory(), []
    mx.reset_peak_memory()
    for _ in range(repeats):
        begin = time.perf_counter()
        mx.eval(work())
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds)[repeats // 2], mx.get_peak_memory() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("length", 131072), ("heads", 32), ("key-heads", 8), ("width", 128), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--gathered-heads", type=int, default=None, help="key heads gathered at once")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    group, whole = mx.distributed.init(), drawn(options)
    own = [distributed.shard(array, 2, group=group) for array in whole]
    mx.eval(own)
    if not options.check:
        del whole

    def call(q, k, v):
        return distributed.attention(q, k, v, causal=True, group=group, heads=options.gathered_heads)

    forward = timed(lambda: call(*own[:3]), options.repeats)
    both = timed(lambda: mx.vjp(call, own[:3], own[3:])[1], options.repeats)
    line = vars(options) | {"ranks": group.size(), "backend": current_backend().name}
    line |= {"forward_s": forward[0], "forward_bytes": forward[1], "both_s": both[0], "both_bytes": both[1]}
    if options.check:
        outs, gradients = mx.vjp(lambda *x: attention(*x, causal=True), whole[:3], whole[3:])
        want = [distributed.shard(array, 2, group=group) for array in (*outs, *gradients)]
        outs, gradients = mx.vjp(call, own[:3], own[3:])
        line["same_bits"] = [mx.array_equal(*pair).item() for pair in zip((*outs, *gradients), want)]
    if group.rank() == 0:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
