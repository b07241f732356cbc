"""python -m mlx_flash.cli.probe: reads kernels from standard input, and answers each with a line of JSON.

A request is a pickled tuple from the parent process: "kernel" with the name of the kind, signature, family, rows and
kernel of a plan, or "unit" with the kernel of neural_probe.py.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import select
import sys

IDLE_SECONDS = 30  # without a request the process ends, and gives its memory back


def _requests(stream: io.BufferedReader):
    """The requests of a parent that waits for each answer, so that none is left in the buffer."""
    while select.select([stream], [], [], IDLE_SECONDS)[0]:
        try:
            yield pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):  # the parent has ended, perhaps within a request
            return


def main() -> None:
    # Whatever a library prints goes to standard error, which the parent shows when this process ends early.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from .trial import trial
    from .unit import trial as unit_trial

    trials = {"kernel": trial, "unit": unit_trial}
    print(json.dumps({"ready": True}), file=answers)
    for what, *question in _requests(os.fdopen(0, "rb")):
        print(json.dumps(trials[what](*question)), file=answers)


if __name__ == "__main__":
    sys.exit(main())
