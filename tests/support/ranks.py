"""Several ranks of mx.distributed on this machine: processes that talk over loopback, and never longer than a limit."""

import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUPPORT = Path(__file__).parent
RUNNER = """
import pickle, sys
from importlib import import_module
module, name, given, out = sys.argv[1:]
with open(given, "rb") as file:
    arguments = pickle.load(file)
result = getattr(import_module(module), name)(**arguments)
with open(out, "wb") as file:
    pickle.dump(result, file)
"""


class RankFailed(Exception):
    """What a rank printed before it ended with an error."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(count: int, module: str, name: str, folder: str, **arguments) -> list[subprocess.Popen]:
    """Starts `module.name(**arguments)`, a function of tests/support, on every rank."""
    hosts = os.path.join(folder, "hosts.json")
    Path(hosts).write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]), encoding="utf-8")
    root = Path(__import__("mlx_flash").__file__).parents[1]
    shared = os.environ | {"MLX_HOSTFILE": hosts, "PYTHONPATH": f"{root}{os.pathsep}{SUPPORT}"}
    given = Path(folder, "arguments")
    given.write_bytes(pickle.dumps(arguments))
    return [
        subprocess.Popen(
            [sys.executable, "-c", RUNNER, module, name, str(given), os.path.join(folder, f"rank{rank}")],
            env=shared | {"MLX_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen], folder: str, limit: float) -> list:
    """What each rank returned. Raises RankFailed where one did not; all are ended after `limit` seconds."""
    end, printed = time.monotonic() + limit, []
    try:
        for process in processes:
            printed.append(process.communicate(timeout=max(end - time.monotonic(), 0.1))[0])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = [text for process, text in zip(processes, printed) if process.returncode]
    if failed:
        raise RankFailed("\n".join(failed))
    return [pickle.loads(Path(folder, f"rank{rank}").read_bytes()) for rank in range(len(processes))]


def on_ranks(count: int, module: str, name: str, limit: float = 120, **arguments) -> list:
    """The results of `module.name(**arguments)` on `count` ranks, in order."""
    with tempfile.TemporaryDirectory() as folder:
        return finish(start(count, module, name, folder, **arguments), folder, limit)
