"""Metal 3.2's fences order what they say they order, and a simdgroup that waits lets the others go on."""

import mlx.core as mx
import pytest

from mlx_flash.metal.cpu.settings import MODES, SCHEDULES
from mlx_flash.simulator import SimulatorError, language, metal_kernel, mode, schedule

GROUPS, THREADS = 6, 64
FENCE = "atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, thread_scope_device);"
ORDERS = "memory_order_seq_cst", "memory_order_acq_rel"


def run(body: str, count: int, groups: int = GROUPS, threads: int = THREADS) -> list:
    """y[count], zeros at first, after a kernel whose text says p for y as plain numbers."""
    start = """
    uint g = threadgroup_position_in_grid.x, l = thread_index_in_threadgroup, n = threads_per_threadgroup.x;
    uint sg = simdgroup_index_in_threadgroup, groups = threadgroups_per_grid.x;
    coherent(device) device uint* p = (coherent(device) device uint*)y;
    """
    kernel = metal_kernel("fences", [], ["y"], start + body, atomic_outputs=True)
    call = dict(grid=(groups * threads, 1, 1), threadgroup=(threads, 1, 1), output_shapes=[(count,)], init_value=0)
    with language("3.2"):
        return kernel(inputs=[], output_dtypes=[mx.uint32], **call)[0].tolist()


def last_group(before: str = FENCE, after: str = FENCE, rest: str = "mem_flags::mem_device") -> str:
    """Every thread writes; the threadgroup that comes last sums everything written. Counter y[0], sum y[1]."""
    return f"""
    threadgroup uint last;
    p[2 + g * n + l] = g * n + l;
    threadgroup_barrier({rest});
    if (l == 0) {{
        {before}
        last = atomic_fetch_add_explicit(&y[0], 1u, memory_order_relaxed) == groups - 1;
    }}
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (!last) return;
    {after}
    uint sum = 0;
    for (uint k = l; k < groups * n; k += n) sum += p[2 + k];
    atomic_fetch_add_explicit(&y[1], sum, memory_order_relaxed);
    """


TOTAL = GROUPS * THREADS


@pytest.mark.parametrize("how", SCHEDULES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_last_threadgroup_sees_what_all_wrote(how, order):
    with schedule(how, 5):
        y = run(last_group().replace("memory_order_seq_cst", order), TOTAL + 2)
    assert y[:2] == [GROUPS, TOTAL * (TOTAL - 1) // 2]


def test_halves_of_fences_are_enough():
    release, acquire = (FENCE.replace("seq_cst", half) for half in ("release", "acquire"))
    assert run(last_group(release, acquire), TOTAL + 2)[1] == TOTAL * (TOTAL - 1) // 2


def test_every_thread_may_pass_the_fence_before_the_barrier():
    """The order is that of CUDA's threadfence and syncthreads."""
    body = last_group(before="", rest="mem_flags::mem_threadgroup").replace("= g * n + l;", f"= g * n + l; {FENCE}", 1)
    assert run(body, TOTAL + 2)[1] == TOTAL * (TOTAL - 1) // 2


NOT_ORDERED = {
    "no fence before": dict(before=""),
    "no fence after": dict(after=""),
    "no fence": dict(before="", after=""),
    "a relaxed fence": dict(before=FENCE.replace("seq_cst", "relaxed")),
    "a fence of threadgroup memory": dict(before=FENCE.replace("mem_device", "mem_threadgroup")),
    "a fence of the threadgroup's scope before": dict(before=FENCE.replace("scope_device", "scope_threadgroup")),
    "a fence of the threadgroup's scope after": dict(after=FENCE.replace("scope_device", "scope_threadgroup")),
    "a fence that only acquires before": dict(before=FENCE.replace("seq_cst", "acquire")),
    "a fence that only releases after": dict(after=FENCE.replace("seq_cst", "release")),
    "a barrier that orders no device memory": dict(rest="mem_flags::mem_threadgroup"),
}


@pytest.mark.parametrize("kind", NOT_ORDERED)
def test_what_no_fence_orders_is_a_race(kind):
    with pytest.raises(SimulatorError, match="race in device memory"):
        run(last_group(**NOT_ORDERED[kind]), TOTAL + 2)


def test_a_fence_before_the_write_orders_nothing():
    body = last_group(before="").replace("p[2 + g * n + l] =", f"{FENCE} p[2 + g * n + l] =", 1)
    with pytest.raises(SimulatorError, match="race in device memory"):
        run(body, TOTAL + 2)


def test_an_atomic_that_nobody_published_orders_nothing():
    body = last_group().replace("atomic_fetch_add_explicit(&y[0]", f"atomic_fetch_add_explicit(&y[{TOTAL + 2} + g]", 1)
    with pytest.raises(SimulatorError, match="race in device memory"):
        run(body.replace("== groups - 1", "== 0 && g == groups - 1"), TOTAL + 2 + GROUPS)


# Prefix sums of one number a threadgroup: sums y[4..], states y[4 + groups..], the next number y[0].
LOOK_BACK = """
    threadgroup uint mine;
    if (l == 0) mine = atomic_fetch_add_explicit(&y[0], 1u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint tile = mine;
    if (l == 0) {
        uint before = 0;
        if (tile > 0) {
            while (atomic_load_explicit(&y[4 + groups + tile - 1], memory_order_relaxed) == 0) {}
            FENCE
            before = p[4 + tile - 1];
        }
        p[4 + tile] = before + tile + 1;
        FENCE
        atomic_store_explicit(&y[4 + groups + tile], 1u, memory_order_relaxed);
    }
"""


@pytest.mark.parametrize("how", SCHEDULES)
def test_decoupled_look_back(how):
    with schedule(how, 2):
        y = run(LOOK_BACK.replace("FENCE", FENCE), 4 + 2 * 40, groups=40, threads=32)
    assert y[4:44] == [k * (k + 1) // 2 for k in range(1, 41)]


def test_look_back_without_its_second_fence_is_a_race():
    """Two threadgroups: further ones would only wait for the one that the report ends."""
    body = LOOK_BACK.replace("FENCE", FENCE, 1).replace("FENCE", "")
    with pytest.raises(SimulatorError, match="race in device memory"):
        run(body, 4 + 2 * 2, groups=2, threads=32)


LOCAL = "atomic_thread_fence(mem_flags::mem_threadgroup, memory_order_seq_cst, thread_scope_threadgroup);"


def handed_over(producer: int, fence: str = LOCAL, rounds: int = 5) -> str:
    """Two simdgroups pass a number to and fro: one fills the slot, the other empties it."""
    return f"""
    threadgroup atomic_uint turn;
    threadgroup uint slot;
    if (l == 0) atomic_store_explicit(&turn, 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (l % 32) return;
    for (uint k = 0; k < {rounds}; k++) {{
        bool fills = sg == {producer};
        while (atomic_load_explicit(&turn, memory_order_relaxed) != 2 * k + (fills ? 0 : 1)) {{}}
        {fence}
        if (fills) slot = k * k;
        else p[k] = slot;
        {fence}
        atomic_store_explicit(&turn, 2 * k + (fills ? 1 : 2), memory_order_relaxed);
    }}
    """


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("how", SCHEDULES)
@pytest.mark.parametrize("producer", [0, 1])
def test_a_simdgroup_waits_for_another(name, how, producer):
    with mode(name, 1 << 24), schedule(how, 3):
        assert run(handed_over(producer), 5, groups=2, threads=64) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("producer", [0, 1])
def test_without_fences_what_is_handed_over_is_a_race(producer):
    with pytest.raises(SimulatorError, match="race in threadgroup memory"):
        run(handed_over(producer, ""), 5, groups=1, threads=64)


@pytest.mark.parametrize("name", MODES)
def test_all_lanes_wait_for_the_last_simdgroup(name):
    body = """
    threadgroup atomic_uint ready;
    if (l == 0) atomic_store_explicit(&ready, 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sg == 3) {
        if (simd_sum(l) && l % 32 == 31) atomic_store_explicit(&ready, 7u, memory_order_relaxed);
    } else {
        while (atomic_load_explicit(&ready, memory_order_relaxed) == 0) {}
        atomic_fetch_add_explicit(&y[0], 1u, memory_order_relaxed);
    }
    """
    with mode(name, 1 << 26):
        assert run(body, 1, groups=1, threads=128) == [96]
