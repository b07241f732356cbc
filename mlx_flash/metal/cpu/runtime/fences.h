// What Metal 3.2's fences order between threads that no barrier joins: writes before a fence, published by an atomic operation behind
// it, are seen by a thread that reads that atomic and then passes a fence of its own.
//
// Every fence gets a time. A clock holds, for each simdgroup of the grid, the latest of its fences that is known; simdgroups far apart
// share an entry in a large grid, which can hide a race there and invents none.
#pragma once
#include "shadow.h"

enum { CLOCK_ENTRIES = 1024, MAX_FENCES = 1 << 22, MAX_PLACES = 1 << 14 };
enum Scope { SCOPE_THREAD, SCOPE_SIMDGROUP, SCOPE_THREADGROUP, SCOPE_DEVICE };

typedef u32 Clock[2][CLOCK_ENTRIES];    // by Space: device, threadgroup

typedef struct {
  u32 simd, thread, time, scope, flags, previous;
  u32 epoch[2], simd_epoch[2];          // by Space
} Fence;

typedef struct {                        // an atomic, and what who reads it may come to know
  u64 address, serial;
  Clock* clock;
} Place;

struct Order {
  u32 lock, width, simds, count;        // simds: of a threadgroup
  Fence* fences;                        // fences[time]
  u32 newest[CLOCK_ENTRIES];            // times of the latest fences
  Clock* clocks;
  u32 clock_count;
  Place places[MAX_PLACES];
};

// Does a fence lie between an earlier access and what this fiber does now?
HIDDEN int msl_fences_order(Worker* w, Fiber* f, Stamp before, u32 time, u64 group, u32 space);
HIDDEN void msl_publish(Worker* w, Fiber* f, const void* address, u32 only_stores);
HIDDEN void msl_share_simd(Worker* w, Simd* s, u32 flags);
HIDDEN void msl_share_group(Worker* w, u32 flags);
HIDDEN void msl_forget_fences(Worker* w);
HIDDEN void msl_end_order(Launch* launch);
