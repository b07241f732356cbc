// Arrays as kernels receive them. Operands are bytes with strides, so that views of any layout are read in place.
#include <metal_stdlib>
using namespace metal;

namespace flash {

// A run of N elements that is aligned to one element only: views may start anywhere.
template <typename T, int N> struct Run { T at[N]; };

// [B, heads, length, D]; strides are in bytes. The last axis is contiguous, unless the kernel gathers columns.
// Strides are read when the kernel begins, as values that all lanes share: they take no registers of the lanes.
struct View {
  const device uint8_t* bytes;
  long batch, heads, row;
#if GATHERS
  long column;  // elements from one column to the next
#endif

  template <typename T> METAL_FUNC const device T* head(uint b, uint h) const thread {
    return (const device T*)(bytes + b * batch + h * heads);
  }

  // The head after this one
  template <typename T> METAL_FUNC const device T* next(const device T* head) const thread {
    return (const device T*)((const device uint8_t*)head + heads);
  }

  // Elements of 1, 2 or 4 bytes from one row to the next; strides are multiples of these, so a shift divides
  template <typename T> METAL_FUNC long row_stride() const thread { return row >> (sizeof(T) / 2); }
};

#if HAS_MASK || HAS_SEGMENTS || HAS_BLOCKS || HAS_PAGES
// [B, heads, ...] of a known type; strides are in elements.
template <typename T> struct Strided {
  const device T* at;
  const constant int64_t* strides;
};
#endif

#if MAPS
using MaskElement = $MASK_ELEMENT;
// States of a block of the map of an array mask (mask_map.metal)
constant constexpr int MAP_BLOCK = $MAP_BLOCK;  // its queries, and its keys
constant constexpr uint8_t EMPTY = 0, FULL = 1, PARTIAL = 2;
#endif

#if HAS_PAGES
// Keys or values in pages: [N, heads, PAGE, D], and the pages [B, n] of every batch entry.
struct PagedView {
  View pool;
  Strided<int> pages;
};
#endif

#if HAS_PIECES
// The rows of a sequence as the ranks of a group hold them: [RANKS, B, heads, length, D]
struct PiecedView {
  View shards;  // of the first rank
  long rank;    // bytes from one rank to the next
  int length;
};
#endif

#if QUANTIZED
// Keys or values in one of the formats of quantized.metal
struct QuantizedView {
  View codes, scales;
#if AFFINE
  View biases;
#endif
#if HAS_PAGES
  Strided<int> pages;
#endif
};
#endif

}  // namespace flash
