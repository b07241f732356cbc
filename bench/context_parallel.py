"""Time, memory and bits of causal attention over a sequence that several GPUs share, beside one GPU with all of it:

    python bench/context_parallel.py --ranks 2 --lengths 131072,262144 --out FILE.json

It starts the ranks itself, on this machine: on CUDA with NCCL, one GPU each, elsewhere over loopback. Under mlx.launch
it is one rank of several. Every measurement is printed and written as soon as it is made; after --limit seconds no new
one begins, and half a minute later the ranks are ended. NCCL_NVLS_ENABLE=0 where NVLink multicast is off.

Bytes are those at the peak beyond the operands. MLX allocates for up to ten command buffers ahead of a GPU: in the rows
"waiting", its memory limit is what the operands take, so that it waits for memory to be freed.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from mlx_flash import attention, distributed
from mlx_flash.backends import current_backend

GRACE = 30  # seconds between the last begin of a measurement and the end of the ranks
TIMES = ("forward", "both")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("ranks", 2), ("heads", 32), ("key-heads", 8), ("width", 128), ("repeats", 3), ("limit", 210)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--lengths", default="131072", help="of the whole sequence, separated by commas")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--alone", choices=("yes", "no"), default="yes", help="no: one GPU cannot hold the sequence")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results as JSON")
    return parser.parse_args()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def launch(options) -> int:
    """Runs this program once for each rank, for a limited time, and ends all where one fails."""
    ports = [free_port() for _ in range(options.ranks)]
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder, "hosts.json")
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]), encoding="utf-8")
        processes = []
        for rank in range(options.ranks):
            chosen = {"MLX_RANK": str(rank), "MLX_WORLD_SIZE": str(options.ranks)}
            if mx.cuda.is_available():
                chosen |= {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(ports[0]), "CUDA_VISIBLE_DEVICES": str(rank)}
            else:
                chosen |= {"MLX_HOSTFILE": str(hosts)}
            defaults = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_NVLS_ENABLE": "0"}
            processes.append(subprocess.Popen([sys.executable, *sys.argv], env=defaults | os.environ | chosen))
        end = time.monotonic() + options.limit + GRACE
        try:
            while any(process.poll() is None for process in processes):
                if time.monotonic() > end or any(process.returncode for process in processes):
                    break
                time.sleep(0.1)
        finally:
            codes = [process.poll() for process in processes]  # None: ended here
            for process in processes:
                process.kill()
                process.wait()
    print(f"ranks ended with {codes}", flush=True)
    return int(any(code != 0 for code in codes))


class Measurement:
    """The calls of one length on one rank, and the results so far."""

    def __init__(self, options, group):
        self.options, self.group, self.begin = options, group, time.monotonic()
        self.facts = {"ranks": group.size(), "backend": current_backend().name, "mlx": mx.__version__}
        self.facts["device"] = mx.device_info().get("device_name", "cpu")
        self.facts |= {name: getattr(options, name) for name in ("heads", "key_heads", "width", "dtype")}
        self.rows: list[dict] = []

    def late(self) -> bool:
        """Is the time over on any rank? All ranks must stop at the same measurement."""
        over = time.monotonic() - self.begin > self.options.limit
        return bool(mx.distributed.all_sum(mx.array(int(over)), group=self.group).item())

    def keep(self, row: dict) -> dict:
        self.rows.append(row)
        if self.group.rank() == 0:
            print(f"{time.monotonic() - self.begin:6.1f} s {json.dumps(row)}", flush=True)
            if self.options.out:
                self.options.out.write_text(json.dumps(self.facts | {"rows": self.rows}, indent=1) + "\n")
        return row

    def measured(self, call, operands: list[mx.array], **named) -> dict:
        """Keeps seconds and bytes of the forward pass, and of both."""
        row = dict(named)
        for name in TIMES:
            work = (lambda: call(*operands[:3])) if name == "forward" else lambda: mx.vjp(call, *halves(operands))
            row[f"{name}_s"], row[f"{name}_bytes"] = timed(work, self.options.repeats)
        return self.keep(row)

    def length(self, length: int) -> None:
        whole = drawn(self.options, length)
        own = [distributed.shard(array, 2, group=self.group) for array in whole]
        mx.eval(own)
        alone = None
        if self.options.alone == "yes":
            alone = self.measured(causal, whole, length=length, what="one GPU")
        else:
            del whole
        count = self.options.key_heads
        groups = (None, count, *(one for one in (2,) if count % 2 == 0))
        calls = [("shared", None), *(("waiting", one) for one in groups), *(("shared", one) for one in groups[1:])]
        for what, heads in calls:
            named = {"length": length, "what": what, "gathered_heads": heads}
            if self.late():
                return
            limit = mx.set_memory_limit(mx.get_active_memory()) if what == "waiting" else None
            try:
                compare(self.measured(self.shared(heads), own, **named), alone, self)
            finally:
                if limit is not None:
                    mx.set_memory_limit(limit)
            if what == "shared" and heads is None and alone:
                self.bits(whole, own, length)

    def shared(self, heads: int | None):
        return lambda *x: distributed.attention(*x, causal=True, group=self.group, heads=heads)

    def bits(self, whole, own, length: int) -> None:
        """Does every rank have its rows of one GPU's output and gradients, to the bit?"""
        outs, gradients = mx.vjp(causal, *halves(whole))
        want = [distributed.shard(array, 2, group=self.group) for array in (*outs, *gradients)]
        mx.eval(want)
        del outs, gradients
        outs, gradients = mx.vjp(self.shared(None), *halves(own))
        same = mx.stack([mx.array_equal(*pair) for pair in zip((*outs, *gradients), want)]).astype(mx.int32)
        ranks = mx.distributed.all_sum(same, group=self.group).tolist()
        self.keep({"length": length, "ranks_with_the_same_bits": dict(zip(("O", "dQ", "dK", "dV"), ranks))})


def causal(q, k, v):
    return attention(q, k, v, causal=True)


def halves(operands: list[mx.array]) -> tuple[list[mx.array], list[mx.array]]:
    """q, k, v and the output's gradient."""
    return operands[:3], operands[3:]


def drawn(options, length: int) -> list[mx.array]:
    """q, k, v and d_o of the whole sequence, the same on every rank."""
    keys, dtype = mx.random.split(mx.random.key(0), 4), getattr(mx, options.dtype)
    counts = (options.heads, options.key_heads, options.key_heads, options.heads)
    arrays = []
    for count, key in zip(counts, keys):
        arrays.append(mx.random.normal((1, count, length, options.width), key=key).astype(dtype))
        mx.eval(arrays[-1])  # one float32 array at a time
    return arrays


def timed(work, repeats: int) -> tuple[float, int]:
    """(median seconds of a call, bytes beyond the operands at its peak)."""
    mx.eval(work())
    mx.synchronize()  # until then a GPU may hold what is no longer needed
    mx.clear_cache()
    before, seconds = mx.get_active_memory(), []
    mx.reset_peak_memory()
    for _ in range(repeats):
        begin = time.perf_counter()
        mx.eval(work())
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds)[repeats // 2], mx.get_peak_memory() - before


def compare(row: dict, alone: dict | None, measurement: Measurement) -> None:
    """Keeps speed and memory of a shared call as multiples of one GPU's."""
    if alone:
        ratios = {f"{name}_speed": round(alone[f"{name}_s"] / row[f"{name}_s"], 3) for name in TIMES}
        ratios |= {f"{name}_memory": round(row[f"{name}_bytes"] / alone[f"{name}_bytes"], 3) for name in TIMES}
        measurement.keep({name: row[name] for name in ("length", "what", "gathered_heads")} | ratios)


def main() -> int:
    options = arguments()
    if "MLX_RANK" not in os.environ and options.ranks > 1:
        return launch(options)
    measurement = Measurement(options, mx.distributed.init())
    for length in options.lengths.split(","):
        if not measurement.late():
            measurement.length(int(length))
    return 0


if __name__ == "__main__":
    sys.exit(main())
