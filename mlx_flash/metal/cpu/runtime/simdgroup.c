// Simdgroup operations. A lane leaves its operand in its own slot and waits; one lane computes the results of all 32 into their own
// slots. No lane ever reads another lane's slot after waking, so the next operation cannot disturb a lane that wakes late.
#include "fences.h"

void msl_wait(Worker* w, Fiber* f, void* perform, u64 site);

typedef float Row __attribute__((vector_size(32), aligned(4)));

// Where lane l holds its two neighbouring elements of an 8x8 matrix: the same for A, B and C.
static inline u32 place(u32 lane) {
  u32 row = ((lane >> 2) & 4) + ((lane >> 1) & 3);
  u32 column = ((lane >> 2) & 2) * 2 + (lane & 1) * 2;
  return row * 8 + column;
}

static void perform_matmul(Worker* w, Simd* s, Fiber* first, u32 active) {
  if (active != 0xffffffffu) msl_inactive(w, first, active, 0xffffffffu);
  ++w->counters.matmuls;
  Row b[8];
  for (int k = 0; k < 8; ++k) b[k] = *(Row*)&s->b[k * 8];
  for (int i = 0; i < 8; ++i) {
    Row sum = *(Row*)&s->c[i * 8];
    for (int k = 0; k < 8; ++k) sum += s->a[i * 8 + k] * b[k];
    *(Row*)&s->c[i * 8] = sum;
  }
}

// operands: a, a, b, b, c, c of this lane; result: its two elements of a * b + c.
EXPORTED void msl_matmul(const float* operands, float* result) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  Simd* s = simd_of(w, f);
  u32 p = place(f->lane);
  s->a[p] = operands[0];
  s->a[p + 1] = operands[1];
  s->b[p] = operands[2];
  s->b[p + 1] = operands[3];
  s->c[p] = operands[4];
  s->c[p + 1] = operands[5];
  msl_wait(w, f, perform_matmul, (u64)__builtin_return_address(0));
  result[0] = s->c[p];
  result[1] = s->c[p + 1];
}

EXPORTED u32 msl_matrix_place(void) { return place(this_fiber(this_worker())->lane); }

static void perform_shuffle(Worker* w, Simd* s, Fiber* first, u32 active) {
  u32 size = s->size, wanted = 0;
  ++w->counters.shuffles;
  for (u32 m = active; m; m &= m - 1) {
    u32 lane = __builtin_ctz(m), source = s->choice[lane] & 31;
    wanted |= 1u << source;
    for (u32 i = 0; i < size; i += 4) *(u32*)(s->out[lane] + i) = *(u32*)(s->in[source] + i);
  }
  if (wanted & ~active) msl_inactive(w, first, active, wanted);
}

// Replaces data (size bytes, at most 64) by that of lane `source`.
EXPORTED void msl_shuffle(void* data, u32 size, u32 source) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  Simd* s = simd_of(w, f);
  __builtin_memcpy(s->in[f->lane], data, size);
  s->choice[f->lane] = source;
  s->size = size;
  msl_wait(w, f, perform_shuffle, (u64)__builtin_return_address(0));
  __builtin_memcpy(data, s->out[f->lane], size);
}

typedef void Combine(u8 (*in)[64], u8 (*out)[64], u32 active);

static void perform_combine(Worker* w, Simd* s, Fiber* first, u32 active) {
  ++w->counters.reductions;
  ((Combine*)first->combine)(s->in, s->out, active);
}

// Reductions, scans and votes: `combine` (instantiated in the kernel for its type) fills the results of the active lanes.
EXPORTED void msl_combine(void* data, u32 size, void* result, u32 result_size, Combine* combine) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  Simd* s = simd_of(w, f);
  __builtin_memcpy(s->in[f->lane], data, size);
  f->combine = combine;
  msl_wait(w, f, perform_combine, (u64)__builtin_return_address(0));
  __builtin_memcpy(result, s->out[f->lane], result_size);
}

static void perform_barrier(Worker* w, Simd* s, Fiber* first, u32 active) {
  ++w->counters.simd_barriers;
  if (active != s->alive) msl_inactive(w, first, active, s->alive);
  if (first->choice & 2) ++s->epoch;
  if (first->choice & 1) ++s->device_epoch;
  msl_share_simd(w, s, first->choice);
}

EXPORTED void msl_simdgroup_barrier(u32 flags) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  f->choice = flags;
  msl_wait(w, f, perform_barrier, (u64)__builtin_return_address(0));
}
