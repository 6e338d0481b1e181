// One decode step of Taylor linear attention: one pass reads the state, updates it, writes it and uses it for the output.
//
// Per head it is 4nF FLOPs for 8nF bytes of state, so memory traffic is the limit. Features are rows of d products of z with a rotation
// of z: unaligned loads from two copies of z, without gathers.
#pragma once
#include "taylor_linear_attention/features.hpp"
#include "common/parallel.hpp"

namespace {

using jrt::StepArgs;

// out has room for features + kW; twice is 2d + kW of scratch.
inline void features_of_one(int64_t d, const float* z, float* twice, float* out) {
  std::memcpy(twice, z, sizeof(float) * size_t(d));
  std::memcpy(twice + d, z, sizeof(float) * size_t(d));
  out[0] = 1.0f;
  std::memcpy(out + 1, z, sizeof(float) * size_t(d));
  float* row = out + 1 + d;
  for (int64_t i = 0; i < d; ++i) row[i] = z[i] * kHalfRoot * z[i];
  row += d;
  for (int64_t s = 1; s <= d / 2; ++s) {
    const int64_t width = 2 * s == d ? s : d;
    for (int64_t i = 0; i < width; i += kW) store(row + i, mul(load(twice + i), load(twice + s + i)));
    row += width;
  }
}

template <int N, bool Decay>
JRT_INLINE void step_columns(int64_t n, const float* fq, const float* fk, float rate, const float* v, float* kv, int64_t ld,
                             int last, Vec (&out)[N]) {
  Vec acc[2][N], value[N];
  JRT_UNROLL for (int c = 0; c < N; ++c) {
    acc[0][c] = acc[1][c] = zero();
    value[c] = load(v + c * kW);
  }
  const Vec factor = set1(rate);
  auto one = [&](int64_t f, Vec(&sum_)[N]) {
    const Vec key = set1(fk[f]), query = set1(fq[f]);
    JRT_UNROLL for (int c = 0; c < N; ++c) {
      float* at = kv + f * ld + c * kW;
      Vec s = c == N - 1 ? load_n(at, last) : load(at);
      if (Decay) s = mul(s, factor);
      s = fma(key, value[c], s);
      if (c == N - 1) store_n(at, s, last);
      else store(at, s);
      sum_[c] = fma(query, s, sum_[c]);
    }
  };
  int64_t f = 0;
  for (; f + 2 <= n; f += 2) {
    one(f, acc[0]);
    one(f + 1, acc[1]);
  }
  if (f < n) one(f, acc[0]);
  JRT_UNROLL for (int c = 0; c < N; ++c) out[c] = add(acc[0][c], acc[1][c]);
}

template <int N>
JRT_INLINE void step_group(const StepArgs& p, int64_t n, const float* fq, const float* fk, const float* v, float* kv, int64_t head,
                           float inverse, int64_t to, int64_t col, int last) {
  Vec out[N];
  if (p.decay) step_columns<N, true>(n, fq, fk, p.decay[head], v + col, kv + col, p.head_dim, last, out);
  else step_columns<N, false>(n, fq, fk, 1.0f, v + col, kv + col, p.head_dim, last, out);
  JRT_UNROLL for (int c = 0; c < N; ++c) {
    write(p.dtype, p.y, to + col + c * kW, mul(out[c], set1(inverse)), c == N - 1 ? last : kW);
  }
}

void taylor_linear_attention_step(const StepArgs& p) {
  const int64_t heads = p.batches * p.heads, n = p.features, d = p.dim;
  if (heads == 0) return;
  const int threads = threads_for(heads, 2 * heads * n * p.head_dim, p.threads);
  const int64_t room = round_up(n, 16) + 32, wide = round_up(p.head_dim, 16) + 16, z_room = round_up(d, 16) + 16;
  const int64_t each = 2 * room + wide + z_room + 2 * z_room + 16;
  float* memory = jrt::scratch(size_t(each * threads));
  const float scale = float(1.0 / __builtin_sqrt(__builtin_sqrt(double(d))));
  parallel_for(heads, threads, [&](int64_t bh, int thread) {
    const int64_t batch = bh / p.heads, head = bh % p.heads;
    float* fq = memory + each * thread;
    float *fk = fq + room, *v = fk + room, *z = v + wide, *twice = z + z_room;
    auto phi = [&](const View& x, float* out) {
      pack_rows(p.dtype, x.data, batch * x.batch + head * x.head, 0, x.dim, 1, d, z, z_room);
      for (int64_t i = 0; i < d; ++i) z[i] *= scale;
      features_of_one(d, z, twice, out);
    };
    phi(p.q, fq);
    phi(p.k, fk);
    pack_rows(p.dtype, p.v.data, batch * p.v.batch + head * p.v.head, 0, p.v.dim, 1, p.head_dim, v, wide);
    float* k_sum = p.k_sum + bh * n;
    Vec dot = zero();
    for (int64_t f = 0; f < n; f += kW) {
      const int left = int(n - f < kW ? n - f : kW);
      const Vec s = add(load_n(k_sum + f, left), load_n(fk + f, left));
      store_n(k_sum + f, s, left);
      dot = fma(s, load_n(fq + f, left), dot);
    }
    const float inverse = 1.0f / (sum(dot) + 1e-12f);
    float* kv = p.kv + bh * n * p.head_dim;
    int64_t col = 0;
    while (col < p.head_dim) {
      const int64_t vectors = (p.head_dim - col + kW - 1) / kW, to = bh * p.head_dim;
      const int64_t group = vectors < 4 ? vectors : 4;
      const int last = int(p.head_dim - col - (group - 1) * kW < kW ? p.head_dim - col - (group - 1) * kW : kW);
      if (group == 4) step_group<4>(p, n, fq, fk, v, kv, head, inverse, to, col, last);
      else if (group == 3) step_group<3>(p, n, fq, fk, v, kv, head, inverse, to, col, last);
      else if (group == 2) step_group<2>(p, n, fq, fk, v, kv, head, inverse, to, col, last);
      else step_group<1>(p, n, fq, fk, v, kv, head, inverse, to, col, last);
      col += group * kW;
    }
  });
}

}  // namespace
