// The float functions that no instruction of an NVIDIA GPU computes, within a few units in the last place and over the whole range.
// Only plain arithmetic, so that it can be tested on any machine. Tests include it as C.
//
// Polynomials: Cephes (Moshier, single precision). Reduction of large angles: Payne and Hanek.
#pragma once

#define MSL_C(NAME) NAME  // the function of this name

#ifndef MSL_PRIVATE
#define MSL_PRIVATE __private
#endif
#ifndef MSL_EX2  // 2^x by the hardware, relative error below 2^-22; flushes what is subnormal
MSL_INLINE float msl_ex2(float x) {
  float result;
  __asm__("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#define MSL_EX2 msl_ex2
#endif
#ifndef MSL_BITS
#define MSL_BITS(x) __builtin_bit_cast(uint, x)
#define MSL_FLOAT(x) __builtin_bit_cast(float, x)
#endif

// What a rounding leaves over is computed below: no product may melt into a sum.
#pragma clang fp contract(off)

MSL_INLINE float exp2f(float x) { return MSL_EX2(x); }

// e^x = 2^t (1 + r ln 2), where t + r = x log2(e) to twice the precision
MSL_INLINE float expf(float x) {
  const float t = x * 0x1.715476p+0f;
  float r = __builtin_fmaf(x, 0x1.4ae0cp-26f, __builtin_fmaf(x, 0x1.715476p+0f, -t));
  if (!(__builtin_fabsf(t) < 300.0f)) r = 0.0f;
  const float power = MSL_EX2(t);
  return r == 0.0f || power == __builtin_inff() ? power : __builtin_fmaf(power, r * 0.693147181f, power);
}

// x = m 2^exponent with m in [sqrt(1/2), sqrt(2)); x positive and finite
MSL_INLINE float msl_split(float x, MSL_PRIVATE float* exponent) {
  float scale = 0.0f;
  if (x < 0x1p-126f) {
    x *= 0x1p24f;
    scale = -24.0f;
  }
  const int e = (int)(MSL_BITS(x) - 0x3f3504f3u) >> 23;
  *exponent = (float)e + scale;
  return MSL_FLOAT(MSL_BITS(x) - ((uint)e << 23));
}
// log(m) = 2 artanh(s), s = (m - 1) / (m + 1)
MSL_INLINE float msl_log_mantissa(float m) {
  const float f = m - 1.0f, s = f / (2.0f + f), z = s * s;
  const float tail = z * (0.666666667f + z * (0.4f + z * (0.285714286f + z * (0.222222222f + z * 0.181818182f))));
  // 2 s = f - f s, where f is exact
  return f - s * (f - tail);
}
#define MSL_LOGARITHM(NAME, OF_TWO, FACTOR)                                            \
  MSL_INLINE float NAME(float x) {                                                     \
    if (!(x > 0.0f)) return x == 0.0f ? -__builtin_inff() : __builtin_nanf("");        \
    if (x == __builtin_inff()) return x;                                               \
    float exponent;                                                                    \
    const float mantissa = msl_log_mantissa(msl_split(x, &exponent));                  \
    return OF_TWO(exponent) + mantissa * FACTOR;                                       \
  }
#define MSL_LN_OF_TWO(e) (e) * 0x1.62e4p-1f + (e) * 0x1.7f7d1cp-20f
#define MSL_LOG2_OF_TWO(e) (e)
#define MSL_LOG10_OF_TWO(e) (e) * 0x1.344p-2f + (e) * 0x1.3509f8p-18f
MSL_LOGARITHM(logf, MSL_LN_OF_TWO, 1.0f)
MSL_LOGARITHM(log2f, MSL_LOG2_OF_TWO, 1.44269504f)
MSL_LOGARITHM(log10f, MSL_LOG10_OF_TWO, 0.434294482f)
MSL_INLINE float log1pf(float x) {
  const float u = 1.0f + x;
  if (u == 1.0f || u == __builtin_inff()) return x;
  return logf(u) * (x / (u - 1.0f));
}

MSL_INLINE float tanhf(float x) {
  const float a = __builtin_fabsf(x), z = x * x;
  if (a < 0.625f) {
    return x + x * z * (-3.33332819e-1f + z * (1.33314422e-1f + z * (-5.37397156e-2f + z * (2.06390888e-2f - z * 5.70498873e-3f))));
  }
  return __builtin_copysignf(1.0f - 2.0f / (expf(2.0f * a) + 1.0f), x);
}
MSL_INLINE float msl_half_exp(float x) {  // e^x / 2
  if (x < 88.0f) return 0.5f * expf(x);
  const float root = expf(0.5f * x);
  return 0.5f * root * root;
}
MSL_INLINE float sinhf(float x) {
  const float a = __builtin_fabsf(x), z = x * x;
  if (a < 1.0f) return x + x * z * (1.66667160e-1f + z * (8.33028376e-3f + z * 2.03721912e-4f));
  const float half_power = msl_half_exp(a);
  return __builtin_copysignf(half_power - 0.25f / half_power, x);
}
MSL_INLINE float coshf(float x) {
  const float half_power = msl_half_exp(__builtin_fabsf(x));
  return half_power + 0.25f / half_power;
}
MSL_INLINE float asinhf(float x) {
  const float a = __builtin_fabsf(x);
  if (a > 1e9f) return __builtin_copysignf(logf(a) + 0.693147181f, x);
  return __builtin_copysignf(log1pf(a + a * a / (1.0f + __builtin_sqrtf(1.0f + a * a))), x);
}
MSL_INLINE float acoshf(float x) {
  if (x > 1e9f) return logf(x) + 0.693147181f;
  if (!(x >= 1.0f)) return __builtin_nanf("");
  const float t = x - 1.0f;
  return log1pf(t + __builtin_sqrtf(t * (x + 1.0f)));
}
MSL_INLINE float atanhf(float x) {
  const float a = __builtin_fabsf(x);
  return __builtin_copysignf(0.5f * log1pf(2.0f * a / (1.0f - a)), x);
}

MSL_INLINE float msl_asin_small(float x, float z) {  // |x| <= 0.5, z = x^2
  return x + x * z * (1.66667524e-1f + z * (7.49530027e-2f + z * (4.54700260e-2f + z * (2.41813110e-2f + z * 4.21631990e-2f))));
}
MSL_INLINE float asinf(float x) {
  const float a = __builtin_fabsf(x), z = 0.5f * (1.0f - a);
  if (!(a > 0.5f)) return msl_asin_small(x, x * x);
  return __builtin_copysignf(1.57079633f - 2.0f * msl_asin_small(__builtin_sqrtf(z), z), x);
}
MSL_INLINE float acosf(float x) {
  const float a = __builtin_fabsf(x), z = 0.5f * (1.0f - a);
  if (!(a > 0.5f)) return 1.57079633f - msl_asin_small(x, x * x);
  const float twice = 2.0f * msl_asin_small(__builtin_sqrtf(z), z);
  return x < 0.0f ? 3.14159265f - twice : twice;
}
MSL_INLINE float atanf(float x) {
  float a = __builtin_fabsf(x), base = 0.0f;
  if (a > 2.41421356f) {
    base = 1.57079633f;
    a = -1.0f / a;
  } else if (a > 0.414213562f) {
    base = 0.785398163f;
    a = (a - 1.0f) / (a + 1.0f);
  }
  const float z = a * a;
  const float tail = a * z * (-3.33329492e-1f + z * (1.99777106e-1f + z * (-1.38776856e-1f + z * 8.05374450e-2f)));
  return __builtin_copysignf(base + (a + tail), x);
}
MSL_INLINE float atan2f(float y, float x) {
  const float ay = __builtin_fabsf(y), ax = __builtin_fabsf(x);
  if (x != x || y != y) return x + y;
  const float ratio = ay == ax ? (ay == 0.0f ? 0.0f : 1.0f) : ay / ax;
  const float angle = atanf(ratio);
  return __builtin_copysignf(MSL_BITS(x) >> 31 ? 3.14159265f - angle : angle, y);
}

// x - quadrant pi/2, in [-pi/4, pi/4]
MSL_INLINE float msl_reduce_angle(float x, MSL_PRIVATE int* quadrant) {
  if (__builtin_fabsf(x) < 50000.0f) {
    const float k = __builtin_rintf(x * 0.636619772f);
    *quadrant = (int)k;
    return __builtin_fmaf(k, 0x1.ee59dap-50f, __builtin_fmaf(k, 0x1.777a5cp-25f, __builtin_fmaf(k, -0x1.921fb6p+0f, x)));
  }
  if (!(__builtin_fabsf(x) < __builtin_inff())) {
    *quadrant = 0;
    return x - x;
  }
  // The 96 bits of 2 / pi that matter: those before make whole turns, those behind vanish.
  const uint inverse[8] = {0,           0x28be60dbu, 0x9391054au, 0x7f09d5f4u,
                           0x7d4d3770u, 0x36d8a566u, 0x4f10e410u, 0x7f9458eau};
  const uint bits = MSL_BITS(x), shift = (bits >> 23 & 255) - 126, word = shift >> 5, rest = shift & 31;
  const ulong mantissa = bits << 8 | 0x80000000u;
  uint high = inverse[word], middle = inverse[word + 1], low = inverse[word + 2];
  if (rest) {
    high = high << rest | middle >> (32 - rest);
    middle = middle << rest | low >> (32 - rest);
    low = low << rest | inverse[word + 3] >> (32 - rest);
  }
  ulong product = (mantissa * low >> 32) + mantissa * middle + (mantissa * high << 32);
  int quarter = (int)(product >> 62);
  long angle = (long)(product & 0x3fffffffffffffffUL);
  if (angle & 0x2000000000000000L) {
    angle -= 0x4000000000000000L;
    quarter++;
  }
  *quadrant = bits >> 31 ? -quarter : quarter;
  const float reduced = (float)angle * 0x1.921fb6p-62f;
  return bits >> 31 ? -reduced : reduced;
}
MSL_INLINE float msl_sine(float x, int turn) {
  int quadrant;
  const float r = msl_reduce_angle(x, &quadrant), z = r * r;
  quadrant += turn;
  const float sine = r + r * z * (-1.66666547e-1f + z * (8.33216087e-3f - z * 1.95152959e-4f));
  const float cosine = 1.0f + z * (-0.5f + z * (4.16666457e-2f + z * (-1.38873163e-3f + z * 2.44331571e-5f)));
  const float value = quadrant & 1 ? cosine : sine;
  return quadrant & 2 ? -value : value;
}
MSL_INLINE float sinf(float x) { return msl_sine(x, 0); }
MSL_INLINE float cosf(float x) { return msl_sine(x, 1); }
MSL_INLINE float tanf(float x) { return sinf(x) / cosf(x); }

// |x|^y = 2^(y log2 |x|), the logarithm to twice the precision
MSL_INLINE float msl_power(float x, float y) {
  float exponent;
  const float m = msl_split(x, &exponent), f = m - 1.0f, d = m + 1.0f, s = f / d, z = s * s;
  const float error = __builtin_fmaf(-s, d, f) - s * (m - (d - 1.0f));
  const float tail = s * z * (0.666666667f + z * (0.4f + z * (0.285714286f + z * (0.222222222f + z * 0.181818182f))));
  const float first = 2.0f * s, second = 2.0f * error / d + tail;
  const float product = first * 0x1.715476p+0f;
  const float rest = __builtin_fmaf(first, 0x1.715476p+0f, -product) + first * 0x1.4ae0cp-26f + second * 1.44269504f;
  const float rough = exponent + product, left = (exponent == 0.0f ? 0.0f : product - (rough - exponent)) + rest;
  const float sum = rough + left, low = left - (sum - rough);
  const float high = y * sum;
  const float correction = __builtin_fmaf(y, sum, -high) + y * low;
  const float power = MSL_EX2(high);
  if (!(__builtin_fabsf(high) < 1000.0f)) return power;
  return power == __builtin_inff() ? power : power + power * (correction * 0.693147181f);
}
MSL_INLINE float powf(float x, float y) {
  const float a = __builtin_fabsf(x);
  if (y == 0.0f || x == 1.0f) return 1.0f;
  if (x != x || y != y) return x + y;
  const bool whole = __builtin_truncf(y) == y, odd = whole && __builtin_fabsf(y) < 0x1p24f && ((int)y & 1);
  float power;
  if (a == 0.0f || a == __builtin_inff()) {
    power = (a == 0.0f) == (y > 0.0f) ? 0.0f : __builtin_inff();
  } else if (__builtin_fabsf(y) == __builtin_inff()) {
    power = a == 1.0f ? 1.0f : (a < 1.0f) == (y > 0.0f) ? 0.0f : __builtin_inff();
  } else {
    if (x < 0.0f && !whole) return __builtin_nanf("");
    power = msl_power(a, y);
  }
  return odd ? __builtin_copysignf(power, x) : power;
}

// Exact, a bit at a time
MSL_INLINE float fmodf(float x, float y) {
  const float b = __builtin_fabsf(y);
  float a = __builtin_fabsf(x);
  if (!(a < __builtin_inff()) || !(b > 0.0f)) return __builtin_nanf("");
  while (a >= b) {
    float part = b;
    // part <= a < 2 part: a - part is exact
    while (a - part >= part) part += part;
    a -= part;
  }
  return __builtin_copysignf(a, x);
}
MSL_INLINE float ldexpf(float x, int k) {
  k = k < -300 ? -300 : k > 300 ? 300 : k;
  while (k > 127) {
    x *= 0x1p127f;
    k -= 127;
  }
  while (k < -126) {
    x *= 0x1p-102f;
    k += 102;
  }
  return x * MSL_FLOAT((uint)(k + 127) << 23);
}
MSL_INLINE float frexpf(float x, MSL_PRIVATE int* exponent) {
  *exponent = 0;
  if (x == 0.0f || !(__builtin_fabsf(x) < __builtin_inff())) return x;
  const bool small = __builtin_fabsf(x) < 0x1p-126f;
  const uint bits = MSL_BITS(small ? x * 0x1p24f : x);
  *exponent = (int)(bits >> 23 & 255) - 126 - (small ? 24 : 0);
  return MSL_FLOAT((bits & 0x807fffffu) | 0x3f000000u);
}
MSL_INLINE int ilogbf(float x) {
  int exponent;
  if (x == 0.0f || x != x) return (int)0x80000000u;
  if (__builtin_fabsf(x) == __builtin_inff()) return 0x7fffffff;
  frexpf(x, &exponent);
  return exponent - 1;
}
MSL_INLINE float modff(float x, MSL_PRIVATE float* whole) {
  *whole = __builtin_truncf(x);
  return __builtin_copysignf(__builtin_fabsf(x) == __builtin_inff() ? 0.0f : x - *whole, x);
}
MSL_INLINE float nextafterf(float x, float y) {
  if (x != x || y != y) return x + y;
  if (x == y) return y;
  if (x == 0.0f) return MSL_FLOAT(1u | (MSL_BITS(y) & 0x80000000u));
  return MSL_FLOAT((x < y) == (x > 0.0f) ? MSL_BITS(x) + 1 : MSL_BITS(x) - 1);
}

#pragma clang fp contract(fast)
