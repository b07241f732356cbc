"""The runtime itself: assembles for both processors, survives many threads, processes and kernels at once."""

import graphlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import mlx.core as mx
import pytest

from mlx_flash.metal.cpu import compiler, precompiled
from mlx_flash.metal.cpu.dispatch import BuiltKernel
from mlx_flash.metal.frontend.images import code
from mlx_flash.metal.frontend.language import prefix
from mlx_flash.metal.frontend.lines import line_table
from mlx_flash.metal.frontend.translate import translate
from mlx_flash.simulator import metal_kernel, mode

RUNTIME = compiler._HERE / "runtime"


@pytest.mark.parametrize("target", ("aarch64-linux-gnu", "x86_64-linux-gnu"))
@pytest.mark.parametrize("source", sorted(path.name for path in RUNTIME.glob("*.c")))
def test_assembles(tmp_path, source, target):
    command, _, _ = compiler.toolchain()
    done = subprocess.run(
        [*command, "-target", target, *compiler._RUNTIME_FLAGS, "-c", str(RUNTIME / source), "-o", str(tmp_path / "o")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_calls_between_files_form_no_circle():
    """The runtime's files are layers: reports and fences, groups, fibers, steps, checks, operations of simdgroups."""
    texts = {path.stem: re.sub(r"//.*", "", path.read_text()) for path in RUNTIME.glob("*.c")}
    homes = {
        name: stem
        for stem, text in texts.items()
        for name in re.findall(r"^(?!static)[^;\n=]*?(\w+)\([^;\n]*\{", text, re.M)
    }
    calls = {
        stem: {homes.get(name) for name in re.findall(r"\w+(?=\()", text)} - {None, stem}
        for stem, text in texts.items()
    }
    graphlib.TopologicalSorter(calls).prepare()  # raises CycleError
    assert {"groups", "fences", "report"} <= calls["fibers"] and "fibers" in calls["steps"]


def sum_kernel(name="sums"):
    return metal_kernel(
        name=name, input_names=["x"], output_names=["y"],
        source="float s = simd_sum(x[thread_position_in_grid.x]); "
            "if (simd_is_first()) y[threadgroup_position_in_grid.x] = s;",
    )  # fmt: skip


def sums(kernel, groups):
    x = mx.arange(32 * groups, dtype=mx.float32)
    (y,) = kernel(
        inputs=[x],
        grid=(32 * groups, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(groups,)],
        output_dtypes=[mx.float32],
    )
    return mx.array_equal(y, x.reshape(groups, 32).sum(axis=1)).item()


@pytest.mark.parametrize("simulator_mode", ("fast", "check"))
def test_launches_from_many_threads(simulator_mode):
    kernel, right = sum_kernel(), []

    def work():
        with mode(simulator_mode):
            right.extend(sums(kernel, 1 + i) for i in range(20))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 120


def test_a_full_threadgroup_in_three_dimensions():
    kernel = metal_kernel(
        name="places", input_names=[], output_names=["y"],
        source="uint3 p = thread_position_in_grid; uint3 n = threads_per_grid; "
            "threadgroup_barrier(mem_flags::mem_none);"
        "y[(p.z * n.y + p.y) * n.x + p.x] = thread_index_in_threadgroup + 1000 * simdgroup_index_in_threadgroup;",
    )  # fmt: skip
    (y,) = kernel(
        inputs=[], grid=(16, 16, 8), threadgroup=(16, 8, 8), output_shapes=[(8, 16, 16)], output_dtypes=[mx.int32]
    )
    index = mx.arange(1024).reshape(8, 8, 16)
    expected = index + 1000 * (index // 32)
    assert mx.array_equal(y, mx.concatenate([expected, expected], axis=1))


def test_a_second_call_is_cheap():
    kernel = sum_kernel("cheap")
    with mode("fast"):
        sums(kernel, 1)
        best = 1.0
        for _ in range(200):
            start = time.perf_counter()
            sums(kernel, 1)
            best = min(best, time.perf_counter() - start)
    # About 0.15 ms with the comparison; a compile, a load or a search of the disk would show.
    assert best < 2e-3


@pytest.mark.parametrize("checked", (True, False), ids=("check", "fast"))
def test_lines_are_those_of_the_same_code(checked):
    """A kernel is built without lines, and again with them for a report. Lines of other code are none."""
    texts = [
        "#include <metal_stdlib>\nkernel void f(device int* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {\n"
        f"    threadgroup int shared[64];\n    int sum = x[i];\n    for (int k = 0; k < sum; ++k) sum {sign}= x[k];\n"
        "    shared[i] = sum;\n    threadgroup_barrier(mem_flags::mem_threadgroup);\n    x[i] = shared[i ^ 1] / sum;\n}"
        for sign in "+-"
    ]

    def built(text: str, lines: bool):
        translation = translate(text)
        return compiler.build(translation.text, translation.entry(), "mlx.h", checked, lines=lines)

    plain, lined, other = built(texts[0], False), built(texts[0], True), built(texts[1], True)
    assert code(plain) == code(lined) != code(other)
    assert not any(line for _, line in line_table(plain))
    address, line = next(row for row in line_table(lined) if row[1] == 5)
    for path, wanted in ((lined, line), (other, 0)):
        kernel = BuiltKernel("f", texts[0], plain, ["x"], ["shared"], lambda path=path: path)
        assert kernel.line_of(kernel.library.base + address + 1) == wanted


def test_built_kernels_are_found_by_other_processes(tmp_path):
    program = (
        "import time, mlx.core as mx\nfrom mlx_flash.simulator import metal_kernel\n"
        "k = metal_kernel('k', ['x'], ['y'], 'y[thread_position_in_grid.x] = x[0];')\n"
        "start = time.perf_counter()\n"
        "k(inputs=[mx.ones(8)], grid=(8, 1, 1), threadgroup=(8, 1, 1), output_shapes=[(8,)], "
        "output_dtypes=[mx.float32])\n"
        "print(time.perf_counter() - start)\n"
    )

    def run():
        environment = {**os.environ, "MLX_FLASH_CACHE": str(tmp_path)}
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)

    # Two processes build the same kernel at once; a third finds it.
    both = [run(), run()]
    for process in both:
        process.communicate()
    assert [process.returncode for process in both] == [0, 0]
    assert len(list((tmp_path / "simulator").glob("*.so"))) == 1
    assert len(list((tmp_path / "simulator").glob("shim-*"))) == 1
    assert len(list((tmp_path / "simulator").glob("shim-*/*.pch"))) == 1
    found, _ = run().communicate()
    assert float(found) < 0.25


def test_precompiled_headers_outlive_the_installation_they_come_from(tmp_path, monkeypatch):
    """Environments come and go, and share the cache."""
    installed = tmp_path / "environment" / "include"
    shutil.copytree(precompiled.INCLUDE, installed)
    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path))
    monkeypatch.setattr(precompiled, "INCLUDE", installed)
    compiler.check("#include <metal_stdlib>\nfloat4 one() { return float4(1); }", "", "mlx.h")
    shutil.rmtree(installed)
    compiler.check("#include <metal_simdgroup>\nfloat4 two() { return float4(2); }", "", "mlx.h")


def test_a_copy_of_the_cache_precompiles_its_own_headers(tmp_path, monkeypatch):
    """A precompiled header names the files it was made of: in a copy a text's #include would bring them in again."""
    for folder in (tmp_path / "first", tmp_path / "copy"):
        monkeypatch.setenv("MLX_FLASH_CACHE", str(folder))
        compiler.check(prefix("4.0") + f"#include <metal_tensor>\nint {folder.name}() {{ return 1; }}", "", "mlx.h")
        if folder.name == "first":
            shutil.copytree(folder, tmp_path / "copy")
