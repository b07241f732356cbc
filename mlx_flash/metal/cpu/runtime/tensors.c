// Products of cooperative tensors. A lane leaves pointers to its elements and waits; the last to arrive gathers the matrices of all
// lanes, multiplies and spreads the result.
#include "fences.h"

void msl_wait(Worker* w, Fiber* f, void* perform, u64 site);
HIDDEN u16 msl_bfloat_bits(float x);

enum Type { FLOAT, HALF, BFLOAT, CHAR, INT };  // as in include/target/tensor_ops.h
enum Role { LEFT, RIGHT, DESTINATION };
enum { LARGEST = 64 * 64 };             // elements of a matrix
enum { POISON = 0x7fed };               // of elements that were never set: a NaN as half, as bfloat and, twice, as float

typedef struct { u32 m, n, k, transposed[2], relaxed, accumulate; } Shape;
typedef struct {
  Shape shape;
  u32 type[3];
  u8* elements[3];                      // of this lane, by role
} Product;
typedef union { float f; u32 u; int i; } Number;

// M5: matrices of 16x16, one behind the other along a row of them. A lane has four neighbouring elements of each of two rows.
static u32 known_place(u32 columns, u32 lane, u32 element) {
  u32 quad = lane >> 2, part = element / 8, across = columns / 16;
  u32 row = (quad & 4 | lane >> 1 & 3) + (element & 4) * 2, column = (quad & 2 | lane & 1) * 4 + (element & 3);
  return (part / across * 16 + row) << 16 | (part % across * 16 + column);
}

// One that no hardware is known to have, another for each role
static u32 opaque_place(u32 role, u32 rows, u32 columns, u32 lane, u32 element) {
  u32 capacity = rows * columns / LANES, at = element * LANES + lane;
  if (role == LEFT) return at % rows << 16 | at / rows;
  if (role == RIGHT) at = lane * capacity + element;
  else at = element * LANES + (LANES - 1 - lane);
  return at / columns << 16 | at % columns;
}

static u32 place(Worker* w, u32 role, u32 rows, u32 columns, u32 lane, u32 element) {
  if (w->launch->tensor_layout) return opaque_place(role, rows, columns, lane, element);
  return known_place(columns, lane, element);
}

EXPORTED u32 msl_tensor_place(u32 role, u32 rows, u32 columns, u32 element) {
  Worker* w = this_worker();
  return place(w, role, rows, columns, this_fiber(w)->lane, element);
}

EXPORTED void msl_tensor_unset(void* elements, u32 bytes) {
  for (u32 i = 0; i < bytes / 2; ++i) ((u16*)elements)[i] = POISON;
}

EXPORTED void msl_tensor_index(u32 element) {
  Worker* w = this_worker();
  Report* r = msl_report(w, this_fiber(w), REPORT_ARRAY_BOUNDS, (u64)__builtin_return_address(0));
  if (r) r->offset = element;
  msl_abandon(w);
}

// A float as the unit takes it: with 10 bits of mantissa where the product is relaxed
static float narrowed(float x, u32 truncates) {
  Number n = {x};
  if ((n.u & 0x7f800000) == 0x7f800000) return x;
  if (!truncates) n.u += 0xfff + (n.u >> 13 & 1);
  n.u &= ~0x1fffu;
  return n.f;
}

static Number read(const u8* elements, u32 type, u32 i) {
  Number n;
  switch (type) {
    case FLOAT: n.f = ((const float*)elements)[i]; break;
    case HALF: n.f = (float)((const _Float16*)elements)[i]; break;
    case BFLOAT: n.u = (u32)((const u16*)elements)[i] << 16; break;
    case CHAR: n.i = ((const signed char*)elements)[i]; break;
    default: n.i = ((const int*)elements)[i];
  }
  return n;
}

static void write(u8* elements, u32 type, u32 i, Number n) {
  switch (type) {
    case FLOAT: ((float*)elements)[i] = n.f; break;
    case HALF: ((_Float16*)elements)[i] = (_Float16)n.f; break;
    case BFLOAT: ((u16*)elements)[i] = msl_bfloat_bits(n.f); break;
    default: ((int*)elements)[i] = n.i;
  }
}

static int unset(const u8* elements, u32 type, u32 i) {
  if (type == FLOAT) return ((const u32*)elements)[i] == (POISON << 16 | POISON);
  return (type == HALF || type == BFLOAT) && ((const u16*)elements)[i] == POISON;
}

static _Noreturn void report_unset(Worker* w, Fiber* f, u32 role, u32 element) {
  Report* r = msl_report(w, f, REPORT_TENSOR_UNSET, f->site);
  if (r) {
    r->offset = element;
    r->value = role;
  }
  msl_abandon(w);
}

// The matrix of one role, row by row, not transposed; a product of mixed types is one of floats.
static void gather(Worker* w, Fiber* lanes, u32 role, Number* matrix) {
  const Product* first = lanes->combine;
  const Shape* s = &first->shape;
  u32 rows = role == RIGHT ? s->k : s->m, columns = role == LEFT ? s->k : s->n;
  u32 transposed = role != DESTINATION && s->transposed[role], type = first->type[role];
  u32 stored_rows = transposed ? columns : rows, stored_columns = transposed ? rows : columns;
  u32 to_float = type == CHAR && first->type[DESTINATION] != INT, truncates = w->launch->tensor_rounding;
  u32 relaxed = s->relaxed && type == FLOAT && role != DESTINATION;
  for (u32 lane = 0; lane < LANES; ++lane) {
    const u8* elements = ((Product*)lanes[lane].combine)->elements[role];
    for (u32 i = 0; i < rows * columns / LANES; ++i) {
      if (w->launch->check && unset(elements, type, i)) report_unset(w, &lanes[lane], role, i);
      u32 at = place(w, role, stored_rows, stored_columns, lane, i), row = at >> 16, column = at & 0xffff;
      Number n = read(elements, type, i);
      if (to_float) n.f = (float)n.i;
      if (relaxed) n.f = narrowed(n.f, truncates);
      matrix[transposed ? column * columns + row : row * columns + column] = n;
    }
  }
}

static void multiply(const Shape* s, u32 integers, const Number* restrict a, const Number* restrict b, Number* restrict c) {
  for (u32 i = 0; i < s->m; ++i)
    for (u32 k = 0; k < s->k; ++k) {
      Number left = a[i * s->k + k];
      if (integers) for (u32 j = 0; j < s->n; ++j) c[i * s->n + j].i += left.i * b[k * s->n + j].i;
      else for (u32 j = 0; j < s->n; ++j) c[i * s->n + j].f += left.f * b[k * s->n + j].f;
    }
}

static void perform_product(Worker* w, Simd* simd, Fiber* first, u32 active) {
  if (active != 0xffffffffu) msl_inactive(w, first, active, 0xffffffffu);
  Fiber* lanes = first - first->lane;
  const Product* p = lanes->combine;
  const Shape* s = &p->shape;
  w->counters.tensor_matmuls += s->m / 16 * (s->n / 16) * (s->k / 16);
  Number a[LARGEST], b[LARGEST], c[LARGEST];
  gather(w, lanes, LEFT, a);
  gather(w, lanes, RIGHT, b);
  if (s->accumulate) gather(w, lanes, DESTINATION, c);
  else __builtin_memset(c, 0, s->m * s->n * sizeof(Number));
  multiply(s, p->type[DESTINATION] == INT, a, b, c);
  for (u32 lane = 0; lane < LANES; ++lane)
    for (u32 i = 0; i < s->m * s->n / LANES; ++i) {
      u32 at = place(w, DESTINATION, s->m, s->n, lane, i);
      write(((Product*)lanes[lane].combine)->elements[DESTINATION], p->type[DESTINATION], i, c[(at >> 16) * s->n + (at & 0xffff)]);
    }
}

// descriptor: of include/shim/tensor_ops.h; types: four bits each of left, right and destination.
EXPORTED void msl_tensor_multiply(u64 descriptor, u32 types, void* a, void* b, void* c) {
  Worker* w = this_worker();
  Fiber* f = this_fiber(w);
  u64 d = descriptor;
  Product product = {
      {d & 0xfff, d >> 12 & 0xfff, d >> 24 & 0xfff, {d >> 36 & 1, d >> 37 & 1}, d >> 38 & 1, d >> 39 & 1},
      {types & 15, types >> 4 & 15, types >> 8 & 15}, {a, b, c}};
  f->combine = &product;
  msl_wait(w, f, perform_product, (u64)__builtin_return_address(0));
}
