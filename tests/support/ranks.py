"""Several ranks of mx.distributed on this machine: processes that communicate over loopback, with a time limit.

Each case has new processes. They are forked from a process that has imported their modules and computed nothing.
"""

import json
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

# On macOS a process that has used its GPU does not survive a fork.
_PROCESSES = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
# mlx_lm makes a stream, whose thread would stay behind, when it is imported; transformers takes most of its time.
_PROCESSES.set_forkserver_preload(["pytest", "distributed_work", "transformers"])


class RankFailed(Exception):
    """Holds the output of a rank that ended with an error."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(count: int, module: str, name: str, folder: str, **arguments) -> list[multiprocessing.Process]:
    """Starts `module.name(**arguments)`, a function of tests/support, on every rank."""
    hosts, ports = Path(folder, "hosts.json"), free_ports(count)
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]), encoding="utf-8")
    environment = os.environ | {"MLX_HOSTFILE": str(hosts)}
    processes = [
        _PROCESSES.Process(
            target=_work,
            args=(module, name, arguments, str(Path(folder, f"rank{rank}")), environment | {"MLX_RANK": str(rank)}),
            daemon=True,
        )
        for rank in range(count)
    ]
    for rank, process in enumerate(processes):
        if rank == count - 1:
            _wait_for(ports[:-1], processes[:-1])
        process.start()
    return processes


def _wait_for(ports: list[int], processes: list[multiprocessing.Process]) -> None:
    """Returns once all ports are listened to, or a process has ended. The last rank connects first, and where it finds
    nobody it tries again a second later."""
    table = Path("/proc/net/tcp")
    end = time.monotonic() + 5
    while table.exists() and time.monotonic() < end and all(process.is_alive() for process in processes):
        rows = [row.split() for row in table.read_text(encoding="ascii").splitlines()[1:]]
        if set(ports) <= {int(address[-4:], 16) for _, address, _, state, *_ in rows if state == "0A"}:
            return
        time.sleep(0.002)


def _work(module: str, name: str, arguments: dict, out: str, environment: dict[str, str]):
    """Runs in a rank: writes the result to the file `out`, and printed output to another file beside it."""
    with open(f"{out}.printed", "wb") as printed:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(printed.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    result = getattr(import_module(module), name)(**arguments)
    Path(out).write_bytes(pickle.dumps(result))


def finish(processes: list[multiprocessing.Process], folder: str, limit: float) -> list:
    """The return values of all ranks. Raises RankFailed if one failed; all are ended after `limit` seconds."""
    end = time.monotonic() + limit
    try:
        for process in processes:
            process.join(max(end - time.monotonic(), 0.1))
        late = [rank for rank, process in enumerate(processes) if process.exitcode is None]
    finally:
        for process in processes:
            process.kill()
            process.join()
    outs = [Path(folder, f"rank{rank}") for rank in range(len(processes))]
    if late:
        raise TimeoutError(f"after {limit} seconds ranks {late} had not ended")
    failed = [out for out, process in zip(outs, processes) if process.exitcode]
    if failed:
        raise RankFailed("\n".join(Path(f"{out}.printed").read_text(encoding="utf-8") for out in failed))
    return [pickle.loads(out.read_bytes()) for out in outs]


def on_ranks(count: int, module: str, name: str, limit: float = 120, **arguments) -> list:
    """The results of `module.name(**arguments)` on `count` ranks, in order."""
    with tempfile.TemporaryDirectory() as folder:
        return finish(start(count, module, name, folder, **arguments), folder, limit)
