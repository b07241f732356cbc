"""The unmodified Metal kernels on an NVIDIA GPU, against float64: python tests/cuda/gpu/cuda_trust.py [--out FILE.json]

Every table row of both Apple families (--families names others), the accuracy suite's masks and variants, lengths up to
65536, more heads than a CUDA grid has rows, strided inputs; everything with its gradients, rows 30 times to the bit.
Jobs run in processes of their own, several at a time and each under a time limit: a kernel that hangs costs its limit.

A machine without a GPU can compile the kernels beforehand, into $MLX_FLASH_CACHE:

    python tests/cuda/gpu/cuda_trust.py --precompile [--assemble PTXAS]     ptxas: pip install nvidia-cuda-nvcc-cu12
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

MARK = "cuda_trust result: "


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default="apple7,apple9", help="whose kernels (default: apple7,apple9)")
    parser.add_argument("--backend", default="cuda", help="what runs them (default: cuda)")
    parser.add_argument("--only", default="", metavar="REGEX", help="jobs whose name matches")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1), help="at a time")
    parser.add_argument("--limit", type=float, default=90, metavar="SECONDS", help="of a job (default: 90)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results as JSON")
    parser.add_argument("--precompile", action="store_true", help="compile only; needs no GPU")
    parser.add_argument("--assemble", metavar="PTXAS", help="with --precompile: assemble too, so that no driver has to")
    parser.add_argument("--gpu", default="sm_90", help="what to assemble for (default: sm_90)")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(families: str, only: str) -> dict[str, tuple]:
    from cuda_jobs import jobs
    from cuda_quantized import quantized_jobs

    found = jobs(families.split(",")) | quantized_jobs(families.split(","))
    return {name: job for name, job in found.items() if re.search(only, name)}


def pretend_cuda(family: str):
    """Backend "cuda" on a machine without a GPU: kernels are compiled, and what they would compute is zeros."""
    import mlx.core as mx

    from mlx_flash import backends
    from mlx_flash.backends import cuda
    from mlx_flash.kernels.devices import FAMILIES
    from mlx_flash.metal.ptx import by_value

    def nothing(*, output_shapes, output_dtypes, **_):
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)]

    mx.fast.precompiled_cuda_kernel, mx.fast.cuda_kernel = nothing, lambda **_: nothing
    # The kernels that a GPU runs: they take shapes and strides by value.
    by_value.works, by_value.kernel_of = lambda: True, lambda *_: nothing
    backends._choices.set(((None, backends.Backend("cuda", FAMILIES[family], cuda.run), True),))


def run_job(options) -> dict:
    """One job, in this process."""
    name, precompile = options.job, options.precompile
    function, family, *rest = chosen(options.families, re.escape(name) + "$")[name]
    start = time.perf_counter()
    if precompile:
        pretend_cuda(family)
    else:
        from mlx_flash import use_backend

        use_backend(options.backend, family if options.backend != "reference" else None)
    job = function(family, *rest)
    try:
        made = job.make()
        figures = {} if precompile else job.judge(made)
        failure = None
    except Exception as error:
        figures, failure = {}, f"{type(error).__name__}: {error}"
    return {"job": name, "seconds": round(time.perf_counter() - start, 1), "failure": failure, "figures": figures}


def run_apart(name: str, options) -> dict:
    """Runs the job in a process of its own, with the time limit."""
    command = [sys.executable, __file__, "--job", name, "--families", options.families, "--backend", options.backend]
    command += ["--precompile"] if options.precompile else []
    # float32 matmuls of the comparison in float32 and not in TF32; a few threads for each process's numpy
    environment = os.environ | {"MLX_ENABLE_TF32": "0", "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    start, limit = time.perf_counter(), None if options.precompile else options.limit
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
        for line in done.stdout.splitlines():
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        failure = f"the process ended with status {done.returncode}: {done.stderr.strip()[-800:]}"
    except subprocess.TimeoutExpired:
        failure = f"not done after {options.limit:.0f} s: stopped"
    return {"job": name, "seconds": round(time.perf_counter() - start, 1), "failure": failure, "figures": {}}


def run_all(names: list[str], options) -> Iterator[dict]:
    with ThreadPoolExecutor(options.processes) as pool:
        for done in as_completed([pool.submit(run_apart, name, options) for name in names]):
            yield done.result()


def assemble(options) -> int:
    """Assembles every stored kernel that is not yet; returns how many ptxas refuses."""
    from mlx_flash.metal.ptx import ptx

    stored = [path for path in ptx.cache_directory().glob("*.ptx")]
    missing = [path for path in stored if not path.with_suffix(f".{options.gpu}.cubin").exists()]

    def one(path: Path) -> str | None:
        try:
            ptx.assemble(path, options.gpu, options.assemble)
        except Exception as error:
            return str(error)

    refused = 0
    with ThreadPoolExecutor(options.processes) as pool:
        for number, failure in enumerate(pool.map(one, missing), 1):
            refused += failure is not None
            print(f"[{number}/{len(missing)}] {'FAIL ' + failure if failure else 'assembled'}", flush=True)
    return refused


def main() -> int:
    options = arguments()
    if options.job:
        print(MARK + json.dumps(run_job(options)), flush=True)
        return 0
    names, start, results = list(chosen(options.families, options.only)), time.perf_counter(), []
    for result in run_all(names, options):
        results.append(result)
        verdict = "FAIL" if result["failure"] else "PASS"
        print(f"{verdict} [{len(results)}/{len(names)}] {result['job']} ({result['seconds']} s)", flush=True)
        if result["failure"]:
            print(f"     {result['failure']}", flush=True)
    failed = sum(result["failure"] is not None for result in results)
    print(f"{len(results) - failed} pass, {failed} fail, {time.perf_counter() - start:.0f} s")
    if options.out:
        options.out.write_text(json.dumps({"seconds": time.perf_counter() - start, "jobs": results}, indent=1) + "\n")
    if options.assemble:
        failed += assemble(options)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
