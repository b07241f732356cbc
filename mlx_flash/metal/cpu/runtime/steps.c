// Rounds of loops count as steps too, so that a loop without any access comes to an end: loops.py.
#include "worker.h"

static _Noreturn void endless(u32 kind, u64 pc) {
  Worker* w = this_worker();
  Report* r = msl_report(w, this_fiber(w), kind, pc);
  if (r) r->space = SPACE_OTHER;
  msl_abandon(w);
}

HIDDEN void msl_refill_steps(Worker* w);  // groups.c
HIDDEN void msl_yield(Worker* w, Fiber* f);  // fibers.c

void msl_next_turn(Worker* w, Fiber* f, u64 pc) {
  if (!w->steps_to_come) endless(REPORT_STEP_LIMIT, pc);
  msl_refill_steps(w);
  msl_yield(w, f);
}

EXPORTED void msl_out_of_steps(void) {
  Worker* w = this_worker();
  msl_next_turn(w, this_fiber(w), (u64)__builtin_return_address(0));
}

// Every function that is not inlined begins with this call: one that calls itself instead of looping comes to an end too.
EXPORTED void __cyg_profile_func_enter_bare(void) {
  enum { NEEDED = 1 << 12 };            // by the runtime, below any function of the kernel
  u64 left = (u64)__builtin_frame_address(0) & (STACK_BYTES - 1);
  if (left < NEEDED) endless(REPORT_RECURSION, (u64)__builtin_return_address(0));
}
