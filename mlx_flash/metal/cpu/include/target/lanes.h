// Barriers and shuffles, performed by the runtime.
#pragma once

extern "C" {
// nomerge: who waits at which of two places is what the runtime tells lanes apart by.
__attribute__((nomerge)) void msl_threadgroup_barrier(uint flags);
__attribute__((nomerge)) void msl_simdgroup_barrier(uint flags);
__attribute__((nomerge)) void msl_shuffle(__generic void* data, uint size, uint source);
uint msl_lane(void);
ulong msl_active(void);
}
