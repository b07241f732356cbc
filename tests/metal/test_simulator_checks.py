"""Every check of the simulator: a small kernel that must be reported, and its twin that must not."""

import mlx.core as mx
import pytest

from mlx_flash.metal.cpu import launch
from mlx_flash.simulator import SimulatorError, metal_kernel, mode, schedule

N = 64
WHOLE = dict(grid=(N, 1, 1), threadgroup=(N, 1, 1))
TWO_GROUPS = dict(grid=(N, 1, 1), threadgroup=(32, 1, 1))
I = (
    "uint i = thread_position_in_grid.x; uint l = thread_position_in_threadgroup.x; "
    "uint s = simdgroup_index_in_threadgroup; (void)l; (void)s;\n"
)


def run(body, *, header="", dtype=mx.float32, size=N, init_value=None, where=WHOLE, atomic=False, inputs=None):
    kernel = metal_kernel(
        name="checked",
        input_names=["x"],
        output_names=["y"],
        source=I + body,
        header=header,
        atomic_outputs=atomic,
        ensure_row_contiguous=False,
    )
    x = mx.arange(N, dtype=dtype) if inputs is None else inputs
    with mode("check"):
        return kernel(inputs=[x], output_shapes=[(size,)], output_dtypes=[dtype], init_value=init_value, **where)[0]


# name: (what the report says, the kernel, its twin, arguments)
CASES = {
    "device read behind the end": (
        "read of 4 bytes out of bounds: 'x' at index 64",
        "y[i] = x[i + 1];",
        "y[i] = x[i];",
        {},
    ),
    "device read before the start": ("out of bounds: 'x' at index -1", "y[i] = x[(int)i - 1];", "y[i] = x[i];", {}),
    "device write behind the end": (
        "write of 4 bytes out of bounds: 'y' at index 64",
        "y[i + 1] = x[i];",
        "y[i] = x[i];",
        {},
    ),
    "threadgroup read behind the end": (
        "read of 4 bytes out of bounds: threadgroup variable 't' at byte 256",
        "threadgroup float t[64]; t[l] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = t[l + 1];",
        "threadgroup float t[65]; t[l] = x[i]; if (l == 0) t[64] = 0; threadgroup_barrier(mem_flags::mem_threadgroup); "
        "y[i] = t[l + 1];",
        {},
    ),
    "threadgroup overrun into the next array": (
        "out of bounds: threadgroup variable 'a'",
        "threadgroup float a[32]; threadgroup float b[64]; a[l] = x[i]; b[l] = 0; y[i] = a[l] + b[l];",
        "threadgroup float a[64]; threadgroup float b[64]; a[l] = x[i]; b[l] = 0; y[i] = a[l] + b[l];",
        {},
    ),
    "write to an input": (
        "write to the input 'x' at index",
        "device float* z = (device float*)(ulong)x; z[i] = 1; y[i] = x[i];",
        "device float* z = (device float*)(ulong)y; z[i] = x[i];",
        {},
    ),
    "wild pointer": (
        "outside every buffer",
        "device float* z = (device float*)(ulong)64; y[i] = z[i];",
        "device float* z = y; z[i] = x[i];",
        {},
    ),
    "uninitialised threadgroup memory": (
        "read of what nothing has written: threadgroup variable 't'",
        "threadgroup float t[64]; if (l != 5) t[l] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup); "
        "y[i] = t[l];",
        "threadgroup float t[64]; t[l] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = t[l];",
        {},
    ),
    "threadgroup memory of another threadgroup": (
        "read of what nothing has written",
        "threadgroup float t[32]; if (i < 32) t[l] = x[i]; y[i] = t[l];",
        "threadgroup float t[32]; t[l] = x[i]; y[i] = t[l];",
        {"where": TWO_GROUPS},
    ),
    "uninitialised output": ("read of what nothing has written: 'y'", "y[i] += x[i];", "y[i] = 0; y[i] += x[i];", {}),
    "unwritten output": (
        "output 'y': 1 of its 64 elements were never written, the first at index 7",
        "if (i != 7) y[i] = x[i];",
        "if (i != 7) y[i] = x[i]; else y[i] = 0;",
        {},
    ),
    "unwritten output of narrow elements": (
        "never written, the first at index 3",
        "if (i != 3) y[i] = x[i];",
        "y[i] = x[i];",
        {"dtype": mx.float16},
    ),
    "race between simdgroups": (
        r"race in threadgroup memory: write of threadgroup variable 't' at byte \d+ .* and read by thread .* at line "
        r"8: ",
        "threadgroup float t[64]; t[l] = x[i]; y[i] = t[63 - l];",
        "threadgroup float t[64]; t[l] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = t[63 - l];",
        {},
    ),
    "race inside a simdgroup": (
        "race in threadgroup memory",
        "threadgroup float t[64]; t[l] = x[i]; y[i] = t[l ^ 1];",
        "threadgroup float t[64]; t[l] = x[i]; simdgroup_barrier(mem_flags::mem_threadgroup); y[i] = t[l ^ 1];",
        {},
    ),
    "race of a write with earlier reads": (
        "race in threadgroup memory: write of threadgroup variable 't' at byte 0",
        "threadgroup float t[1]; if (l == 0) t[0] = x[0]; threadgroup_barrier(mem_flags::mem_threadgroup); "
        "y[i] = t[0]; if (l == 40) t[0] = 2;",
        "threadgroup float t[1]; if (l == 0) t[0] = x[0]; threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = t[0];"
        " threadgroup_barrier(mem_flags::mem_threadgroup); if (l == 40) t[0] = 2;",
        {},
    ),
    "two writers of one element": (
        "race in threadgroup memory: write",
        "threadgroup float t[2]; t[l / 32] = x[i]; y[i] = x[i];",
        "threadgroup float t[2]; if (l % 32 == 0) t[l / 32] = x[i]; y[i] = x[i];",
        {},
    ),
    "a barrier without memory is no fence": (
        "race in threadgroup memory",
        "threadgroup float t[64]; t[l] = x[i]; threadgroup_barrier(mem_flags::mem_none); y[i] = t[63 - l];",
        "threadgroup float t[64]; t[l] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup | "
        "mem_flags::mem_device); y[i] = t[63 - l];",
        {},
    ),
    "a simdgroup barrier orders no other simdgroup": (
        "race in threadgroup memory",
        "threadgroup float t[64]; t[l] = x[i]; simdgroup_barrier(mem_flags::mem_threadgroup); y[i] = t[63 - l];",
        "threadgroup float t[64]; t[l] = x[i]; simdgroup_barrier(mem_flags::mem_threadgroup); "
        "y[i] = t[(l & 32) + 31 - (l & 31)];",
        {},
    ),
    "neighbouring bytes are no race": (
        "race in threadgroup memory",
        "threadgroup uchar t[64]; t[l / 2] = 1; y[i] = x[i];",
        "threadgroup uchar t[64]; t[l] = 1; y[i] = x[i] + t[l];",
        {},
    ),
    "device race between threadgroups": (
        r"race in device memory: write of 'y' at index 0 .* and write by threadgroup \(0, 0, 0\)",
        "y[i % 32] = x[i];",
        "y[i] = x[i];",
        {"where": TWO_GROUPS, "init_value": 0.0},
    ),
    "two writers of different values": (
        "race in device memory: write of 'y' at index 3",
        "y[i] = x[i]; threadgroup_barrier(mem_flags::mem_device); y[3] = float(l / 32);",
        "y[i] = x[i]; threadgroup_barrier(mem_flags::mem_device); y[3] = float(l / 64);",  # one value in every order
        {},
    ),
    "device race inside a threadgroup": (
        r"race in device memory: read of 'y' at index \d+ .* and write by thread .* at line 8: ",
        "y[i] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup); if (y[63 - i] < 0) y[i] = 1;",
        "y[i] = x[i]; threadgroup_barrier(mem_flags::mem_device); if (y[63 - i] < 0) y[i] = 1;",
        {},
    ),
    "atomics do not race": (
        "race in device memory",
        "y[i / 64] = x[i];",
        "atomic_fetch_add_explicit((device atomic_float*)&y[i / 64], x[i], memory_order_relaxed);",
        {"where": TWO_GROUPS, "init_value": 0.0},
    ),
    "barrier after a return": (
        "threadgroup_barrier reached by 63 of 64 threads",
        "y[i] = 0; if (i == 9) return; threadgroup_barrier(mem_flags::mem_none);",
        "y[i] = 0; threadgroup_barrier(mem_flags::mem_none); if (i == 9) return;",
        {},
    ),
    "different barriers": (
        "wait at different barriers, others at line",
        "if (i < 32) {\n threadgroup_barrier(mem_flags::mem_none);\n y[i] = 1; "
        "} else {\n threadgroup_barrier(mem_flags::mem_device);\n y[i] = 2; }",
        "threadgroup_barrier(mem_flags::mem_device); y[i] = i < 32 ? 1 : 2;",
        {},
    ),
    "matmul with inactive lanes": (
        "simdgroup operation that needs inactive lanes: active 0x0000ffff, needed 0xffffffff",
        "simdgroup_matrix<float, 8, 8> a(1); if (i % 32 < 16) simdgroup_multiply(a, a, a); "
        "y[i] = a.thread_elements()[0];",
        "simdgroup_matrix<float, 8, 8> a(1); if (i < 32) simdgroup_multiply(a, a, a); y[i] = a.thread_elements()[0];",
        {},
    ),
    "shuffle from an inactive lane": (
        "needs inactive lanes",
        "float v = x[i]; if (i % 32 < 16) v = simd_shuffle_xor(v, 16); y[i] = v;",
        "float v = x[i]; if (i % 32 < 16) v = simd_shuffle_xor(v, 8); y[i] = v;",
        {},
    ),
    "too much threadgroup memory": (
        "32772 bytes of threadgroup memory, more than the 32768",
        "threadgroup float t[8193]; t[l] = x[i]; y[i] = t[l];",
        "threadgroup float t[8192]; t[l] = x[i]; y[i] = t[l];",
        {},
    ),
    "misaligned device vector": (
        "misaligned access: 'x' at index 1 ",
        "y[i] = ((const device float2*)(x + 1))[i / 4].x;",
        "y[i] = ((const device float2*)(x + 2))[i / 4].x;",
        {},
    ),
    "misaligned vector copied as a whole": (
        "misaligned access: 'x' at index 1 ",
        "const uint2 pair = *(const device uint2*)(x + 1); y[i] = pair.x + pair.y;",
        "const uint2 pair = *(const device uint2*)(x + 2); y[i] = pair.x + pair.y;",
        {"dtype": mx.uint32},
    ),
    "misaligned matrix": (
        "misaligned access: 'x' at index 0 ",
        "simdgroup_float8x8 m; simdgroup_load(m, (const device float*)((const device char*)x + 2)); "
        "y[i] = m.thread_elements()[0];",
        "simdgroup_float8x8 m; simdgroup_load(m, (const device float*)((const device char*)x + 4)); "
        "y[i] = m.thread_elements()[0];",
        {},
    ),
    "misaligned atomic": (
        "misaligned access: threadgroup variable 't'",
        "threadgroup uchar t[12]; device float* p = y + i; "
        "threadgroup atomic_uint* a = (threadgroup atomic_uint*)(t + 2);"
        "atomic_store_explicit(a, 1, memory_order_relaxed); *p = x[i];",
        "threadgroup uint t[3]; device float* p = y + i; "
        "threadgroup atomic_uint* a = (threadgroup atomic_uint*)(t + 2);"
        "atomic_store_explicit(a, 1, memory_order_relaxed); *p = x[i];",
        {},
    ),
    "bytes read as halves": (
        "misaligned access: threadgroup variable 't'",
        "threadgroup uchar t[128]; ((threadgroup half*)t)[l] = half(x[i]); y[i] = ((threadgroup half*)t)[l];",
        "alignas(16) threadgroup uchar t[128]; ((threadgroup half*)t)[l] = half(x[i]); "
        "y[i] = ((threadgroup half*)t)[l];",
        {},
    ),
    "numbers cut to a byte": (
        "integer overflow",
        "int k = (long)i << 40; y[i] = x[k & 63];",
        "uchar k = ushort(i * 300) >> 1; y[i] = x[k & 63];",
        {},
    ),
    "index overflow": (
        "integer overflow",
        "int k = (int)i * 100000000; y[i] = x[k < 0 ? 0 : k % 64];",
        "long k = (long)i * 100000000; y[i] = x[k % 64];",
        {},
    ),
    "index cut to 32 bits": (
        "integer overflow",
        "int k = (long)i * 100000000; y[i] = x[k < 0 ? 0 : k % 64];",
        "int k = (long)i * 10000; y[i] = x[k % 64];",
        {},
    ),
    "ragged grid": (
        "the grid is no multiple of the threadgroup: here only 24 of 40 threads exist",
        "y[i] = simd_sum(x[i]);",
        "y[i] = x[i];",
        {"where": dict(grid=(N, 1, 1), threadgroup=(40, 1, 1))},
    ),
    "array of a thread": (
        "index -3 is outside an array or a vector",
        "float v[4] = {0}; for (int k = int(x[i] * 0) - 3; k < 4; ++k) v[k] = 1; y[i] = v[i % 4];",
        "float v[4] = {0}; for (int k = int(x[i] * 0); k < 4; ++k) v[k] = 1; y[i] = v[i % 4];",
        {},
    ),
    "array that an object holds": (
        "index 5 is outside an array or a vector",
        "S a; for (int k = 0; k < 4; ++k) a[k] = x[i]; y[i] = a[int(i) % 6];",
        "S a; for (int k = 0; k < 4; ++k) a[k] = x[i]; y[i] = a[int(i) % 4];",
        {"header": "struct S { float d[4]; thread float& operator[](int k) { return d[k]; } };"},
    ),
    "constant array": (
        "index 4 is outside an array or a vector",
        "y[i] = table[i] + x[i];",
        "y[i] = table[i % 4] + x[i];",
        {"header": "constant float table[4] = {1, 2, 3, 4};"},
    ),
    "component of a vector": (
        "index 4 is outside an array or a vector",
        "float4 v = float4(x[i]); y[i] = v[i];",
        "float4 v = float4(x[i]); y[i] = v[i % 4];",
        {},
    ),
    "component that is written": (
        "index -1 is outside an array or a vector",
        "half3 v = half3(x[i]); v[int(i) - 1] = 1; y[i] = v.x;",
        "half3 v = half3(x[i]); v[int(i) % 3] = 1; y[i] = v.x;",
        {},
    ),
    "division by zero": (
        "integer division by zero",
        "y[i] = (int)x[i] / (int)x[0];",
        "y[i] = (int)x[i] / (int)x[1];",
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_reported(name, monkeypatch):
    # Of two threadgroups that run at once, either may be the one that meets the other's write.
    monkeypatch.setattr(launch, "_workers", 1)
    message, bad, _, arguments = CASES[name]
    with pytest.raises(SimulatorError, match=message) as caught:
        run(bad, **arguments)
    # The offending line is quoted, but for what no single line did.
    assert "kernel 'checked'" in str(caught.value)
    assert "never written" in str(caught.value) or "line " in str(caught.value)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", ("forward", "reversed", "random"))
def test_twin_is_not_reported(name, order):
    _, _, good, arguments = CASES[name]
    with schedule(order, seed=7):
        run(good, **arguments)


def test_the_gpu_says_how_much_threadgroup_memory_it_grants():
    """Apple's 32 KiB by default; the rows for NVIDIA's GPUs take more."""
    body = I + "threadgroup float t[{}]; t[l] = x[i]; y[i] = t[l];"
    for granted, floats in ((32768, 8192), (232448, 58112)):
        for more in (0, 1):
            kernel = metal_kernel("granted", ["x"], ["y"], body.format(floats + more))
            kernel.threadgroup_bytes = granted
            call = dict(inputs=[mx.arange(64.0)], output_shapes=[(64,)], output_dtypes=[mx.float32], **WHOLE)
            for how in ("check", "fast"):
                with mode(how):
                    if not more:
                        assert kernel(**call)[0].tolist() == list(range(64))
                        continue
                    with pytest.raises(SimulatorError, match=f"{granted + 4} bytes .*, more than the {granted}"):
                        kernel(**call)


def test_zero_strided_input_has_its_own_bounds():
    with pytest.raises(SimulatorError, match="'x' at index 1 "):
        run("y[i] = x[1];", inputs=mx.broadcast_to(mx.array(3.0), (N,)))
    run("y[i] = x[i * x_strides[0]];", inputs=mx.broadcast_to(mx.array(3.0), (N,)))


def test_reports_of_one_launch_are_listed():
    with pytest.raises(SimulatorError) as caught:
        run("y[i] = x[i + 1000];")
    assert len(caught.value.reports) >= 1
    assert all("out of bounds" in report for report in caught.value.reports)


FOURS = "device float4* out = (device float4*)y; if (i < 16) out[i] = float4(((const device half4*)x)[i]);"


@pytest.mark.parametrize("start, aligned", [(0, True), (1, False), (2, False), (4, True), (8, True)])
def test_views_begin_where_they_begin_in_their_allocation(start, aligned):
    """As on a GPU, an allocation is aligned, and a view is as aligned as its offset."""
    x = mx.contiguous(mx.arange(start + 64, dtype=mx.float16))[start:]
    if aligned:
        assert run(FOURS, inputs=x).tolist() == list(range(start, start + 64))
        return
    with pytest.raises(SimulatorError, match="misaligned access: 'x'"):
        run(FOURS, inputs=x)


def test_a_reversed_view_begins_at_its_last_element():
    x = mx.contiguous(mx.arange(64, dtype=mx.float16)[::-1])[::-1]
    with pytest.raises(SimulatorError, match="misaligned access: 'x'"):
        run("y[i] = ((const device half4*)x)[0].x;", inputs=x)
    kernel = "const device half* last = x - 63; y[i] = ((const device half4*)last)[i / 4].x;"
    assert run(kernel, inputs=x).tolist() == [63 - i // 4 * 4 for i in range(64)]
