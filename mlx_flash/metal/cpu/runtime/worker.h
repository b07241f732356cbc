// One OS thread's state. It lives at the start of an aligned region whose upper half holds the fibers' stacks, so that any function
// finds its worker and its fiber from its own stack pointer: no thread-local storage, nothing to pass around.
#pragma once
#include "layout.h"

#define HIDDEN __attribute__((visibility("hidden")))
#define EXPORTED __attribute__((visibility("default")))

enum {
  STACK_BYTES = 1 << STACK_BITS,
  REGION_BYTES = 1 << REGION_BITS,
  STACKS_OFFSET = REGION_BYTES / 2,
  ARENA_OFFSET = REGION_BYTES / 4,
  // Check mode: variables lie this far apart, so that an overrun meets nothing. No GPU grants more than 256 KiB to all of them.
  VARIABLE_GAP = 1 << 19,
  VARIABLE_START = 1 << 17,
  UNASSIGNED = 0xffffffffu,
};

struct Worker {
  u64 steps_left;                       // before another simdgroup has its turn; kernels know the place
  Launch* launch;
  void* main_stack;
  u32 group[3], size[3];
  u32 threads, simds, alive, at_barrier;
  u32 barrier_mixed, barrier_flags, threadgroup_epoch, device_epoch;
  u32 random, arena_bytes, variable_count, ragged, fenced;
  u64 number;                           // of the threadgroup that runs, in the grid
  u64 serial;                           // the same, among all this worker ever ran
  u8* shadow;                           // of the threadgroup variables
  u64 steps_to_come;                    // after these, before the threadgroup counts as one that never ends
  u64 barrier_site;
  u32 variable_offset[MAX_VARIABLES], variable_size[MAX_VARIABLES], variable_shift[MAX_VARIABLES];
  u32 has_pending;                      // a read before any write: a race, should the write come unordered
  Report pending;
  u32 doubtful_size;                    // of a write that meets another's: a race only if it changes what is there
  const u8* doubtful;
  u8 doubtful_bytes[16];
  Report doubt;
  void* clocks;                         // check mode: what the simdgroups know of others' fences; fences.c
  void* flights;                        // check mode: asynchronous products; flights.c
  u32 asynchronous;                     // this threadgroup has any, or a pipeline
  Counters counters;
  Simd simd[MAX_SIMDS];
  Fiber fiber[MAX_THREADS];
};

static inline u8* region_of(const void* address) {
  return (u8*)((u64)address & ~((u64)REGION_BYTES - 1));
}

static inline Worker* this_worker(void) {
  return (Worker*)region_of(__builtin_frame_address(0));
}

static inline Fiber* this_fiber(Worker* w) {
  u64 offset = (u64)__builtin_frame_address(0) - ((u64)w + STACKS_OFFSET);
  return &w->fiber[offset >> STACK_BITS];
}

static inline Simd* simd_of(Worker* w, Fiber* f) { return &w->simd[f->index / LANES]; }

static inline u8* arena_of(Worker* w) { return (u8*)w + ARENA_OFFSET; }

// Everything a report says about the reporting thread; the caller adds what else it knows. Null once the list is full.
HIDDEN Report* msl_report(Worker* w, Fiber* f, u32 kind, u64 pc);
// Ends the launch: no fiber of this worker runs again.
HIDDEN void msl_fill_report(Worker* w, Fiber* f, Report* r, u32 kind, u64 pc);
HIDDEN _Noreturn void msl_abandon(Worker* w);
// Lanes that an operation of simdgroups needs do not take part in it.
HIDDEN void msl_inactive(Worker* w, Fiber* f, u32 active, u32 wanted);
// A turn has ended: another simdgroup's, and then another lane's, comes next. Returns when it is this fiber's again.
HIDDEN void msl_next_turn(Worker* w, Fiber* f, u64 pc);
// A threadgroup at the ragged edge of the grid wants to cooperate.
HIDDEN _Noreturn void msl_refuse_ragged(Worker* w, u64 pc);
// Was a write, which came after an unordered one of the same place, a race because it changed the value? Reports it.
HIDDEN int msl_doubt_was_race(Worker* w);
