// 2^x as softmax needs it, of exponents that are at most about 0: the GPU's own instruction. Where math is pinned to
// "safe" the unqualified exp2 is a longer and more precise function. 2^-inf is 0, and NaN stays NaN.
namespace flash {

template <typename T> METAL_FUNC T fast_exp2(T x) { return fast::exp2(x); }

}  // namespace flash
