// What asynchronous products hold, until a wait retires them. Of check mode only: in fast mode a product is done when it is issued.
#include "flights.h"
#include "system.h"

void msl_wait(Worker* w, Fiber* f, void* perform, u64 site);

enum {
  BLOCK = 32,                           // bytes: 16 columns of a row, which one instruction reads
  BLOCKS = MAX_VARIABLES * (VARIABLE_GAP / BLOCK),
  RECENT = 64,                          // epochs and groups that are remembered
  SUMS = 8, SUM_BYTES = 512,            // accumulators of a thread in flight at once, and the largest: 16 rows x 256 columns
  NO_STAGE = 0xffffffff,
  ABSENT = 0x7fed7fed,                  // a sum in flight: a NaN
};

typedef struct {
  u32 committed, retired;               // numbers of groups; what is issued belongs to the one after `committed`
  u32 released[RECENT];                 // epochs, at epoch % RECENT, whose blocks went back to the producers
  struct { u32 epoch, group; } read[RECENT];  // the last group that read a block of an epoch
  u64 issued_at[RECENT];                // code addresses of products, at group % RECENT
} Traffic;

typedef struct {                        // an accumulator in flight; `at` is null where there is none
  u8* at;
  u32 bytes, group;
  u8 saved[SUM_BYTES];
} Sum;

typedef struct {
  Traffic simd[MAX_SIMDS];
  Sum sums[MAX_THREADS][SUMS];
  u32 reader[BLOCKS][MAX_SIMDS];        // the last group of each simdgroup that read a block
} Flights;

static Traffic* traffic_of(Worker* w, Simd* s) { return &((Flights*)w->flights)->simd[s - w->simd]; }

// Null in fast mode.
static Flights* flights_of(Worker* w) {
  if (!w->launch->check) return 0;
  if (!w->flights) w->flights = reserve(sizeof(Flights));
  if (!w->asynchronous) {
    w->asynchronous = 1;
    Flights* all = w->flights;
    for (u32 i = 0; i < MAX_SIMDS; ++i) {
      // What earlier threadgroups issued has retired, open groups included.
      all->simd[i].retired = ++all->simd[i].committed;
      __builtin_memset(all->simd[i].released, 0xff, sizeof all->simd[i].released);
      __builtin_memset(all->simd[i].read, 0xff, sizeof all->simd[i].read);
    }
    for (u32 i = 0; i < w->threads; ++i)
      for (u32 n = 0; n < SUMS; ++n) all->sums[i][n].at = 0;
  }
  return w->flights;
}

static _Noreturn void refuse(Worker* w, Fiber* f, u32 kind, u64 pc, u64 other_pc) {
  Report* r = msl_report(w, f, kind, pc);
  if (r) {
    r->space = SPACE_OTHER;
    r->other_pc = other_pc;
  }
  msl_abandon(w);
}

static _Noreturn void refuse_access(Worker* w, Fiber* f, u32 kind, u32 variable, u32 inside, u64 pc, u64 other_pc) {
  Report* r = msl_report(w, f, kind, pc);
  if (r) {
    r->space = SPACE_THREADGROUP;
    r->buffer = variable;
    r->offset = inside;
    r->other_pc = other_pc;
  }
  msl_abandon(w);
}

void msl_check_flights(Worker* w, Fiber* f, u32 variable, u32 inside, u32 size, u32 is_write, Stamp written, u64 pc) {
  Flights* all = w->flights;
  u32 own = f->index / LANES, first = (variable * VARIABLE_GAP + inside) / BLOCK, last = first + (inside % BLOCK + size - 1) / BLOCK;
  if (is_write) {
    for (u32 i = 0; i < w->simds; ++i) {
      u32 group = all->reader[first][i] > all->reader[last][i] ? all->reader[first][i] : all->reader[last][i];
      if (group > all->simd[i].retired)
        refuse_access(w, f, REPORT_IN_FLIGHT, variable, inside, pc, all->simd[i].issued_at[group % RECENT]);
    }
    return;
  }
  Traffic* t = &all->simd[own];
  u32 epoch = written.epoch, group = t->committed + 1;
  if (!written.valid) return;
  if (t->released[epoch % RECENT] == epoch) refuse_access(w, f, REPORT_RELEASED, variable, inside, pc, 0);
  if (!f->issuing) return;
  all->reader[first][own] = all->reader[last][own] = group;
  t->read[epoch % RECENT].epoch = epoch;
  t->read[epoch % RECENT].group = group;
}

// The sums in an accumulator arrive.
static void show(Worker* w, Fiber* f, Sum* sum, u64 pc) {
  for (u32 i = 0; i < sum->bytes / 4; ++i)
    if (((u32*)sum->at)[i] != ABSENT)
      refuse(w, f, REPORT_ACCUMULATOR_IN_FLIGHT, pc, traffic_of(w, simd_of(w, f))->issued_at[sum->group % RECENT]);
  __builtin_memcpy(sum->at, sum->saved, sum->bytes);
  sum->at = 0;
}

// A product begins to read its operands. Products in flight may add to the same accumulator: they are done in order.
EXPORTED void msl_begin_product(const void* accumulator) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  Flights* all = flights_of(w);
  if (!all) return;
  u64 pc = (u64)__builtin_return_address(0);
  Traffic* t = traffic_of(w, simd_of(w, f));
  for (Sum* sum = all->sums[f->index]; sum < all->sums[f->index] + SUMS; ++sum)
    if (sum->at == accumulator) show(w, f, sum, pc);
  t->issued_at[(t->committed + 1) % RECENT] = pc;
  f->issuing = 1;
}

EXPORTED void msl_end_product(void* accumulator, u32 bytes) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  Flights* all = flights_of(w);
  if (!all) return;
  f->issuing = 0;
  Sum* sum = all->sums[f->index];
  while (sum->at && sum < all->sums[f->index] + SUMS - 1) ++sum;
  if (sum->at || bytes > SUM_BYTES) return;  // too many, or too large: this one shows its sums early
  *sum = (Sum){accumulator, bytes, traffic_of(w, simd_of(w, f))->committed + 1};
  __builtin_memcpy(sum->saved, sum->at, bytes);
  for (u32 i = 0; i < bytes / 4; ++i) ((u32*)sum->at)[i] = ABSENT;
}

static void perform_commit(Worker* w, Simd* s, Fiber* first, u32 active) {
  if (active != s->alive) msl_inactive(w, first, active, s->alive);
  ++traffic_of(w, s)->committed;
}

EXPORTED void msl_commit_products(void) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  if (!flights_of(w)) return;
  msl_wait(w, f, perform_commit, (u64)__builtin_return_address(0));
}

static void perform_wait(Worker* w, Simd* s, Fiber* first, u32 active) {
  if (active != s->alive) msl_inactive(w, first, active, s->alive);
  Traffic* t = traffic_of(w, s);
  if (t->committed - t->retired > first->choice) t->retired = t->committed - first->choice;
}

// Returns when all committed groups but the last `later` are done.
EXPORTED void msl_wait_products(u32 later) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  Flights* all = flights_of(w);
  u64 pc = (u64)__builtin_return_address(0);
  if (!all) return;
  f->choice = later;
  msl_wait(w, f, perform_wait, pc);
  u32 retired = traffic_of(w, simd_of(w, f))->retired;
  for (Sum* sum = all->sums[f->index]; sum < all->sums[f->index] + SUMS; ++sum)
    if (sum->at && sum->group <= retired) show(w, f, sum, pc);
}

// A consumer waits for the block that producers copy in this epoch. On a GPU the producers wait until the stage is free.
EXPORTED void msl_take_stage(u32* epoch) {
  Worker* w = this_worker();
  if (!flights_of(w)) return;
  if (*epoch != NO_STAGE) refuse(w, this_fiber(w), REPORT_STAGE_HELD, (u64)__builtin_return_address(0), 0);
  *epoch = w->threadgroup_epoch & 0x3ffff;
}

static void perform_release(Worker* w, Simd* s, Fiber* first, u32 active) {
  if (active != s->alive) msl_inactive(w, first, active, s->alive);
  Traffic* t = traffic_of(w, s);
  u32 epoch = first->choice, slot = epoch % RECENT;
  if (epoch == NO_STAGE) refuse(w, first, REPORT_STAGE_RELEASED_TWICE, first->site, 0);
  if (t->read[slot].epoch == epoch && t->read[slot].group > t->retired)
    refuse(w, first, REPORT_RELEASED_IN_FLIGHT, first->site, t->issued_at[t->read[slot].group % RECENT]);
  t->released[slot] = epoch;
}

// The simdgroup hands a stage back to the producers.
EXPORTED void msl_release_stage(u32* epoch) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  if (!flights_of(w)) return;
  f->choice = *epoch;
  *epoch = NO_STAGE;
  msl_wait(w, f, perform_release, (u64)__builtin_return_address(0));
}
