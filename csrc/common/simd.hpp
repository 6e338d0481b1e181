// One vector of floats for whichever instruction set this translation unit is compiled for.
//
// Everything is in an anonymous namespace, and nothing from the C++ library is instantiated here: an inline function compiled with
// AVX-512 and merged by the linker with its namesake in a portable unit would crash older processors.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(JRT_AVX512) || defined(JRT_AVX2)
#include <immintrin.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define JRT_INLINE inline __attribute__((always_inline))
#define JRT_UNROLL _Pragma("GCC unroll 16")
#else
#define JRT_INLINE inline
#define JRT_UNROLL
#endif

namespace {

JRT_INLINE float bf16_to_float(uint16_t h) {
  uint32_t bits = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

JRT_INLINE uint16_t float_to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);  // NaN stays NaN
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);                 // to nearest, ties to even
}

#if !defined(JRT_AVX512) && !defined(JRT_AVX2)
JRT_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  uint32_t bits;
  float f;
  if (magnitude >= 0x7c00u) {
    bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;  // infinity, NaN
  } else if (magnitude >= 0x0400u) {
    bits = sign | ((magnitude << 13) + (112u << 23));
  } else {
    f = float(magnitude) * 5.9604644775390625e-8f;  // subnormal: units of 2^-24
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  }
  std::memcpy(&f, &bits, 4);
  return f;
}

JRT_INLINE uint16_t float_to_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to infinity
  if (bits < 0x38800000u) {                                  // subnormal: let the adder round at 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return uint16_t(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return uint16_t(sign | ((bits - (112u << 23)) >> 13));
}
#endif

#if defined(JRT_AVX512)

constexpr int kW = 16;          // floats in a vector
constexpr int kMaxColumns = 4;  // vectors in a tile's row
constexpr int kTile = 24;       // accumulators: 24 of 32 registers
using Vec = __m512;

JRT_INLINE Vec zero() { return _mm512_setzero_ps(); }
JRT_INLINE Vec set1(float x) { return _mm512_set1_ps(x); }
JRT_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
JRT_INLINE void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
JRT_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
JRT_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
JRT_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
JRT_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
JRT_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
JRT_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
JRT_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
JRT_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a); }
JRT_INLINE __mmask16 lanes(int n) { return __mmask16(n >= 16 ? 0xffffu : (1u << n) - 1u); }
// Lanes lo <= i < hi of a, `other` elsewhere.
JRT_INLINE Vec keep(Vec a, int lo, int hi, Vec other) {
  lo = lo < 0 ? 0 : lo > 16 ? 16 : lo;
  hi = hi < 0 ? 0 : hi;
  return _mm512_mask_blend_ps(__mmask16(lanes(hi) & ~lanes(lo)), other, a);
}
// 2^n for an integer-valued n in [-126, 127]; any number for NaN.
JRT_INLINE Vec power_of_two(Vec n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
JRT_INLINE Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
JRT_INLINE Vec from_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
JRT_INLINE __m256i to_bf16(Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
JRT_INLINE Vec load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
JRT_INLINE void store_n(float* p, Vec x, int n) { _mm512_mask_storeu_ps(p, lanes(n), x); }
JRT_INLINE Vec load_bf16(const uint16_t* p, int n) { return from_bf16(_mm256_maskz_loadu_epi16(lanes(n), p)); }
JRT_INLINE void store_bf16(uint16_t* p, Vec x, int n) { _mm256_mask_storeu_epi16(p, lanes(n), to_bf16(x)); }
JRT_INLINE Vec load_half(const uint16_t* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes(n), p)); }
JRT_INLINE void store_half(uint16_t* p, Vec x, int n) {
  _mm256_mask_storeu_epi16(p, lanes(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
JRT_INLINE void transpose(Vec (&r)[16]) {
  Vec t[16];
  JRT_UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  JRT_UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  JRT_UNROLL for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  JRT_UNROLL for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#else

#if defined(JRT_AVX2)

constexpr int kW = 8;
constexpr int kMaxColumns = 2;
constexpr int kTile = 12;  // of 16 registers
using Vec = __m256;

JRT_INLINE Vec zero() { return _mm256_setzero_ps(); }
JRT_INLINE Vec set1(float x) { return _mm256_set1_ps(x); }
JRT_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
JRT_INLINE void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
JRT_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
JRT_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
JRT_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
JRT_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
JRT_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
JRT_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
JRT_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
JRT_INLINE float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
JRT_INLINE Vec keep(Vec a, int lo, int hi, Vec other) {
  const __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i in =
      _mm256_and_si256(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(lo - 1)), _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), at));
  return _mm256_blendv_ps(other, a, _mm256_castsi256_ps(in));
}
JRT_INLINE Vec power_of_two(Vec n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
JRT_INLINE Vec round(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
JRT_INLINE Vec load_bf16_all(const uint16_t* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
JRT_INLINE void store_bf16_all(uint16_t* p, Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  rounded = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
  rounded = _mm256_srli_epi32(rounded, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
JRT_INLINE Vec load_half_all(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
JRT_INLINE void store_half_all(uint16_t* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
JRT_INLINE void transpose(Vec (&r)[8]) {
  Vec t[8];
  JRT_UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  Vec u[8];
  JRT_UNROLL for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  JRT_UNROLL for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

#else  // plain C++17, four floats that any compiler for any architecture turns into a register

constexpr int kW = 4;
constexpr int kMaxColumns = 2;
constexpr int kTile = 12;
#if defined(__GNUC__) || defined(__clang__)
typedef float Vec __attribute__((vector_size(16)));
#else
struct Vec {
  float lane[4];
  float& operator[](int i) { return lane[i]; }
  float operator[](int i) const { return lane[i]; }
};
inline Vec operator+(Vec a, Vec b) { return {a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]}; }
inline Vec operator-(Vec a, Vec b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]}; }
inline Vec operator*(Vec a, Vec b) { return {a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]}; }
inline Vec operator/(Vec a, Vec b) { return {a[0] / b[0], a[1] / b[1], a[2] / b[2], a[3] / b[3]}; }
#endif

JRT_INLINE Vec set1(float x) { return Vec{x, x, x, x}; }
JRT_INLINE Vec zero() { return set1(0.0f); }
JRT_INLINE Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
JRT_INLINE void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
JRT_INLINE Vec add(Vec a, Vec b) { return a + b; }
JRT_INLINE Vec sub(Vec a, Vec b) { return a - b; }
JRT_INLINE Vec mul(Vec a, Vec b) { return a * b; }
JRT_INLINE Vec div(Vec a, Vec b) { return a / b; }
JRT_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
JRT_INLINE Vec min(Vec a, Vec b) {
  for (int i = 0; i < 4; ++i) a[i] = a[i] < b[i] ? a[i] : b[i];
  return a;
}
JRT_INLINE Vec max(Vec a, Vec b) {
  for (int i = 0; i < 4; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
  return a;
}
JRT_INLINE float sum(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
JRT_INLINE Vec keep(Vec a, int lo, int hi, Vec other) {
  for (int i = 0; i < 4; ++i) a[i] = i >= lo && i < hi ? a[i] : other[i];
  return a;
}
JRT_INLINE Vec power_of_two(Vec n) {
  Vec out;
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = n[i] >= -126.0f ? uint32_t(int32_t(n[i]) + 127) << 23 : 0;
    float f;
    std::memcpy(&f, &bits, 4);
    out[i] = f;
  }
  return out;
}
JRT_INLINE Vec round(Vec a) {  // to nearest even, for |a| < 2^22
  const Vec magic = set1(12582912.0f);
  volatile float keep_order[4];  // the sum must be rounded before the difference is taken
  Vec t = a + magic;
  for (int i = 0; i < 4; ++i) keep_order[i] = t[i];
  for (int i = 0; i < 4; ++i) t[i] = keep_order[i];
  return t - magic;
}
JRT_INLINE Vec load_bf16_all(const uint16_t* p) {
  return Vec{bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3])};
}
JRT_INLINE void store_bf16_all(uint16_t* p, Vec x) {
  for (int i = 0; i < 4; ++i) p[i] = float_to_bf16(x[i]);
}
JRT_INLINE Vec load_half_all(const uint16_t* p) {
  return Vec{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
}
JRT_INLINE void store_half_all(uint16_t* p, Vec x) {
  for (int i = 0; i < 4; ++i) p[i] = float_to_half(x[i]);
}
JRT_INLINE void transpose(Vec (&r)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const float t = r[i][j];
      r[i][j] = r[j][i];
      r[j][i] = t;
    }
  }
}

#endif

// Fewer than kW elements go through a buffer: reading past the end of a tensor could leave its page.
JRT_INLINE Vec load_n(const float* p, int n) {
  if (n >= kW) return load(p);
  float t[kW] = {};
  for (int i = 0; i < n; ++i) t[i] = p[i];
  return load(t);
}
JRT_INLINE void store_n(float* p, Vec x, int n) {
  if (n >= kW) return store(p, x);
  float t[kW];
  store(t, x);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}
#define JRT_SIXTEEN_BITS(name)                                     \
  JRT_INLINE Vec load_##name(const uint16_t* p, int n) {           \
    if (n >= kW) return load_##name##_all(p);                      \
    uint16_t t[kW] = {};                                           \
    for (int i = 0; i < n; ++i) t[i] = p[i];                       \
    return load_##name##_all(t);                                   \
  }                                                                \
  JRT_INLINE void store_##name(uint16_t* p, Vec x, int n) {        \
    if (n >= kW) return store_##name##_all(p, x);                  \
    uint16_t t[kW];                                                \
    store_##name##_all(t, x);                                      \
    for (int i = 0; i < n; ++i) p[i] = t[i];                       \
  }
JRT_SIXTEEN_BITS(bf16)
JRT_SIXTEEN_BITS(half)
#undef JRT_SIXTEEN_BITS

#endif

// e^x to about 1 ulp (Cephes' expf polynomial), for x clamped to the range of a float. NaN stays NaN: min and max return their
// second operand if one is NaN.
JRT_INLINE Vec exponential(Vec x) {
  x = max(set1(-87.0f), min(set1(88.0f), x));
  const Vec n = round(mul(x, set1(1.44269504088896341f)));
  Vec r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(mul(p, r), r, add(r, set1(1.0f)));
  return mul(p, power_of_two(n));
}

}  // namespace
