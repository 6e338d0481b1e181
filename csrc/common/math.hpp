// Elementary functions of the recurrent operators, on one vector of floats: 2^x, SiLU and softplus.
#pragma once
#include "common/simd.hpp"

namespace {

constexpr float kLog2E = 1.44269504088896341f;

// 2^x to about 1 ulp, where that is a normal number. NaN stays NaN. The polynomial is a minimax fit of (2^r - 1) / r on [-1/2, 1/2],
// with a relative error of 2^r below 1e-7.
JRT_INLINE Vec exp2(Vec x) {
#if defined(JRT_AVX512)
  const Vec n = round(x);
#else
  x = max(set1(-126.0f), min(set1(127.0f), x));
  const Vec n = round(x);
#endif
  const Vec r = sub(x, n);
  Vec p = set1(1.326472944e-3f);
  p = fma(p, r, set1(9.671512770e-3f));
  p = fma(p, r, set1(5.550733735e-2f));
  p = fma(p, r, set1(2.402224208e-1f));
  p = fma(p, r, set1(6.931469776e-1f));
  p = fma(p, r, set1(1.0f));
#if defined(JRT_AVX512)
  return _mm512_scalef_ps(p, n);  // also infinities and subnormal numbers
#else
  return mul(p, power_of_two(n));
#endif
}

// x / (1 + e^-x)
JRT_INLINE Vec silu(Vec x) { return div(x, add(set1(1.0f), exponential(sub(zero(), x)))); }

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|). With e = e^-|x| and s = e / (2 + e) <= 1/3, log(1 + e) = 2 atanh(s), whose series in
// s^2 <= 1/9 converges fast and keeps its relative precision where e is small.
JRT_INLINE Vec softplus(Vec x) {
  const Vec positive = max(zero(), x);  // NaN is the second operand, and stays
  const Vec magnitude = sub(sub(positive, x), sub(zero(), positive));  // |x| = 2 max(x, 0) - x
  const Vec e = exp2(mul(magnitude, set1(-kLog2E)));
  const Vec s = div(e, add(set1(2.0f), e)), q = mul(s, s);
  Vec p = set1(2.0f / 15.0f);
  p = fma(p, q, set1(2.0f / 13.0f));
  p = fma(p, q, set1(2.0f / 11.0f));
  p = fma(p, q, set1(2.0f / 9.0f));
  p = fma(p, q, set1(2.0f / 7.0f));
  p = fma(p, q, set1(2.0f / 5.0f));
  p = fma(p, q, set1(2.0f / 3.0f));
  p = fma(p, q, set1(2.0f));
  return fma(p, s, positive);
}

}  // namespace
