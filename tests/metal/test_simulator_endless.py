"""A kernel that never ends is reported in both modes, whatever it loops on; one that only takes long is not."""

import mlx.core as mx
import pytest

from mlx_flash.metal.frontend.loops import loop_edits
from mlx_flash.metal.frontend.tokens import tokenize
from mlx_flash.simulator import SimulatorError, metal_kernel, mode

N, STEPS = 64, 100_000
ENDLESS = {
    "no access": "while (true) {} y[i] = 0;",
    "no condition": "for (;;) { if (x[i] < 0) break; }",
    "a condition behind": "uint n = 0; do { n += 2; } while (n & 1 || n < 0xffffffff); y[i] = n;",
    "a float that stands": "float f = 1; while (f < 2) f *= 1.0; y[i] = f;",
    "an array that counts": "for (int n[2] = {0, 1}; n[0] < n[1]; n[0] ^= 0) ; y[i] = 0;",
    "a declaration": "while (int n = 2) y[i] = n;",
    "a macro": "\n#define FOREVER for (;;)\nFOREVER { y[i] = 1; }",
    "a counter set back": "for (int n = 0; n < 9; n++) n = 0; y[i] = 1;",
    "a counter that wraps": "for (uchar n = 0; n < 256; n++) y[i] = n;",
    "barriers": "y[i] = 0; while (y[i] < 1) { threadgroup_barrier(mem_flags::mem_device); }",
    "simdgroup operations": "float f = 0; while (f < 1) f = simd_max(f); y[i] = f;",
    "waiting for another thread": "threadgroup atomic_int turn; atomic_store_explicit(&turn, 0, memory_order_relaxed); "
    "while (atomic_load_explicit(&turn, memory_order_relaxed) == 0) {} y[i] = 0;",
}
IN_VAIN = {
    "the others have returned": "y[i] = 0; if (i < 32) return; threadgroup_barrier(mem_flags::mem_none);",
    "different barriers": "y[i] = 0; if (i < 32) { threadgroup_barrier(mem_flags::mem_none); } "
    "else { threadgroup_barrier(mem_flags::mem_none); }",
}
LONG = "int n = 0; while (n < 500) n++; for (int k = 0; k < 1000; k++) { y[i] = n + k; }"
MODES = ("check", "fast")


def run(body: str, header: str = ""):
    kernel = metal_kernel("endless", ["x"], ["y"], "uint i = thread_position_in_grid.x;" + body, header)
    call = dict(inputs=[mx.ones(N)], grid=(N, 1, 1), threadgroup=(N, 1, 1))
    return kernel(**call, output_shapes=[(N,)], output_dtypes=[mx.float32])[0]


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("loop", ENDLESS)
def test_it_is_reported(loop, name):
    with mode(name, STEPS), pytest.raises(SimulatorError, match="does not end: one threadgroup took 100000 steps"):
        run(ENDLESS[loop])


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("barrier", IN_VAIN)
def test_a_barrier_waited_for_in_vain_is_reported(barrier, name):
    with mode(name), pytest.raises(SimulatorError, match="the others have returned|wait at different barriers"):
        run(IN_VAIN[barrier])


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("change", (0, 1))
def test_a_function_that_starts_anew_without_end_is_reported(change, name):
    header = f"struct S {{ int v; void go(int n) thread {{ v++; if (n > 0) {{ go(n - {change}); }} }} }};"
    body = "S s; s.v = 0; s.go(100 + (int)x[i]); y[i] = s.v;"
    if change:
        with mode(name):
            assert run(body, header).tolist() == [102] * N
        return
    with mode(name), pytest.raises(SimulatorError, match="calls itself until a thread's memory is full"):
        run(body, header)


@pytest.mark.parametrize("name", MODES)
def test_what_ends_is_not_reported(name):
    with mode(name, 2 * STEPS):
        assert run(LONG).tolist() == [1499] * N
    with mode(name, STEPS // 10), pytest.raises(SimulatorError, match="does not end"):
        run(LONG)


def test_the_count_is_left_out_where_a_counter_only_climbs_to_a_small_constant():
    """Only these loops are not counted, and the compiler has the last word, since it knows what is constant."""
    free = ("for (int n = 0; n < 8; n++) y[n] = 0;", "for (uint n = 0; n < N / 8; n += 2) { y[n] = 0; }")
    counted = ("for (int n = 0; n < 8; ) y[n++] = 0;", "for (uchar n = 0; n < 8; n++) y[n] = 0;", "while (n < 8) n++;")
    counted += ("for (int n = 0; n < 8; n++) f(&n);", "for (int n = 8; n > 0; n--) y[n] = 0;")
    for texts, kind in ((free, True), (counted, False)):
        for text in texts:
            (first, *_) = loop_edits(tokenize(text))
            assert ("msl_ends" in first[2]) == kind, text


def test_a_limit_is_a_positive_number():
    with pytest.raises(ValueError, match="step_limit must be a positive number of 63 bits, not 0"), mode("fast", 0):
        pass
