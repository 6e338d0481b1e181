// Gradients of taylor_linear_attention and causal_dot_product (without decay), in memory independent of length.
//
// With r_i = 1 / (denominator_i + 1e-12) let g_i = [r_i gy_i, -r_i gy_i.y_i] and u_j = [v_j, 1] (without the last component for
// causal_dot_product, which is not normalised). The loss depends on the weights w_ij through g_i.u_j only. With P = dw/ds = 1 + s
//
//   d phi(q_i) = S_i g_i        S_i: sum of phi(k_j) u_j^T over earlier chunks, starting from the initial state, chunks in order
//   d phi(k_j) = R_j u_j        R_j: sum of phi(q_i) g_i^T over later chunks, starting from the final state's gradient, chunks in reverse
//   d v_j      = phi(k_j)^T R_j + sum over the chunk of w_ij g_i      (the columns of v)
//   d s_ij     = (g_i.u_j)(1 + s_ij), inside the chunk.
//
// Both directions are one function: `own` is the side whose gradient is computed, in lanes; `other` is the side whose features are summed.
// They are independent, so a head is two jobs. The last R is the gradient of the initial state.
#pragma once
#include "taylor_linear_attention/taylor_linear_attention.hpp"

namespace {

using jrt::LinearGradArgs;

struct GradScratch {
  int64_t ld, own, other, weighted, features, state, own_rows, own_t, scores, d_own, d_features, a, y, ones, total;
  GradScratch(int64_t n, int64_t d, int64_t f) {
    ld = round_up(f + 1, kW);
    int64_t at = 0;
    auto take = [&at](int64_t floats) {
      const int64_t here = at;
      at += round_up(floats, 16);
      return here;
    };
    own = take(d * kPitch);
    other = take(d * kPitch);
    weighted = take(d * kPitch);
    features = take(n * kPitch);
    state = take((n + kChunk) * ld);  // and below it the chunk's vectors of the other side
    own_rows = take(kChunk * ld);
    own_t = take((f + 1) * kPitch);
    scores = take(kChunk * kPitch);
    d_own = take((d > n ? d : n) * kPitch);
    d_features = take(n * kPitch);
    a = take((n + kChunk) * kPitch);
    y = take(ld);
    ones = take(3 * kChunk);
    total = at + 16;
  }
};

// Adds the gradient of the features with respect to z to dz [d][kPitch].
inline void features_backward(int64_t d, int64_t vectors, const float* z, const float* d_features, float* dz) {
  int64_t f = 1;
  auto pair = [&](int64_t i, int64_t j, float factor) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t t = v * kW;
      const Vec g = mul(load(d_features + f * kPitch + t), set1(factor));
      store(dz + i * kPitch + t, fma(g, load(z + j * kPitch + t), load(dz + i * kPitch + t)));
      store(dz + j * kPitch + t, fma(g, load(z + i * kPitch + t), load(dz + j * kPitch + t)));
    }
  };
  for (int64_t i = 0; i < d; ++i, ++f) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t t = i * kPitch + v * kW;
      store(dz + t, add(load(dz + t), load(d_features + f * kPitch + v * kW)));
    }
  }
  for (int64_t i = 0; i < d; ++i, ++f) pair(i, i, kHalfRoot);
  for (int64_t s = 1; s <= d / 2; ++s) {
    const int64_t rows = 2 * s == d ? s : d;
    for (int64_t i = 0; i < rows; ++i, ++f) pair(i, i + s < d ? i + s : i + s - d, 1.0f);
  }
}

// Turns g.u into the gradient of the scores, row by row: rows are `other`, lanes are `own`.
template <bool Taylor, bool Reverse>
struct ScoreGradient {
  float* to;  // [other][kPitch]
  const float* scores;
  const float *row_weight, *lane_weight;
  JRT_INLINE Vec begin(int64_t, int64_t) const { return zero(); }
  JRT_INLINE void end(int64_t r, int64_t c, Vec x) const {
    x = mul(x, mul(set1(row_weight[r]), load(lane_weight + c)));
    if (Taylor) x = fma(x, load(scores + r * kPitch + c), x);
    const int64_t diagonal = r - c;  // forward, a key (row) is seen by later queries (lanes); backward, the other way about
    x = Reverse ? keep(x, 0, int(diagonal + 1 < kW ? diagonal + 1 : kW), zero()) : keep(x, int(diagonal < kW ? diagonal : kW), kW, zero());
    store(to + r * kPitch + c, x);
  }
};

template <bool Taylor, bool Reverse>
void linear_grad_job(const LinearGradArgs& p, int64_t batch, int64_t head, const GradScratch& at, float* s) {
  const int64_t n = p.features, d = p.dim, f = p.head_dim, ld = at.ld, bh = batch * p.heads + head;
  const int64_t extended = Taylor ? f + 1 : f, columns = round_up(f, kW);
  float *own = s + at.own, *other = s + at.other, *features = s + at.features, *state = s + at.state;
  float *other_rows = state + n * ld, *own_rows = s + at.own_rows, *own_t = s + at.own_t, *scores = s + at.scores;
  float *d_own = s + at.d_own, *d_features = s + at.d_features, *a = s + at.a, *y = s + at.y;
  float *mask = s + at.ones, *inside = mask + kChunk, *ones = inside + kChunk;
  float scale = 1.0f;
  if (Taylor) scale = float(1.0 / __builtin_sqrt(__builtin_sqrt(double(d))));
  std::memset(s, 0, sizeof(float) * size_t(at.total));
  for (int i = 0; i < kChunk; ++i) ones[i] = 1.0f;

  const float* kv = Reverse ? p.g_kv : p.kv_in;
  const float* k = Reverse ? p.g_k : p.k_in;
  for (int64_t r = 0; r < n; ++r) {
    if (kv) std::memcpy(state + r * ld, kv + (bh * n + r) * f, sizeof(float) * size_t(f));
    if (Taylor && k) state[r * ld + f] = k[bh * n + r];
  }

  const int64_t chunks = (p.length + kChunk - 1) / kChunk;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t start = (Reverse ? chunks - 1 - chunk : chunk) * kChunk;
    const int64_t tokens = p.length - start < kChunk ? p.length - start : kChunk, width = round_up(tokens, kW);
    const int64_t vectors = width / kW;
    for (int64_t i = 0; i < kChunk; ++i) {
      inside[i] = i < tokens ? 1.0f : 0.0f;
      mask[i] = i >= tokens ? 0.0f : p.mask ? p.mask[batch * p.length + start + i] : 1.0f;
    }
    const float *row_weight = Reverse ? inside : mask, *lane_weight = Reverse ? mask : inside;
    auto first = [&](const View& x) { return batch * x.batch + start * x.length + head * x.head; };
    float *q_t = Reverse ? other : own, *k_t = Reverse ? own : other;
    pack_transposed(p.dtype, p.q.data, first(p.q), p.q.length, p.q.dim, tokens, d, scale, q_t, kPitch);
    pack_transposed(p.dtype, p.k.data, first(p.k), p.k.length, p.k.dim, tokens, d, scale, k_t, kPitch);
    float *u = Reverse ? own_rows : other_rows, *g = Reverse ? other_rows : own_rows;
    pack_rows(p.dtype, p.v.data, first(p.v), p.v.length, p.v.dim, tokens, f, u, ld);
    if (p.mask) clear_masked(mask, tokens, d, k_t, ld, u);
    pack_rows(p.dtype, p.gy.data, first(p.gy), p.gy.length, p.gy.dim, tokens, f, g, ld);
    if (Taylor) {
      for (int64_t i = 0; i < tokens; ++i) {
        float* row = g + i * ld;
        const float r = 1.0f / (p.denominator[(batch * p.length + start + i) * p.heads + head] + 1e-12f);
        pack_rows(p.dtype, p.y.data, first(p.y) + i * p.y.length, 0, p.y.dim, 1, f, y, ld);
        Vec dot = zero();
        for (int64_t c = 0; c < columns; c += kW) {
          dot = fma(load(row + c), load(y + c), dot);
          store(row + c, mul(load(row + c), set1(r)));
        }
        row[f] = -r * sum(dot);
        u[i * ld + f] = 1.0f;
      }
    }
    pack_transposed(jrt::kFloat32, own_rows, 0, ld, 1, tokens, extended, 1.0f, own_t, kPitch);

    // The state's part of the gradient, and the scores inside the chunk.
    Assign to_features{d_features, kPitch};
    gemm<true>(0, n, 0, width, Depth{extended, 0}, state, ld, own_t, kPitch, to_features);
    Assign to_scores{scores, kPitch};
    gemm<false>(0, tokens, 0, width, Depth{d, 0}, other, kPitch, own, kPitch, to_scores);
    if (Reverse) {
      // d v: phi(k) and the weights side by side above R and g, as in the forward product
      if (Taylor) {
        key_features(d, vectors, own, mask, s + at.weighted, a);
      } else {
        std::memcpy(a, own, sizeof(float) * size_t(n * kPitch));
      }
      for (int64_t i = 0; i < tokens; ++i) {
        for (int64_t c = 0; c < width; c += kW) {
          Vec w = load(scores + i * kPitch + c);
          if (Taylor) w = fma(w, fma(w, set1(0.5f), set1(1.0f)), set1(1.0f));
          w = keep(mul(w, load(mask + c)), 0, int(i - c + 1 < kW ? i - c + 1 : kW), zero());
          store(a + (n + i) * kPitch + c, w);
        }
      }
      WriteRows rows{p.gv, jrt::kFloat32, ((batch * p.length + start) * p.heads + head) * f, p.heads * f, f, nullptr};
      gemm<false>(0, tokens, 0, columns, Depth{n + tokens, 0}, a, kPitch, state, ld, rows);
    }
    ScoreGradient<Taylor, Reverse> to_d_scores{a, scores, row_weight, lane_weight};  // a is free again
    gemm<true>(0, tokens, 0, width, Depth{extended, 0}, other_rows, ld, own_t, kPitch, to_d_scores);
    Assign to_own{d_own, kPitch};
    gemm<true>(0, d, 0, width, Depth{tokens, 0}, other, kPitch, a, kPitch, to_own);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < width; c += kW) {
        const int64_t t = r * kPitch + c;
        const Vec x = mul(load(d_features + t), load(lane_weight + c));
        if (Taylor) store(d_features + t, x);
        else store(d_own + t, add(load(d_own + t), x));
      }
    }
    if (Taylor) features_backward(d, vectors, own, d_features, d_own);
    float* out = (Reverse ? p.gk : p.gq) + ((batch * p.length + start) * p.heads + head) * d;
    for (int64_t i = 0; i < tokens; ++i) {
      for (int64_t c = 0; c < d; ++c) out[i * p.heads * d + c] = scale * d_own[c * kPitch + i];
    }

    // The state moves on over this chunk.
    const float* summed = other;
    if (Taylor) {
      key_features(d, vectors, other, row_weight, s + at.weighted, features);
      summed = features;
      if (f % kW == 0) {  // else the extra column is in the product's last vector
        for (int64_t r = 0; r < n; ++r) {
          float total = 0.0f;
          for (int64_t i = 0; i < tokens; ++i) total += features[r * kPitch + i] * other_rows[i * ld + f];
          state[r * ld + f] += total;
        }
      }
    }
    Accumulate update{state, ld};
    gemm<true>(0, n, 0, columns, Depth{tokens, 0}, summed, kPitch, other_rows, ld, update);
  }

  if (Reverse) {
    for (int64_t r = 0; r < n; ++r) {
      std::memcpy(p.g_kv_in + (bh * n + r) * f, state + r * ld, sizeof(float) * size_t(f));
      if (Taylor) p.g_k_in[bh * n + r] = state[r * ld + f];
    }
  }
}

void linear_attention_backward(const LinearGradArgs& p) {
  const int64_t heads = p.batches * p.heads;
  if (heads == 0) return;
  const GradScratch at(p.features, p.dim, p.head_dim);
  const int threads = threads_for(2 * heads, heads * p.length * 6 * p.features * p.head_dim, p.threads);
  float* memory = jrt::scratch(size_t(at.total * threads));
  parallel_for(2 * heads, threads, [&](int64_t job, int thread) {
    const int64_t bh = job / 2, batch = bh / p.heads, head = bh % p.heads;
    float* mine = memory + at.total * thread;
    if (p.taylor) {
      if (job % 2) linear_grad_job<true, true>(p, batch, head, at, mine);
      else linear_grad_job<true, false>(p, batch, head, at, mine);
    } else {
      if (job % 2) linear_grad_job<false, true>(p, batch, head, at, mine);
      else linear_grad_job<false, false>(p, batch, head, at, mine);
    }
  });
}

}  // namespace
