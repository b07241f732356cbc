// Keys and values in the formats of mx.quantize, which tile layers dequantize on their way to threadgroup memory, once
// per block.
//
//   affine          element = scale * code + bias      scales and biases of the queries' type
//   mxfp4, mxfp8    element = 2^(scale - 127) * code   code a float of 2 + 1 or 4 + 3 bits (exponent + mantissa)
//   nvfp4           element = scale * code             scale a float of 4 + 3 bits, code one of 2 + 1
//
// Codes lie in words of 32 bits from the lowest bits up, and may lie in two of them; GROUP neighbours share a scale.
// OCP Microscaling formats.
namespace flash {

constant constexpr int BITS = $BITS, GROUP = $GROUP;
constant constexpr bool FLOAT_SCALES = $FLOAT_SCALES;  // scales are floats, not exponents
#if AFFINE
using Scale = $ELEMENT;
#else
using Scale = uint8_t;
#endif

namespace tile {

// A float of sign, 4 bits of exponent and 3 of mantissa; its largest code is NaN.
METAL_FUNC float float_e4m3(uint code) {
  const uint exponent = (code >> 3) & 15, mantissa = code & 7;
  const float normal = as_type<float>(((exponent + 120) << 23) | (mantissa << 20));
  const float magnitude = exponent == 0 ? float(mantissa) * 0.001953125f : (code & 127) == 127 ? NAN : normal;
  return (code & 128) != 0 ? -magnitude : magnitude;
}

// A float of sign, 2 bits of exponent and 1 of mantissa: 0, 1/2, 1, 3/2, 2, 3, 4, 6
METAL_FUNC float float_e2m1(uint code) {
  const uint m = code & 7;
  const float magnitude = m < 5 ? 0.5f * float(m) : m < 7 ? float(m) - 2 : 6;
  return (code & 8) != 0 ? -magnitude : magnitude;
}

METAL_FUNC float scale_of(Scale scale) {
#if AFFINE
  return float(scale);
#else
  return FLOAT_SCALES ? float_e4m3(scale) : as_type<float>(scale == 0 ? 0x400000u : uint(scale) << 23);
#endif
}

METAL_FUNC float value_of(uint code, float scale, float bias) {
#if AFFINE
  return scale * float(code) + bias;
#else
  return scale * (BITS == 8 ? float_e4m3(code) : float_e2m1(code));
#endif
}

// The rows of one head of an operand
template <typename T> struct QuantizedRows {
  static_assert(GROUP % 8 == 0, "eight elements are dequantized at a time");
#if HAS_PAGES
  Pages<uint> word_pages;
  Pages<Scale> scale_pages;
#if AFFINE
  Pages<Scale> bias_pages;
#endif
#endif
  const device uint* words;
  const device Scale* scales;
  long word_stride, scale_stride;  // elements between rows
#if AFFINE
  const device Scale* biases;
  long bias_stride;
#endif
  int first;  // row of the current block, counted from where the pointers are

#if HAS_PAGES
  METAL_FUNC void open(thread const QuantizedView& view, int b, int h) thread {
    word_pages.open(view.codes, view.pages, b, h);
    word_stride = word_pages.stride;
    scale_pages.open(view.scales, view.pages, b, h);
    scale_stride = scale_pages.stride;
#if AFFINE
    bias_pages.open(view.biases, view.pages, b, h);
    bias_stride = bias_pages.stride;
#endif
  }

  METAL_FUNC void enter(int row) thread {
    first = 0;  // the pointers are those of the block
    words = word_pages.row(row);
    scales = scale_pages.row(row);
#if AFFINE
    biases = bias_pages.row(row);
#endif
  }
#else
  METAL_FUNC void open(thread const QuantizedView& view, int b, int h) thread {
    words = view.codes.head<uint>(b, h);
    word_stride = view.codes.row_stride<uint>();
    scales = view.scales.head<Scale>(b, h);
    scale_stride = view.scales.row_stride<Scale>();
#if AFFINE
    biases = view.biases.head<Scale>(b, h);
    bias_stride = view.biases.row_stride<Scale>();
#endif
  }

  METAL_FUNC void enter(int row) thread { first = row; }
#endif

  // Eight neighbours of a row, from a column that is a multiple of 8
  struct Place {
    const device uint8_t* codes;
    const device Scale* scale;
#if AFFINE
    const device Scale* bias;
#endif
  };

  METAL_FUNC Place place(int row, int column) const thread {
    Place at;
    at.codes = (const device uint8_t*)(words + row * word_stride) + column / 8 * BITS;
    at.scale = scales + (row * scale_stride + column / GROUP);
#if AFFINE
    at.bias = biases + (row * bias_stride + column / GROUP);
#endif
    return at;
  }

  // The same columns `count` rows below
  METAL_FUNC Place below(Place at, int count) const thread {
    at.codes += count * word_stride * long(sizeof(uint));
    at.scale += count * scale_stride;
#if AFFINE
    at.bias += count * bias_stride;
#endif
    return at;
  }

  // As they lie in memory: BITS bytes of codes, which may begin and end inside of words, and what they share
  struct Packed {
#if WHOLE_WORDS
    Run<uint, BITS / 4> codes;
#else
    Run<uint8_t, BITS> codes;
#endif
    Scale scale, bias;
  };

  static METAL_FUNC Packed read(Place at) {
    Packed packed = {};
#if WHOLE_WORDS
    packed.codes = *(const device Run<uint, BITS / 4>*)at.codes;
#else
    packed.codes = *(const device Run<uint8_t, BITS>*)at.codes;
#endif
    packed.scale = *at.scale;
#if AFFINE
    packed.bias = *at.bias;
#endif
    return packed;
  }

  static METAL_FUNC Run<T, 8> values(Packed packed) {
    const float scale = scale_of(packed.scale), bias = float(packed.bias);
#if !WHOLE_WORDS
    ulong codes = 0;
#pragma clang loop unroll(full)
    for (int n = 0; n < BITS; n++) codes |= ulong(packed.codes.at[n]) << (8 * n);
#endif
    Run<T, 8> found;
#pragma clang loop unroll(full)
    for (int e = 0; e < 8; e++) {
#if WHOLE_WORDS
      const uint code = (packed.codes.at[e * BITS / 32] >> (e * BITS % 32)) & ((1u << BITS) - 1);
#else
      const uint code = uint(codes >> (e * BITS)) & ((1u << BITS) - 1);
#endif
      found.at[e] = T(value_of(code, scale, bias));
    }
    return found;
  }
};

// A block of BT rows that THREADS threads read into registers and dequantize later: every thread runs of eight columns,
// one below the other. SLOTS threads serve a row.
template <typename T, int BT, int D, int THREADS> struct QuantizedBlock {
  static constant constexpr const int SLOTS = D <= 16 ? 2 : D <= 32 ? 4 : D <= 64 ? 8 : D <= 128 ? 16 : 32;
  static constant constexpr const int STEP = THREADS / SLOTS, PASSES = (BT + STEP - 1) / STEP;
  static_assert(D <= 256 && D % 16 == 0, "one simdgroup at most serves a row, and groups of columns are whole steps");
  QuantizedRows<T> rows;
  typename QuantizedRows<T>::Packed packed[PASSES];
  int first, column;  // of this thread's first run, in the block
  int count;          // rows of the block that exist

  METAL_FUNC void open(thread const QuantizedView& view, int b, int h, uint index) thread {
    rows.open(view, b, h);
    first = int(index / SLOTS);
    column = int(index % SLOTS) * 8;
  }

  METAL_FUNC int row(int pass) const thread { return first + pass * STEP; }

  METAL_FUNC void fetch(int begin, int end) thread {
    rows.enter(begin);
    count = min(BT, end - begin);
    typename QuantizedRows<T>::Place at = rows.place(rows.first + first, column);
#pragma clang loop unroll(full)
    for (int pass = 0; pass < PASSES; pass++, at = rows.below(at, STEP)) {
      if (column < D && row(pass) < count) packed[pass] = rows.read(at);
    }
  }

  // Zero behind the last row
  METAL_FUNC Run<T, 8> values(int pass) const thread {
    Run<T, 8> found = {};
    if (row(pass) < count) found = rows.values(packed[pass]);
    return found;
  }
};

}  // namespace tile
}  // namespace flash
