"""A child process that runs kernels on tiny problems, so that a kernel which hangs or crashes takes down only the
child.

A kernel that does not end could not be stopped from a thread. The child, `python -m mlx_flash.cli.probe`, starts with
the first request, and ends with this process or after some idle time.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..kernels.plan import Plan
from ..kernels.source import Kernel

SECONDS = 60.0  # time limit for a kernel to compile and run on a tiny problem
START_SECONDS = 120.0  # time limit for a child to import MLX, which takes long the first time on a machine
VARIABLE = "MLX_FLASH_PROBE"  # 0: kernels are used without a probe
# What other processes send, the system short of memory too, says nothing about a kernel.
FROM_OUTSIDE = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGQUIT, signal.SIGTERM)


class Answer(NamedTuple):
    """The answer of a child process. `reason`: why the kernel must not be used, or "". `error`: the largest error,
    relative to the largest magnitude. `seconds`: until the first result. `lasting`: the same would be found again.
    `late`: the kernel did not end in time, which is a busy machine's fault now and then."""

    reason: str
    error: float = 0.0
    seconds: float = 0.0
    lasting: bool = True
    late: bool = False


class Prober:
    """One child process, and the exchange with it. To be used by one thread at a time."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._owner, self._unable = 0, ""

    def ask(self, plan: Plan) -> Answer:
        """Has the child run the plan's kernel. Never raises, and takes SECONDS at most."""
        return self._asked("kernel", plan.kind.name, plan.signature, plan.family, plan.rows, plan.kernel)

    def ask_unit(self, kernel: Kernel) -> Answer:
        """Has the child test the GPU's matrix unit with the kernel of neural_probe.py; otherwise as `ask`."""
        return self._asked("unit", kernel)

    def _asked(self, *question) -> Answer:
        request = pickle.dumps(question, pickle.HIGHEST_PROTOCOL)
        # An idle child ends by itself, perhaps at this moment: then a new one is asked.
        return self._asked_once(request) or self._asked_once(request) or Answer("the process that ran it ended")

    def _asked_once(self, request: bytes) -> Answer | None:
        """The child's answer; None if it ended by itself without one."""
        if self._unable:  # it may have taken START_SECONDS to find that out
            return Answer(self._unable, lasting=False)
        try:
            if not self._alive():
                self._start()
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            self._end()
            self._unable = f"no process could be started to try it in: {error}"
            return Answer(self._unable, lasting=False)
        except BaseException:
            self._end()
            raise
        return self._answer()

    def _answer(self) -> Answer | None:
        try:
            line = self._lines.get(timeout=SECONDS)
        except queue.Empty:
            self._end()
            return Answer(f"it did not end within {SECONDS:.0f} s", late=True)
        except BaseException:  # interrupted: the pending answer would be taken for the next one
            self._end()
            raise
        return Answer(**json.loads(line)) if line.endswith(b"\n") else self._ended()

    def _ended(self) -> Answer | None:
        """How the child ended; None if by itself."""
        code = self._process.wait()
        said = self._said()
        self._end()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        reason, lasting = f"the process that ran it ended ({how}){said and ': '}{said}", -code not in FROM_OUTSIDE
        return Answer(reason, lasting=lasting) if code else None

    def _alive(self) -> bool:
        if self._process is not None and (self._owner != os.getpid() or self._process.poll() is not None):
            self._end()
        return self._process is not None

    def _start(self) -> None:
        program = os.path.basename(sys.executable or "")
        # Interpreters have "py" in their names. Programs that embed Python name themselves, and would start once more.
        if getattr(sys, "frozen", False) or "py" not in program.lower():
            raise OSError(f"this Python has no interpreter of its own ({program or 'sys.executable is not set'})")
        self._errors, self._owner = tempfile.TemporaryFile(), os.getpid()
        # In a session of its own a child does not get the terminal's Ctrl-C, which is about this process.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_flash.cli.probe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, env=_environment(), start_new_session=True,
        )  # fmt: skip
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        try:
            greeting = self._lines.get(timeout=START_SECONDS)
        except queue.Empty:
            greeting = b""
        if not greeting:
            said = self._said()
            self._end()
            raise OSError(f"python -m mlx_flash.cli.probe does not start: {said}")

    def _said(self) -> str:
        """The last line of the child's standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:500] if lines else ""

    def _end(self) -> None:
        """Ends the child, if it is this process's own."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, self._errors):
            try:
                stream.close()
            except OSError:  # the pipe is broken, and part of a request unwritten
                pass

    def close(self) -> None:
        """Ends the child; the next question starts another one."""
        self._end()
        self._unable = ""


def _environment() -> dict[str, str]:
    """The environment of a child, which finds this package and MLX wherever this process found them, and no modules in
    the current folder."""
    own = [str(Path(__file__).parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    paths = dict.fromkeys([*own, str(Path(mx.__file__).parents[1])])
    return {**os.environ, VARIABLE: "0", "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _read(stream, lines: queue.Queue) -> None:
    """Passes a child's lines on, and an empty one at its end."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(b"")


PROBER = Prober()
atexit.register(PROBER.close)
