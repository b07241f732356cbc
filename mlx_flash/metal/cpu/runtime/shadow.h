// What is known of every granule of writable memory: who wrote it last, who read it last, and whether others read it in the same breath.
#pragma once
#include "worker.h"

// Who and when. Two accesses are in order if a fence lies between them (a different epoch) or one thread made both.
typedef union {
  u64 bits;                             // 0: never
  struct {
    u64 group : 22;                     // number of the threadgroup, of which only equality matters
    u64 epoch : 18;                     // fences of the threadgroup's barriers
    u64 simd_epoch : 10;                // fences of the simdgroup's barriers
    u64 thread : 10;
    u64 valid : 1;
    u64 atomic : 1;
    u64 many_simd : 1;                  // of a read: other lanes of the simdgroup read too since its last fence
    u64 many_group : 1;                 // ... other simdgroups, or other threadgroups, since theirs
  };
} Stamp;

typedef struct {
  Stamp write, read;
  u32 write_at, read_at;                // code addresses, counted from the image
  u32 write_time, read_time;            // of the latest fence before: fences.c
} Cell;

#define SHADOW_BYTES ((u64)MAX_VARIABLES * VARIABLE_GAP * sizeof(Cell))

enum { CLEAN, RACE_WITH_WRITE, RACE_WITH_READ, NEVER_WRITTEN };

static inline u64 same_group(Stamp a, Stamp b) { return a.group == b.group; }

// Is nothing between an earlier access and this one but chance? Atomics never race with each other.
static inline int unordered(Stamp before, Stamp now) {
  if (!before.valid || (before.atomic && now.atomic)) return 0;
  if (!same_group(before, now)) return 1;
  if (before.epoch != now.epoch || before.thread == now.thread) return 0;
  return before.thread / LANES != now.thread / LANES || before.simd_epoch == now.simd_epoch;
}

static inline int unordered_readers(Stamp before, Stamp now) {
  if (unordered(before, now)) return 1;
  if (!before.valid || (before.atomic && now.atomic)) return 0;
  if (before.many_group && before.epoch == now.epoch) return 1;
  return before.many_simd && before.epoch == now.epoch && before.simd_epoch == now.simd_epoch && before.thread / LANES == now.thread / LANES;
}

static inline Stamp merge_readers(Stamp before, Stamp now) {
  if (!before.valid) return now;
  int together = same_group(before, now), same_epoch = together && before.epoch == now.epoch;
  int same_simd = same_epoch && before.thread / LANES == now.thread / LANES;
  if (!together || (same_epoch && !same_simd)) now.many_group = 1;
  if (same_epoch) now.many_group |= before.many_group;
  if (same_simd && before.simd_epoch == now.simd_epoch) now.many_simd = before.many_simd | (before.thread != now.thread);
  return now;
}

static inline int record_write(Cell* cell, Stamp now, u32 at, u32 time) {
  int found = unordered(cell->write, now) ? RACE_WITH_WRITE : unordered_readers(cell->read, now) ? RACE_WITH_READ : CLEAN;
  cell->write = now;
  cell->write_at = at;
  cell->write_time = time;
  return found;
}

static inline int record_read(Cell* cell, Stamp now, u32 at, u32 time, int initialised) {
  int found = !cell->write.valid && !initialised ? NEVER_WRITTEN : unordered(cell->write, now) ? RACE_WITH_WRITE : CLEAN;
  cell->read = merge_readers(cell->read, now);
  cell->read_at = at;
  cell->read_time = time;
  return found;
}
