// Operations of users' texts that Metal leaves undefined somewhere: reads of arrays, integer division, conversions.
//
// The arrays that a text reads lie one behind the other in one buffer, formula_data, as 32-bit patterns, each behind
// its extents. An element beyond an array's ends is NaN; of an integer array it is the smallest integer. The structs
// Score and Visible, which follow this file, are generated (mlx_flash/problem/formulas/metal.py).
namespace flash {
namespace formula {

// The variables of a text for one query and key: batch entry, query head, positions, and the query's segment
struct Pair {
  int b, h, q, k, segment;
};

METAL_FUNC int read_int(const device int* array, int i, int extent) {
  const bool inside = uint(i) < uint(extent);
  const int found = array[inside ? i : 0];
  return inside ? found : INT_MIN;
}

METAL_FUNC int read_int(const device int* array, int i, int extent, int j, int extent_j) {
  const bool inside = uint(i) < uint(extent) && uint(j) < uint(extent_j);
  return read_int(array, inside ? i * extent_j + j : -1, extent * extent_j);
}

METAL_FUNC int read_int(const device int* array, int i, int extent, int j, int extent_j, int l, int extent_l) {
  const bool inside = uint(j) < uint(extent_j) && uint(l) < uint(extent_l);
  return read_int(array, i, extent, inside ? j * extent_l + l : -1, extent_j * extent_l);
}

METAL_FUNC int read_int(
    const device int* array, int i, int extent, int j, int extent_j, int l, int extent_l, int m, int extent_m) {
  const bool inside = uint(l) < uint(extent_l) && uint(m) < uint(extent_m);
  return read_int(array, i, extent, j, extent_j, inside ? l * extent_m + m : -1, extent_l * extent_m);
}

METAL_FUNC float read_float(const device int* array, int i, int extent) {
  const bool inside = uint(i) < uint(extent);
  const float found = as_type<float>(array[inside ? i : 0]);
  return inside ? found : NAN;
}

METAL_FUNC float read_float(const device int* array, int i, int extent, int j, int extent_j) {
  const bool inside = uint(i) < uint(extent) && uint(j) < uint(extent_j);
  return read_float(array, inside ? i * extent_j + j : -1, extent * extent_j);
}

METAL_FUNC float read_float(const device int* array, int i, int extent, int j, int extent_j, int l, int extent_l) {
  const bool inside = uint(j) < uint(extent_j) && uint(l) < uint(extent_l);
  return read_float(array, i, extent, inside ? j * extent_l + l : -1, extent_j * extent_l);
}

METAL_FUNC float read_float(
    const device int* array, int i, int extent, int j, int extent_j, int l, int extent_l, int m, int extent_m) {
  const bool inside = uint(l) < uint(extent_l) && uint(m) < uint(extent_m);
  return read_float(array, i, extent, j, extent_j, inside ? l * extent_m + m : -1, extent_l * extent_m);
}

// Integers divided towards zero; 0 where C leaves the result undefined
METAL_FUNC int quotient(int a, int b) { return b == 0 ? 0 : b == -1 ? int(0u - uint(a)) : a / b; }
METAL_FUNC int residue(int a, int b) { return b == 0 || b == -1 ? 0 : a % b; }
METAL_FUNC int left_shifted(int a, int b) { return int(uint(a) << uint(b & 31)); }
METAL_FUNC int right_shifted(int a, int b) { return a >> (b & 31); }

// The nearest int32 towards zero; 0 for NaN
METAL_FUNC int whole(float x) { return x == x ? int(clamp(x, -2147483648.0f, 2147483520.0f)) : 0; }
METAL_FUNC float fraction(float x) { return x - floor(x); }

}  // namespace formula
}  // namespace flash
