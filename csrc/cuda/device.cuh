// Instructions that C++ cannot express: mma, ldmatrix, shuffles and asynchronous copies (cp.async).
//
// Fragments of mma.m16n8k16 (g = lane / 4, t = lane % 4; each register holds two 16-bit numbers at neighbouring columns or rows):
//   A (16 x 16): a0 = [g][2t, 2t+1], a1 = [g+8][2t..], a2 = [g][2t+8..], a3 = [g+8][2t+8..]
//   B (16 x 8):  b0 = [2t, 2t+1][g], b1 = [2t+8, 2t+9][g]
//   C (16 x 8, float): c0, c1 = [g][2t, 2t+1], c2, c3 = [g+8][2t, 2t+1]
#pragma once
#include <cstdint>

#ifdef JRT_EMULATE
#include "emulate.hpp"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace jrt_cuda {

#ifndef JRT_EMULATE
using bf16 = __nv_bfloat16;
using f16 = __half;
#define JRT_DEVICE __device__ __forceinline__
#define JRT_HOST_DEVICE __host__ __device__
#define JRT_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define JRT_LAUNCH(kernel, grid, threads, bytes, stream, ...) kernel<<<grid, threads, bytes, stream>>>(__VA_ARGS__)
#define JRT_STATIC_SHARED(type, name, size) __shared__ type name[size]

JRT_DEVICE float to_float(float x) { return x; }
JRT_DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
JRT_DEVICE float to_float(f16 x) { return __half2float(x); }
template <typename T>
JRT_DEVICE T from_float(float x);
template <>
JRT_DEVICE float from_float<float>(float x) { return x; }
template <>
JRT_DEVICE bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <>
JRT_DEVICE f16 from_float<f16>(float x) { return __float2half_rn(x); }

// Two bf16 in a register, the first in the low half.
JRT_DEVICE uint32_t pack(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
JRT_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

JRT_DEVICE uint32_t mul2(uint32_t a, uint32_t b) {
  __nv_bfloat162 x, y;
  memcpy(&x, &a, 4);
  memcpy(&y, &b, 4);
  const __nv_bfloat162 z = __hmul2(x, y);
  uint32_t out;
  memcpy(&out, &z, 4);
  return out;
}

// One of the two bf16 of a register.
JRT_DEVICE float half_of(uint32_t x, int which) { return __uint_as_float(which ? x & 0xffff0000u : x << 16); }

JRT_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
JRT_DEVICE float float_of(uint32_t x) { return __uint_as_float(x); }

// The high half of a and the low half of b.
JRT_DEVICE uint32_t straddle(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5432); }

JRT_DEVICE uint32_t f16_to_bf16(uint32_t x) {
  __half2 h;
  memcpy(&h, &x, 4);
  const float2 f = __half22float2(h);
  return pack(f.x, f.y);
}

JRT_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

JRT_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned).
JRT_DEVICE void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
JRT_DEVICE void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// Two matrices, their rows given by the first 16 lanes.
JRT_DEVICE void ldmatrix_transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

JRT_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
JRT_DEVICE float fast_exp(float x) { return __expf(x); }
JRT_DEVICE void syncwarp() { __syncwarp(); }
JRT_DEVICE uint32_t shuffle(uint32_t x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
JRT_DEVICE uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
JRT_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// Asynchronous copies to shared memory. If `there` is false, zeros are written and nothing is read.
JRT_DEVICE void cp_async16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}
JRT_DEVICE void cp_async4(void* to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 4 : 0) : "memory");
}
JRT_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
JRT_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
#endif

template <typename T>
JRT_DEVICE uint32_t as_bf16(uint32_t x) { return x; }
template <>
JRT_DEVICE uint32_t as_bf16<f16>(uint32_t x) { return f16_to_bf16(x); }
template <typename T>
JRT_DEVICE uint32_t pack_as(float low, float high) { return pack(low, high); }
template <>
JRT_DEVICE uint32_t pack_as<f16>(float low, float high) { return pack_f16(low, high); }

// Four registers of each lane of a quad, seen as a 4 x 4 matrix (lane, register), transposed: lane t has columns 2t, 2t + 1 of four
// tiles of a row of accumulators, and gets all eight columns of tile t.
JRT_DEVICE void transpose_quad(uint32_t (&r)[4], int t) {
  const bool odd = t & 1, last = t & 2;
  const uint32_t one = shuffle_xor(odd ? r[0] : r[1], 1), two = shuffle_xor(odd ? r[2] : r[3], 1);
  (odd ? r[0] : r[1]) = one;
  (odd ? r[2] : r[3]) = two;
  const uint32_t three = shuffle_xor(last ? r[0] : r[2], 2), four = shuffle_xor(last ? r[1] : r[3], 2);
  (last ? r[0] : r[2]) = three;
  (last ? r[1] : r[3]) = four;
}

// The place of the second-order feature x_i x_j among the features of taylor_linear_attention/features.py: the constant, x_i, then
// x_i x_{(i+s) mod d} for s = 0 ... d/2.
JRT_DEVICE int pair_index(int i, int j, int d) {
  int s = j - i;
  if (s < 0) s += d;
  int first = i;
  if (2 * s > d) {
    s = d - s;
    first = j;
  }
  if (2 * s == d && first >= s) first -= s;
  return 1 + d + s * d + first;
}

}  // namespace jrt_cuda
