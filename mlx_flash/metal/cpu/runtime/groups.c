// A threadgroup's begin and end: what is known of its memory and of its steps. Below the fibers, which run it, and the checks, which
// watch it.
#include "flights.h"

void msl_refuse_ragged(Worker* w, u64 pc) {
  Report* r = msl_report(w, this_fiber(w), REPORT_RAGGED, pc);
  if (r) {
    r->offset = w->threads;
    r->size = w->launch->group[0] * w->launch->group[1] * w->launch->group[2];
  }
  msl_abandon(w);
}

// Rounds and accesses before another simdgroup has its turn: one that waits for another lets it come to that.
enum { TURN = 1 << 12 };

HIDDEN void msl_refill_steps(Worker* w) {
  w->steps_left = w->steps_to_come < TURN ? w->steps_to_come : TURN;
  w->steps_to_come -= w->steps_left;
}

HIDDEN void msl_begin_group(Worker* w) {
  w->arena_bytes = 0;
  for (u32 i = 0; i < w->variable_count; ++i) w->variable_offset[i] = UNASSIGNED;
  w->variable_count = 0;
  // A new number for every threadgroup: what its predecessors left in the shadow counts as never written.
  ++w->serial;
  ++w->threadgroup_epoch;
  w->device_epoch = w->doubtful_size = 0;
  w->steps_to_come = w->launch->step_limit;
  msl_refill_steps(w);
  msl_forget_fences(w);
  forget_flights(w);
  for (u32 i = 0; i < w->simds; ++i) w->simd[i].epoch = w->simd[i].device_epoch = 0;
}

// Two unordered writes of one value leave that value in every order. The callback comes before the write, so that only the next
// one, or the group's end, can tell.
HIDDEN int msl_doubt_was_race(Worker* w) {
  u32 size = w->doubtful_size;
  w->doubtful_size = 0;
  for (u32 i = 0; i < size; ++i) {
    if (w->doubtful[i] == w->doubtful_bytes[i]) continue;
    w->has_pending = 0;
    u32 slot = __atomic_fetch_add(&w->launch->report_count, 1, __ATOMIC_RELAXED);
    if (slot < MAX_REPORTS) w->launch->reports[slot] = w->doubt;
    return 1;
  }
  return 0;
}

HIDDEN void msl_end_group(Worker* w) {
  if (msl_doubt_was_race(w)) w->launch->stop = 1;
  if (w->arena_bytes > w->launch->arena_bytes) w->launch->arena_bytes = w->arena_bytes;
}

HIDDEN void msl_end_run(Worker* w) {
  if (!w->has_pending) return;
  u32 slot = __atomic_fetch_add(&w->launch->report_count, 1, __ATOMIC_RELAXED);
  if (slot < MAX_REPORTS) w->launch->reports[slot] = w->pending;
}
