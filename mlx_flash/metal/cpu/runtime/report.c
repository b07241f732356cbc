// Reports of a launch: below the checks and the fibers, which both make them.
#include "worker.h"

void msl_switch(void** save, void* load);  // switch.h

Report* msl_report(Worker* w, Fiber* f, u32 kind, u64 pc) {
  Launch* launch = w->launch;
  u32 slot = __atomic_fetch_add(&launch->report_count, 1, __ATOMIC_RELAXED);
  if (slot >= MAX_REPORTS) return 0;
  msl_fill_report(w, f, &launch->reports[slot], kind, pc);
  return &launch->reports[slot];
}

void msl_fill_report(Worker* w, Fiber* f, Report* r, u32 kind, u64 pc) {
  r->kind = kind;
  r->pc = pc;
  for (int d = 0; d < 3; ++d) {
    r->group[d] = w->group[d];
    r->thread[d] = f ? f->local[d] : 0;
  }
}

void msl_abandon(Worker* w) {
  void* ignored;
  w->launch->stop = 1;
  msl_switch(&ignored, w->main_stack);
  __builtin_unreachable();
}

void msl_inactive(Worker* w, Fiber* f, u32 active, u32 wanted) {
  Report* r = msl_report(w, f, REPORT_INACTIVE_LANES, f->site);
  if (r) {
    r->offset = active;
    r->value = wanted;
  }
  msl_abandon(w);
}
