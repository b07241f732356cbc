"""The commands: what they print, their exit status, and one sentence for whatever a user gets wrong."""

import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import oracle
import pytest
from bounds import float64
from problems import make_problem
from refusals import refused

import mlx_flash
from mlx_flash.cli import main as cli
from mlx_flash.cli.accuracy import check as check_command
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import FORWARD

METAL, CUDA = mx.metal.is_available(), mx.cuda.is_available()


def test_explain_prints_every_kernel(capsys):
    assert cli.main(["explain", "--head-dim", "128", "--dtype", "float16", "--family", "apple9", "--causal"]) == 0
    said = capsys.readouterr().out
    for word in ("apple9", "forward", "delta", "backward", "in registers", "paged", "16 x 64 x", "causal"):
        assert word in said


def test_explain_without_rich(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert cli.main(["explain", "--head-dim", "64", "--family", "apple7"]) == 0
    assert "backward_key_value" in capsys.readouterr().out


@pytest.mark.parametrize("step", cli.KERNELS)
def test_source_prints_metal(capsys, step):
    size = ["256", "--family", "sm90"] if step in ("backward_key", "backward_value") else ["64", "--family", "apple7"]
    assert cli.main(["source", "--dtype", "float16", "--kernel", step, "--head-dim", *size]) == 0
    text = capsys.readouterr().out
    assert "#include <metal_" in text and "//" in text and f"[[kernel]] void custom_kernel_flash_{step}_float16" in text
    assert text.rstrip().endswith("}") and text.count("{") == text.count("}")


def test_source_prints_what_mlx_gets(capsys):
    problem = make_problem(1, 8, 8, 1024, 1024, 64, 64, "float16")
    kernel = plan_of(FORWARD, problem, FAMILIES["apple9"]).kernel
    assert cli.main(["source", "--head-dim", "64", "--family", "apple9", "--minified"]) == 0
    text = capsys.readouterr().out
    assert kernel.header.strip() in text and kernel.body.strip() in text


@pytest.mark.process
def test_source_into_a_closed_pipe():
    command = [sys.executable, "-m", "mlx_flash", "source", "--head-dim", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["command"]),
        (["dmeo"], ["dmeo", "demo"]),
        (["explain"], ["--head-dim"]),
        (["explain", "--head-dim", "0"], ["--head-dim", "at least 1", "'0'"]),
        (["explain", "--head-dim", "x"], ["--head-dim", "whole number", "'x'"]),
        (["explain", "--head-dim", "64", "--dtype", "int8"], ["--dtype", "int8", "float16"]),
        (["explain", "--head-dim", "64", "--family", "apple1"], ["--family", "apple1", "apple7"]),
        (["explain", "--head-dim", "64", "--heads", "3", "--key-heads", "2"], ["multiple", "got 3"]),
        (["explain", "--head-dim", "64", "--length", str(2**40)], ["length", "2^31"]),
        (["source", "--head-dim", "64", "--kernel", "sideways"], ["--kernel", "sideways", "backward_query"]),
        (["source", "--head-dim", "64", "--kernel", "backward_key"], ["--kernel backward_key", "by backward_key_"]),
        (["source", "--head-dim", "64", "--backend", "reference"], ["no Metal text", "--backend"]),
        (["tune", "--head-dims", "64"], ["--head-dims", "mlx_flash tune --help"]),
        (["check", "--backend", "rocm"], ["--backend", "rocm", "simulator"]),
        pytest.param(
            ["check", "--backend", "cuda"], ["no CUDA GPU", "pip install"], marks=pytest.mark.skip if CUDA else []
        ),
        pytest.param(
            ["check", "--backend", "metal"], ["metal", "simulator"], marks=[] if not METAL else pytest.mark.skip
        ),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, words):
    said = refused(capsys, arguments)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "command, module", [("check", "rich.console"), ("demo", "rich.console"), ("demo", "matplotlib")]
)
def test_missing_extras_say_what_to_install(capsys, monkeypatch, command, module):
    monkeypatch.setitem(sys.modules, module, None)
    said = refused(capsys, [command])
    assert module.partition(".")[0] in said and "pip install 'mlx-flash-attention[demo]'" in said


def test_check_on_every_backend(capsys, backend, monkeypatch):
    if backend.name == "simulator":  # whose kernels have to be compiled
        monkeypatch.setattr(check_command, "QUICK_HEAD_DIMS", (64,))
    rows = 3 * len(check_command.QUICK_HEAD_DIMS)
    family = ["--family", backend.family.name] if backend.family and backend.name != "metal" else []
    assert cli.main(["check", "--quick", "--backend", backend.name, *family]) == 0
    said = capsys.readouterr().out
    assert f"all {rows} rows pass" in said and "bfloat16" in said and backend.name in said


def test_check_sees_an_inaccurate_kernel(capsys, monkeypatch):
    right = check_command.attention
    monkeypatch.setattr(check_command, "attention", lambda *qkv, **options: right(*qkv, **options) * 1.1)
    assert cli.main(["check", "--quick", "--backend", "reference"]) == 1
    assert "6 of 6 rows fail" in capsys.readouterr().out


@pytest.mark.parametrize("causal", (False, True))
def test_checks_own_computation_agrees_with_the_oracle(causal):
    draws = np.random.default_rng(0)
    q, d_o = draws.standard_normal((2, 2, 4, 5, 8))
    k, v = draws.standard_normal((2, 2, 2, 3, 8))  # fewer keys than queries: causal rows that see nothing
    scale = 8**-0.5
    o, d_q, d_k, d_v = check_command.exact_tensors(q, k, v, d_o, causal)
    want = oracle.gradients(q, k, v, d_o, scale, causal)
    want["O"] = oracle.forward(q, k, v, scale, causal)[0]
    for name, got in zip(check_command.TENSORS, (o, d_q, d_k, d_v)):
        expected = want[name]
        assert np.abs(got - expected).max() <= 1000 * np.finfo(np.float64).eps


def test_unfused_is_attention():
    q, k, v = mx.random.normal((3, 1, 2, 5, 8), key=mx.random.key(0))
    got = check_command.unfused(q, k, v, True)
    want = oracle.forward(*map(float64, (q, k, v)), 8**-0.5, True)[0]
    assert np.abs(float64(got) - want).max() <= 100 * np.finfo(np.float32).eps


@pytest.mark.process
def test_the_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "mlx_flash", "--help"], capture_output=True, text=True, env={**os.environ}, check=True
    )
    assert all(command in done.stdout for command in ("demo", "explain", "source", "check"))


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parser().parse_args(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"mlx_flash {mlx_flash.__version__}\n"
