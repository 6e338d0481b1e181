// The Taylor feature map, computed for vectors of tokens: feature f of kW tokens is one product of two vectors.
//
// Order (taylor_linear_attention/features.py): 1; z_0..z_{d-1}; then rows s = 0..d/2 of z_i z_{(i+s) mod d}, the last row halved for even
// d; squares weigh 1/sqrt(2). Feature-major storage [feature][token] suits both products that use it: as A(token, feature) of
// phi(q) S and as A(feature, token) of phi(k)^T V.
#pragma once
#include "common/gemm.hpp"

namespace {

constexpr int kChunk = 64;            // tokens that are scored against each other; spec: 64 to 128 cost little
constexpr int kPitch = kChunk + kW;   // a row of 64 floats and a gap: rows at multiples of 256 bytes would share cache sets
constexpr float kHalfRoot = 0.70710678118654752f;

JRT_INLINE int64_t feature_count(int64_t d) { return (d + 1) * (d + 2) / 2; }

// Features of G vectors of tokens from column `at`: z [d][kPitch], y = z times the tokens' weights, one = the weights.
// visit(f, g, x) sees every value as it is stored to out [features][kPitch].
template <int G, class Visit>
JRT_INLINE void features_of(int64_t d, const float* z, const float* y, const float* one, float* out, int64_t at, Visit& visit) {
  int64_t f = 0;
  JRT_UNROLL for (int g = 0; g < G; ++g) {
    const Vec x = load(one + at + g * kW);
    store(out + at + g * kW, x);
    visit(f, g, x);
  }
  ++f;
  for (int64_t i = 0; i < d; ++i, ++f) {
    JRT_UNROLL for (int g = 0; g < G; ++g) {
      const Vec x = load(y + i * kPitch + at + g * kW);
      store(out + f * kPitch + at + g * kW, x);
      visit(f, g, x);
    }
  }
  for (int64_t i = 0; i < d; ++i, ++f) {
    JRT_UNROLL for (int g = 0; g < G; ++g) {
      const int64_t t = i * kPitch + at + g * kW;
      const Vec x = mul(mul(load(y + t), set1(kHalfRoot)), load(z + t));
      store(out + f * kPitch + at + g * kW, x);
      visit(f, g, x);
    }
  }
  for (int64_t s = 1; s <= d / 2; ++s) {
    const int64_t rows = 2 * s == d ? s : d;
    for (int64_t i = 0; i < rows; ++i, ++f) {
      const int64_t j = i + s < d ? i + s : i + s - d;
      JRT_UNROLL for (int g = 0; g < G; ++g) {
        const int64_t t = at + g * kW;
        const Vec x = mul(load(y + i * kPitch + t), load(z + j * kPitch + t));
        store(out + f * kPitch + t, x);
        visit(f, g, x);
      }
    }
  }
}

// below[token] = sum_f phi_f(token) * k_sum[f], taken along while the features are made.
template <int G>
struct DotWith {
  const float* k_sum;
  Vec acc[G];
  JRT_INLINE void operator()(int64_t f, int g, Vec x) { acc[g] = fma(x, set1(k_sum[f]), acc[g]); }
};

struct Nothing {
  JRT_INLINE void operator()(int64_t, int, Vec) const {}
};

template <int G>
JRT_INLINE void query_group(int64_t d, const float* z, const float* one, float* out, const float* k_sum, float* below,
                            int64_t at) {
  DotWith<G> dot{k_sum, {}};
  JRT_UNROLL for (int g = 0; g < G; ++g) dot.acc[g] = zero();
  features_of<G>(d, z, z, one, out, at, dot);
  JRT_UNROLL for (int g = 0; g < G; ++g) store(below + at + g * kW, dot.acc[g]);
}

// Features of a chunk's queries, and their products with the sum of earlier keys' features.
inline void query_features(int64_t d, int64_t vectors, const float* z, const float* one, float* out, const float* k_sum,
                           float* below) {
  int64_t v = 0;
  for (; v + 4 <= vectors; v += 4) query_group<4>(d, z, one, out, k_sum, below, v * kW);
  for (; v < vectors; ++v) query_group<1>(d, z, one, out, k_sum, below, v * kW);
}

// Features of a chunk's keys, times the tokens' weights; weighted [d][kPitch] is scratch.
inline void key_features(int64_t d, int64_t vectors, const float* z, const float* weight, float* weighted, float* out) {
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t t = i * kPitch + v * kW;
      store(weighted + t, mul(load(z + t), load(weight + v * kW)));
    }
  }
  Nothing nothing;
  int64_t v = 0;
  for (; v + 4 <= vectors; v += 4) features_of<4>(d, z, weighted, weight, out, v * kW, nothing);
  for (; v < vectors; ++v) features_of<1>(d, z, weighted, weight, out, v * kW, nothing);
}

// Zeros for the keys and values of tokens with weight 0, also if their memory has NaN: 0 * NaN is NaN. k is [d][kPitch], values [token][ld].
inline void clear_masked(const float* weight, int64_t tokens, int64_t d, float* k, int64_t ld, float* values) {
  for (int64_t i = 0; i < tokens; ++i) {
    if (weight[i] != 0.0f) continue;
    for (int64_t c = 0; c < d; ++c) k[c * kPitch + i] = 0.0f;
    std::memset(values + i * ld, 0, sizeof(float) * size_t(ld));
  }
}

// k_sum[f] += sum over tokens of features[f]
inline void add_rows(int64_t n, int64_t vectors, const float* features, float* k_sum) {
  for (int64_t f = 0; f < n; ++f) {
    Vec s = load(features + f * kPitch);
    for (int64_t v = 1; v < vectors; ++v) s = add(s, load(features + f * kPitch + v * kW));
    k_sum[f] += sum(s);
  }
}

// Weights of keys (rows) for queries (columns) from their scores, causal; transposed, so that queries are in lanes.
// weight_jk = mask_j * (1 + s + s^2/2) for j <= i, or mask_j * s for plain features; their sums over j go to below[i].
template <bool Taylor>
struct Weigh {
  float* to;              // [key][kPitch]
  const float* mask;      // [key]
  float* below;           // [query], or null
  JRT_INLINE Vec begin(int64_t, int64_t) const { return zero(); }
  JRT_INLINE void end(int64_t j, int64_t i, Vec s) const {
    Vec p = s;
    if (Taylor) p = fma(s, fma(s, set1(0.5f), set1(1.0f)), set1(1.0f));
    p = mul(p, set1(mask[j]));
    if (j > i) p = keep(p, int(j - i), kW, zero());
    store(to + j * kPitch + i, p);
    if (Taylor) store(below + i, add(load(below + i), p));
  }
};

// Keys 0..tokens against queries: a and b are [depth][kPitch], keys and queries in lanes. Blocks before the diagonal are skipped,
// but for zeros where a tile of up to 12 rows of the product that follows may straddle it.
template <class Epilogue>
inline void causal_scores(int64_t tokens, int64_t depth, const float* keys, const float* queries, Epilogue& e) {
  const int64_t width = round_up(tokens, kW);
  for (int64_t j = 0; j < tokens; j += kW) {
    for (int64_t r = j; r < j + kW; ++r) {
      for (int64_t i = j - round_up(12, kW); i < j; i += kW) {
        if (i >= 0) store(e.to + r * kPitch + i, zero());
      }
    }
    gemm<false>(j, tokens < j + kW ? tokens : j + kW, j, width, Depth{depth, 0}, keys, kPitch, queries, kPitch, e);
  }
}

}  // namespace
