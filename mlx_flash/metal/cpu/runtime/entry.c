// What a kernel asks about its place in the grid and about its buffers; and conversions that x86-64 without F16C leaves to a library.
#include "system.h"
#include "worker.h"

EXPORTED u64 msl_buffer(u32 index) {
  Buffer* b = &this_worker()->launch->buffers[index];
  return (u64)b->base + b->start;
}

// Where the library is loaded: its line table counts from here.
EXPORTED const void* msl_image(void) { return image_start; }

// Bytes of the threadgroup memory that the launch, and not the kernel, sizes.
EXPORTED u32 msl_threadgroup_bytes(u32 k) { return this_worker()->launch->variable_size[k]; }

EXPORTED u32 msl_lane(void) { return this_fiber(this_worker())->lane; }

EXPORTED u64 msl_active(void) {
  Worker* w = this_worker();
  return simd_of(w, this_fiber(w))->alive;
}

// `which` counts signature.py's ATTRIBUTES.
EXPORTED u32 msl_attribute(u32 which, u32 axis) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  Launch* launch = w->launch;
  switch (which) {
    case 0: return (launch->group[0] * launch->group[1] * launch->group[2] + 3) / 4;
    case 1: return (launch->group[0] * launch->group[1] * launch->group[2] + 31) / 32;
    case 2: return launch->group[axis];
    case 3: return 0;
    case 4: return launch->grid[axis];
    case 5: return f->index / 4;
    case 6: return (w->threads + 3) / 4;
    case 7: return f->index / LANES;
    case 8: return w->simds;
    case 9: return LANES;
    case 10: return f->index % 4;
    case 11: return f->lane;
    case 12: return f->index;
    case 13: return w->group[axis] * launch->group[axis] + f->local[axis];
    case 14: return f->local[axis];
    case 15: return w->group[axis];
    case 16: return launch->groups[axis];
    case 17: return launch->grid[axis];
    case 18: return LANES;
    case 19: return w->size[axis];
  }
  return 0;
}

float exp2f(float), log2f(float), expf(float), logf(float);
EXPORTED float msl_exp2(float x) { ++this_worker()->counters.exp2; return exp2f(x); }
EXPORTED float msl_log2(float x) { ++this_worker()->counters.log2; return log2f(x); }
EXPORTED float msl_exp(float x) { ++this_worker()->counters.exp2; return expf(x); }
EXPORTED float msl_log(float x) { ++this_worker()->counters.log2; return logf(x); }

static inline u32 bits_of(float x) { union { float f; u32 u; } c = {x}; return c.u; }
static inline float float_of(u32 x) { union { u32 u; float f; } c = {x}; return c.f; }

HIDDEN u16 msl_bfloat_bits(float x) {
  u32 bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
HIDDEN __bf16 __truncsfbf2(float x) {
  union { u16 u; __bf16 b; } c = {msl_bfloat_bits(x)};
  return c.b;
}

#if defined(__x86_64__) && !defined(__F16C__)
HIDDEN float __extendhfsf2(_Float16 h) {
  union { _Float16 h; u16 u; } c = {h};
  u32 sign = (u32)(c.u & 0x8000) << 16, exponent = (c.u >> 10) & 31, mantissa = c.u & 0x3ff;
  if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
  if (exponent) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
  float tiny = (float)mantissa * 0x1p-24f;
  return sign ? -tiny : tiny;
}
HIDDEN _Float16 __truncsfhf2(float x) {
  u32 bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  union { u16 u; _Float16 h; } c;
  if (magnitude > 0x7f800000) c.u = sign | 0x7e00 | (magnitude >> 13 & 0x3ff);
  else if (magnitude >= 0x477ff000) c.u = sign | 0x7c00;
  else if (magnitude < 0x38800000) c.u = sign | (u16)(bits_of(float_of(magnitude) + 0.5f) - 0x3f000000);
  else c.u = sign | (u16)((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
  return c.h;
}
#endif
