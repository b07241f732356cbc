// Limits and the constants of metal_math.
#pragma once
#include "types.h"

#define INFINITY (msl_float(__builtin_inff()))
#define NAN (msl_float(__builtin_nanf("")))
#define HUGE_VALF (msl_float(__builtin_inff()))
#define MAXFLOAT 3.402823466e+38f
#define MAXHALF 65504.0h
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN (msl_float(1.175494351e-38f))
#define FLT_EPSILON (msl_float(1.192092896e-07f))
#define FLT_DIG 6
#define FLT_MANT_DIG 24
#define FLT_MAX_EXP 128
#define FLT_MIN_EXP (-125)
#define FLT_MAX_10_EXP 38
#define FLT_MIN_10_EXP (-37)
#define FLT_RADIX 2
#define FP_ILOGB0 (-2147483647 - 1)
#define FP_ILOGBNAN (-2147483647 - 1)
#define HALF_MAX 65504.0h
#define HALF_MIN 6.103515625e-05h
#define HALF_EPSILON 0.0009765625h
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.43429448190325182765f
#define M_LN2_F 0.69314718055994530942f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.78539816339744830962f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f
#define HALF_DIG 3
#define HALF_MANT_DIG 11
#define HALF_MAX_EXP 16
#define HALF_MIN_EXP (-13)
#define HALF_MAX_10_EXP 4
#define HALF_MIN_10_EXP (-4)
#define HALF_RADIX 2
#define HUGE_VALH ((half)msl_float(__builtin_inff()))
#define M_E_H 2.71828182845904523536h
#define M_E_BF ((bfloat)2.71828182845904523536f)
#define M_LOG2E_H 1.44269504088896340736h
#define M_LOG2E_BF ((bfloat)1.44269504088896340736f)
#define M_LOG10E_H 0.43429448190325182765h
#define M_LOG10E_BF ((bfloat)0.43429448190325182765f)
#define M_LN2_H 0.69314718055994530942h
#define M_LN2_BF ((bfloat)0.69314718055994530942f)
#define M_LN10_H 2.30258509299404568402h
#define M_LN10_BF ((bfloat)2.30258509299404568402f)
#define M_PI_H 3.14159265358979323846h
#define M_PI_BF ((bfloat)3.14159265358979323846f)
#define M_PI_2_H 1.57079632679489661923h
#define M_PI_2_BF ((bfloat)1.57079632679489661923f)
#define M_PI_4_H 0.78539816339744830962h
#define M_PI_4_BF ((bfloat)0.78539816339744830962f)
#define M_1_PI_H 0.31830988618379067154h
#define M_1_PI_BF ((bfloat)0.31830988618379067154f)
#define M_2_PI_H 0.63661977236758134308h
#define M_2_PI_BF ((bfloat)0.63661977236758134308f)
#define M_2_SQRTPI_H 1.12837916709551257390h
#define M_2_SQRTPI_BF ((bfloat)1.12837916709551257390f)
#define M_SQRT2_H 1.41421356237309504880h
#define M_SQRT2_BF ((bfloat)1.41421356237309504880f)
#define M_SQRT1_2_H 0.70710678118654752440h
#define M_SQRT1_2_BF ((bfloat)0.70710678118654752440f)
#define CHAR_BIT 8
#define SCHAR_MAX 127
#define SCHAR_MIN (-128)
#define CHAR_MAX 127
#define CHAR_MIN (-128)
#define UCHAR_MAX 255
#define SHRT_MAX 32767
#define SHRT_MIN (-32768)
#define USHRT_MAX 65535
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define LONG_MAX 9223372036854775807l
#define LONG_MIN (-9223372036854775807l - 1)
#define ULONG_MAX 18446744073709551615ul

namespace metal {

// Sources in the wild specialise the first by its name in Apple's headers.
template <typename T> struct _numeric_limits_impl {
  static constant constexpr bool is_specialized = false;
};
template <typename T> struct numeric_limits : _numeric_limits_impl<__remove_cv(T)> {};

template <typename T> struct msl_integer_limits {
  static constant constexpr bool is_specialized = true, is_signed = __is_signed(T), is_integer = true, is_exact = true;
  static constant constexpr bool has_infinity = false, has_quiet_NaN = false;
  static constant constexpr int radix = 2, digits = sizeof(T) * 8 - __is_signed(T), digits10 = digits * 30103 / 100000;
  MSL_INLINE static constexpr T max() { return (T)(~0ul >> (64 - digits)); }
  MSL_INLINE static constexpr T min() { return __is_signed(T) ? (T)(-(long)max() - 1) : (T)0; }
  MSL_INLINE static constexpr T lowest() { return min(); }
  MSL_INLINE static constexpr T epsilon() { return 0; }
  MSL_INLINE static constexpr T infinity() { return 0; }
  MSL_INLINE static constexpr T quiet_NaN() { return 0; }
};
#define MSL_INTEGER_LIMITS(T) template <> struct _numeric_limits_impl<T> : msl_integer_limits<T> {};
MSL_INTEGER_LIMITS(char) MSL_INTEGER_LIMITS(int8_t) MSL_INTEGER_LIMITS(uint8_t) MSL_INTEGER_LIMITS(short) MSL_INTEGER_LIMITS(ushort)
MSL_INTEGER_LIMITS(int) MSL_INTEGER_LIMITS(uint) MSL_INTEGER_LIMITS(long) MSL_INTEGER_LIMITS(ulong)
template <> struct _numeric_limits_impl<bool> : msl_integer_limits<bool> {
  MSL_INLINE static constexpr bool max() { return true; }
  MSL_INLINE static constexpr bool min() { return false; }
};

#define MSL_FLOAT_LIMITS(T, DIGITS, DIGITS10, MAX, MIN, EPSILON, DENORMAL, EXPONENT)                          \
  template <> struct _numeric_limits_impl<T> {                                                                \
    static constant constexpr bool is_specialized = true, is_signed = true, is_integer = false, is_exact = false; \
    static constant constexpr bool has_infinity = true, has_quiet_NaN = true, is_iec559 = true;               \
    static constant constexpr int radix = 2, digits = DIGITS, digits10 = DIGITS10, max_exponent = EXPONENT;   \
    static constant constexpr int min_exponent = 3 - EXPONENT, max_digits10 = 2 + DIGITS * 30103 / 100000;    \
    MSL_INLINE static constexpr T max() { return msl_limit((T)MAX); }                                         \
    MSL_INLINE static constexpr T min() { return msl_limit((T)MIN); }                                         \
    MSL_INLINE static constexpr T lowest() { return msl_limit((T)(-MAX)); }                                   \
    MSL_INLINE static constexpr T epsilon() { return msl_limit((T)EPSILON); }                                 \
    MSL_INLINE static constexpr T round_error() { return msl_limit((T)0.5f); }                                \
    MSL_INLINE static constexpr T infinity() { return msl_limit((T)__builtin_inff()); }                       \
    MSL_INLINE static constexpr T quiet_NaN() { return msl_limit((T)__builtin_nanf("")); }                    \
    MSL_INLINE static constexpr T signaling_NaN() { return msl_limit((T)__builtin_nanf("")); }                \
    MSL_INLINE static constexpr T denorm_min() { return msl_limit((T)DENORMAL); }                             \
  };
MSL_FLOAT_LIMITS(float, 24, 6, 0x1.fffffep127f, 0x1p-126f, 0x1p-23f, 0x1p-149f, 128)
MSL_FLOAT_LIMITS(half, 11, 3, 65504.0f, 0x1p-14f, 0x1p-10f, 0x1p-24f, 16)
MSL_FLOAT_LIMITS(bfloat, 8, 2, 0x1.fep127f, 0x1p-126f, 0x1p-7f, 0x1p-133f, 128)

}  // namespace metal

// The bits of a value as another type of the same size.
template <typename To, typename From> MSL_INLINE constexpr To as_type(From value) {
  static_assert(metal::msl_arithmetic_v<metal::make_scalar_t<To>> && metal::msl_arithmetic_v<metal::make_scalar_t<From>>, "as_type takes numbers and vectors");
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of equal size");
  return __builtin_bit_cast(To, value);
}
