// Rounds of loops count as steps too, so that a loop without any access comes to an end: loops.py.
#include "worker.h"

EXPORTED _Noreturn void msl_out_of_steps(void) {
  Worker* w = this_worker();
  Report* r = msl_report(w, this_fiber(w), REPORT_STEP_LIMIT, (u64)__builtin_return_address(0));
  if (r) r->space = SPACE_OTHER;
  msl_abandon(w);
}
