// One token of linear attention: the state is read once and written once, in place; everything else stays in registers and shared memory.
#pragma once
#include "cuda/args.hpp"
#include "cuda/device.cuh"

namespace jrt_cuda {

constexpr int kStepThreads = 256;
constexpr int kMostFeatures = 561;  // feature dim 32
constexpr int kStepAhead = 5;       // pieces of the state that a thread loads ahead
constexpr int kStepSums = (kMostFeatures + kStepThreads - 1) / kStepThreads;  // features of k_sum per thread

template <int wide>
struct alignas(4 * wide) Columns {
  float at[wide];
};

// A block per (row, head). `wide` columns of the state per thread: 4 if rows are aligned to 16 bytes, else 1. The loads of the inputs
// and of the first pieces of the state are in flight while the features are computed.
template <typename T, int wide>
__global__ void
#ifndef JRT_EMULATE
__launch_bounds__(kStepThreads, 4)
#endif
step_kernel(const StepArgs a) {
  JRT_STATIC_SHARED(float, x, 2 * 32);                      // z of q and of k
  JRT_STATIC_SHARED(float, phi, 2 * kMostFeatures);
  JRT_STATIC_SHARED(float, partial, kStepThreads * 4);
  JRT_STATIC_SHARED(float, below, kStepThreads / 32);
  const int thread = threadIdx.x, d = int(a.dim), n = int(a.features), f = int(a.head_dim);
  const int64_t bh = blockIdx.x, b = bh / a.heads, h = bh % a.heads;
  const int across = (f + wide - 1) / wide;  // threads to a row of the state
  const int rows = kStepThreads / across;    // rows at a time
  const int column = thread % across * wide, first_row = thread / across;
  const bool active = first_row < rows;
  float* const state = a.kv + bh * n * f + column;
  auto at_row = [&](int e) { return reinterpret_cast<Columns<wide>*>(state + int64_t(e) * f); };
  Columns<wide> ahead[kStepAhead];
  auto load_ahead = [&](int first) {
#pragma unroll
    for (int i = 0; i < kStepAhead; ++i)
      if (first + i * rows < n) ahead[i] = *at_row(first + i * rows);
  };
  float y[wide] = {}, value[wide] = {}, k_sums[kStepSums];
  if (active) {
    load_ahead(first_row);
#pragma unroll
    for (int c = 0; c < wide; ++c)
      value[c] = to_float(static_cast<const T*>(a.v.data)[b * a.v.batch + h * a.v.head + (column + c) * a.v.dim]);
  }
#pragma unroll
  for (int i = 0; i < kStepSums; ++i)
    if (thread + i * kStepThreads < n) k_sums[i] = a.k_sum[bh * n + thread + i * kStepThreads];
  const float rate = a.decay ? a.decay[h] : 1.f;

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
#pragma unroll
  for (int i = 0; i < kStepSums; ++i) {
    const int e = thread + i * kStepThreads;
    if (e >= n) break;
    const float sum = k_sums[i] + fk[e];
    a.k_sum[bh * n + e] = sum;
    under = fmaf(fq[e], sum, under);
  }
  for (int by = 16; by > 0; by >>= 1) under += shuffle_xor(under, by);
  if ((thread & 31) == 0) below[thread / 32] = under;

  if (active) {
    for (int first = first_row; first < n; first += kStepAhead * rows) {
      Columns<wide> now[kStepAhead];
#pragma unroll
      for (int i = 0; i < kStepAhead; ++i) now[i] = ahead[i];
      load_ahead(first + kStepAhead * rows);
#pragma unroll
      for (int i = 0; i < kStepAhead; ++i) {
        const int e = first + i * rows;
        if (e >= n) break;
#pragma unroll
        for (int c = 0; c < wide; ++c) {
          now[i].at[c] = fmaf(now[i].at[c], rate, fk[e] * value[c]);
          y[c] = fmaf(fq[e], now[i].at[c], y[c]);
        }
        *at_row(e) = now[i];
      }
    }
#pragma unroll
    for (int c = 0; c < wide; ++c) partial[first_row * across * wide + column + c] = y[c];
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
