// From a tensor of any dtype and strides to float32 scratch, and back.
#pragma once
#include "common/args.hpp"
#include "common/simd.hpp"

namespace {

using jrt::View;

JRT_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// n <= kW elements from p + offset, unit stride.
template <int D>
JRT_INLINE Vec read(const void* p, int64_t offset, int n) {
  if (D == jrt::kFloat32) return load_n(static_cast<const float*>(p) + offset, n);
  if (D == jrt::kBFloat16) return load_bf16(static_cast<const uint16_t*>(p) + offset, n);
  return load_half(static_cast<const uint16_t*>(p) + offset, n);
}

// The same with any stride.
template <int D>
JRT_INLINE Vec read_strided(const void* p, int64_t offset, int64_t stride, int n) {
  float t[kW] = {};
  for (int i = 0; i < n; ++i) {
    const int64_t at = offset + i * stride;
    if (D == jrt::kFloat32) {
      t[i] = static_cast<const float*>(p)[at];
    } else {
      const uint16_t h = static_cast<const uint16_t*>(p)[at];
      uint16_t one[kW] = {h};
      float wide[kW];
      store(wide, D == jrt::kBFloat16 ? load_bf16(one, kW) : load_half(one, kW));
      t[i] = wide[0];
    }
  }
  return load(t);
}

template <int D>
JRT_INLINE void write(void* p, int64_t offset, Vec x, int n) {
  if (D == jrt::kFloat32) return store_n(static_cast<float*>(p) + offset, x, n);
  if (D == jrt::kBFloat16) return store_bf16(static_cast<uint16_t*>(p) + offset, x, n);
  return store_half(static_cast<uint16_t*>(p) + offset, x, n);
}

JRT_INLINE void write(int dtype, void* p, int64_t offset, Vec x, int n) {
  if (dtype == jrt::kFloat32) return write<jrt::kFloat32>(p, offset, x, n);
  if (dtype == jrt::kBFloat16) return write<jrt::kBFloat16>(p, offset, x, n);
  return write<jrt::kFloat16>(p, offset, x, n);
}

template <int D>
void pack_rows_of(const void* p, int64_t row, int64_t step, int64_t rows, int64_t n, float* to, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < n; c += kW) {
      const int left = int(n - c < kW ? n - c : kW);
      const int64_t at = r * row + c * step;
      store(to + r * ld + c, step == 1 ? read<D>(p, at, left) : read_strided<D>(p, at, step, left));
    }
  }
}

// to[r][c] = p[offset + r * row + c * step], r < rows, c < n, zeros up to the next multiple of kW.
inline void pack_rows(int dtype, const void* p, int64_t offset, int64_t row, int64_t step, int64_t rows, int64_t n, float* to,
                      int64_t ld) {
  if (dtype == jrt::kFloat32) {
    pack_rows_of<jrt::kFloat32>(static_cast<const float*>(p) + offset, row, step, rows, n, to, ld);
  } else if (dtype == jrt::kBFloat16) {
    pack_rows_of<jrt::kBFloat16>(static_cast<const uint16_t*>(p) + offset, row, step, rows, n, to, ld);
  } else {
    pack_rows_of<jrt::kFloat16>(static_cast<const uint16_t*>(p) + offset, row, step, rows, n, to, ld);
  }
}

template <int D>
void pack_transposed_of(const void* p, int64_t row, int64_t step, int64_t rows, int64_t n, float scale, float* to,
                        int64_t ld) {
  const Vec factor = set1(scale);
  for (int64_t r0 = 0; r0 < rows; r0 += kW) {
    for (int64_t c0 = 0; c0 < n; c0 += kW) {
      const int wide = int(n - c0 < kW ? n - c0 : kW);
      Vec block[kW];
      JRT_UNROLL for (int r = 0; r < kW; ++r) {
        const int64_t at = (r0 + r) * row + c0 * step;
        block[r] = r0 + r >= rows ? zero() : step == 1 ? read<D>(p, at, wide) : read_strided<D>(p, at, step, wide);
      }
      transpose(block);
      if (wide == kW) {
        JRT_UNROLL for (int c = 0; c < kW; ++c) store(to + (c0 + c) * ld + r0, mul(block[c], factor));
      } else {
        float whole[kW * kW];
        JRT_UNROLL for (int c = 0; c < kW; ++c) store(whole + c * kW, mul(block[c], factor));
        for (int c = 0; c < wide; ++c) store(to + (c0 + c) * ld + r0, load(whole + c * kW));
      }
    }
  }
}

// to[c][r] = scale * p[offset + r * row + c * step], r < rows, c < n; lanes up to the next multiple of kW are zeros.
inline void pack_transposed(int dtype, const void* p, int64_t offset, int64_t row, int64_t step, int64_t rows, int64_t n,
                            float scale, float* to, int64_t ld) {
  if (dtype == jrt::kFloat32) {
    pack_transposed_of<jrt::kFloat32>(static_cast<const float*>(p) + offset, row, step, rows, n, scale, to, ld);
  } else if (dtype == jrt::kBFloat16) {
    pack_transposed_of<jrt::kBFloat16>(static_cast<const uint16_t*>(p) + offset, row, step, rows, n, scale, to, ld);
  } else {
    pack_transposed_of<jrt::kFloat16>(static_cast<const uint16_t*>(p) + offset, row, step, rows, n, scale, to, ld);
  }
}

// Prefetches rows of n elements: a head's tokens are kilobytes apart, too far for hardware prefetchers.
inline void prefetch_rows(int dtype, const void* p, int64_t offset, int64_t row, int64_t rows, int64_t n) {
#if defined(__GNUC__) || defined(__clang__)
  const int64_t size = dtype == jrt::kFloat32 ? 4 : 2;
  const char* at = static_cast<const char*>(p) + offset * size;
  for (int64_t r = 0; r < rows; ++r, at += row * size) {
    for (int64_t b = 0; b < n * size; b += 64) __builtin_prefetch(at + b);
  }
#else
  (void)dtype, (void)p, (void)offset, (void)row, (void)rows, (void)n;
#endif
}

}  // namespace
