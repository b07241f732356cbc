// metal_math, metal_common, metal_integer, metal_relational, metal_geometric. Real overloads and not templates for scalars: max(x, 0)
// with a float x is ambiguous in Metal and stays so here.
#pragma once
#include "vector.h"
#include "numeric.h"

#include <target/math.h>
#ifdef MSL_COUNT_CALLS
#define MSL_EXP2(x) msl_exp2(x)
#define MSL_LOG2(x) msl_log2(x)
#define MSL_EXP(x) msl_exp(x)
#define MSL_LOG(x) msl_log(x)
#else
#define MSL_EXP2(x) MSL_C(exp2f)(x)
#define MSL_LOG2(x) MSL_C(log2f)(x)
#define MSL_EXP(x) MSL_C(expf)(x)
#define MSL_LOG(x) MSL_C(logf)(x)
#endif

namespace metal {

template <typename T> struct msl_same { typedef T type; };
template <typename T> using msl_same_t = typename msl_same<T>::type;
// The library has no functions of bfloat. Those here are templates with an empty pack at the end: any function and any template that a
// source declares takes precedence.
template <typename T, typename... Nothing> using msl_only_bfloat = enable_if_t<__is_same(T, bfloat) && sizeof...(Nothing) == 0>;
#define MSL_OF_BFLOAT template <typename B, typename... Nothing, typename = msl_only_bfloat<B, Nothing...>>
// Vectors of integers are left to functions of the same name that a source declares.
template <typename T> using msl_only_floats = enable_if_t<msl_floating_v<T>>;
template <typename T> using msl_only_numbers = enable_if_t<msl_arithmetic_v<T>>;

// A function of every element of its arguments.
#define MSL_CALL1(m, NAME) NAME(x.m)
#define MSL_CALL2(m, NAME) NAME(x.m, y.m)
#define MSL_CALL3(m, NAME) NAME(x.m, y.m, z.m)

// Of vectors, where one of the arguments says which: the others may be numbers.
#define MSL_VECTORS2(NAME, RESULT, ONLY)                                                                                        \
  template <typename T, int N, typename = ONLY<T>> MSL_INLINE auto NAME(vec<T, N> x, msl_same_t<vec<T, N>> y) {                                   \
    MSL_ELEMENTS(RESULT, N, MSL_CALL2, NAME)                                                                              \
  }                                                                                                                       \
  template <typename T, int N, typename S, typename = ONLY<T>, typename = msl_scalar_only<S>> MSL_INLINE auto NAME(S x, vec<T, N> y) {             \
    return NAME(vec<T, N>(x), y);                                                                                         \
  }
#define MSL_VECTORS3(NAME, ONLY)                                                                                                \
  template <typename T, int N, typename = ONLY<T>> MSL_INLINE vec<T, N> NAME(vec<T, N> x, msl_same_t<vec<T, N>> y, msl_same_t<vec<T, N>> z) {         \
    MSL_ELEMENTS(T, N, MSL_CALL3, NAME)                                                                                   \
  }                                                                                                                       \
  template <typename T, int N, typename S, typename = ONLY<T>, typename = msl_scalar_only<S>>                                                     \
  MSL_INLINE vec<T, N> NAME(S x, vec<T, N> y, msl_same_t<vec<T, N>> z) { return NAME(vec<T, N>(x), y, z); }                    \
  template <typename T, int N, typename S, typename U, typename = ONLY<T>, typename = msl_scalar_only<S>, typename = msl_scalar_only<U>>              \
  MSL_INLINE vec<T, N> NAME(S x, U y, vec<T, N> z) { return NAME(vec<T, N>(x), vec<T, N>(y), z); }

#define MSL_FLOAT1(NAME, VALUE)                                                          \
  MSL_INLINE float NAME(float x) { return VALUE; }                                       \
  MSL_INLINE half NAME(half x) { return (half)NAME((float)x); }                          \
  MSL_OF_BFLOAT MSL_INLINE B NAME(B x, Nothing...) { return (B)NAME((float)x); } \
  template <typename T, int N, typename = msl_only_floats<T>> MSL_INLINE vec<T, N> NAME(vec<T, N> x) {                  \
    MSL_ELEMENTS(T, N, MSL_CALL1, NAME)                                                 \
  }
#define MSL_FLOAT2(NAME, VALUE)                                                          \
  MSL_INLINE float NAME(float x, float y) { return VALUE; }                              \
  MSL_INLINE half NAME(half x, half y) { return (half)NAME((float)x, (float)y); }        \
  MSL_OF_BFLOAT MSL_INLINE B NAME(B x, B y, Nothing...) { return (B)NAME((float)x, (float)y); } \
  MSL_VECTORS2(NAME, T, msl_only_floats)
#define MSL_FLOAT3(NAME, VALUE)                                                          \
  MSL_INLINE float NAME(float x, float y, float z) { return VALUE; }                     \
  MSL_INLINE half NAME(half x, half y, half z) { return (half)NAME((float)x, (float)y, (float)z); } \
  MSL_OF_BFLOAT MSL_INLINE B NAME(B x, B y, B z, Nothing...) { return (B)NAME((float)x, (float)y, (float)z); } \
  MSL_VECTORS3(NAME, msl_only_floats)
#define MSL_TEST1(NAME, VALUE)                                                           \
  MSL_INLINE bool NAME(float x) { return VALUE; }                                        \
  MSL_INLINE bool NAME(half x) { return NAME((float)x); }                                \
  MSL_OF_BFLOAT MSL_INLINE bool NAME(B x, Nothing...) { return NAME((float)x); }            \
  template <typename T, int N, typename = msl_only_floats<T>> MSL_INLINE vec<bool, N> NAME(vec<T, N> x) {               \
    MSL_ELEMENTS(bool, N, MSL_CALL1, NAME)                                              \
  }
#define MSL_TEST2(NAME, VALUE)                                                           \
  MSL_INLINE bool NAME(float x, float y) { return VALUE; }                               \
  MSL_INLINE bool NAME(half x, half y) { return NAME((float)x, (float)y); }              \
  MSL_OF_BFLOAT MSL_INLINE bool NAME(B x, B y, Nothing...) { return NAME((float)x, (float)y); } \
  MSL_VECTORS2(NAME, bool, msl_only_floats)

MSL_FLOAT1(exp, MSL_EXP(x)) MSL_FLOAT1(exp2, MSL_EXP2(x)) MSL_FLOAT1(exp10, MSL_EXP(x * 2.30258509299404568402f))
MSL_FLOAT1(log, MSL_LOG(x)) MSL_FLOAT1(log2, MSL_LOG2(x)) MSL_FLOAT1(log10, MSL_C(log10f)(x))
MSL_FLOAT1(sqrt, __builtin_sqrtf(x)) MSL_FLOAT1(rsqrt, 1.0f / __builtin_sqrtf(x))
MSL_FLOAT1(sin, MSL_C(sinf)(x)) MSL_FLOAT1(cos, MSL_C(cosf)(x)) MSL_FLOAT1(tan, MSL_C(tanf)(x)) MSL_FLOAT1(asin, MSL_C(asinf)(x)) MSL_FLOAT1(acos, MSL_C(acosf)(x))
MSL_FLOAT1(atan, MSL_C(atanf)(x)) MSL_FLOAT1(sinh, MSL_C(sinhf)(x)) MSL_FLOAT1(cosh, MSL_C(coshf)(x)) MSL_FLOAT1(tanh, MSL_C(tanhf)(x))
MSL_FLOAT1(asinh, MSL_C(asinhf)(x)) MSL_FLOAT1(acosh, MSL_C(acoshf)(x)) MSL_FLOAT1(atanh, MSL_C(atanhf)(x))
// Of x pi: exact where x is a multiple of 1/2, which x times a rounded pi is not.
MSL_INLINE float msl_sinpi(float x) {
  float r = x - 2.0f * __builtin_rintf(0.5f * x);
  if (__builtin_fabsf(r) > 0.5f) r = __builtin_copysignf(1.0f, r) - r;
  return MSL_C(sinf)(M_PI_F * r);
}
MSL_INLINE float msl_cospi(float x) { return MSL_C(sinf)(M_PI_F * (0.5f - __builtin_fabsf(x - 2.0f * __builtin_rintf(0.5f * x)))); }
MSL_FLOAT1(sinpi, msl_sinpi(x)) MSL_FLOAT1(cospi, msl_cospi(x)) MSL_FLOAT1(tanpi, msl_sinpi(x) / msl_cospi(x))
MSL_FLOAT1(floor, __builtin_floorf(x)) MSL_FLOAT1(ceil, __builtin_ceilf(x)) MSL_FLOAT1(trunc, __builtin_truncf(x))
MSL_FLOAT1(rint, __builtin_rintf(x)) MSL_FLOAT1(round, __builtin_roundf(x)) MSL_FLOAT1(fabs, __builtin_fabsf(x))
MSL_FLOAT1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
MSL_FLOAT1(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f)
MSL_FLOAT2(pow, MSL_C(powf)(x, y)) MSL_FLOAT2(powr, MSL_C(powf)(x, y)) MSL_FLOAT2(atan2, MSL_C(atan2f)(x, y)) MSL_FLOAT2(fmod, MSL_C(fmodf)(x, y))
MSL_FLOAT2(fmin, __builtin_fminf(x, y)) MSL_FLOAT2(fmax, __builtin_fmaxf(x, y)) MSL_FLOAT2(fdim, x > y ? x - y : x <= y ? 0.0f : x + y)
MSL_FLOAT2(copysign, __builtin_copysignf(x, y)) MSL_FLOAT2(divide, x / y) MSL_FLOAT2(step, y < x ? 0.0f : 1.0f)
MSL_FLOAT3(fma, __builtin_fmaf(x, y, z)) MSL_FLOAT3(mix, x + (y - x) * z)
MSL_FLOAT3(smoothstep, ({ float t = __builtin_fminf(__builtin_fmaxf((z - x) / (y - x), 0.0f), 1.0f); t * t * (3 - 2 * t); }))
MSL_FLOAT3(fmin3, __builtin_fminf(x, __builtin_fminf(y, z))) MSL_FLOAT3(fmax3, __builtin_fmaxf(x, __builtin_fmaxf(y, z)))
MSL_FLOAT3(fmedian3, __builtin_fmaxf(__builtin_fminf(x, y), __builtin_fminf(__builtin_fmaxf(x, y), z)))
MSL_TEST1(isnan, __builtin_isnan(x)) MSL_TEST1(isinf, __builtin_isinf(x)) MSL_TEST1(isfinite, !__builtin_isnan(x) && !__builtin_isinf(x))
MSL_TEST1(isnormal, __builtin_isnormal(x)) MSL_TEST1(signbit, (as_type<uint>(x) >> 31) != 0)

MSL_TEST2(isordered, !__builtin_isunordered(x, y)) MSL_TEST2(isunordered, __builtin_isunordered(x, y))

// The largest value below 1 depends on the type, and so does the next value.
MSL_INLINE float fract(float x) { return __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f); }
MSL_INLINE half fract(half x) { return (half)__builtin_fminf((float)x - __builtin_floorf((float)x), 0x1.ffcp-1f); }
template <typename T, int N> MSL_INLINE vec<T, N> fract(vec<T, N> x) { MSL_ELEMENTS(T, N, MSL_CALL1, fract) }
MSL_INLINE float nextafter(float x, float y) { return MSL_C(nextafterf)(x, y); }
MSL_INLINE half nextafter(half x, half y) {
  if (x == y || x != x || y != y) return x == y ? y : x + y;
  if (x == 0) return __builtin_bit_cast(half, (ushort)(y > 0 ? 1 : 0x8001));
  const ushort bits = __builtin_bit_cast(ushort, x);
  return __builtin_bit_cast(half, (ushort)((x < y) == (x > 0) ? bits + 1 : bits - 1));
}
MSL_VECTORS2(nextafter, T, msl_only_floats)

MSL_INLINE float ldexp(float x, int k) { return MSL_C(ldexpf)(x, k); }
MSL_INLINE half ldexp(half x, int k) { return (half)MSL_C(ldexpf)((float)x, k); }
MSL_OF_BFLOAT MSL_INLINE B ldexp(B x, int k, Nothing...) { return (B)MSL_C(ldexpf)((float)x, k); }
MSL_INLINE int ilogb(float x) { return MSL_C(ilogbf)(x); }
MSL_INLINE float sincos(float x, thread float& c) { c = MSL_C(cosf)(x); return MSL_C(sinf)(x); }
MSL_INLINE half sincos(half x, thread half& c) { c = (half)MSL_C(cosf)((float)x); return (half)MSL_C(sinf)((float)x); }
MSL_INLINE float frexp(float x, thread int& e) { return MSL_C(frexpf)(x, &e); }
MSL_INLINE half frexp(half x, thread int& e) { return (half)MSL_C(frexpf)((float)x, &e); }
MSL_INLINE float modf(float x, thread float& whole) { return MSL_C(modff)(x, &whole); }
MSL_INLINE half modf(half x, thread half& whole) { whole = (half)__builtin_truncf((float)x); return x - whole; }

template <typename T, int N> MSL_INLINE vec<T, N> ldexp(vec<T, N> x, msl_same_t<vec<int, N>> y) { MSL_ELEMENTS(T, N, MSL_CALL2, ldexp) }
template <typename T, int N> MSL_INLINE vec<int, N> ilogb(vec<T, N> x) { MSL_ELEMENTS(int, N, MSL_CALL1, ilogb) }
// Those with a second result
#define MSL_TWO_RESULTS(NAME, SECOND)                                                     \
  template <typename T, int N> MSL_INLINE vec<T, N> NAME(vec<T, N> x, thread vec<SECOND, N>& second) { \
    vec<T, N> first;                                                                      \
    for (int i = 0; i < N; ++i) {                                                         \
      SECOND other;                                                                       \
      first.set(i, NAME(x.at(i), other));                                                 \
      second.set(i, other);                                                               \
    }                                                                                     \
    return first;                                                                         \
  }
MSL_TWO_RESULTS(sincos, T) MSL_TWO_RESULTS(frexp, int) MSL_TWO_RESULTS(modf, T)

// Everything that exists for floats and integers alike.
#define MSL_ORDERED(T, MIN, MAX)                                                                        \
  MSL_INLINE constexpr T min(T x, T y) { return MIN; }                                                  \
  MSL_INLINE constexpr T max(T x, T y) { return MAX; }                                                  \
  MSL_INLINE constexpr T min3(T x, T y, T z) { return min(min(x, y), z); }                              \
  MSL_INLINE constexpr T max3(T x, T y, T z) { return max(max(x, y), z); }                              \
  MSL_INLINE constexpr T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); }           \
  MSL_INLINE constexpr T clamp(T x, T low, T high) { return min(max(x, low), high); }
#define MSL_INTEGER(T)                                                                                  \
  MSL_ORDERED(T, y < x ? y : x, x < y ? y : x)                                                          \
  MSL_INLINE constexpr T abs(T x) { return x < 0 ? (T)(-x) : x; }                                       \
  MSL_INLINE constexpr make_unsigned_t<T> absdiff(T x, T y) {                                           \
    return x < y ? (make_unsigned_t<T>)y - (make_unsigned_t<T>)x : (make_unsigned_t<T>)x - (make_unsigned_t<T>)y; \
  }                                                                                                     \
  MSL_INLINE constexpr T popcount(T x) { return (T)__builtin_popcountl((ulong)(make_unsigned_t<T>)x); } \
  MSL_INLINE constexpr T clz(T x) {                                                                     \
    return (T)(x ? __builtin_clzl((ulong)(make_unsigned_t<T>)x) - (64 - 8 * (int)sizeof(T)) : 8 * (int)sizeof(T)); \
  }                                                                                                     \
  MSL_INLINE constexpr T ctz(T x) { return (T)(x ? __builtin_ctzl((ulong)x) : 8 * (int)sizeof(T)); }   \
  MSL_INLINE constexpr T rotate(T x, T n) {                                                             \
    using U = make_unsigned_t<T>;                                                                       \
    int k = (int)((U)n % (8 * sizeof(T)));                                                              \
    return k ? (T)(((U)x << k) | ((U)x >> (8 * sizeof(T) - k))) : x;                                    \
  }                                                                                                     \
  MSL_INLINE constexpr T reverse_bits(T x) {                                                            \
    T r = 0;                                                                                            \
    for (uint i = 0; i < 8 * sizeof(T); ++i) r = (T)(((make_unsigned_t<T>)r << 1) | (((make_unsigned_t<T>)x >> i) & 1)); \
    return r;                                                                                           \
  }                                                                                                     \
  MSL_INLINE constexpr T mulhi(T x, T y) {                                                              \
    if constexpr (__is_signed(T)) return (T)(((__int128)x * y) >> (8 * sizeof(T)));                     \
    else return (T)(((unsigned __int128)x * y) >> (8 * sizeof(T)));                                     \
  }                                                                                                     \
  MSL_INLINE constexpr T madsat(T x, T y, T z) {                                                        \
    if constexpr (__is_signed(T)) {                                                                     \
      __int128 s = (__int128)x * y + z;                                                                 \
      return s > numeric_limits<T>::max() ? numeric_limits<T>::max() : s < numeric_limits<T>::min() ? numeric_limits<T>::min() : (T)s; \
    } else {                                                                                            \
      unsigned __int128 s = (unsigned __int128)x * y + z;                                               \
      return s > numeric_limits<T>::max() ? numeric_limits<T>::max() : (T)s;                            \
    }                                                                                                   \
  }                                                                                                     \
  MSL_INLINE constexpr T madhi(T x, T y, T z) { return mulhi(x, y) + z; }                               \
  MSL_INLINE constexpr T hadd(T x, T y) { return (T)(((__int128)x + y) >> 1); }                         \
  MSL_INLINE constexpr T rhadd(T x, T y) { return (T)(((__int128)x + y + 1) >> 1); }                    \
  MSL_INLINE constexpr T addsat(T x, T y) {                                                             \
    __int128 s = (__int128)x + y;                                                                       \
    return s > numeric_limits<T>::max() ? numeric_limits<T>::max() : s < numeric_limits<T>::min() ? numeric_limits<T>::min() : (T)s; \
  }                                                                                                     \
  MSL_INLINE constexpr T subsat(T x, T y) {                                                             \
    __int128 s = (__int128)x - y;                                                                       \
    return s > numeric_limits<T>::max() ? numeric_limits<T>::max() : s < numeric_limits<T>::min() ? numeric_limits<T>::min() : (T)s; \
  }                                                                                                     \
  MSL_INLINE constexpr T extract_bits(T x, uint offset, uint bits) {                                    \
    uint width = 8 * sizeof(T);                                                                         \
    if (bits == 0) return 0;                                                                            \
    return (T)((T)((make_unsigned_t<T>)x << (width - bits - offset)) >> (width - bits));                \
  }                                                                                                     \
  MSL_INLINE constexpr T insert_bits(T base, T insert, uint offset, uint bits) {                        \
    make_unsigned_t<T> mask = (make_unsigned_t<T>)((bits >= 64 ? ~0ul : (1ul << bits) - 1) << offset);  \
    return (T)((base & ~mask) | (((make_unsigned_t<T>)insert << offset) & mask));                       \
  }
MSL_INTEGER(char) MSL_INTEGER(uchar) MSL_INTEGER(short) MSL_INTEGER(ushort)
MSL_INTEGER(int) MSL_INTEGER(uint) MSL_INTEGER(long) MSL_INTEGER(ulong)
MSL_ORDERED(float, __builtin_fminf(x, y), __builtin_fmaxf(x, y))
MSL_ORDERED(half, (half)__builtin_fminf((float)x, (float)y), (half)__builtin_fmaxf((float)x, (float)y))
#define MSL_ORDERED_BFLOAT(NAME, PARAMETERS, VALUE) \
  MSL_OF_BFLOAT MSL_INLINE constexpr B NAME PARAMETERS { return (B)VALUE; }
MSL_ORDERED_BFLOAT(min, (B x, B y, Nothing...), min((float)x, (float)y)) MSL_ORDERED_BFLOAT(max, (B x, B y, Nothing...), max((float)x, (float)y))
MSL_ORDERED_BFLOAT(min3, (B x, B y, B z, Nothing...), min3((float)x, (float)y, (float)z))
MSL_ORDERED_BFLOAT(max3, (B x, B y, B z, Nothing...), max3((float)x, (float)y, (float)z))
MSL_ORDERED_BFLOAT(median3, (B x, B y, B z, Nothing...), median3((float)x, (float)y, (float)z))
MSL_ORDERED_BFLOAT(clamp, (B x, B y, B z, Nothing...), clamp((float)x, (float)y, (float)z))
MSL_INLINE float abs(float x) { return __builtin_fabsf(x); }
MSL_INLINE half abs(half x) { return (half)__builtin_fabsf((float)x); }
MSL_OF_BFLOAT MSL_INLINE B abs(B x, Nothing...) { return (B)__builtin_fabsf((float)x); }
// The low 32 bits, which may wrap
MSL_INLINE uint mul24(uint x, uint y) { return (x & 0xffffff) * (y & 0xffffff); }
MSL_INLINE int mul24(int x, int y) { return (int)((uint)((int)((uint)x << 8) >> 8) * (uint)((int)((uint)y << 8) >> 8)); }
MSL_INLINE int mad24(int x, int y, int z) { return (int)((uint)mul24(x, y) + (uint)z); }
MSL_INLINE uint mad24(uint x, uint y, uint z) { return mul24(x, y) + z; }

#define MSL_EACH1(NAME)                                                                   \
  template <typename T, int N> MSL_INLINE auto NAME(vec<T, N> x) {                        \
    MSL_ELEMENTS(decltype(NAME(x.at(0))), N, MSL_CALL1, NAME)                           \
  }
#define MSL_EACH2(NAME) MSL_VECTORS2(NAME, decltype(NAME(x.at(0), y.at(0))), msl_only_numbers)
#define MSL_EACH3(NAME) MSL_VECTORS3(NAME, msl_only_numbers)
MSL_EACH1(abs) MSL_EACH1(popcount) MSL_EACH1(clz) MSL_EACH1(ctz) MSL_EACH1(reverse_bits)
MSL_EACH2(min) MSL_EACH2(max) MSL_EACH2(absdiff) MSL_EACH2(rotate) MSL_EACH2(mulhi) MSL_EACH2(hadd) MSL_EACH2(rhadd)
MSL_EACH2(addsat) MSL_EACH2(subsat) MSL_EACH2(mul24)
MSL_EACH3(clamp) MSL_EACH3(min3) MSL_EACH3(max3) MSL_EACH3(median3) MSL_EACH3(madhi) MSL_EACH3(madsat)
MSL_EACH3(mad24)
template <typename T, int N> MSL_INLINE vec<T, N> extract_bits(vec<T, N> x, uint offset, uint bits) {
#define MSL_EXTRACTED(m, ...) extract_bits(x.m, offset, bits)
  MSL_ELEMENTS(T, N, MSL_EXTRACTED)
}
template <typename T, int N> MSL_INLINE vec<T, N> insert_bits(vec<T, N> x, msl_same_t<vec<T, N>> y, uint offset, uint bits) {
#define MSL_INSERTED(m, ...) insert_bits(x.m, y.m, offset, bits)
  MSL_ELEMENTS(T, N, MSL_INSERTED)
}

template <typename T, typename = enable_if_t<msl_arithmetic_v<T>>>
MSL_INLINE constexpr T select(T no, T yes, bool c) { return c ? yes : no; }
#define MSL_CHOSEN(m, ...) c.m ? yes.m : no.m
template <typename T, int N> MSL_INLINE vec<T, N> select(vec<T, N> no, msl_same_t<vec<T, N>> yes, msl_same_t<vec<bool, N>> c) {
  MSL_ELEMENTS(T, N, MSL_CHOSEN)
}
template <typename T, int N, typename S, typename = msl_scalar_only<S>>
MSL_INLINE vec<T, N> select(S no, vec<T, N> yes, vec<bool, N> c) { return select(vec<T, N>(no), yes, c); }
MSL_INLINE bool any(bool x) { return x; }
MSL_INLINE bool all(bool x) { return x; }
template <int N> MSL_INLINE bool any(vec<bool, N> x) { bool r = false; for (int i = 0; i < N; ++i) r |= x.at(i); return r; }
template <int N> MSL_INLINE bool all(vec<bool, N> x) { bool r = true; for (int i = 0; i < N; ++i) r &= x.at(i); return r; }

template <typename T, int N> MSL_INLINE T dot(vec<T, N> x, msl_same_t<vec<T, N>> y) {
  static_assert(msl_floating_v<T>, "the geometric functions take vectors of floating point, not of integers");
  T sum = x.x * y.x;
  for (int i = 1; i < N; ++i) sum += x.at(i) * y.at(i);
  return sum;
}
template <typename T, int N> MSL_INLINE T length_squared(vec<T, N> x) { return dot(x, x); }
template <typename T, int N> MSL_INLINE T length(vec<T, N> x) { return sqrt(dot(x, x)); }
template <typename T, int N> MSL_INLINE T distance(vec<T, N> x, msl_same_t<vec<T, N>> y) { return length(x - y); }
template <typename T, int N> MSL_INLINE T distance_squared(vec<T, N> x, msl_same_t<vec<T, N>> y) { return length_squared(x - y); }
template <typename T, int N> MSL_INLINE vec<T, N> normalize(vec<T, N> x) { return x * rsqrt(dot(x, x)); }
template <typename T, int N> MSL_INLINE vec<T, N> reflect(vec<T, N> incident, msl_same_t<vec<T, N>> normal) {
  return incident - normal * (T(2) * dot(normal, incident));
}
template <typename T, int N> MSL_INLINE vec<T, N> refract(vec<T, N> incident, msl_same_t<vec<T, N>> normal, msl_same_t<T> ratio) {
  const T along = dot(normal, incident), k = T(1) - ratio * ratio * (T(1) - along * along);
  return k < T(0) ? vec<T, N>(T(0)) : incident * ratio - normal * (ratio * along + sqrt(k));
}
template <typename T, int N>
MSL_INLINE vec<T, N> faceforward(vec<T, N> normal, msl_same_t<vec<T, N>> incident, msl_same_t<vec<T, N>> reference) {
  if (dot(reference, incident) < T(0)) return normal;
  return -normal;
}
template <typename T> MSL_INLINE vec<T, 3> cross(vec<T, 3> a, msl_same_t<vec<T, 3>> b) {
  static_assert(msl_floating_v<T>, "the geometric functions take vectors of floating point, not of integers");
  return vec<T, 3>(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}

// Of a packed vector; one behind another vector converts.
#define MSL_OF_PACKED1(NAME) \
  template <typename T, int N> MSL_INLINE auto NAME(packed_vec<T, N> x) { return NAME(vec<T, N>(x)); }
#define MSL_OF_PACKED2(NAME) \
  template <typename T, int N> MSL_INLINE auto NAME(packed_vec<T, N> x, msl_same_t<vec<T, N>> y) { return NAME(vec<T, N>(x), y); }
MSL_OF_PACKED1(length) MSL_OF_PACKED1(length_squared) MSL_OF_PACKED1(normalize)
MSL_OF_PACKED2(dot) MSL_OF_PACKED2(distance) MSL_OF_PACKED2(distance_squared) MSL_OF_PACKED2(cross)

#define MSL_VARIANT                                                                                                   \
  using metal::exp; using metal::exp2; using metal::exp10; using metal::log; using metal::log2; using metal::log10;   \
  using metal::sqrt; using metal::rsqrt; using metal::sin; using metal::cos; using metal::tan; using metal::asin;     \
  using metal::acos; using metal::atan; using metal::sinh; using metal::cosh; using metal::tanh; using metal::asinh;  \
  using metal::acosh; using metal::atanh; using metal::sinpi; using metal::cospi; using metal::tanpi; using metal::floor; \
  using metal::ceil; using metal::trunc; using metal::rint; using metal::round; using metal::fabs; using metal::fract; \
  using metal::saturate; using metal::sign; using metal::pow; using metal::powr; using metal::atan2; using metal::fmod; \
  using metal::fmin; using metal::fmax; using metal::fdim; using metal::copysign; using metal::divide; using metal::step; \
  using metal::fma; using metal::mix; using metal::fmin3; using metal::fmax3; using metal::fmedian3; using metal::isnan; \
  using metal::isinf; using metal::isfinite; using metal::isnormal; using metal::signbit; using metal::ldexp;         \
  using metal::sincos; using metal::frexp; using metal::modf; using metal::min; using metal::max; using metal::min3;  \
  using metal::max3; using metal::median3; using metal::clamp; using metal::abs; using metal::smoothstep;             \
  using metal::length; using metal::normalize; using metal::distance; using metal::dot; using metal::length_squared;  \
  using metal::distance_squared; using metal::ilogb; using metal::nextafter; using metal::cross; using metal::reflect;   \
  using metal::refract; using metal::faceforward; using metal::isordered; using metal::isunordered;
namespace fast { MSL_VARIANT }
namespace precise { MSL_VARIANT }

}  // namespace metal
