// Fences between threads that no barrier joins: see fences.h.
#include "fences.h"
#include "system.h"

enum { RELAXED = 0, ACQUIRE = 2, RELEASE = 3 };

static void acquire_lock(Order* o) {
  while (__atomic_exchange_n(&o->lock, 1, __ATOMIC_ACQUIRE))
    while (__atomic_load_n(&o->lock, __ATOMIC_RELAXED)) {}
}
static void release_lock(Order* o) { __atomic_store_n(&o->lock, 0, __ATOMIC_RELEASE); }

static u64 order_bytes(void) { return sizeof(Order) + (u64)MAX_FENCES * sizeof(Fence) + (u64)(MAX_PLACES + 1) * sizeof(Clock); }

// The launch's, made by its first fence.
static Order* order_of(Launch* launch) {
  Order* o = __atomic_load_n(&launch->order, __ATOMIC_ACQUIRE);
  if (o) return o;
  Order* made = (Order*)reserve(order_bytes());
  if (!made) return 0;
  made->simds = (launch->group[0] * launch->group[1] * launch->group[2] + LANES - 1) / LANES;
  u64 all = launch->total * made->simds;
  made->width = all < CLOCK_ENTRIES ? all : CLOCK_ENTRIES;
  made->fences = (Fence*)(made + 1);
  made->clocks = (Clock*)(made->fences + MAX_FENCES);
  made->count = 1;                      // time 0 is before every fence
  if (__atomic_compare_exchange_n(&launch->order, &o, made, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return made;
  munmap(made, order_bytes());
  return o;
}

void msl_end_order(Launch* launch) {
  if (launch->order) munmap(launch->order, order_bytes());
  launch->order = 0;
}

static u32 number_of(Order* o, u64 group, u32 simd) { return (u32)(group * o->simds) + simd; }
static u32 own_entry(Worker* w, Order* o, Simd* s) { return number_of(o, w->number, s - w->simd) % o->width; }

static void join(u32* into, const u32* from, u32 first, u32 count) {
  for (u32 i = first; i < first + count; ++i)
    if (into[i] < from[i]) into[i] = from[i];
}
static void clear(u32* clock) { __builtin_memset(clock, 0, sizeof(u32) * CLOCK_ENTRIES); }

typedef struct { Clock known, fresh, pending; } Clocks;
static Clocks* clocks_of(Worker* w, Simd* s) {
  if (!w->clocks) w->clocks = (Clocks*)reserve(MAX_SIMDS * sizeof(Clocks));
  return (Clocks*)w->clocks + (s - w->simd);
}

// Where an atomic's clock is; a new one if `make`. Threadgroup memory is another's in the next threadgroup.
static Place* place_of(Worker* w, Order* o, const void* address, int make) {
  u64 serial = (u64)address - (u64)w < REGION_BYTES ? w->serial : 0;
  u32 at = ((u64)address >> 2) * 2654435761u % MAX_PLACES;
  for (u32 tries = 0; tries < 64; ++tries, at = (at + 1) % MAX_PLACES) {
    Place* p = &o->places[at];
    if (p->address == (u64)address) {
      if (p->serial != serial) __builtin_memset(p->clock, 0, sizeof(Clock));
      p->serial = serial;
      return p;
    }
    if (p->address) continue;
    if (!make) return 0;
    p->address = (u64)address;
    p->serial = serial;
    p->clock = &o->clocks[o->clock_count++];
    return p;
  }
  // No room: such atomics share a clock, and with it what they make known.
  static const u64 shared = 1;
  Place* p = &o->places[MAX_PLACES - 1];
  if (!p->address) p->clock = &o->clocks[o->clock_count++];
  p->address = shared;
  return p;
}

// What the fence's scope lets it order: all simdgroups, those of its threadgroup, or its own.
static void reach(Worker* w, Order* o, Simd* s, u32 scope, u32* first, u32* count) {
  *first = 0;
  *count = o->width;
  if (scope == SCOPE_DEVICE || w->launch->total * o->simds > o->width) return;
  *first = scope == SCOPE_THREADGROUP ? number_of(o, w->number, 0) : own_entry(w, o, s);
  *count = scope == SCOPE_THREADGROUP ? o->simds : 1;
}

static void record_fence(Worker* w, Fiber* f, Simd* s, Order* o, u32 flags, u32 scope) {
  u32 number = number_of(o, w->number, s - w->simd), entry = number % o->width;
  Fence* last = &o->fences[o->newest[entry]];
  // A thread that waits in a loop passes the same fence again and again.
  int again = o->newest[entry] && !s->wrote && last->simd == number && last->thread == f->index && last->flags == flags && last->scope == scope;
  if (!again && o->count < MAX_FENCES) {
    Fence* new = &o->fences[o->count];
    *new = (Fence){number, f->index, o->count, scope, flags, o->newest[entry], {w->device_epoch, w->threadgroup_epoch}, {s->device_epoch, s->epoch}};
    o->newest[entry] = o->count;
    __atomic_store_n(&w->launch->fence_time, o->count++, __ATOMIC_RELAXED);
  }
  s->wrote = 0;
  for (u32 space = 0; space < 2; ++space) {
    if (!(flags >> space & 1)) continue;
    s->released[space] |= 1u << f->lane;
    s->release_time[space] = o->newest[entry];
  }
}

EXPORTED void msl_fence(u32 flags, u32 order, u32 scope) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  Simd* s = simd_of(w, f);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (!w->launch->check || order == RELAXED || scope == SCOPE_THREAD) return;
  Order* o = order_of(w->launch);
  Clocks* mine = clocks_of(w, s);
  if (!o || !w->clocks) return;
  u32 first, count;
  reach(w, o, s, scope, &first, &count);
  w->fenced = 1;
  acquire_lock(o);
  if (order != RELEASE && s->pending >> f->lane & 1)
    for (u32 space = 0; space < 2; ++space) {
      if (!(flags >> space & 1)) continue;
      if (!s->fresh[space]) clear(mine->fresh[space]);
      join(mine->fresh[space], mine->pending[space], first, count);
      s->fresh[space] |= 1u << f->lane;
    }
  if (order != ACQUIRE) record_fence(w, f, s, o, flags, scope);
  release_lock(o);
}

// Before an atomic operation that may store: what its thread has released, its readers may come to know.
void msl_publish(Worker* w, Fiber* f, const void* address, u32 only_stores) {
  Order* o = w->launch->order;
  Simd* s = simd_of(w, f);
  if (!o || !clocks_of(w, s)) return;
  Clocks* mine = clocks_of(w, s);
  u32 released = (s->released[0] | s->released[1]) >> f->lane & 1;
  acquire_lock(o);
  Place* p = place_of(w, o, address, released);
  for (u32 space = 0; p && space < 2; ++space) {
    u32* clock = (*p->clock)[space];
    if (only_stores) clear(clock);      // what was there, nobody reads any more
    if (!(s->released[space] >> f->lane & 1)) continue;
    join(clock, mine->known[space], 0, o->width);
    if (s->fresh[space] >> f->lane & 1) join(clock, mine->fresh[space], 0, o->width);
    u32* own = &clock[own_entry(w, o, s)];
    if (*own < s->release_time[space]) *own = s->release_time[space];
  }
  release_lock(o);
}

// Behind an atomic operation that reads: what was published there waits for a fence.
EXPORTED void msl_atomic_seen(const void* address) {
  Worker* w = this_worker();
  Order* o = w->launch->order;
  if (!o) return;
  Fiber* f = this_fiber(w);
  Simd* s = simd_of(w, f);
  Clocks* mine = clocks_of(w, s);
  if (!w->clocks) return;
  acquire_lock(o);
  Place* p = place_of(w, o, address, 0);
  for (u32 space = 0; p && space < 2; ++space) {
    if (!s->pending) clear(mine->pending[space]);
    join(mine->pending[space], (*p->clock)[space], 0, o->width);
  }
  if (p) {
    s->pending |= 1u << f->lane;
    w->fenced = 1;
  }
  release_lock(o);
}

// A barrier tells all its threads what one of them has come to know, and lets each publish what another released.
static void settle(Worker* w, Simd* s, u32 flags) {
  Clocks* mine = clocks_of(w, s);
  for (u32 space = 0; space < 2; ++space) {
    if (s->released[space]) s->released[space] = ~0u;
    if (!(flags & 3) || !s->fresh[space]) continue;
    join(mine->known[space], mine->fresh[space], 0, CLOCK_ENTRIES);
    s->fresh[space] = 0;
  }
  if (s->pending) s->pending = ~0u;
}

void msl_share_simd(Worker* w, Simd* s, u32 flags) {
  if (w->fenced) settle(w, s, flags);
}

void msl_share_group(Worker* w, u32 flags) {
  Order* o = w->launch->order;
  if (!w->fenced || !o) return;
  Clocks* all = clocks_of(w, w->simd);
  u32 pending = 0, released[2] = {0, 0};
  for (u32 i = 0; i < w->simds; ++i) {
    Simd* s = &w->simd[i];
    settle(w, s, flags);
    for (u32 space = 0; space < 2; ++space) {
      u32* own = &all[i].known[space][own_entry(w, o, s)];
      if (*own < s->release_time[space]) *own = s->release_time[space];
      released[space] |= s->released[space];
      if (i) join(all->known[space], all[i].known[space], 0, o->width);
      if (!s->pending) clear(all[i].pending[space]);
      if (i) join(all->pending[space], all[i].pending[space], 0, o->width);
    }
    pending |= s->pending;
  }
  for (u32 i = 0; i < w->simds; ++i) {
    Simd* s = &w->simd[i];
    if (i) __builtin_memcpy(all[i].known, all->known, sizeof(Clock));
    if (i) __builtin_memcpy(all[i].pending, all->pending, sizeof(Clock));
    s->pending = pending;
    for (u32 space = 0; space < 2; ++space) s->released[space] = released[space];
  }
}

void msl_forget_fences(Worker* w) {
  for (u32 i = 0; i < MAX_SIMDS; ++i) {
    Simd* s = &w->simd[i];
    s->pending = s->wrote = 0;
    for (u32 space = 0; space < 2; ++space) s->fresh[space] = s->released[space] = s->release_time[space] = 0;
  }
  if (w->fenced && w->clocks) __builtin_memset(w->clocks, 0, MAX_SIMDS * sizeof(Clocks));
  w->fenced = 0;
}

// Does this fence, of a simdgroup of the earlier access's threadgroup, come behind that access?
static int covers(Order* o, Fence* e, Stamp before, u32 time, u64 group, u32 space) {
  if (e->thread == before.thread && time < e->time) return 1;
  u32 epoch = e->epoch[space] & 0x3ffff;
  if (epoch != before.epoch) return epoch > before.epoch;
  return e->simd == number_of(o, group, before.thread / LANES) && (e->simd_epoch[space] & 0x3ff) > before.simd_epoch;
}

int msl_fences_order(Worker* w, Fiber* f, Stamp before, u32 time, u64 group, u32 space) {
  Order* o = w->launch->order;
  Simd* s = simd_of(w, f);
  if (!w->clocks) return 0;
  Clocks* mine = clocks_of(w, s);
  int fresh = s->fresh[space] >> f->lane & 1, other_group = group != w->number, ordered = 0;
  acquire_lock(o);
  for (u32 i = 0; i < o->simds && !ordered; ++i) {
    u32 number = number_of(o, group, i), entry = number % o->width, first = 0;
    for (u32 at = o->newest[entry]; at && o->fences[at].time > time; at = o->fences[at].previous) {
      Fence* e = &o->fences[at];
      u32 wide = e->scope >= (other_group ? SCOPE_DEVICE : i == before.thread / LANES ? SCOPE_SIMDGROUP : SCOPE_THREADGROUP);
      if (e->simd == number && wide && (e->flags >> space & 1) && covers(o, e, before, time, group, space)) first = e->time;
    }
    u32 seen = mine->known[space][entry];
    if (fresh && seen < mine->fresh[space][entry]) seen = mine->fresh[space][entry];
    ordered = first && first <= seen;
  }
  release_lock(o);
  return ordered;
}
