// metal_pack: vectors of numbers in [0, 1] or [-1, 1] to and from the bits of one word.
#pragma once
#include "math.h"

namespace metal {

// n bits at `shift`: unsigned ones are q / (2^n - 1), signed ones q / (2^(n-1) - 1) and at least -1.
MSL_INLINE float msl_unorm(uint bits, int shift, int n) {
  const uint largest = (1u << n) - 1;
  return float((bits >> shift) & largest) / float(largest);
}
MSL_INLINE float msl_snorm(uint bits, int shift, int n) {
  const int value = int(bits << (32 - n - shift)) >> (32 - n);
  return max(float(value) / float((1 << (n - 1)) - 1), -1.0f);
}
MSL_INLINE uint msl_to_unorm(float x, int shift, int n) {
  return uint(rint(clamp(x, 0.0f, 1.0f) * float((1u << n) - 1))) << shift;
}
MSL_INLINE uint msl_to_snorm(float x, int shift, int n) {
  const int value = int(rint(clamp(x, -1.0f, 1.0f) * float((1 << (n - 1)) - 1)));
  return (uint(value) & ((1u << n) - 1)) << shift;
}
MSL_INLINE float msl_from_srgb(float x) { return x <= 0.04045f ? x / 12.92f : pow((x + 0.055f) / 1.055f, 2.4f); }
MSL_INLINE float msl_to_srgb(float x) {
  x = clamp(x, 0.0f, 1.0f);
  return x < 0.0031308f ? x * 12.92f : 1.055f * pow(x, 1.0f / 2.4f) - 0.055f;
}

MSL_INLINE float4 unpack_unorm4x8_to_float(uint x) {
  return float4(msl_unorm(x, 0, 8), msl_unorm(x, 8, 8), msl_unorm(x, 16, 8), msl_unorm(x, 24, 8));
}
MSL_INLINE float4 unpack_snorm4x8_to_float(uint x) {
  return float4(msl_snorm(x, 0, 8), msl_snorm(x, 8, 8), msl_snorm(x, 16, 8), msl_snorm(x, 24, 8));
}
MSL_INLINE float4 unpack_unorm4x8_srgb_to_float(uint x) {
  const float4 linear = unpack_unorm4x8_to_float(x);
  return float4(msl_from_srgb(linear.x), msl_from_srgb(linear.y), msl_from_srgb(linear.z), linear.w);
}
MSL_INLINE float2 unpack_unorm2x16_to_float(uint x) { return float2(msl_unorm(x, 0, 16), msl_unorm(x, 16, 16)); }
MSL_INLINE float2 unpack_snorm2x16_to_float(uint x) { return float2(msl_snorm(x, 0, 16), msl_snorm(x, 16, 16)); }
MSL_INLINE float4 unpack_unorm10a2_to_float(uint x) {
  return float4(msl_unorm(x, 0, 10), msl_unorm(x, 10, 10), msl_unorm(x, 20, 10), msl_unorm(x, 30, 2));
}
MSL_INLINE float3 unpack_unorm565_to_float(ushort x) {
  return float3(msl_unorm(x, 11, 5), msl_unorm(x, 5, 6), msl_unorm(x, 0, 5));
}

MSL_INLINE uint pack_float_to_unorm4x8(float4 x) {
  return msl_to_unorm(x.x, 0, 8) | msl_to_unorm(x.y, 8, 8) | msl_to_unorm(x.z, 16, 8) | msl_to_unorm(x.w, 24, 8);
}
MSL_INLINE uint pack_float_to_snorm4x8(float4 x) {
  return msl_to_snorm(x.x, 0, 8) | msl_to_snorm(x.y, 8, 8) | msl_to_snorm(x.z, 16, 8) | msl_to_snorm(x.w, 24, 8);
}
MSL_INLINE uint pack_float_to_srgb_unorm4x8(float4 x) {
  return pack_float_to_unorm4x8(float4(msl_to_srgb(x.x), msl_to_srgb(x.y), msl_to_srgb(x.z), x.w));
}
MSL_INLINE uint pack_float_to_unorm2x16(float2 x) { return msl_to_unorm(x.x, 0, 16) | msl_to_unorm(x.y, 16, 16); }
MSL_INLINE uint pack_float_to_snorm2x16(float2 x) { return msl_to_snorm(x.x, 0, 16) | msl_to_snorm(x.y, 16, 16); }
MSL_INLINE uint pack_float_to_unorm10a2(float4 x) {
  return msl_to_unorm(x.x, 0, 10) | msl_to_unorm(x.y, 10, 10) | msl_to_unorm(x.z, 20, 10) | msl_to_unorm(x.w, 30, 2);
}
MSL_INLINE ushort pack_float_to_unorm565(float3 x) {
  return ushort(msl_to_unorm(x.x, 11, 5) | msl_to_unorm(x.y, 5, 6) | msl_to_unorm(x.z, 0, 5));
}

// The same with half in place of float
#define MSL_PACK_HALF(format, word, N)                                                                                   \
  MSL_INLINE half##N unpack_##format##_to_half(word x) { return half##N(unpack_##format##_to_float(x)); }
MSL_PACK_HALF(unorm4x8, uint, 4) MSL_PACK_HALF(snorm4x8, uint, 4) MSL_PACK_HALF(unorm4x8_srgb, uint, 4)
MSL_PACK_HALF(unorm2x16, uint, 2) MSL_PACK_HALF(snorm2x16, uint, 2) MSL_PACK_HALF(unorm10a2, uint, 4)
MSL_PACK_HALF(unorm565, ushort, 3)
#undef MSL_PACK_HALF
#define MSL_PACK_HALF(format, word, N)                                                                                   \
  MSL_INLINE word pack_half_to_##format(half##N x) { return pack_float_to_##format(float##N(x)); }
MSL_PACK_HALF(unorm4x8, uint, 4) MSL_PACK_HALF(snorm4x8, uint, 4) MSL_PACK_HALF(srgb_unorm4x8, uint, 4)
MSL_PACK_HALF(unorm2x16, uint, 2) MSL_PACK_HALF(snorm2x16, uint, 2) MSL_PACK_HALF(unorm10a2, uint, 4)
MSL_PACK_HALF(unorm565, ushort, 3)
#undef MSL_PACK_HALF

}  // namespace metal
