// NVIDIA's asynchronous matrix products (wgmma), and the pipelines that their operands come from: include/target/nv.h, wgmma.h.
//
// The products of a simdgroup form groups, which it commits one after another. A group is in flight until a wait retires it. Till
// then what its products read must neither be written nor be released to the producers, and their sums are not there yet: the
// accumulators hold NaN.
//
// Producers and consumers of a pipeline meet at barriers here, so a block is known by the epoch in which the producers wrote it.
#pragma once
#include "fences.h"

// Check mode: a simdgroup reads or writes threadgroup memory that was last written at `written`.
HIDDEN void msl_check_flights(Worker* w, Fiber* f, u32 variable, u32 inside, u32 size, u32 is_write, Stamp written, u64 pc);
// A threadgroup begins.
static inline void forget_flights(Worker* w) {
  w->asynchronous = 0;
  for (u32 i = 0; i < w->threads; ++i) w->fiber[i].issuing = 0;
}
