// One token of linear attention: the state is read once and written once, in place, and everything else stays on the chip.
#pragma once
#include "args.hpp"
#include "device.cuh"

namespace jrt_cuda {

constexpr int kStepThreads = 256;
constexpr int kMostFeatures = 561;  // feature dim 32

// A block per (row, head). `Wide` columns of the state per thread: 4 where rows are aligned to 16 bytes, else 1.
template <typename T, int wide>
__global__ void
#ifndef JRT_EMULATE
__launch_bounds__(kStepThreads)
#endif
step_kernel(const StepArgs a) {
  JRT_STATIC_SHARED(float, x, 2 * 32);                      // z of q and of k
  JRT_STATIC_SHARED(float, phi, 2 * kMostFeatures);
  JRT_STATIC_SHARED(float, partial, kStepThreads * 4);
  JRT_STATIC_SHARED(float, below, kStepThreads / 32);
  const int thread = threadIdx.x, d = int(a.dim), n = int(a.features), f = int(a.head_dim);
  const int64_t bh = blockIdx.x, b = bh / a.heads, h = bh % a.heads;
  const float scale = rsqrtf(sqrtf(float(d)));
  if (thread < 2 * d) {
    const bool key = thread >= d;
    const int i = key ? thread - d : thread;
    const View& from = key ? a.k : a.q;
    x[32 * key + i] = scale * to_float(static_cast<const T*>(from.data)[b * from.batch + h * from.head + i * from.dim]);
  }
  __syncthreads();
  for (int at = thread; at < 2 * n; at += kStepThreads) {
    const bool key = at >= n;
    const int e = key ? at - n : at;
    const float* z = x + 32 * key;
    float value = 1.f;
    if (e > d) {
      const int s = (e - 1 - d) / d, i = (e - 1 - d) % d;
      value = z[i] * z[i + s < d ? i + s : i + s - d];
      if (s == 0) value *= 0.70710678118654752f;
    } else if (e > 0) {
      value = z[e - 1];
    }
    phi[kMostFeatures * key + e] = value;
  }
  __syncthreads();
  const float *fq = phi, *fk = phi + kMostFeatures;

  float under = 0.f;
  for (int e = thread; e < n; e += kStepThreads) {
    const float sum = a.k_sum[bh * n + e] + fk[e];
    a.k_sum[bh * n + e] = sum;
    under = fmaf(fq[e], sum, under);
  }
  for (int by = 16; by > 0; by >>= 1) under += from_xor(under, by);
  if ((thread & 31) == 0) below[thread / 32] = under;

  const float rate = a.decay ? a.decay[h] : 1.f;
  const int across = (f + wide - 1) / wide;  // threads to a row of the state
  const int rows = kStepThreads / across;    // rows at a time
  const int column = thread % across * wide, lane_row = thread / across;
  float y[wide] = {}, value[wide] = {};
  const bool active = lane_row < rows;
  if (active) {
#pragma unroll
    for (int c = 0; c < wide; ++c)
      value[c] = to_float(static_cast<const T*>(a.v.data)[b * a.v.batch + h * a.v.head + (column + c) * a.v.dim]);
    float* state = a.kv + bh * n * f + column;
    if constexpr (wide == 4) {
#pragma unroll 5
      for (int e = lane_row; e < n; e += rows) {
        float4* at = reinterpret_cast<float4*>(state + int64_t(e) * f);
        float4 s = *at;
        const float k = fk[e], q = fq[e];
        s.x = fmaf(s.x, rate, k * value[0]);
        s.y = fmaf(s.y, rate, k * value[1]);
        s.z = fmaf(s.z, rate, k * value[2]);
        s.w = fmaf(s.w, rate, k * value[3]);
        *at = s;
        y[0] = fmaf(q, s.x, y[0]);
        y[1] = fmaf(q, s.y, y[1]);
        y[2] = fmaf(q, s.z, y[2]);
        y[3] = fmaf(q, s.w, y[3]);
      }
    } else {
      for (int e = lane_row; e < n; e += rows) {
        const float s = fmaf(state[int64_t(e) * f], rate, fk[e] * value[0]);
        state[int64_t(e) * f] = s;
        y[0] = fmaf(fq[e], s, y[0]);
      }
    }
#pragma unroll
    for (int c = 0; c < wide; ++c) partial[lane_row * across * wide + column + c] = y[c];
  }
  __syncthreads();
  for (int col = thread; col < f; col += kStepThreads) {
    float sum = 0.f, whole = 0.f;
    for (int row = 0; row < rows; ++row) sum += partial[row * across * wide + col];
    for (int w = 0; w < kStepThreads / 32; ++w) whole += below[w];
    static_cast<T*>(a.y)[bh * f + col] = from_float<T>(sum / (whole + 1e-12f));
  }
}

}  // namespace jrt_cuda
