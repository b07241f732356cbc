"""`python -m mlx_flash lm --shards N`: a small model trained on sequences that N processes share, beside one process.

The processes are started by mlx.launch on this machine and run this file; the first of them prints one JSON line.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
from mlx import nn, optimizers

from ..backends import use_backend
from ..common.errors import CommandError
from ..common.scalars import readable
from ..lm import sharded, tiny_model

SAME = 1e-4  # how far another order of sums may move a loss near 6, after steps of Adam
LIMIT = 1800  # seconds for all steps of all ranks


def train(steps: int, length: int, backend: str, family: str | None) -> dict:
    """Losses, and the largest memory of a rank beyond the model, of `steps` steps shared by this process's group."""
    group = mx.distributed.init()
    model, _ = tiny_model()
    optimizer, losses = optimizers.Adam(1e-3), []
    step = nn.value_and_grad(model, sharded.sharded_loss)
    with use_backend(backend, family):
        for number in range(steps):
            tokens = mx.random.randint(0, 256, (1, length + 1), key=mx.random.key(number))
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            with sharded.sharded(model, group=group):
                both = step(model, *sharded.shard_batch(tokens, group=group))
            loss, gradients = sharded.summed(both, group)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            losses.append(loss.item())
    peaks = mx.distributed.all_gather(mx.array([mx.get_peak_memory() - before], mx.int64), group=group)
    return {"losses": losses, "bytes": max(peaks.tolist())}


def lm_shards(arguments) -> int:
    """Trains on one process and on N, prints losses and memory. Returns 0 if the losses agree, else 1."""
    given = [str(arguments.steps), str(arguments.length), arguments.backend or "reference", arguments.family or ""]
    print(f"training a random Llama on sequences of {arguments.length} tokens, attention on {given[2]}", flush=True)
    alone = _run([sys.executable, "-m", __name__, *given])
    shared = _run([*_launcher(arguments.shards), sys.executable, "-m", __name__, *given])
    print(f"{'step':<6}{'one process':>14}{f'{arguments.shards} processes':>16}")
    for number, (one, other) in enumerate(zip(alone["losses"], shared["losses"])):
        print(f"{number:<6}{one:>14.6f}{other:>16.6f}")
    print(f"memory of a step beside the model: {readable(alone['bytes'])}, of a rank {readable(shared['bytes'])}")
    difference = max(abs(one - other) for one, other in zip(alone["losses"], shared["losses"]))
    print(f"the losses differ by at most {difference:.1e}")
    return 0 if difference <= SAME else 1


def _launcher(ranks: int) -> list[str]:
    beside = Path(sys.executable).with_name("mlx.launch")
    launcher = str(beside) if beside.exists() else shutil.which("mlx.launch")
    if launcher is None:
        raise CommandError("--shards: mlx.launch, which belongs to MLX, was not found. Reinstall MLX")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [launcher, "-n", str(ranks), "--backend", "ring", "--starting-port", str(port), "--"]


def _run(command: list[str]) -> dict:
    """The JSON line that a command prints. Raises CommandError where it prints none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"--shards: the processes did not end within {LIMIT} seconds. Pass fewer --steps") from error
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
        raise CommandError(f"--shards: the processes ended without a result; the last thing they said: {last[0]}")
    return json.loads(found[0])


if __name__ == "__main__":
    steps, length, backend, family = sys.argv[1:]
    result = train(int(steps), int(length), backend, family or None)
    if mx.distributed.init().rank() == 0:
        print(json.dumps(result), flush=True)
