"""A kernel that this machine's compiler or GPU gets wrong is noticed before its first use, and something else serves.

The machine is the pretended Mac (tests/support/pretend_mac), whose kernels can be told to fail.
"""

import json
import logging
import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import replace

import bounds
import mlx.core as mx
import numpy as np
import oracle
import pretend_mac
import pytest
from arrays import bits
from pretend_mac.kernel import FAULT

import mlx_flash
import mlx_flash.lm
from mlx_flash import attention, explain
from mlx_flash.backends import guard, prober
from mlx_flash.backends.metal import family_here
from mlx_flash.common.errors import InvalidArgument, UnsupportedProblem
from mlx_flash.kernels.plan import plan
from mlx_flash.problem.kinds import (
    FORWARD,
)
from mlx_flash.problem.problem import Signature

# What goes wrong, and what the reason says about it.
FAULTS = {
    "refuse": "RuntimeError: .*Unable to build metal library from source error: no such attribute",
    "wrong": "its numbers are wrong, by 0.02 of the largest magnitude",
    "hang": "it did not end within 8 s",
    "exit": r"the process that ran it ended \(exit status 3\)",
    "crash": r"the process that ran it ended \(signal 11\)",
}
COMPILE = getattr(mx.compile, "real", mx.compile)
SIGNATURE = Signature(1, 1, 16, 16, "float32", 0.25)


def operands(queries=33, dtype=mx.float32):
    return tuple(
        mx.random.normal((1, 1, n, 16), key=mx.random.key(seed)).astype(dtype)
        for seed, n in enumerate((queries, 20, 20))
    )


def check_output(out, q, k, v):
    want = oracle.forward(*(np.array(array, np.float64) for array in (q, k, v)), 0.25, False)[0]
    bounds.check("O", out, want, "guarded", "float32")


def kept(folder):
    return {json.loads(path.read_text())["kernel"].split("_")[1]: path for path in folder.glob("*.json")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_forward_kernel_that_fails(mac, monkeypatch, fault):
    """One warning, the right result, a verdict on disk, a line of explain; and the same from the file alone."""
    monkeypatch.setenv(FAULT, f"{fault}:forward")
    monkeypatch.setattr(prober, "SECONDS", 8.0 if fault == "hang" else prober.SECONDS)
    arrays = operands()
    with pytest.warns(
        RuntimeWarning, match=f"(?s)report it to .*check --report.*flash_forward.*{FAULTS[fault]}"
    ) as told:
        check_output(attention(*arrays), *arrays)
    assert told[0].filename == __file__, "it points at the user's line"
    with warnings.catch_warnings(action="error"):
        check_output(attention(*arrays), *arrays)  # known
        check_output(attention(*operands(7)), *operands(7))  # decoding has a kernel of its own, which is right
    told = str(explain(*arrays))
    assert "failed its test" in told and "the reference takes its place: " in told
    assert set(kept(mac)) == {"forward", "decode", "combine"} - ({"forward"} if fault == "hang" else set())
    pretend_mac.forget()
    if fault == "hang":  # perhaps the machine was busy: the next process tries once more
        monkeypatch.setattr(prober, "SECONDS", 1.0)
        with pytest.warns(RuntimeWarning, match="did not end within 1 s"):
            guard._warned.clear()
            check_output(attention(*arrays), *arrays)
        assert "forward" in kept(mac)
        pretend_mac.forget()
    # Another process finds the verdict, and does not try: here the kernel would be right.
    monkeypatch.delenv(FAULT)
    with pytest.warns(RuntimeWarning, match="does not use a kernel"):
        guard._warned.clear()
        check_output(attention(*arrays), *arrays)


@pytest.mark.parametrize(
    "where, fault",
    [("grad", "wrong"), ("compile", "wrong"), ("vmap", "wrong"), ("checkpoint", "wrong"), ("compile", "hang"),
     ("grad", "exit"), ("vmap", "exit")],
)  # fmt: skip
def test_a_backward_kernel_that_fails_inside_a_transformation(mac, monkeypatch, where, fault):
    monkeypatch.setenv(FAULT, f"{fault}:backward_query")
    monkeypatch.setattr(prober, "SECONDS", 8.0 if fault == "hang" else prober.SECONDS)
    q, k, v = operands()

    def loss(q, k, v):
        return (attention(q, k, v) ** 2).sum()

    with mlx_flash.use_backend("reference"):
        want = mx.grad(loss, (0, 1, 2))(q, k, v)
    gradient = mx.grad(mx.checkpoint(loss) if where == "checkpoint" else loss, (0, 1, 2))
    if where == "compile":
        gradient = mx.compile(gradient)
    with pytest.warns(RuntimeWarning, match=f"(?s)flash_backward_query.*{FAULTS[fault]}"):
        if where == "vmap":
            got = mlx_flash.vmap(gradient)(q[None], k[None], v[None])
            got = [array[0] for array in got]
        else:
            got = gradient(q, k, v)
    for name, one, other in zip(("dQ", "dK", "dV"), got, want):
        bounds.check(name, one, bounds.float64(other), "guarded", "float32")


@pytest.mark.parametrize("kind", ["query_keeping", "key_kept"])
def test_kernels_of_five_products_give_way_together(mac, monkeypatch, kind):
    """The three are tried together: where one is wrong, none is used, and those of seven products serve."""
    monkeypatch.setenv(FAULT, f"wrong:backward_{kind}")
    q, k, v = operands()

    def gradients(scratch):
        return mx.grad(lambda *qkv: (attention(*qkv, scratch=scratch) ** 2).sum(), (0, 1, 2))(q, k, v)

    want = gradients(0)
    with pytest.warns(RuntimeWarning, match="flash_backward_query_keeping.*numbers are wrong"):
        got = gradients(2**20)
    assert [bits(one) for one in got] == [bits(one) for one in want]


def test_a_first_use_inside_a_real_trace_evaluates_nothing(mac, monkeypatch):
    """The trace is one of MLX's own mx.compile. The kernel fails, so that what remains can be traced on any machine."""
    monkeypatch.setenv(FAULT, "refuse:flash")
    arrays, traced = operands(), []
    compiled = COMPILE(lambda q, k, v: traced.append(q) or attention(q, k, v))
    with pytest.warns(RuntimeWarning, match="does not use a kernel"):
        check_output(compiled(*arrays), *arrays)
    check_output(compiled(*arrays), *arrays)
    assert len(traced) == 1


def test_decoding_gives_way_to_the_forward_kernel(mac, monkeypatch):
    monkeypatch.setenv(FAULT, "refuse:combine")
    arrays = operands(3)
    with pytest.warns(RuntimeWarning, match="flash_decode"):  # whose parts nothing joins
        check_output(attention(*arrays), *arrays)
    assert set(kept(mac)) == {"decode", "forward"}
    assert "failed" in (told := explain(*arrays)).kernels[0].verdict and told.kernels[0].name == "decode"


def test_a_right_kernel_is_used_and_costs_one_look(mac, monkeypatch):
    arrays, asked = operands(), []
    check_output(attention(*arrays), *arrays)
    with monkeypatch.context() as counted:
        counted.setattr(prober.PROBER, "ask", lambda plan: asked.append(plan))
        counted.setattr(guard, "known", lambda plan: asked.append(plan))
        check_output(attention(*arrays), *arrays)
        check_output(attention(*operands(50)), *operands(50))
    assert not asked
    assert explain(*arrays).kernels[0].verdict.startswith("passed its test")


@pytest.mark.parametrize(
    "contents",
    (b"", b"{", b"[]", b'{"reason": ""}', b"\xff\xfe", b"[" * 10**5, "another", "no-reason", "overflow", None),
    ids=("empty", "cut", "list", "part", "bytes", "nested", "another-version", "no-reason", "overflow", "deleted"),
)
def test_a_damaged_verdict_is_found_again(mac, contents):
    arrays = operands()
    attention(*arrays)
    path = kept(mac)["forward"]
    whole = path.read_bytes()
    if contents is None:
        path.unlink()
    elif isinstance(contents, str):
        changes = {"another": {"mlx": "0.1.0", "reason": "old"}, "no-reason": {"reason": None}}
        changed = changes.get(contents, {"error": 10**400})
        path.write_text(json.dumps({**json.loads(whole), **changed}))
    else:
        path.write_bytes(contents)
    pretend_mac.forget()
    check_output(attention(*arrays), *arrays)
    again = json.loads(path.read_text())
    assert again["mlx"] == mx.__version__ and again["reason"] == ""


def test_a_folder_in_the_place_of_a_verdict(mac):
    """No verdict is stored, and no temporary file remains."""
    arrays = operands()
    attention(*arrays)
    path = kept(mac)["forward"]
    path.unlink()
    path.mkdir()
    pretend_mac.forget()
    check_output(attention(*arrays), *arrays)
    assert path.is_dir() and not list(mac.glob("*.part"))


class Child(prober.Prober):
    """A prober whose children are small programs: each answers one request as its text says."""

    def __init__(self, *programs: str):
        super().__init__()
        self.programs = list(programs)

    def _start(self):
        read = "import sys; sys.stdin.buffer.read(8); "
        command = [sys.executable, "-c", read + self.programs.pop(0)]
        self._errors, self._owner = tempfile.TemporaryFile(), os.getpid()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        self._lines = queue.Queue()
        threading.Thread(target=prober._read, args=(self._process.stdout, self._lines), daemon=True).start()


ANSWERS = 'print(\'{"reason": "", "error": %s}\'); sys.stdout.flush(); sys.stdin.buffer.read()'


@pytest.mark.process
@pytest.mark.parametrize("ends", ("", "sys.stdout.write('{'); "), ids=("silent", "in-an-answer"))
def test_a_child_that_was_idle_is_followed_by_another(ends):
    """A child that ends by itself just when it is asked says nothing about the kernel, which another child tries."""
    child = Child(ends + "sys.exit(0)", ANSWERS % 1.0)
    assert child._asked("kernel") == prober.Answer("", 1.0)
    child.close()
    twice = Child("sys.exit(0)", "sys.exit(0)")
    assert "ended" in twice._asked("kernel").reason


@pytest.mark.process
def test_an_interrupted_question_is_not_answered_to_the_next(monkeypatch):
    child = Child("import time; time.sleep(1); " + ANSWERS % 1.0, ANSWERS % 2.0)

    class Interrupted(queue.Queue):
        def get(self, timeout=None):
            raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(queue, "Queue", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            child._asked("kernel")
    assert child._asked("kernel").error == 2.0
    child.close()


def test_a_folder_that_cannot_be_written(mac, monkeypatch, caplog):
    mac.write_text("a file in the place of the folder")
    arrays = operands()
    with caplog.at_level(logging.INFO, "mlx_flash"):
        check_output(attention(*arrays), *arrays)
    assert "is not kept" in caplog.text


def test_verdicts_hold_for_one_system_chip_and_mlx(mac, monkeypatch):
    one = plan(FORWARD, SIGNATURE, family_here())
    places = {guard._file(one.kernel)}
    for name, value in (("chip", "Apple M9"), ("system", "Darwin 27.0"), ("mlx", "0.99.0")):
        machine = {**guard.machine_facts(), name: value}
        with monkeypatch.context() as other:
            other.setattr(guard, "machine_facts", lambda machine=machine: machine)
            places.add(guard._file(one.kernel))
    other_text = replace(one.kernel, body=one.kernel.body + "\n")
    changed = plan.__wrapped__(FORWARD, SIGNATURE, family_here())
    vars(changed)["kernel"] = other_text
    assert len(places | {guard._file(changed.kernel)}) == 5


def _write_often(path, number):
    for _ in range(200):
        guard._write(path, {"reason": str(number) * 2000, "error": 0, "seconds": 0, "kernel": "x"})


@pytest.mark.process
def test_two_processes_write_one_verdict_at_once(tmp_path):
    """A reader meets one of the two, whole, at any time."""
    path = tmp_path / "verdict.json"
    _write_often(path, 0)
    writers = [multiprocessing.get_context("spawn").Process(target=_write_often, args=(path, n)) for n in (1, 2)]
    for one in writers:
        one.start()
    seen, end = set(), time.time() + 60
    while any(one.is_alive() for one in writers) and time.time() < end:
        seen.add(guard._read(path, {"kernel": "x"}).reason[:1])
    for one in writers:
        one.join()
    assert seen <= {"0", "1", "2"} and guard._read(path, {"kernel": "x"}).reason[:1] in ("1", "2")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("architecture", ("applegpu_g19s", "applegpu_g99x", "unheard-of", ""))
def test_an_unknown_chip_is_tried_like_any_other(mac, monkeypatch, architecture):
    monkeypatch.setattr(mx, "device_info", lambda *_: {"architecture": architecture})
    pretend_mac.forget()
    arrays = operands()
    check_output(attention(*arrays), *arrays)
    assert json.loads(kept(mac)["forward"].read_text())["chip"] == f"unknown ({architecture})"


def test_a_backend_chosen_by_name_never_falls_back(mac, monkeypatch):
    monkeypatch.setenv(FAULT, "refuse:forward")
    with mlx_flash.use_backend("metal"), pytest.warns(RuntimeWarning), pytest.raises(
        UnsupportedProblem, match='backend "metal": kernel flash_forward.* failed its test on this machine'
    ):  # fmt: skip
        attention(*operands())


def test_the_probe_can_be_skipped(mac, monkeypatch):
    monkeypatch.setenv("MLX_FLASH_PROBE", "0")
    monkeypatch.setattr(prober.PROBER, "ask", lambda plan: pytest.fail("tried"))
    arrays = operands()
    check_output(attention(*arrays), *arrays)
    assert not mac.exists() and "not tried" in explain(*arrays).kernels[0].verdict
    monkeypatch.setenv("MLX_FLASH_PROBE", "yes")
    pretend_mac.forget()
    with pytest.raises(InvalidArgument, match="MLX_FLASH_PROBE: expected 0 or 1, got 'yes'"):
        attention(*arrays)


def test_without_a_process_to_try_kernels_in_nothing_is_kept(mac, monkeypatch, tmp_path):
    """A program frozen into one file would start itself."""
    monkeypatch.setattr(prober.sys, "frozen", True, raising=False)
    arrays = operands()
    with pytest.warns(RuntimeWarning, match="no process could be started to try it in: this Python has no interpreter"):
        check_output(attention(*arrays), *arrays)
    assert not mac.exists()


def test_a_generation_survives_a_kernel_that_fails(mac, monkeypatch):
    """Under patch() the built-in takes over, and the report says why; the tokens are those without the patch."""
    from mlx_lm.generate import generate_step

    monkeypatch.setenv(FAULT, "crash:decode")
    model, _ = mlx_flash.lm.tiny_model()
    prompt = mx.arange(40)

    want = [token for (token, _), _ in zip(generate_step(prompt, model), range(5))]
    with mlx_flash.patch(policy="always") as report, pytest.warns(RuntimeWarning, match="does not use a kernel"):
        got = [token for (token, _), _ in zip(generate_step(prompt, model), range(5))]
    assert got == want
    reasons = [reason for reason in report.built_in if "a kernel failed its test on this machine" in reason]
    assert reasons, str(report)
    assert report.built_in[reasons[0]] >= 4
    assert report.served["prefill"]
