// The float functions of the machine's mathematics library, and those that the runtime counts.
#pragma once

// In a namespace of their own: Metal has none of these names, and a text may define them.
namespace msl_c {
extern "C" {
float sinf(float); float cosf(float); float tanf(float); float asinf(float); float acosf(float); float atanf(float);
float sinhf(float); float coshf(float); float tanhf(float); float asinhf(float); float acoshf(float); float atanhf(float);
float atan2f(float, float); float powf(float, float); float fmodf(float, float);
float expf(float); float exp2f(float); float logf(float); float log2f(float); float log10f(float); float log1pf(float);
float ldexpf(float, int); float nextafterf(float, float); int ilogbf(float);
float frexpf(float, __generic int*); float modff(float, __generic float*);
}
}  // namespace msl_c
#define MSL_C(NAME) msl_c::NAME

extern "C" {
float msl_exp2(float); float msl_log2(float); float msl_exp(float); float msl_log(float);
}
