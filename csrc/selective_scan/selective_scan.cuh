// selective_scan on a GPU, for up to 16 states: a thread has two adjacent channels with all their states in registers and loops over
// the tokens of its row. B and C of 32 tokens are in shared memory as float32; one load serves all channels of the block.
//
// A state costs an exponential, two products and two multiply-adds per token. The special-function units, which compute the
// exponentials, are the limit, so softplus uses a polynomial for its logarithm.
//
// If there are too few rows and channels to fill the GPU, a row is cut into segments. A is constant, so a segment multiplies its initial
// state by exp(A sum(dt)). A first launch (Ends) writes each segment's final state from a zero initial state, and its sum of dt. In the
// second, every block computes its initial state from those of the segments before.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/args.hpp"

namespace jrt_cuda {

namespace scan {

constexpr int kStates = 16, kThreads = 64, kTokens = 32, kAhead = 4;
// Blocks on a multiprocessor: 8 need at most 128 registers per thread, and 32 rows of 4,096 channels are then one wave on an H100.
constexpr int kBlocks = 8;
constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two adjacent numbers, and how they are loaded and stored.
template <typename T>
struct Pair;
template <>
struct Pair<float> {
  using Raw = float2;
  static __device__ __forceinline__ float2 wide(Raw r) { return r; }
  static __device__ __forceinline__ Raw narrow(float2 v) { return v; }
};
template <>
struct Pair<__nv_bfloat16> {
  using Raw = __nv_bfloat162;
  static __device__ __forceinline__ float2 wide(Raw r) { return __bfloat1622float2(r); }
  static __device__ __forceinline__ Raw narrow(float2 v) { return __float22bfloat162_rn(v); }
};
template <>
struct Pair<__half> {
  using Raw = __half2;
  static __device__ __forceinline__ float2 wide(Raw r) { return __half22float2(r); }
  static __device__ __forceinline__ Raw narrow(float2 v) { return __float22half2_rn(v); }
};

// log(1 + e^x) to about 2e-7 of itself: max(x, 0) + log1p(e^-|x|), the latter by a polynomial. NaN stays NaN.
__device__ __forceinline__ float softplus(float x) {
  const float e = exp2_fast(-fabsf(x) * kLog2E);
  float p = 0.005253457929939032f;
  p = fmaf(p, e, -0.02958850748836994f);
  p = fmaf(p, e, 0.07836166769266129f);
  p = fmaf(p, e, -0.13674770295619965f);
  p = fmaf(p, e, 0.19111430644989014f);
  p = fmaf(p, e, -0.24844369292259216f);
  p = fmaf(p, e, 0.33319270610809326f);
  p = fmaf(p, e, -0.49999502301216125f);
  p = fmaf(p, e, 1.0f);
  return fmaf(p, e, fmaxf(x, 0.0f));
}

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + exp2_fast(-x * kLog2E)); }

template <typename T>
__device__ __forceinline__ float one(const void* p, int64_t at) {
  return static_cast<float>(static_cast<const T*>(p)[at]);
}

template <typename T, bool Gate, bool Ends>
__global__ void __launch_bounds__(kThreads, kBlocks) prefill(const SelectiveScanArgs p) {
  using Raw = typename Pair<T>::Raw;
  __shared__ float4 shared_b[kTokens][kStates / 4], shared_c[kTokens][kStates / 4];
  const int64_t row = blockIdx.y, segment = blockIdx.z;
  const int64_t channel = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * 2;
  const bool inside = channel < p.channels;
  const int64_t at = inside ? channel : 0;
  const int states = int(p.states);
  int64_t count = p.length;
  if (p.lengths) count = p.lengths[row] < 0 ? 0 : p.lengths[row] > p.length ? p.length : p.lengths[row];
  const int64_t first = segment * p.segment_length;
  const int64_t last = first + p.segment_length < p.length ? first + p.segment_length : p.length;
  const int64_t stop = count < last ? (count > first ? count : first) : last;

  float rate[2][kStates], h[2][kStates], skip[2] = {0, 0}, bias[2] = {0, 0}, total[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      rate[j][n] = n < states ? p.a[(at + j) * states + n] * kLog2E : 0.0f;
      h[j][n] = !Ends && p.state_in && n < states ? p.state_in[(row * p.channels + at + j) * states + n] : 0.0f;
    }
    if (p.d) skip[j] = p.d[at + j];
    if (p.dt_bias) bias[j] = p.dt_bias[at + j];
  }
  if (!Ends) {
    for (int64_t earlier = 0; earlier < segment; ++earlier) {
      const int64_t of = (row * p.segments + earlier) * p.channels + at;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float passed = p.sums[of + j];
#pragma unroll
        for (int n = 0; n < kStates; ++n) {
          const float end = n < states ? p.ends[(of + j) * states + n] : 0.0f;
          h[j][n] = fmaf(exp2_fast(passed * rate[j][n]), h[j][n], end);
        }
      }
    }
  }

  const T* x = static_cast<const T*>(p.x.data) + row * p.x.batch + at;
  const T* dt = static_cast<const T*>(p.dt.data) + row * p.dt.batch + at;
  const T* z = Gate ? static_cast<const T*>(p.z.data) + row * p.z.batch + at : nullptr;
  T* y = static_cast<T*>(p.y) + row * p.length * p.channels + at;
  Raw next_x[kAhead], next_dt[kAhead], next_z[kAhead];
  auto load_token = [&](int64_t t, int i) {
    const int64_t s = t < stop ? t : (stop > first ? stop - 1 : first);
    if (s >= p.length) return;
    next_x[i] = *reinterpret_cast<const Raw*>(x + s * p.x.length);
    next_dt[i] = *reinterpret_cast<const Raw*>(dt + s * p.dt.length);
    if (Gate && !Ends) next_z[i] = *reinterpret_cast<const Raw*>(z + s * p.z.length);
  };
  if (first < stop) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) load_token(first + i, i);
  }
  for (int64_t tile = first; tile < stop; tile += kTokens) {
    __syncthreads();
    float* to_b = reinterpret_cast<float*>(shared_b);
    float* to_c = reinterpret_cast<float*>(shared_c);
    for (int i = threadIdx.x; i < kTokens * kStates; i += kThreads) {
      const int64_t t = tile + i / kStates;
      const int n = i % kStates;
      const bool real = t < stop && n < states;
      to_b[i] = real ? one<T>(p.b.data, row * p.b.batch + t * p.b.length + n) : 0.0f;
      if (!Ends) to_c[i] = real ? one<T>(p.c.data, row * p.c.batch + t * p.c.length + n) : 0.0f;
    }
    __syncthreads();
    const int tokens = int(stop - tile < kTokens ? stop - tile : kTokens);
    for (int start = 0; start < tokens; start += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int k = start + i;
        if (k >= tokens) break;
        const float2 xt = Pair<T>::wide(next_x[i]), raw = Pair<T>::wide(next_dt[i]);
        float2 gate = make_float2(0, 0);
        if (Gate && !Ends) gate = Pair<T>::wide(next_z[i]);
        load_token(tile + k + kAhead, i);
        float step[2] = {raw.x + bias[0], raw.y + bias[1]};
        if (p.softplus) step[0] = softplus(step[0]), step[1] = softplus(step[1]);
        const float in[2] = {step[0] * xt.x, step[1] * xt.y};
        float out[2] = {skip[0] * xt.x, skip[1] * xt.y};
        if (Ends) total[0] += step[0], total[1] += step[1];
#pragma unroll
        for (int m = 0; m < kStates / 4; ++m) {
          const float4 bt = shared_b[k][m];
          const float4 ct = Ends ? bt : shared_c[k][m];
          const float bs[4] = {bt.x, bt.y, bt.z, bt.w}, cs[4] = {ct.x, ct.y, ct.z, ct.w};
#pragma unroll
          for (int l = 0; l < 4; ++l) {
            const int n = 4 * m + l;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              h[j][n] = fmaf(exp2_fast(step[j] * rate[j][n]), h[j][n], in[j] * bs[l]);
              if (!Ends) out[j] = fmaf(h[j][n], cs[l], out[j]);
            }
          }
        }
        if (!Ends && inside) {
          if (Gate) out[0] *= silu(gate.x), out[1] *= silu(gate.y);
          *reinterpret_cast<Raw*>(y + (tile + k) * p.channels) = Pair<T>::narrow(make_float2(out[0], out[1]));
        }
      }
    }
  }
  if (!inside) return;
  if (Ends) {
    const int64_t of = (row * p.segments + segment) * p.channels + at;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      p.sums[of + j] = total[j];
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        if (n < states) p.ends[(of + j) * states + n] = h[j][n];
      }
    }
    return;
  }
  for (int64_t t = stop; t < last; ++t) {  // padding
    *reinterpret_cast<Raw*>(y + t * p.channels) = Pair<T>::narrow(make_float2(0, 0));
  }
  const bool final = count <= first + p.segment_length && (count > first || segment == 0);
  if (!final) return;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      if (n < states) p.state_out[(row * p.channels + at + j) * states + n] = h[j][n];
    }
  }
}

template <typename T>
cudaError_t launch(const SelectiveScanArgs& p, cudaStream_t stream) {
  const unsigned blocks = unsigned((p.channels / 2 + kThreads - 1) / kThreads);
  const dim3 grid(blocks, unsigned(p.batches), unsigned(p.segments));
  const dim3 but_last(blocks, unsigned(p.batches), unsigned(p.segments - 1));
  if (p.segments > 1) prefill<T, false, true><<<but_last, kThreads, 0, stream>>>(p);
  if (p.z.data) prefill<T, true, false><<<grid, kThreads, 0, stream>>>(p);
  else prefill<T, false, false><<<grid, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace scan

}  // namespace jrt_cuda
