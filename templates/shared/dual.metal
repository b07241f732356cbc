// Dual numbers: a value and its derivative in the score (or in an array), by which backward kernels differentiate a
// user's text exactly.
//
// At corners, the slope of abs at 0 is 0, and min and max of equal values have the slope of the second argument.
namespace flash {
namespace formula {

struct Dual {
  float value, slope;
  Dual() = default;
  METAL_FUNC Dual(float v) thread : value(v), slope(0) {}
  METAL_FUNC Dual(float v, float d) thread : value(v), slope(d) {}
};

METAL_FUNC Dual operator-(Dual a) { return Dual{-a.value, -a.slope}; }
METAL_FUNC Dual operator+(Dual a, Dual b) { return Dual{a.value + b.value, a.slope + b.slope}; }
METAL_FUNC Dual operator+(Dual a, float b) { return Dual{a.value + b, a.slope}; }
METAL_FUNC Dual operator+(float a, Dual b) { return Dual{a + b.value, b.slope}; }
METAL_FUNC Dual operator-(Dual a, Dual b) { return Dual{a.value - b.value, a.slope - b.slope}; }
METAL_FUNC Dual operator-(Dual a, float b) { return Dual{a.value - b, a.slope}; }
METAL_FUNC Dual operator-(float a, Dual b) { return Dual{a - b.value, -b.slope}; }
METAL_FUNC Dual operator*(Dual a, Dual b) { return Dual{a.value * b.value, a.slope * b.value + a.value * b.slope}; }
METAL_FUNC Dual operator*(Dual a, float b) { return Dual{a.value * b, a.slope * b}; }
METAL_FUNC Dual operator*(float a, Dual b) { return Dual{a * b.value, a * b.slope}; }
METAL_FUNC Dual operator/(Dual a, Dual b) {
  const float v = a.value / b.value;
  return Dual{v, (a.slope - v * b.slope) / b.value};
}
METAL_FUNC Dual operator/(Dual a, float b) { return Dual{a.value / b, a.slope / b}; }
METAL_FUNC Dual operator/(float a, Dual b) { return Dual(a) / b; }

namespace dual {

METAL_FUNC Dual abs(Dual x) { return Dual{metal::abs(x.value), x.slope * sign(x.value)}; }
METAL_FUNC Dual min(Dual a, Dual b) { return a.value < b.value || b.value != b.value ? a : b; }
METAL_FUNC Dual max(Dual a, Dual b) { return a.value > b.value || b.value != b.value ? a : b; }
METAL_FUNC Dual clamp(Dual x, Dual low, Dual high) { return dual::min(dual::max(x, low), high); }
METAL_FUNC Dual saturate(Dual x) { return dual::clamp(x, Dual(0), Dual(1)); }
METAL_FUNC Dual fract(Dual x) { return Dual{fraction(x.value), x.slope}; }
METAL_FUNC Dual fma(Dual a, Dual b, Dual c) { return a * b + c; }
METAL_FUNC Dual mix(Dual a, Dual b, Dual t) { return a + (b - a) * t; }

METAL_FUNC Dual sqrt(Dual x) {
  const float v = precise::sqrt(x.value);
  return Dual{v, x.slope * 0.5f / v};
}
METAL_FUNC Dual rsqrt(Dual x) {
  const float v = precise::rsqrt(x.value);
  return Dual{v, x.slope * -0.5f * v / x.value};
}
METAL_FUNC Dual exp(Dual x) {
  const float v = precise::exp(x.value);
  return Dual{v, x.slope * v};
}
METAL_FUNC Dual exp2(Dual x) {
  const float v = precise::exp2(x.value);
  return Dual{v, x.slope * v * M_LN2_F};
}
METAL_FUNC Dual log(Dual x) { return Dual{precise::log(x.value), x.slope / x.value}; }
METAL_FUNC Dual log2(Dual x) { return Dual{precise::log2(x.value), x.slope * M_LOG2E_F / x.value}; }
METAL_FUNC Dual log10(Dual x) { return Dual{precise::log10(x.value), x.slope * M_LOG10E_F / x.value}; }
METAL_FUNC Dual sin(Dual x) { return Dual{precise::sin(x.value), x.slope * precise::cos(x.value)}; }
METAL_FUNC Dual cos(Dual x) { return Dual{precise::cos(x.value), -x.slope * precise::sin(x.value)}; }
METAL_FUNC Dual tan(Dual x) {
  const float v = precise::tan(x.value);
  return Dual{v, x.slope * (1 + v * v)};
}
METAL_FUNC Dual asin(Dual x) {
  return Dual{precise::asin(x.value), x.slope * precise::rsqrt((1 - x.value) * (1 + x.value))};
}
METAL_FUNC Dual acos(Dual x) {
  return Dual{precise::acos(x.value), -x.slope * precise::rsqrt((1 - x.value) * (1 + x.value))};
}
METAL_FUNC Dual atan(Dual x) { return Dual{precise::atan(x.value), x.slope / (1 + x.value * x.value)}; }
METAL_FUNC Dual sinh(Dual x) { return Dual{precise::sinh(x.value), x.slope * precise::cosh(x.value)}; }
METAL_FUNC Dual cosh(Dual x) { return Dual{precise::cosh(x.value), x.slope * precise::sinh(x.value)}; }
METAL_FUNC Dual tanh(Dual x) {
  const float u = precise::tanh(x.value);
  return Dual{u, x.slope * metal::fma(-u, u, 1.0f)};
}
METAL_FUNC Dual pow(Dual x, Dual y) {
  const float v = precise::pow(x.value, y.value);
  // A part that does not vary is 0, whatever its factor: at 0 both factors can be infinite.
  const float base = x.slope == 0 ? 0 : y.value * precise::pow(x.value, y.value - 1) * x.slope;
  return Dual{v, y.slope == 0 || v == 0 ? base : base + v * precise::log(x.value) * y.slope};
}
METAL_FUNC Dual atan2(Dual y, Dual x) {
  const float square = x.value * x.value + y.value * y.value;
  return Dual{precise::atan2(y.value, x.value), (x.value * y.slope - y.value * x.slope) / square};
}
METAL_FUNC Dual fmod(Dual x, Dual y) {
  return Dual{precise::fmod(x.value, y.value), x.slope - y.slope * trunc(x.value / y.value)};
}

}  // namespace dual
}  // namespace formula
}  // namespace flash
