"""python -m mlx_flash.cli.probe: reads kernels from standard input, and answers each with a line of JSON.

A request is its length in bytes (64 bits, little-endian) and a pickled tuple from the parent process: "kernel" with the
name of the kind, signature, family, rows and kernel of a plan, or "unit" with the kernel of neural_probe.py.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import select
import struct
import sys

IDLE_SECONDS = 30  # without a request the process ends, and gives its memory back


def _requests(stream: io.RawIOBase):
    while True:
        ready, _, _ = select.select([stream], [], [], IDLE_SECONDS)
        size = _whole(stream, 8) if ready else b""
        if not size:
            return
        yield pickle.loads(_whole(stream, struct.unpack("<Q", size)[0]))


def _whole(stream: io.RawIOBase, size: int) -> bytes:
    """The next `size` bytes of the stream; none where it ends."""
    data = b""
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            return b""
        data += part
    return data


def main() -> None:
    # Whatever a library prints goes to standard error, which the parent shows when this process ends early.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from .trial import trial
    from .unit import trial as unit_trial

    trials = {"kernel": trial, "unit": unit_trial}
    print(json.dumps({"ready": True}), file=answers)
    for what, *question in _requests(os.fdopen(0, "rb", buffering=0)):
        print(json.dumps(trials[what](*question)), file=answers)


if __name__ == "__main__":
    sys.exit(main())
