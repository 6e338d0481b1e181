// gated_linear_attention and gated_delta_rule, one token after the other:
//
//   S = diag(exp g) S;   u = v, or beta (v - S^T k) for the delta rule;   S = S + k u^T;   o = scale S^T q
//
// The columns of S (one per element of a head's v) do not depend on each other. A job takes a block of columns of one head through
// the whole sequence: the block (key dim x kBlock floats) stays in the first-level cache, and the vectors' lanes are columns.
#pragma once
#include "common/pack.hpp"
#include "common/parallel.hpp"

namespace {

using jrt::GatedArgs;

constexpr int kBlock = 32;                // columns of a job
constexpr int kVectors = kBlock / kW;     // vectors in a block's row

// One token's q, k and decay as float32, for the inner loops.
struct GatedToken {
  float *q, *k, *decay;  // (key dim), scratch
  float head_decay;      // where the gate is one number per head
};

template <int D>
void read_token(const GatedArgs& p, int64_t batch, int64_t t, int64_t head, GatedToken& token) {
  const int64_t key_head = head / (p.heads / p.key_heads);
  const int64_t q_at = batch * p.q.batch + t * p.q.length + key_head * p.q.head;
  const int64_t k_at = batch * p.k.batch + t * p.k.length + key_head * p.k.head;
  const int64_t g_at = batch * p.g.batch + t * p.g.length + head * p.g.head;
  for (int64_t c = 0; c < p.dim; c += kW) {
    const int left = int(p.dim - c < kW ? p.dim - c : kW);
    store(token.q + c, p.q.dim == 1 ? read<D>(p.q.data, q_at + c, left) : read_strided<D>(p.q.data, q_at + c * p.q.dim, p.q.dim, left));
    store(token.k + c, p.k.dim == 1 ? read<D>(p.k.data, k_at + c, left) : read_strided<D>(p.k.data, k_at + c * p.k.dim, p.k.dim, left));
    if (p.gate == jrt::kGatePerChannel) {
      const Vec g = p.g.dim == 1 ? load_n(static_cast<const float*>(p.g.data) + g_at + c, left)
                                 : read_strided<jrt::kFloat32>(p.g.data, g_at + c * p.g.dim, p.g.dim, left);
      store(token.decay + c, exponential(g));
    }
  }
  if (p.gate == jrt::kGatePerHead) {
    float all[kW];
    store(all, exponential(set1(static_cast<const float*>(p.g.data)[g_at])));
    token.head_decay = all[0];
  } else {
    token.head_decay = 1.0f;
  }
}

// One token's update of a block of columns; s[c * pitch + j] for row c. Leaves S^T q in out.
template <bool Delta, bool PerChannel>
JRT_INLINE void update_block(const GatedToken& token, int64_t dim, float* s, int64_t pitch, const Vec (&v)[kVectors], float beta,
                             Vec (&out)[kVectors]) {
  Vec u[kVectors];
  if (Delta) {
    Vec seen[kVectors];
    JRT_UNROLL for (int j = 0; j < kVectors; ++j) seen[j] = zero();
    for (int64_t c = 0; c < dim; ++c) {
      const Vec k = set1(PerChannel ? token.k[c] * token.decay[c] : token.k[c]);
      JRT_UNROLL for (int j = 0; j < kVectors; ++j) seen[j] = fma(k, load(s + c * pitch + j * kW), seen[j]);
    }
    const Vec decay = set1(token.head_decay), rate = set1(beta);
    JRT_UNROLL for (int j = 0; j < kVectors; ++j) u[j] = mul(rate, sub(v[j], PerChannel ? seen[j] : mul(seen[j], decay)));
  } else {
    JRT_UNROLL for (int j = 0; j < kVectors; ++j) u[j] = v[j];
  }
  JRT_UNROLL for (int j = 0; j < kVectors; ++j) out[j] = zero();
  const Vec whole = set1(token.head_decay);
  for (int64_t c = 0; c < dim; ++c) {
    const Vec decay = PerChannel ? set1(token.decay[c]) : whole;
    const Vec k = set1(token.k[c]), q = set1(token.q[c]);
    JRT_UNROLL for (int j = 0; j < kVectors; ++j) {
      float* at = s + c * pitch + j * kW;
      const Vec next = fma(k, u[j], mul(decay, load(at)));
      store(at, next);
      out[j] = fma(q, next, out[j]);
    }
  }
}

template <int D, bool Delta, bool PerChannel>
void gated_block(const GatedArgs& p, int64_t batch, int64_t head, int64_t column) {
  const int64_t rows = round_up(p.dim, kW), columns = p.head_dim - column < kBlock ? p.head_dim - column : kBlock;
  float* memory = jrt::scratch(size_t(3 * rows + p.dim * kBlock));
  GatedToken token{memory, memory + rows, memory + 2 * rows, 1.0f};
  const int64_t state_at = (batch * p.heads + head) * p.dim * p.head_dim + column;
  // A single token updates the state in place; a sequence uses a copy with adjacent rows.
  const bool in_place = p.length == 1 && columns == kBlock && p.state_in == p.state_out;
  float* s = in_place ? p.state_out + state_at : memory + 3 * rows;
  const int64_t pitch = in_place ? p.head_dim : kBlock;
  if (!in_place) {
    for (int64_t c = 0; c < p.dim; ++c) {
      JRT_UNROLL for (int j = 0; j < kVectors; ++j) {
        const int left = int(columns - j * kW);
        store(s + c * kBlock + j * kW, p.state_in && left > 0 ? load_n(p.state_in + state_at + c * p.head_dim + j * kW, left < kW ? left : kW) : zero());
      }
    }
  }
  const int64_t count = p.lengths ? jrt::within(p.lengths[batch], p.length) : p.length;
  const Vec scale = set1(p.scale);
  for (int64_t t = 0; t < p.length; ++t) {
    const int64_t y_at = ((batch * p.length + t) * p.heads + head) * p.head_dim + column;
    const int64_t v_at = batch * p.v.batch + t * p.v.length + head * p.v.head + column * p.v.dim;
    Vec v[kVectors], y[kVectors];
    if (t < count) {
      read_token<D>(p, batch, t, head, token);
      JRT_UNROLL for (int j = 0; j < kVectors; ++j) {
        const int left = int(columns - j * kW < kW ? columns - j * kW : kW);
        v[j] = left <= 0         ? zero()
               : p.v.dim == 1 ? read<D>(p.v.data, v_at + j * kW, left)
                              : read_strided<D>(p.v.data, v_at + j * kW * p.v.dim, p.v.dim, left);
      }
      const float beta = Delta ? static_cast<const float*>(p.beta.data)[batch * p.beta.batch + t * p.beta.length + head * p.beta.head] : 1.0f;
      update_block<Delta, PerChannel>(token, p.dim, s, pitch, v, beta, y);
    } else {
      JRT_UNROLL for (int j = 0; j < kVectors; ++j) y[j] = zero();
    }
    JRT_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int left = int(columns - j * kW < kW ? columns - j * kW : kW);
      if (left > 0) write<D>(p.y, y_at + j * kW, mul(scale, y[j]), left);
    }
  }
  if (!in_place) {
    for (int64_t c = 0; c < p.dim; ++c) {
      JRT_UNROLL for (int j = 0; j < kVectors; ++j) {
        const int left = int(columns - j * kW < kW ? columns - j * kW : kW);
        if (left > 0) store_n(p.state_out + state_at + c * p.head_dim + j * kW, load(s + c * kBlock + j * kW), left);
      }
    }
  }
}

template <int D, bool Delta>
void gated_of(const GatedArgs& p) {
  const int64_t blocks = (p.head_dim + kBlock - 1) / kBlock, jobs = p.batches * p.heads * blocks;
  const int threads = threads_for(jobs, jobs * p.length * p.dim * kBlock * (Delta ? 4 : 3), p.threads);
  parallel_for(jobs, threads, [&](int64_t job, int) {
    const int64_t row = job / blocks, column = job % blocks * kBlock;
    if (p.gate == jrt::kGatePerChannel) gated_block<D, Delta, true>(p, row / p.heads, row % p.heads, column);
    else gated_block<D, Delta, false>(p, row / p.heads, row % p.heads, column);
  });
}

template <bool Delta>
void gated(const GatedArgs& p) {
  if (p.dtype == jrt::kFloat32) gated_of<jrt::kFloat32, Delta>(p);
  else if (p.dtype == jrt::kBFloat16) gated_of<jrt::kBFloat16, Delta>(p);
  else gated_of<jrt::kFloat16, Delta>(p);
}

void gated_linear_attention(const GatedArgs& p) { gated<false>(p); }
void gated_delta_rule(const GatedArgs& p) { gated<true>(p); }

}  // namespace
