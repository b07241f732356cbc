// Runs threadgroups: one fiber a Metal thread, 32 lanes a simdgroup. Lanes run until a simdgroup operation or a barrier; the last lane
// to arrive performs the operation for all of them and goes on, so a uniform simdgroup costs one switch a lane and operation.
#include "fences.h"
#include "switch.h"

void msl_kernel_entry(void);            // generated with the kernel

// Address space for the buffers of one checked launch: far apart, so that an index out of bounds meets no other buffer.
EXPORTED void* msl_reserve(u64 bytes) { return reserve(bytes); }
// Buffers begin at multiples of the largest page, and nothing else lies on their last one.
EXPORTED void msl_forget(void* memory, u64 bytes) {
  u64 start = (u64)memory & ~(u64)(LARGEST_PAGE - 1);
  forget((u8*)start, ((u64)memory + bytes - start + LARGEST_PAGE - 1) & ~(u64)(LARGEST_PAGE - 1));
}

EXPORTED void* msl_create_region(void) {
  u8* raw = reserve(2ull * REGION_BYTES);
  if (!raw) return 0;
  u8* region = region_of(raw + REGION_BYTES - 1);
  if (region > raw) munmap(raw, region - raw);
  u8* end = raw + 2ull * REGION_BYTES;
  if (end > region + REGION_BYTES) munmap(region + REGION_BYTES, end - (region + REGION_BYTES));
  use_small_pages(region, REGION_BYTES);
  return region;
}

static u32 next_random(Worker* w) {
  w->random ^= w->random << 13;
  w->random ^= w->random >> 17;
  return w->random ^= w->random << 5;
}

// The next set bit of a non-empty mask after `position`, in the order of the schedule.
static u32 pick(Worker* w, u32 mask, u32 position) {
  u32 schedule = w->launch->schedule;
  if (schedule == SCHEDULE_RANDOM) {
    position = next_random(w) & 31;
    schedule = w->random >> 31;
  }
  if (schedule == SCHEDULE_REVERSED) {
    u32 below = mask & ((1u << position) - 1);
    return 31 - __builtin_clz(below ? below : mask);
  }
  u32 above = mask & ~((2u << position) - 1);
  return __builtin_ctz(above ? above : mask);
}

static void run_fiber(Worker* w, Fiber* from, Fiber* to) {
  if (from != to) msl_switch(&from->stack, to->stack);
}

static _Noreturn void leave_group(Worker* w) {
  void* ignored;
  msl_switch(&ignored, w->main_stack);
  __builtin_unreachable();
}

// Performs the operation that the waiting lanes of a blocked simdgroup ask for. Lanes may wait at different places (divergent control
// flow): the earliest place in the code goes first, as the lanes still inside a loop run before those that left it.
static void perform_earliest(Worker* w, Simd* s, Fiber* lanes) {
  u32 mask = s->waiting;
  Fiber* first = &lanes[__builtin_ctz(mask)];
  if (s->mixed) {
    for (u32 m = mask; m; m &= m - 1) {
      Fiber* f = &lanes[__builtin_ctz(m)];
      if (f->site < first->site) first = f;
    }
    for (u32 m = mask; m; m &= m - 1) {
      u32 lane = __builtin_ctz(m);
      if (lanes[lane].site != first->site) mask &= ~(1u << lane);
    }
  }
  s->waiting &= ~mask;
  s->runnable |= mask;
  if (!s->waiting) s->mixed = 0;
  s->site = s->waiting ? lanes[__builtin_ctz(s->waiting)].site : 0;
  ((void (*)(Worker*, Simd*, Fiber*, u32))first->perform)(w, s, first, mask);
}

static void release_barrier(Worker* w, Fiber* f) {
  if (w->barrier_mixed || w->alive < w->threads) {
    u32 kind = w->barrier_mixed ? REPORT_BARRIER_DIFFERENT : REPORT_BARRIER_EXITED;
    for (u32 i = 0; i < w->simds; ++i)
      if (w->simd[i].at_barrier) { f = &w->fiber[i * LANES + __builtin_ctz(w->simd[i].at_barrier)]; break; }
    Report* r = msl_report(w, f, kind, f->site);
    if (r) {
      r->offset = w->at_barrier;
      r->size = w->threads;
      r->other_pc = w->barrier_site;
    }
    msl_abandon(w);
  }
  if (w->barrier_flags & 2) ++w->threadgroup_epoch;
  if (w->barrier_flags & 1) ++w->device_epoch;
  msl_share_group(w, w->barrier_flags);
  ++w->counters.group_barriers;
  w->at_barrier = 0;
  for (u32 i = 0; i < w->simds; ++i) {
    w->simd[i].runnable |= w->simd[i].at_barrier;
    w->simd[i].at_barrier = 0;
  }
}

// Runs another fiber until this one may go on. A dead fiber (its lane is in no mask) never comes back.
static void run_others(Worker* w, Fiber* f) {
  Simd* s = simd_of(w, f);
  u32 home = f->index / LANES;
  for (;;) {
    if (!s->runnable && s->waiting) perform_earliest(w, s, &w->fiber[home * LANES]);
    if (s->runnable) break;
    u32 ready = 0;
    for (u32 i = 0; i < w->simds; ++i)
      if (w->simd[i].runnable | w->simd[i].waiting) ready |= 1u << i;
    if (!ready) {
      if (!w->alive) leave_group(w);
      release_barrier(w, f);
      continue;
    }
    home = pick(w, ready, home);
    s = &w->simd[home];
  }
  run_fiber(w, f, &w->fiber[home * LANES + pick(w, s->runnable, f->lane)]);
}

// Lets another simdgroup run, or another lane where there is one only, though this fiber could go on.
HIDDEN void msl_yield(Worker* w, Fiber* f) {
  u32 home = f->index / LANES, ready = 0;
  simd_of(w, f)->last = f->lane;
  for (u32 i = 0; i < w->simds; ++i)
    if (w->simd[i].runnable | w->simd[i].waiting) ready |= 1u << i;
  home = pick(w, ready, home);
  Simd* s = &w->simd[home];
  if (!s->runnable) perform_earliest(w, s, &w->fiber[home * LANES]);
  s->last = pick(w, s->runnable, s->last);
  run_fiber(w, f, &w->fiber[home * LANES + s->last]);
}

static void block_on(Worker* w, Fiber* f, Simd* s, void* perform, u64 site) {
  u32 bit = 1u << f->lane;
  // A whole simdgroup is one even where the threadgroup is not.
  if (w->ragged && s->exists != 0xffffffffu) msl_refuse_ragged(w, site);
  f->site = site;
  f->perform = perform;
  if (s->waiting && s->site != site) s->mixed = 1;
  s->site = site;
  s->runnable &= ~bit;
  s->waiting |= bit;
  if (!s->runnable) {
    perform_earliest(w, s, f - f->lane);
    // The last lane goes on without a switch unless the schedule wants another.
    if ((s->runnable & bit) && w->launch->schedule != SCHEDULE_RANDOM) return;
  }
  run_others(w, f);
}

void msl_wait(Worker* w, Fiber* f, void* perform, u64 site) { block_on(w, f, simd_of(w, f), perform, site); }

EXPORTED void msl_threadgroup_barrier(u32 flags) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  Simd* s = simd_of(w, f);
  u64 site = (u64)__builtin_return_address(0);
  f->site = site;
  if (w->ragged) msl_refuse_ragged(w, site);
  if (!w->at_barrier) {
    w->barrier_site = site;
    w->barrier_flags = flags;
    w->barrier_mixed = 0;
  } else if (w->barrier_site != site) {
    w->barrier_mixed = 1;
    w->barrier_flags &= flags;
  }
  s->runnable &= ~(1u << f->lane);
  s->at_barrier |= 1u << f->lane;
  ++w->at_barrier;
  run_others(w, f);
}

HIDDEN void msl_fiber_main(void) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  msl_kernel_entry();
  Simd* s = simd_of(w, f);
  s->alive &= ~(1u << f->lane);
  s->runnable &= ~(1u << f->lane);
  --w->alive;
  run_others(w, f);
  __builtin_unreachable();
}

static void prepare_fiber(Worker* w, u32 index) {
  Fiber* f = &w->fiber[index];
  u32 sx = w->size[0], sy = w->size[1];
  f->index = index;
  f->lane = index % LANES;
  f->local[0] = index % sx;
  f->local[1] = index / sx % sy;
  f->local[2] = index / (sx * sy);
  // Equal frames at equal offsets of every stack would all fall into one cache set: stagger them.
  u64 top = (u64)w + STACKS_OFFSET + (u64)(index + 1) * STACK_BYTES;
  top -= (index % LANES) * 1088 + (index / LANES) * 320 + 64;
  u64* words = (u64*)(top & ~15ull) - SAVED_WORDS;
  words[RETURN_WORD] = (u64)msl_first_entry;
  f->stack = words;
}

void msl_begin_group(Worker* w);        // groups.c: forgets what the last threadgroup left
void msl_end_group(Worker* w);
void msl_end_run(Worker* w);

static void run_group(Worker* w, u64 number) {
  Launch* launch = w->launch;
  u64 n = number;
  if (launch->schedule == SCHEDULE_REVERSED) n = launch->total - 1 - number;
  if (launch->schedule == SCHEDULE_RANDOM) n = (number * launch->stride + launch->seed) % launch->total;
  w->group[0] = n % launch->groups[0];
  w->group[1] = n / launch->groups[0] % launch->groups[1];
  w->group[2] = n / ((u64)launch->groups[0] * launch->groups[1]);
  w->threads = 1;
  for (int d = 0; d < 3; ++d) {
    u32 left = launch->grid[d] - w->group[d] * launch->group[d];
    w->size[d] = left < launch->group[d] ? left : launch->group[d];
    w->threads *= w->size[d];
  }
  w->number = n;
  w->alive = w->threads;
  w->ragged = launch->check && w->threads < launch->group[0] * launch->group[1] * launch->group[2];
  w->simds = (w->threads + LANES - 1) / LANES;
  w->at_barrier = w->barrier_mixed = 0;
  w->random = launch->seed * 2654435761u + (u32)n * 40503u + 1;
  for (u32 i = 0; i < w->simds; ++i) {
    Simd* s = &w->simd[i];
    u32 lanes = w->threads - i * LANES;
    s->exists = s->alive = s->runnable = lanes >= LANES ? 0xffffffffu : (1u << lanes) - 1;
    s->waiting = s->at_barrier = s->mixed = 0;
    s->last = LANES - 1;
  }
  for (u32 i = 0; i < w->threads; ++i) prepare_fiber(w, i);
  msl_begin_group(w);
  u32 simd = pick(w, w->simds == 32 ? 0xffffffffu : (1u << w->simds) - 1, 31);
  u32 lane = pick(w, w->simd[simd].runnable, 31);
  msl_switch(&w->main_stack, w->fiber[simd * LANES + lane].stack);
  msl_end_group(w);
}

EXPORTED void msl_run(Launch* launch, Worker* w) {
  __builtin_memset(&w->counters, 0, sizeof(Counters));
  w->launch = launch;
  w->has_pending = 0;
  __atomic_fetch_add(&launch->running, 1, __ATOMIC_RELAXED);
  if (launch->check) {
    if (!w->shadow) w->shadow = reserve(SHADOW_BYTES);
  }
  while (!launch->stop) {
    u64 number = __atomic_fetch_add(&launch->next, 1, __ATOMIC_RELAXED);
    if (number >= launch->total) break;
    run_group(w, number);
  }
  msl_end_run(w);
  // Who comes later finds no threadgroup left.
  if (__atomic_sub_fetch(&launch->running, 1, __ATOMIC_ACQ_REL) == 0) msl_end_order(launch);
  u64* mine = (u64*)&w->counters;
  u64* sum = (u64*)&launch->counters;
  for (u64 i = 0; i < sizeof(Counters) / sizeof(u64); ++i) __atomic_fetch_add(&sum[i], mine[i], __ATOMIC_RELAXED);
}
