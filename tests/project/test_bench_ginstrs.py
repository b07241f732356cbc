"""bench/ginstrs.py: the unit, counted work where there is no clock, and a file of lines that grows."""

import importlib.util
import json
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_flash import use_backend
from mlx_flash.cli.benchmark import Case
from mlx_flash.problem.kinds import BACKWARD_QUERY

SCRIPT = Path(__file__).parents[2] / "bench" / "ginstrs.py"
OURS = ("mlx_flash", "apple7")
DENSE, CAUSAL = (Case(16, 256, False, causal, 1, 1, dtype="float32") for causal in (False, True))


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_ginstrs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.simulator
def test_work_is_counted_on_the_simulator(bench):
    with use_backend("simulator", "apple7"):
        (dense,), (causal,) = bench.counted(DENSE), bench.counted(CAUSAL)
        both = list(bench.counted(Case(16, 64, True, False, 1, 1, dtype="float32")))
    assert dense["products"] == 2 * 256**2 * 16 // 512 and dense["of_dense"] == 1
    assert 0.5 < causal["of_dense"] < 0.7
    assert [(one["kernel"], one["of_dense"]) for one in both] == [
        ("backward_query_delta", 1), ("backward_key_value", 1),
    ]  # fmt: skip


def kept(name: str) -> list[dict]:
    return [json.loads(line) for line in (SCRIPT.parent / "results" / name).read_text(encoding="utf-8").splitlines()]


COUNTED = kept("ginstrs_simulator.jsonl")
STEEL = [one for one in COUNTED if one["provider"] == "mx.fast" and one["dtype"] == "float16"]
CACHED = 160  # columns up to which M1's forward rows keep Q in registers; MLX keeps it in threadgroup memory


@pytest.mark.simulator
@pytest.mark.parametrize("dtype, head_dim", [("float16", 64), ("float16", 128), ("float32", 80)])
def test_the_kept_counts_are_found_again(bench, monkeypatch, dtype, head_dim):
    """Where a text or a row has changed, delete the file and run bench/ginstrs.py for both families."""
    monkeypatch.setattr(bench, "STEEL", ())  # another package's, which is not everywhere
    case = Case(head_dim, 256, False, True, 1, 1, dtype=dtype)
    with use_backend("simulator", "apple7"):
        (found,) = bench.counted(case)
    (line,) = (one for one in COUNTED if one["name"] == case.name and (one["provider"], one["family"]) == OURS)
    assert found == {name: line[name] for name in found}


@pytest.mark.simulator
@pytest.mark.usefixtures("metal_headers")
def test_the_kept_counts_of_mlx_are_found_again(bench):
    (line,) = (one for one in STEEL if one["head_dim"] == 64 and one["causal"])
    found = bench.work_of(bench.steel_launch(Case(64, 256, False, True, 1, 1, dtype="float16")), CAUSAL)
    assert {**found, "of_dense": line["of_dense"]} == {name: line[name] for name in found}


@pytest.mark.parametrize("line", STEEL, ids=lambda line: line["name"])
def test_a_product_takes_no_more_bytes_than_mlxs(line):
    """Of M1's kernels in float16: as many are read. For a query's LSE we store two numbers, MLX one of 4 bytes."""
    (ours,) = (one for one in COUNTED if one["name"] == line["name"] and (one["provider"], one["family"]) == OURS)
    assert ours["products"] <= line["products"]
    assert ours["loaded"] <= line["loaded"] * (1 if line["head_dim"] <= CACHED else 1.2)
    more = (ours["stored"] - line["stored"]) * ours["products"]
    digits = ours["products"] // 1000  # what a unit of the last digit that is kept amounts to
    assert more <= 4 * line["heads"] * line["length"] + digits
    assert ours["threadgroup_reads"] < line["threadgroup_reads"] / 6


def test_the_bytes_of_direct_reads_are_the_quoted_ones():
    """M3's kernels copy nothing to threadgroup memory."""
    loaded = {
        one["name"]: one["loaded"] for one in COUNTED if (one["provider"], one["family"]) == ("mlx_flash", "apple9")
    }
    ratios = [loaded[line["name"]] / line["loaded"] for line in STEEL]
    text = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times the bytes" in text


def test_what_is_kept_of_mlx_is_of_every_head_dimension(bench):
    assert sorted(line["head_dim"] for line in STEEL) == sorted(2 * bench.STEEL)


def test_kernels_and_calls_of_a_gpu_are_kept(bench):
    lines = kept("ginstrs_cuda.jsonl")
    assert {one["name"] for one in lines} == {case.name for case in bench.cases("cuda")}
    for one in lines:
        limit = bench.NVIDIA_PEAKS[one["device"]["device_name"]][one["dtype"]]
        assert abs(one["roofline"] * limit - one["ginstrs"]) <= limit / 10**4 and 0 < one["roofline"] < 1
    for case in bench.cases("cuda"):
        found = {(one["provider"], one["kernel"]) for one in lines if one["name"] == case.name}
        assert {("mlx_flash", "call"), ("mx.fast", "call")} < found


def test_the_unit_is_metal_flash_attentions(bench, monkeypatch, reference):
    monkeypatch.setattr(bench, "call_times", lambda case: (2.0, 4.0))
    monkeypatch.setattr(bench, "kernel_times", lambda case: [(BACKWARD_QUERY, 1.0)])
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda *_: {"device_name": "Apple M1 Max", "memory_size": 1})
    ours, theirs, kernel = bench.timed(Case(64, 1000, True, False, 3, 3))
    for line, seconds in ((ours, 2e-3), (theirs, 4e-3)):
        assert line["ginstrs"] == round(3 * 1000**2 * (133 + 197 + 261) / seconds / 1e9, 1)
    assert kernel["ginstrs"] == round(3 * 1000**2 * 197 / 1e6, 1) and kernel["kernel"] == "backward_query"
    assert ours["roofline"] == round(ours["ginstrs"] / (1.296 * 32 * 4 * 32), 4)
    monkeypatch.setattr(mx, "device_info", lambda *_: {"device_name": "Apple M9"})
    assert all("roofline" not in line for line in bench.timed(CAUSAL))


def test_a_file_grows_and_is_not_measured_again(bench, monkeypatch, tmp_path, reference):
    asked, out = [], tmp_path / "lines.jsonl"
    monkeypatch.setattr(bench, "timed", lambda case: asked.append(case) or [{"provider": "mlx_flash", "ms": 1.0}])
    bench.run([DENSE], out)
    with out.open("a") as file:
        file.write(
            '{"name": "cut\n[]\n' + json.dumps({**json.loads(out.read_text()), "mlx": "0.1.0", "name": "old"}) + "\n"
        )
    bench.run([DENSE, CAUSAL], out)
    assert asked == [DENSE, CAUSAL]
    last = json.loads(out.read_text().splitlines()[-1])
    assert last["mlx"] == mx.__version__ and last["causal"] and last["backend"] == "reference"


def test_cases_are_for_every_backend_with_kernels(bench):
    for name in bench.SIZES:
        names = [case.name for case in bench.cases(name)]
        assert len(set(names)) == len(names) == (64 if name == "simulator" else 48)


@pytest.mark.simulator
def test_each_kernel_of_a_call_is_timed_alone(bench, monkeypatch):
    monkeypatch.setattr(bench, "milliseconds", lambda call: call() or 1.5)
    with use_backend("simulator", "apple7"):
        found = [
            [(kind.name, ms) for kind, ms in bench.kernel_times(Case(16, 32, backward, True, 1, 1, dtype="float32"))]
            for backward in (False, True)
        ]
    assert found == [[("forward", 1.5)], [("backward_query", 1.5), ("backward_key_value", 1.5)]]


def test_families_are_apart(bench, monkeypatch, tmp_path):
    """What was counted of one family's kernels is not taken for another's."""
    asked, out = [], tmp_path / "lines.jsonl"
    monkeypatch.setattr(bench, "counted", lambda case: asked.append(case) or [{"provider": "mlx_flash"}])
    for name in ("apple7", "apple9", "apple7"):
        with use_backend("simulator", name):
            bench.run([DENSE], out)
    assert asked == [DENSE, DENSE]
