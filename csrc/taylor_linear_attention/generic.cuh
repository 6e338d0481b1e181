// Causal linear attention in float arithmetic: any dtype, Taylor features of feature dims to 32 or features as given, decay.
//
// A block holds 16 columns of one (row, head)'s state in shared memory and walks over the sequence in chunks of 32 tokens. It is the
// exact form; tensor_cores.cuh and hopper.cuh are the fast ones.
#pragma once
#include "cuda/args.hpp"
#include "cuda/device.cuh"

namespace jrt_cuda {

constexpr int kSlice = 16;
constexpr int kTokens = 32;
constexpr int kGenericThreads = 256;

// Where each part of a block's shared memory starts, in floats.
struct GenericLayout {
  int state, sums, query, key, features, values, weights, age, mask, total;
  JRT_HOST_DEVICE GenericLayout(int dim, int n, bool taylor) {
    int at = 0;
    auto take = [&at](int floats) {
      const int here = at;
      at += floats;
      return here;
    };
    state = take(n * kSlice);
    sums = take(taylor ? n : 0);
    query = take(kTokens * (dim + 1));
    key = take(kTokens * (dim + 1));
    features = taylor ? take(kTokens * (n + 1)) : query;
    values = take(kTokens * kSlice);
    weights = take(kTokens * (kTokens + 1));
    age = take(kTokens);
    mask = take(kTokens);
    total = at;
  }
};

// Features of kTokens rows of z = x d^(-1/4), in the order of taylor_linear_attention/features.py.
JRT_DEVICE void expand(const float* z, float* phi, int d, int n, int thread) {
  for (int at = thread; at < kTokens * d; at += kGenericThreads) {
    const int row = at / d, i = at % d;
    const float* x = z + row * (d + 1);
    float* to = phi + row * (n + 1);
    if (i == 0) to[0] = 1.f;
    to[1 + i] = x[i];
    to[1 + d + i] = x[i] * x[i] * 0.70710678118654752f;
    for (int s = 1; 2 * s <= d; ++s)
      if (2 * s < d || i < s) to[1 + d + s * d + i] = x[i] * x[i + s < d ? i + s : i + s - d];
  }
}

template <typename T>
__global__ void generic_kernel(const LinearArgs a) {
  JRT_DYNAMIC_SHARED(raw);
  float* memory = reinterpret_cast<float*>(raw);
  const int d = int(a.dim), n = int(a.features), f = int(a.head_dim), thread = threadIdx.x;
  const GenericLayout at(d, n, a.taylor);
  float *state = memory + at.state, *sums = memory + at.sums, *query = memory + at.query, *key = memory + at.key;
  float *features = memory + at.features, *values = memory + at.values, *weights = memory + at.weights;
  float *age = memory + at.age, *present = memory + at.mask;

  const int bh = blockIdx.x, first_column = blockIdx.y * kSlice;
  const int64_t b = bh / a.heads, h = bh % a.heads;
  const float scale = a.taylor ? rsqrtf(sqrtf(float(d))) : 1.f;
  const float rate = a.decay ? a.decay[h] : 1.f;
  const T* q_at = static_cast<const T*>(a.q.data);
  const T* k_at = static_cast<const T*>(a.k.data) + b * a.k.batch + h * a.k.head;
  const T* v_at = static_cast<const T*>(a.v.data) + b * a.v.batch + h * a.v.head;
  if (q_at) q_at += b * a.q.batch + h * a.q.head;

  for (int i = thread; i < n * kSlice; i += kGenericThreads) {
    const int row = i / kSlice, col = first_column + i % kSlice;
    state[i] = a.kv_in && col < f ? a.kv_in[(int64_t(bh) * n + row) * f + col] : 0.f;
  }
  if (a.taylor)
    for (int i = thread; i < n; i += kGenericThreads) sums[i] = a.k_in ? a.k_in[int64_t(bh) * n + i] : 0.f;

  for (int64_t begin = 0; begin < a.length; begin += kTokens) {
    const int count = int(a.length - begin < kTokens ? a.length - begin : kTokens);
    __syncthreads();
    // A masked token's key and value are zeros, whatever is there: NaN times 0 is NaN.
    auto counts = [&](int row) { return row < count && (!a.mask || a.mask[b * a.length + begin + row] != 0.f); };
    for (int i = thread; i < kTokens * d; i += kGenericThreads) {
      const int row = i / d, dim = i % d;
      if (q_at) query[row * (d + 1) + dim] = row < count ? scale * to_float(q_at[(begin + row) * a.q.length + dim * a.q.dim]) : 0.f;
      key[row * (d + 1) + dim] = counts(row) ? scale * to_float(k_at[(begin + row) * a.k.length + dim * a.k.dim]) : 0.f;
    }
    for (int i = thread; i < kTokens * kSlice; i += kGenericThreads) {
      const int row = i / kSlice, col = first_column + i % kSlice;
      values[i] = col < f && counts(row) ? to_float(v_at[(begin + row) * a.v.length + col * a.v.dim]) : 0.f;
    }
    if (thread < kTokens) present[thread] = thread < count ? (a.mask ? a.mask[b * a.length + begin + thread] : 1.f) : 0.f;
    __syncthreads();
    // A masked position does not count: decay goes by the number of tokens between two positions.
    if (thread < kTokens) {
      int seen = 0;
      for (int j = 0; j <= thread; ++j) seen += present[j] != 0.f;
      age[thread] = float(seen);
    }
    if (q_at) {
      for (int i = thread; i < kTokens * kTokens; i += kGenericThreads) {
        const int row = i / kTokens, other = i % kTokens;
        float dot = 0.f;
        if (other <= row && other < count)
          for (int e = 0; e < d; ++e) dot = fmaf(query[row * (d + 1) + e], key[other * (d + 1) + e], dot);
        if (a.taylor) dot = fmaf(dot, fmaf(dot, 0.5f, 1.f), 1.f);
        weights[row * (kTokens + 1) + other] = other <= row ? dot * present[other] : 0.f;
      }
      if (a.taylor) expand(query, features, d, n, thread);
      __syncthreads();
      // Eight lanes share a token: two columns each, and an eighth of the normaliser.
      const int row = thread / 8, part = thread % 8;
      const float* phi = features + row * (a.taylor ? n + 1 : d + 1);
      const float* score = weights + row * (kTokens + 1);
      float y0 = 0.f, y1 = 0.f;
      for (int e = 0; e < n; ++e) {
        y0 = fmaf(phi[e], state[e * kSlice + 2 * part], y0);
        y1 = fmaf(phi[e], state[e * kSlice + 2 * part + 1], y1);
      }
      if (a.decay) {
        const float fade = powf(rate, age[row]);
        y0 *= fade;
        y1 *= fade;
      }
      for (int other = 0; other <= row; ++other) {
        const float w = a.decay ? score[other] * powf(rate, age[row] - age[other]) : score[other];
        y0 = fmaf(w, values[other * kSlice + 2 * part], y0);
        y1 = fmaf(w, values[other * kSlice + 2 * part + 1], y1);
      }
      if (a.taylor) {
        float below = 0.f;
        for (int e = part; e < n; e += 8) below = fmaf(phi[e], sums[e], below);
        for (int other = part; other <= row; other += 8) below += score[other];
        below += shuffle_xor(below, 1);
        below += shuffle_xor(below, 2);
        below += shuffle_xor(below, 4);
        y0 /= below + 1e-12f;
        y1 /= below + 1e-12f;
        if (a.denominator && row < count && part == 0 && first_column == 0)
          a.denominator[(b * a.length + begin + row) * a.heads + h] = below;
      }
      if (row < count) {
        T* y = static_cast<T*>(a.y) + ((b * a.length + begin + row) * a.heads + h) * f;
        const int col = first_column + 2 * part;
        if (col < f) y[col] = from_float<T>(y0);
        if (col + 1 < f) y[col + 1] = from_float<T>(y1);
      }
      __syncthreads();
    }
    const float* phi = key;
    int pitch = d + 1;
    if (a.taylor) {
      expand(key, features, d, n, thread);
      phi = features;
      pitch = n + 1;
    }
    __syncthreads();
    if (a.taylor) {
      for (int e = thread; e < n; e += kGenericThreads) {
        float sum = 0.f;
        for (int j = 0; j < count; ++j) sum = fmaf(phi[j * pitch + e], present[j], sum);
        sums[e] += sum;
      }
    }
    if (a.decay) {
      __syncthreads();  // the ages are read by all before the weights of the tokens replace them
      const float last = age[kTokens - 1];
      __syncthreads();
      if (thread < kTokens) age[thread] = powf(rate, last - age[thread]) * present[thread];
      __syncthreads();
      const float fade = powf(rate, last);
      for (int i = thread; i < n * kSlice; i += kGenericThreads) {
        float sum = 0.f;
        for (int j = 0; j < count; ++j) sum = fmaf(phi[j * pitch + i / kSlice] * age[j], values[j * kSlice + i % kSlice], sum);
        state[i] = fmaf(state[i], fade, sum);
      }
    } else {
      for (int i = thread; i < n * kSlice; i += kGenericThreads) {
        float sum = 0.f;
        for (int j = 0; j < count; ++j) sum = fmaf(phi[j * pitch + i / kSlice] * present[j], values[j * kSlice + i % kSlice], sum);
        state[i] += sum;
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < n * kSlice; i += kGenericThreads) {
    const int row = i / kSlice, col = first_column + i % kSlice;
    if (col < f) a.kv_out[(int64_t(bh) * n + row) * f + col] = state[i];
  }
  if (a.taylor && first_column == 0)
    for (int i = thread; i < n; i += kGenericThreads) a.k_out[int64_t(bh) * n + i] = sums[i];
}

}  // namespace jrt_cuda
