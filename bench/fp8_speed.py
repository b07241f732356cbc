"""How fast the forward kernel would be with e4m3 operands: `python bench/fp8_speed.py [--out FILE]`, on a Hopper GPU.

A prototype, made of the shipped kernel by the edits below in a copy of the package: wgmma multiplies e4m3, so that a
step sums 32 columns and a row of a panel holds 128; the matrix unit reads such operands along the sum only, so values
come transposed; and keys are permuted within each 32 of theirs, so that a lane holds P as the next product takes it.
Numbers are normal, all scales 1, and P lies between 0 and 1. Neither the scaling nor the rotation nor the transposition
of operands is in the times: an upper bound of what FP8 gains. Each case runs in a process of its own, in turns with
bfloat16; times are milliseconds of a call, the best of several times 8 queued ones. The error is that of this kernel
against float64 over the same rounded operands. Adds to bench/results/fp8.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from fp8 import RESULTS, keep

ROOT = Path(__file__).parents[1]
HEADS, ROUNDS, REPEATS, QUEUED = 16, 3, 6, 8
KEYS = {64: (192, 224, 256), 128: (128, 160, 192), 256: (64, 96, 128)}  # of a block

INSTRUCTIONS = r"""
#define NV_FP8_SHARED(N)                                                                                              \
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %[add], 0;\n\t"                                                 \
               "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" NV_LIST_##N "}, %[a], %[b], p, 1, 1;\n\t}" \
               : NV_REGS_##N : [a] "l"(a.bits), [b] "l"(b.bits), [add] "r"((int)add) : "memory")
#define NV_FP8_REGISTERS(N)                                                                                           \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3"                                             \
               " {" NV_LIST_##N "}, {%[a0], %[a1], %[a2], %[a3]}, %[b], 1, 1, 1;"                                     \
               : NV_REGS_##N                                                                                          \
               : [a0] "r"(a.x), [a1] "r"(a.y), [a2] "r"(a.z), [a3] "r"(a.w), [b] "l"(b.bits) : "memory")
template <typename T, int N>
MSL_INLINE void fp8_shared(thread vec<float, 2> (&c)[2][N / 8], Matrix<T> a, Matrix<T> b, int, bool add) {
#define NV_CASE(SIZE) if constexpr (N == SIZE) { NV_FP8_SHARED(SIZE); }
  NV_EVERY_N(NV_CASE)
#undef NV_CASE
}
template <typename T, int N>
MSL_INLINE void fp8_registers(thread vec<float, 2> (&c)[2][N / 8], vec<uint, 4> a, Matrix<T> b) {
#define NV_CASE(SIZE) if constexpr (N == SIZE) { NV_FP8_REGISTERS(SIZE); }
  NV_EVERY_N(NV_CASE)
#undef NV_CASE
}
MSL_INLINE uint narrow_four(vec<float, 2> first, vec<float, 2> second) {
  uint four;
  asm("{\n\t.reg .b16 low, high;\n\tcvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n\t"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n\tmov.b32 %0, {low, high};\n\t}"
      : "=r"(four) : "f"(first.x), "f"(first.y), "f"(second.x), "f"(second.y));
  return four;
}
"""
FOUR = "nv::narrow_four(p.at[{0}][4 * t + {1}], p.at[{0}][4 * t + {1} + 1])"
ROWS_OF_P = ", ".join(FOUR.format(half, first) for first in (0, 2) for half in (0, 1))


class Case(NamedTuple):
    head_dim: int
    length: int
    causal: bool
    keys: int  # of a block; 0: the shipped kernel, in bfloat16

    @property
    def name(self) -> str:
        what = f"e4m3, blocks of {self.keys} keys" if self.keys else "bfloat16"
        return f"D={self.head_dim} N={self.length} {'causal' if self.causal else 'dense'} {what}"


CASES = [
    Case(head_dim, length, causal, keys)
    for length, causal in ((4096, False), (16384, True))
    for head_dim in KEYS
    for keys in (0, *KEYS[head_dim])
]


def edits(case: Case) -> list[tuple[str, str, str]]:
    """(file, text, what takes its place). Two e4m3 numbers pass as one of bfloat16; the second half of V is unused."""
    wgmma, forward = "templates/tiles/wgmma.metal", "templates/kernels/forward.metal"
    nvidia, header = "templates/tiles/nvidia.metal", "mlx_flash/metal/ptx/include/target/wgmma.h"
    rows, layers = "mlx_flash/kernels/nvidia.py", "mlx_flash/kernels/tile_layers.py"
    proof = "def prove_tensor_row(kind: KernelKind, family: Family, row: TileConfig) -> None:\n"
    values = "tile::Traversed<Element, BT, DV, BH, THREADS> v;"
    overlaps = ', "overlaps"' if case.head_dim < 256 else ""
    row = f'TENSOR_TABLE[FORWARD, MIXED, "sm90"] = rows("wgmma", (256, 128, {case.keys}, 2, "O"{overlaps}))\n\n\n'
    copy = f"""    if constexpr (PART) {{
      tile::copy<D, BT / 2, D, 32 * PRODUCER_WARPS>(
          to, 0, head + row / 2, {case.length // 2}, 1, D, BT / 2, lane.thread_index - 32 * CONSUMER_WARPS);
      pipe.producer_commit();
      return;
    }}
"""
    generic = "    tile::copy<BT, FILLED, BT, 32 * PRODUCER_WARPS>("
    total = "row.traversal * panels(columns) + PIPELINE for columns in traversed.values())"
    panels = "(-(-row.traversal // 128) * 128 * columns if name == 'V' else row.traversal * panels(columns)) + PIPELINE"
    return [
        (header, "\n// C += 0, by", INSTRUCTIONS + "\n// C += 0, by"),
        (wgmma, "nv::multiply_shared<T, BT>(", "nv::fp8_shared<T, BT>("),
        (wgmma, "uint4 rows[BT / 16];", "uint4 rows[BT / 32];"),
        (wgmma, "for (int t = 0; t < BT / 16; t++) {\n    rows", "for (int t = 0; t < BT / 32; t++) {\n    rows"),
        (wgmma, "rows[t] = narrowed<T>(p, 0, t);", f"rows[t] = uint4({ROWS_OF_P});"),
        (wgmma, "of(b.block + (c.begin - b.begin()) * BT, BT * PANEL)", "of(b.block, PANEL)"),
        (wgmma, "for (int t = 0; t < BT / 16; t++) {\n    nv::multiply_registers",
         "for (int t = 0; t < BT / 32; t++) {\n    nv::fp8_registers"),
        (wgmma, "block.at(t * 16 * PANEL, 0)", "block.at(t * 16 / PANEL * D * PANEL, t * 16 % PANEL)"),
        (wgmma, "add_ab(c, p, b, whole || simd_all(all_finite(b)));", "add_ab(c, p, b, true);"),
        (wgmma, "add_ab(c, p, b, simd_all(whole || all_finite(b)));", "add_ab(c, p, b, true);"),
        (wgmma, "  if (!safe) {\n    nan_safe_ab(c, p, b);\n    return;\n  }\n", ""),
        (nvidia, "BT * WIDTH * (LOW_PARTS && !PART ? 2 : 1)", "PART ? D * PANELS<BT / 2> * PANEL : BT * WIDTH"),
        (nvidia, generic, copy + generic),
        (forward, values, values.replace("THREADS", "THREADS, true")),
        (forward, "          tile::Tile<Element, R, BT> p;\n          tile::narrow(p, s);\n", ""),
        (forward, "begin_ab<Element>(o, correction, p,", "begin_ab<Element>(o, correction, s,"),
        (forward, "multiply_ab<Element>(o, correction, p,", "multiply_ab<Element>(o, correction, s,"),
        (rows, "def mma_rows(", row + "def mma_rows("),
        (rows, proof, proof + "    return\n"),
        (layers, total, f"{panels} for name, columns in traversed.items())"),
    ]  # fmt: skip


def edited(case: Case, folder: Path) -> Path:
    """A copy of the package with the prototype in it."""
    for part in ("mlx_flash", "templates"):
        shutil.copytree(ROOT / part, folder / part)
    for name, text, replacement in edits(case):
        path = folder / name
        before = path.read_text()
        if text not in before:
            sys.exit(f"{name} has changed, this is no longer in it: {text}")
        path.write_text(before.replace(text, replacement, 1))
    return folder


def operands(case: Case):
    """(arrays that the kernel gets, the numbers in them)."""
    import mlx.core as mx
    import numpy as np

    columns, length = case.head_dim, case.length
    mx.random.seed(0)
    normal = [mx.random.normal((1, HEADS, length, columns)) for _ in "qkv"]
    if not case.keys:
        given = [array.astype(mx.bfloat16) for array in normal]
        return given, [array.astype(mx.float32) for array in given]
    q, k, v = (mx.to_fp8(array) for array in normal)
    place = np.arange(32)
    key = place // 16 * 16 + place // 2 % 2 * 8 + place % 16 // 4 * 2 + place % 2
    turned = np.array(v)[0].swapaxes(1, 2).reshape(HEADS, columns, length // 32, 32)[..., key]
    memory = np.zeros((HEADS, 2 * columns * length), np.uint8)
    memory[:, : columns * length] = turned.reshape(HEADS, -1)
    v_bytes = mx.array(memory).view(mx.bfloat16).reshape(1, HEADS, length, columns)
    return [q.view(mx.bfloat16), k.view(mx.bfloat16), v_bytes], [mx.from_fp8(one, mx.float32) for one in (q, k, v)]


def run(case: Case) -> None:
    """The child: prints the error, then the time of a call for every line that it reads."""
    import mlx.core as mx
    import numpy as np

    from mlx_flash import attention

    given, numbers = operands(case)
    mx.eval(given, numbers)
    scale = case.head_dim**-0.5
    out = np.array(attention(*given, causal=case.causal, scale=scale)[0].astype(mx.float32))
    rows = np.arange(5, case.length, case.length // 256)
    squares = np.zeros(2)
    for head in (0, HEADS - 1):
        q, k, v = (np.array(array[0, head]).astype(np.float64) for array in numbers)
        s = q[rows] @ k.T * scale
        if case.causal:
            s[np.arange(case.length) > rows[:, None]] = -np.inf
        p = np.exp(s - s.max(1, keepdims=True))
        want = p @ v / p.sum(1, keepdims=True)
        squares += ((out[head, rows] - want) ** 2).sum(), (want**2).sum()
    print("error", float(np.sqrt(squares[0] / squares[1])), flush=True)
    for _ in sys.stdin:
        best = float("inf")
        for _ in range(REPEATS):
            start = time.perf_counter()
            mx.eval([attention(*given, causal=case.causal, scale=scale) for _ in range(QUEUED)])
            best = min(best, (time.perf_counter() - start) / QUEUED)
        print(best * 1e3, flush=True)


def child(case: Case, folder: Path) -> subprocess.Popen:
    tree = edited(case, folder) if case.keys else ROOT
    path = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    # Comments are kept, since the short texts would rename the new functions.
    kept = {"PYTHONPATH": path, "MLX_FLASH_KEEP_COMMENTS": "1", "MLX_FLASH_CACHE": str(folder / "cache")}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | kept)


def measure(cases: list[Case]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        children = [child(case, Path(folder, str(n))) for n, case in enumerate(cases)]
        errors = [float(one.stdout.readline().split()[1]) for one in children]
        best = [float("inf")] * len(cases)
        for _ in range(ROUNDS):
            for n, one in enumerate(children):
                one.stdin.write("time\n")
                one.stdin.flush()
                best[n] = min(best[n], float(one.stdout.readline()))
        for one in children:
            one.communicate()
    lines = []
    for case, error, milliseconds in zip(cases, errors, best):
        plain = best[cases.index(case._replace(keys=0))]
        lines.append({
            "D": case.head_dim, "N": case.length, "causal": case.causal, "dtype": "e4m3" if case.keys else "bfloat16",
            "keys_of_a_block": case.keys or None, "ms": round(milliseconds, 4),
            "speedup": round(plain / milliseconds, 3), "relative_rms_error": round(error, 5),
        })  # fmt: skip
        print(f"{case.name}: {milliseconds:.4f} ms, {lines[-1]['speedup']} times bfloat16's speed, error {error:.2e}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        run(Case(*json.loads(given.case)))
        return
    keep(given.out, speed_on_an_h200=measure(CASES))


if __name__ == "__main__":
    main()
