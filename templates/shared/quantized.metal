// Keys and values in the formats of mx.quantize: dequantized on their way to threadgroup memory, once per block.
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

// Takes the place of the tile layer's Traversed. Blocks always go through threadgroup memory.
template <typename T, int BT, int D, int BH, int THREADS> struct Traversed {
  static_assert(GROUP % 8 == 0, "eight elements are dequantized at a time");
  using Element = T;
  static constant constexpr const int HEAD_BLOCK = BH, RUN = 8, COPYING_THREADS = THREADS;
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
  threadgroup T* scratch;
  int first, valid;  // first row of the current block, and the number of its rows to use, at most BT
  bool edge;
  Lane lane;

  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    scratch = memory.scratch;
    lane = lane_;
  }

#if HAS_PAGES
  METAL_FUNC void view(thread const QuantizedView& view, int b, int h) thread {
    word_pages.open(view.codes, view.pages, b, h);
    word_stride = word_pages.stride;
    scale_pages.open(view.scales, view.pages, b, h);
    scale_stride = scale_pages.stride;
#if AFFINE
    bias_pages.open(view.biases, view.pages, b, h);
    bias_stride = bias_pages.stride;
#endif
  }
#else
  METAL_FUNC void view(thread const QuantizedView& view, int b, int h) thread {
    words = view.codes.head<uint>(b, h);
    word_stride = view.codes.row_stride<uint>();
    scales = view.scales.head<Scale>(b, h);
    scale_stride = view.scales.row_stride<Scale>();
#if AFFINE
    biases = view.biases.head<Scale>(b, h);
    bias_stride = view.biases.row_stride<Scale>();
#endif
  }
#endif

  METAL_FUNC void start(int) thread {}

  METAL_FUNC bool far() const thread { return false; }  // offsets have 64 bits

  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
#if HAS_PAGES
    first = 0;  // the pointers are those of the block
    words = word_pages.row(row);
    scales = scale_pages.row(row);
#if AFFINE
    biases = bias_pages.row(row);
#endif
#else
    first = row;
#endif
    valid = edge ? min(BT, end - row) : BT;
  }

  METAL_FUNC void pass() thread {}

  METAL_FUNC void release() thread {}

  // A place in the operand
  struct Place {
    int row, column;
  };

  // The first run that this lane copies, of columns [column, column + H) of the current block
  template <int H> METAL_FUNC Place share(int column) const thread {
    const Share<H, RUN> own = Share<H, RUN>::of(lane);
    return {first + own.row, column + own.column};
  }

  METAL_FUNC Place rows_on(Place at, int rows) const thread { return {at.row + rows, at.column}; }

  METAL_FUNC Run<T, 8> run(Place at) const thread {
    const int row = at.row, column = at.column;
#if WHOLE_WORDS
    const Run<uint, BITS / 4> codes =
        *(const device Run<uint, BITS / 4>*)(words + row * word_stride + column / 8 * (BITS / 4));
#else
    // Eight elements take BITS bytes, which may begin and end inside of words.
    const device uint8_t* source = (const device uint8_t*)(words + row * word_stride) + column / 8 * BITS;
    const Run<uint8_t, BITS> bytes = *(const device Run<uint8_t, BITS>*)source;
    ulong codes = 0;
#pragma clang loop unroll(full)
    for (int n = 0; n < BITS; n++) codes |= ulong(bytes.at[n]) << (8 * n);
#endif
    const float scale = scale_of(scales[row * scale_stride + column / GROUP]);
#if AFFINE
    const float bias = float(biases[row * bias_stride + column / GROUP]);
#else
    const float bias = 0;
#endif
    Run<T, 8> values;
#pragma clang loop unroll(full)
    for (int e = 0; e < 8; e++) {
#if WHOLE_WORDS
      const uint code = (codes.at[e * BITS / 32] >> (e * BITS % 32)) & ((1u << BITS) - 1);
#else
      const uint code = uint(codes >> (e * BITS)) & ((1u << BITS) - 1);
#endif
      values.at[e] = T(value_of(code, scale, bias));
    }
    return values;
  }

  METAL_FUNC const threadgroup T* source(int) const thread { return scratch; }
  METAL_FUNC const threadgroup T* next(const threadgroup T* source) const thread { return source; }

  template <int H>
  METAL_FUNC Run<Pair<T>, WIDE> group(const threadgroup T*, int t, int, int d, bool = true) const thread {
    return from_threadgroup<BT, H>(scratch, BH, t, d, lane);
  }

  template <int H> METAL_FUNC Run<Pair<T>, WIDE_ROWS> transposed_group(int t, int d) const thread {
    return from_threadgroup_transposed<BT, H>(scratch, t, d, lane);
  }
};

}  // namespace tile
}  // namespace flash
