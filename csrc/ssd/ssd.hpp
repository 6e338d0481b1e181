// ssd: the recurrence of Mamba-2 (arXiv 2405.21060, section 6) as matrix products over chunks of tokens.
//
// With s_i = a (dt_1 + ... + dt_i) within a chunk, and h the (states x dim) state before it,
//   y_i = exp(s_i) c_i h + sum_{j<=i} (c_i . b_j) exp(s_i - s_j) dt_j x_j,   h' = exp(s_T) h + sum_j exp(s_T - s_j) b_j (dt_j x_j)^T.
// A job is some heads of one group of one row: they share the scores c_i . b_j. Per token and head that is 2 N P + T P / 2
// multiply-adds (N states, head dimension P, chunks of T), where the plain recurrence needs 3 N P vector instructions.
#pragma once
#include "common/gemm.hpp"
#include "common/math.hpp"
#include "common/parallel.hpp"
#include "ssd/args.hpp"

namespace {

using jrt::SsdArgs;

constexpr int64_t kSsdTokens = 64;  // a chunk

// C[r][.] = scale[r] * (A B)[r][.]
struct ScaleRows {
  float* c;
  int64_t ldc;
  const float* scale;
  JRT_INLINE Vec begin(int64_t, int64_t) const { return zero(); }
  JRT_INLINE void end(int64_t r, int64_t col, Vec x) const { store(c + r * ldc + col, mul(x, set1(scale[r]))); }
};

// C = decay * C + A B
struct Decayed {
  float* c;
  int64_t ldc;
  float decay;
  JRT_INLINE Vec begin(int64_t r, int64_t col) const { return mul(load(c + r * ldc + col), set1(decay)); }
  JRT_INLINE void end(int64_t r, int64_t col, Vec x) const { store(c + r * ldc + col, x); }
};

JRT_INLINE float element(int dtype, const void* p, int64_t at) {
  float t[kW];
  if (dtype == jrt::kFloat32) return static_cast<const float*>(p)[at];
  const uint16_t one[kW] = {static_cast<const uint16_t*>(p)[at]};
  store(t, dtype == jrt::kBFloat16 ? load_bf16(one, kW) : load_half(one, kW));
  return t[0];
}

// dt of one head over `tokens` tokens from `start` on; lanes up to the next multiple of kW are 0.
inline void time_steps(const SsdArgs& p, int64_t batch, int64_t head, int64_t start, int64_t tokens, float* dt) {
  const int64_t at = batch * p.dt.batch + start * p.dt.length + head * p.dt.head;
  pack_rows(p.dtype, p.dt.data, at, 0, p.dt.length, 1, tokens, dt, round_up(tokens, kW));
  const Vec bias = set1(p.dt_bias ? p.dt_bias[head] : 0.0f);
  for (int64_t t = 0; t < tokens; t += kW) {
    Vec x = add(load(dt + t), bias);
    if (p.softplus) x = softplus(x);
    x = max(set1(p.dt_min), min(set1(p.dt_max), x));  // NaN is the second operand, and stays
    store(dt + t, keep(x, 0, int(tokens - t), zero()));
  }
}

// The decays of a chunk, in units of log2(e): sums[i] = a (dt_1 + ... + dt_i) as two floats, since differences of neighbours must be
// exact to the last bit.
struct Decays {
  float high[kSsdTokens], low[kSsdTokens];
  float from_start[kSsdTokens], to_end[kSsdTokens];  // exp(s_i), exp(s_T - s_i)
  float whole;                                      // exp(s_T)

  void fill(const float* dt, float a, int64_t tokens) {
    double total = 0.0;
    const double rate = double(a) * 1.4426950408889634;
    for (int64_t t = 0; t < round_up(tokens, kW); ++t) {
      total += rate * double(dt[t]);
      high[t] = float(total);
      low[t] = float(total - double(high[t]));
    }
    const Vec last = set1(high[tokens - 1]), rest = set1(low[tokens - 1]);
    for (int64_t t = 0; t < tokens; t += kW) {
      const Vec h = load(high + t), l = load(low + t);
      store(from_start + t, exp2(add(h, l)));
      store(to_end + t, exp2(add(sub(last, h), sub(rest, l))));
    }
    whole = from_start[tokens - 1];
  }
  // exp(s_i - s_j) for kW values of j
  JRT_INLINE Vec between(int64_t i, int64_t j) const {
    return exp2(add(sub(set1(high[i]), load(high + j)), sub(set1(low[i]), load(low + j))));
  }
};

struct SsdScratch {
  int64_t states, dim;                       // rounded up to vectors
  float *b, *c, *b_columns, *scores;         // of the group: [token][state] twice, [state][token], [token][token]
  float *x, *driven, *weights, *y, *states_of;  // of a head; the states of all heads of the job: [head][state][dim]

  SsdScratch(int64_t n, int64_t p, int64_t heads) : states(round_up(n, kW)), dim(round_up(p, kW)) {
    constexpr int64_t T = kSsdTokens;
    float* at = jrt::scratch(size_t(3 * T * states + 2 * T * T + 3 * T * dim + (heads + 1) * states * dim + 16 * kW));
    auto take = [&](int64_t floats) { return at += floats, at - floats; };
    b = take(T * states), c = take(T * states), b_columns = take(T * states), scores = take(T * T), weights = take(T * T);
    x = take(T * dim), driven = take(T * dim), y = take(T * dim), states_of = take((heads + 1) * states * dim);
  }
  float* state(int64_t head) const { return states_of + head * states * dim; }
};

// Rows of `rows` of which each is times its weight.
JRT_INLINE void scale_rows(const float* from, float* to, const float* weight, int64_t tokens, int64_t width) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < width; i += kW) store(to + t * width + i, mul(load(from + t * width + i), set1(weight[t])));
}

template <int D>
void ssd_chunk(const SsdArgs& p, const SsdScratch& s, int64_t batch, int64_t head, float* h, int64_t start, int64_t tokens) {
  constexpr int64_t T = kSsdTokens;
  float dt[T];
  Decays decays;
  time_steps(p, batch, head, start, tokens, dt);
  decays.fill(dt, p.a[head], tokens);
  pack_rows(D, p.x.data, batch * p.x.batch + start * p.x.length + head * p.x.head, p.x.length, p.x.dim, tokens, p.dim, s.x, s.dim);
  scale_rows(s.x, s.driven, dt, tokens, s.dim);

  ScaleRows scaled{s.y, s.dim, decays.from_start};
  gemm<true>(0, tokens, 0, s.dim, Depth{p.states, 0}, s.c, s.states, h, s.dim, scaled);
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t j = 0; j < T && j < i + 1 + kTile; j += kW) {  // a tile ends at most kTile columns after its first row
      Vec w = zero();
      if (j <= i) w = keep(mul(load(s.scores + i * T + j), decays.between(i, j)), 0, int(i + 1 - j), zero());
      store(s.weights + i * T + j, w);
    }
  }
  Accumulate sum_up{s.y, s.dim};
  if (all_finite(s.driven, tokens * s.dim)) {
    gemm<true>(0, tokens, 0, s.dim, Depth{0, T}, s.weights, T, s.driven, s.dim, sum_up);
  } else {  // row by row: in a tile of several, 0 times a later infinity would reach earlier rows
    for (int64_t i = 0; i < tokens; ++i) gemm<true>(i, i + 1, 0, s.dim, Depth{0, T}, s.weights, T, s.driven, s.dim, sum_up);
  }
  scale_rows(s.driven, s.driven, decays.to_end, tokens, s.dim);
  Decayed update{h, s.dim, decays.whole};
  gemm<false>(0, p.states, 0, s.dim, Depth{tokens, 0}, s.b, s.states, s.driven, s.dim, update);

  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < p.dim; i += kW) {
      const int n = int(p.dim - i < kW ? p.dim - i : kW);
      Vec y = load(s.y + t * s.dim + i);
      if (p.d) y = fma(p.d_per_dim ? load_n(p.d + head * p.dim + i, n) : set1(p.d[head]), load(s.x + t * s.dim + i), y);
      if (p.z.data) {
        const int64_t at = batch * p.z.batch + (start + t) * p.z.length + head * p.z.head + i * p.z.dim;
        y = mul(y, silu(p.z.dim == 1 ? read<D>(p.z.data, at, n) : read_strided<D>(p.z.data, at, p.z.dim, n)));
      }
      write<D>(p.y, ((batch * p.length + start + t) * p.heads + head) * p.dim + i, y, n);
    }
  }
}

template <int D>
void ssd_heads(const SsdArgs& p, int64_t batch, int64_t group, int64_t first, int64_t last) {
  constexpr int64_t T = kSsdTokens;
  const int64_t count = p.lengths ? jrt::within(p.lengths[batch], p.length) : p.length, size = p.dim * p.states;
  const SsdScratch s(p.states, p.dim, last - first);
  for (int64_t head = first; head < last; ++head) {
    float* h = s.state(head - first);
    std::memset(h, 0, sizeof(float) * size_t(s.states * s.dim));
    if (p.state_in)
      pack_transposed(jrt::kFloat32, p.state_in, (batch * p.heads + head) * size, p.states, 1, p.dim, p.states, 1.0f, h, s.dim);
  }
  for (int64_t start = 0; start < count; start += T) {
    const int64_t tokens = count - start < T ? count - start : T;
    const int64_t b = batch * p.b.batch + start * p.b.length + group * p.b.head;
    const int64_t c = batch * p.c.batch + start * p.c.length + group * p.c.head;
    pack_rows(D, p.b.data, b, p.b.length, p.b.dim, tokens, p.states, s.b, s.states);
    pack_rows(D, p.c.data, c, p.c.length, p.c.dim, tokens, p.states, s.c, s.states);
    pack_transposed(D, p.b.data, b, p.b.length, p.b.dim, tokens, p.states, 1.0f, s.b_columns, T);
    Assign assign{s.scores, T};
    gemm<true>(0, tokens, 0, round_up(tokens, kW), Depth{p.states, 0}, s.c, s.states, s.b_columns, T, assign);
    for (int64_t head = first; head < last; ++head) ssd_chunk<D>(p, s, batch, head, s.state(head - first), start, tokens);
  }
  float* turned = s.state(last - first);
  for (int64_t head = first; head < last; ++head) {
    const int64_t at = (batch * p.heads + head) * size;
    pack_transposed(jrt::kFloat32, s.state(head - first), 0, s.dim, 1, p.states, p.dim, 1.0f, turned, s.states);
    for (int64_t i = 0; i < p.dim; ++i)
      std::memcpy(p.state_out + at + i * p.states, turned + i * s.states, sizeof(float) * size_t(p.states));
    for (int64_t t = count; t < p.length; ++t) {  // padding
      for (int64_t i = 0; i < p.dim; i += kW)
        write<D>(p.y, ((batch * p.length + t) * p.heads + head) * p.dim + i, zero(), int(p.dim - i < kW ? p.dim - i : kW));
    }
  }
}

template <int D>
void ssd_of(const SsdArgs& p) {
  const int64_t rows = p.batches * p.groups, heads = p.heads / p.groups;
  const int64_t work = p.batches * p.length * p.heads * (2 * p.states + kSsdTokens / 2) * p.dim;
  const int threads = threads_for(p.batches * p.heads, work, p.threads);
  // Fewest pieces that share out evenly, since each computes the scores again.
  int64_t pieces = 1;
  while (pieces < heads && rows * pieces % threads && rows * pieces < 4 * threads) ++pieces;
  const int64_t piece = (heads + pieces - 1) / pieces;
  pieces = (heads + piece - 1) / piece;
  parallel_for(rows * pieces, threads, [&](int64_t job, int) {
    const int64_t row = job / pieces, group = row % p.groups;
    const int64_t first = group * heads + job % pieces * piece, end = (group + 1) * heads;
    ssd_heads<D>(p, row / p.groups, group, first, first + piece < end ? first + piece : end);
  });
}

// One token of one head, in place; states in lanes.
template <int D>
void ssd_step_head(const SsdArgs& p, int64_t batch, int64_t head) {
  const int64_t states = p.states, pitch = round_up(states, kW), width = round_up(p.dim, kW), group = head / (p.heads / p.groups);
  float* b = jrt::scratch(size_t(2 * pitch + 2 * width));
  float *c = b + pitch, *x = c + pitch, *y = x + width;
  pack_rows(D, p.b.data, batch * p.b.batch + group * p.b.head, 0, p.b.dim, 1, states, b, pitch);
  pack_rows(D, p.c.data, batch * p.c.batch + group * p.c.head, 0, p.c.dim, 1, states, c, pitch);
  pack_rows(D, p.x.data, batch * p.x.batch + head * p.x.head, 0, p.x.dim, 1, p.dim, x, width);
  float dt[kW], decay[kW];
  time_steps(p, batch, head, 0, 1, dt);
  store(decay, exp2(set1(p.a[head] * kLog2E * dt[0])));
  const Vec rate = set1(decay[0]);
  const float* in = p.state_in + (batch * p.heads + head) * p.dim * states;
  float* out = p.state_out + (batch * p.heads + head) * p.dim * states;
  for (int64_t i = 0; i < p.dim; ++i) {
    const Vec drive = set1(dt[0] * x[i]);
    Vec total = zero();
    for (int64_t s = 0; s < states; s += kW) {
      const int m = int(states - s < kW ? states - s : kW);
      const Vec h = fma(rate, load_n(in + i * states + s, m), mul(drive, load(b + s)));
      store_n(out + i * states + s, h, m);
      total = fma(h, load(c + s), total);
    }
    y[i] = sum(total);
  }
  for (int64_t i = 0; i < p.dim; i += kW) {
    const int n = int(p.dim - i < kW ? p.dim - i : kW);
    Vec v = load_n(y + i, n);
    if (p.d) v = fma(p.d_per_dim ? load_n(p.d + head * p.dim + i, n) : set1(p.d[head]), load(x + i), v);
    if (p.z.data) {
      const int64_t at = batch * p.z.batch + head * p.z.head + i * p.z.dim;
      v = mul(v, silu(p.z.dim == 1 ? read<D>(p.z.data, at, n) : read_strided<D>(p.z.data, at, p.z.dim, n)));
    }
    write<D>(p.y, (batch * p.heads + head) * p.dim + i, v, n);
  }
}

template <int D>
void ssd_step_of(const SsdArgs& p) {
  const int64_t jobs = p.batches * p.heads;
  const int threads = threads_for(jobs, jobs * p.dim * p.states * 4, p.threads);
  parallel_for(jobs, threads, [&](int64_t job, int) { ssd_step_head<D>(p, job / p.heads, job % p.heads); });
}

void ssd(const SsdArgs& p) {
  if (p.dtype == jrt::kFloat32) ssd_of<jrt::kFloat32>(p);
  else if (p.dtype == jrt::kBFloat16) ssd_of<jrt::kBFloat16>(p);
  else ssd_of<jrt::kFloat16>(p);
}

void ssd_step(const SsdArgs& p) {
  if (p.dtype == jrt::kFloat32) ssd_step_of<jrt::kFloat32>(p);
  else if (p.dtype == jrt::kBFloat16) ssd_step_of<jrt::kBFloat16>(p);
  else ssd_step_of<jrt::kFloat16>(p);
}

}  // namespace
