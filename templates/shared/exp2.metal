// Exponentials relative to the largest score m of a row, and their units.
namespace flash {

// 2^x for the exponents of softmax, which are at most about 0, by the GPU's own instruction. In math mode "safe" the
// unqualified exp2 is a longer and more precise function. 2^-inf is 0, and NaN stays NaN.
template <typename T> METAL_FUNC T fast_exp2(T x) { return fast::exp2(x); }

namespace softmax {

// The factor that turns differences of scores into exponents of 2
#if SCALED_FIRST
METAL_FUNC float factor_of(float) { return M_LOG2E_F; }
#else
METAL_FUNC float factor_of(float scale) { return scale * M_LOG2E_F; }
#endif

// The difference comes first, because it is exact where s is near m, however large both are, and no product overflows.
template <typename S, typename M> METAL_FUNC S exponent(S s, M m, float factor) { return (s - m) * factor; }

}  // namespace softmax
}  // namespace flash
