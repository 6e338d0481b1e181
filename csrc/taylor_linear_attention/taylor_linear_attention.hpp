// taylor_linear_attention, encode_prefix, causal_dot_product: each batch row and head is computed in chunks of 64 tokens.
//
// A chunk is computed from two matrices in scratch memory:
//
//        A = [ phi(q)^T ]  n x 64        B = [ S ]  n x F      S: sum of phi(k) v^T over all earlier chunks
//            [    P^T   ]  64 x 64           [ V ]  64 x F     P: causal weights inside the chunk
//
// The numerators are one product y = A^T B whose depth grows with the row: the part of P beyond the diagonal is skipped. The product is
// divided by the denominators when it is stored. Then S += phi(k)^T V, in place.
//
// A token's heads are adjacent in memory, and one head's tokens are kilobytes apart. So a job takes several heads of a row, chunk by chunk
// and in each chunk head by head. Adjacent memory is then read within one chunk, and a page is looked up once for all heads.
//
// Decay a (numerators only): with t_i the number of unmasked tokens of the chunk up to i, phi(q_i) is scaled by a^t_i, P_ij by
// a^(t_i - t_j), V_j in the update by a^(t_last - t_j) and S by a^t_last, all after the denominators are taken.
//
// If there are fewer rows x heads than threads, threads share a head's columns of V. Each computes the features and scores again, but
// every output is the same sum in the same order, so results do not depend on the number of threads. If threads are still idle, the
// sequence is cut into segments: first the sums of each segment (2nF FLOPs per token), then the initial state of each segment, then the
// outputs as above (4nF). These results differ by rounding.
#pragma once
#include "taylor_linear_attention/features.hpp"
#include "common/parallel.hpp"

namespace {

using jrt::LinearArgs;

struct LinearScratch {
  int64_t a, b, each_b, q, k, weighted, values, k_sum, each_k_sum, below, weight, ones, powers, each_powers, total;
  LinearScratch(int64_t n, int64_t d, int64_t columns, int64_t heads, bool decay) {
    int64_t at = 0;
    auto take = [&at](int64_t floats) {
      const int64_t here = at;
      at += round_up(floats, 16);
      return here;
    };
    a = take((n + kChunk) * kPitch);
    each_b = round_up((n + kChunk) * columns, 16);
    b = take(heads * each_b);
    q = take(d * kPitch);
    k = take(d * kPitch);
    weighted = take(d * kPitch);
    values = take(decay ? kChunk * columns : 0);
    each_k_sum = round_up(n, 16);
    k_sum = take(heads * each_k_sum);
    below = take(kChunk);
    weight = take(kChunk);
    ones = take(kChunk);
    each_powers = round_up(kChunk + 1, 16);
    powers = take(heads * each_powers);
    total = at + 16;
  }
};

struct DecayOf {
  const float* powers;  // a^0 ... a^64
  int steps[kChunk];    // t_i
  int last;
};

inline void decay_powers(float rate, float* powers) {
  double power = 1.0;
  for (int i = 0; i <= kChunk; ++i, power *= double(rate)) powers[i] = float(power);
}

inline void decay_scores(int64_t tokens, int64_t n, const DecayOf& decay, float* a) {
  for (int64_t i = 0; i < tokens; ++i) {
    const float factor = decay.powers[decay.steps[i]];
    for (int64_t f = 0; f < n; ++f) a[f * kPitch + i] *= factor;
    for (int64_t j = 0; j <= i; ++j) a[(n + j) * kPitch + i] *= decay.powers[decay.steps[i] - decay.steps[j]];
  }
}

// A share of a head's tokens, and the states at its ends, [features][head_dim] and [features]; null: zeros, or not wanted.
struct Segment {
  int64_t start, stop;
  const float *kv_in, *k_in;
  float *kv_out, *k_out;
  bool outputs;
};

// Heads [head, head + heads) of a batch row, chunk by chunk and in each chunk head by head.
template <bool Taylor>
void linear_job(const LinearArgs& p, int64_t batch, int64_t head, int64_t heads, const Segment& part, int64_t first, int64_t columns,
                const LinearScratch& at, float* s) {
  const int64_t n = p.features, d = p.dim, width = p.head_dim - first < columns ? p.head_dim - first : columns;
  float *a = s + at.a, *q = s + at.q, *k = s + at.k;
  float *weight = s + at.weight, *ones = s + at.ones, *below = s + at.below;
  auto state_of = [&](int64_t h) { return s + at.b + h * at.each_b; };
  auto k_sum_of = [&](int64_t h) { return s + at.k_sum + h * at.each_k_sum; };
  const bool outputs = part.outputs;
  // z = x / d^(1/4), so that products of z are scores
  float scale = 1.0f;
  if (Taylor) scale = float(1.0 / __builtin_sqrt(__builtin_sqrt(double(d))));

  for (int64_t h = 0; h < heads; ++h) {
    if (part.kv_in) {
      pack_rows(jrt::kFloat32, part.kv_in + h * n * p.head_dim, first, p.head_dim, 1, n, width, state_of(h), columns);
    } else {
      std::memset(state_of(h), 0, sizeof(float) * size_t(n * columns));
    }
    if (Taylor) {
      if (part.k_in) std::memcpy(k_sum_of(h), part.k_in + h * n, sizeof(float) * size_t(n));
      else std::memset(k_sum_of(h), 0, sizeof(float) * size_t(n));
    }
    if (p.decay) decay_powers(p.decay[head + h], s + at.powers + h * at.each_powers);
  }
  for (int i = 0; i < kChunk; ++i) ones[i] = 1.0f;
  DecayOf decay;
  decay.last = 0;

  auto prefetch = [&](int64_t h, int64_t start) {
    const int64_t tokens = part.stop - start < kChunk ? part.stop - start : kChunk;
    auto rows = [&](const View& x, int64_t skip, int64_t n) {
      prefetch_rows(p.dtype, x.data, batch * x.batch + start * x.length + (head + h) * x.head + skip * x.dim, x.length, tokens, n);
    };
    if (tokens <= 0) return;
    rows(p.k, 0, d);
    rows(p.v, first, width);
    if (outputs) rows(p.q, 0, d);
  };

  for (int64_t start = part.start; start < part.stop; start += kChunk) {
    const int64_t tokens = part.stop - start < kChunk ? part.stop - start : kChunk;
    const int64_t vectors = (tokens + kW - 1) / kW;
    for (int64_t i = 0; i < kChunk; ++i) {
      weight[i] = i >= tokens ? 0.0f : p.mask ? p.mask[batch * p.length + start + i] : 1.0f;
    }
    if (p.decay) {
      int seen = 0;
      for (int64_t i = 0; i < tokens; ++i) decay.steps[i] = seen += weight[i] != 0.0f;
      decay.last = seen;
    }
    for (int64_t h = 0; h < heads; ++h) {
      float *state = state_of(h), *values = state + n * columns, *k_sum = k_sum_of(h);
      decay.powers = s + at.powers + h * at.each_powers;
      auto from = [&](const View& x) { return batch * x.batch + start * x.length + (head + h) * x.head; };
      pack_transposed(p.dtype, p.k.data, from(p.k), p.k.length, p.k.dim, tokens, d, scale, k, kPitch);
      pack_rows(p.dtype, p.v.data, from(p.v) + first * p.v.dim, p.v.length, p.v.dim, tokens, width, values, columns);
      if (p.mask) clear_masked(weight, tokens, d, k, columns, values);
      if (outputs) {
        if (Taylor) {
          pack_transposed(p.dtype, p.q.data, from(p.q), p.q.length, p.q.dim, tokens, d, scale, q, kPitch);
        } else {
          pack_transposed(p.dtype, p.q.data, from(p.q), p.q.length, p.q.dim, tokens, d, 1.0f, a, kPitch);
        }
      }
      if (h + 1 < heads) prefetch(h + 1, start);
      else prefetch(0, start + kChunk);
      if (outputs) {
        if (Taylor) query_features(d, vectors, q, ones, a, k_sum, below);
        Weigh<Taylor> weigh{a + n * kPitch, weight, below};
        causal_scores(tokens, d, k, Taylor ? q : a, weigh);
        if (Taylor) {
          if (p.denominator && first == 0) {
            for (int64_t i = 0; i < tokens; ++i) p.denominator[(batch * p.length + start + i) * p.heads + head + h] = below[i];
          }
          for (int64_t v = 0; v < vectors; ++v) {
            store(below + v * kW, div(set1(1.0f), add(load(below + v * kW), set1(1e-12f))));
          }
        }
        if (p.decay) decay_scores(tokens, n, decay, a);
        WriteRows rows{p.y, p.dtype, ((batch * p.length + start) * p.heads + head + h) * p.head_dim + first, p.heads * p.head_dim,
                       width, Taylor ? below : nullptr};
        // A tile of rows reaches past the diagonal by less than its height; 0 * NaN would then spread a later NaN to earlier rows.
        const int64_t step = all_finite(values, tokens * columns) ? tokens : 1;
        for (int64_t row = 0; row < tokens; row += step) {
          gemm<false>(row, row + step, 0, columns, Depth{n, tokens}, a, kPitch, state, columns, rows);
        }
      }
      const float* keys = k;
      if (Taylor) {  // A has been used: phi(k) takes its place
        key_features(d, vectors, k, weight, s + at.weighted, a);
        add_rows(n, vectors, a, k_sum);
        keys = a;
      }
      const float* added = values;
      if (p.decay) {
        float* scaled = s + at.values;
        for (int64_t j = 0; j < tokens; ++j) {
          const Vec factor = set1(decay.powers[decay.last - decay.steps[j]]);
          for (int64_t c = 0; c < columns; c += kW) store(scaled + j * columns + c, mul(load(values + j * columns + c), factor));
        }
        const Vec factor = set1(decay.powers[decay.last]);
        for (int64_t i = 0; i < n * columns; i += kW) store(state + i, mul(load(state + i), factor));
        added = scaled;
      }
      Accumulate update{state, columns};
      gemm<true>(0, n, 0, columns, Depth{tokens, 0}, keys, kPitch, added, columns, update);
    }
  }

  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t f = 0; part.kv_out && f < n; ++f) {
      for (int64_t c = 0; c < width; c += kW) {
        const int left = int(width - c < kW ? width - c : kW);
        store_n(part.kv_out + (h * n + f) * p.head_dim + first + c, load(state_of(h) + f * columns + c), left);
      }
    }
    if (part.k_out && first == 0) std::memcpy(part.k_out + h * n, k_sum_of(h), sizeof(float) * size_t(n));
  }
}

constexpr int64_t kSegment = 8 * kChunk;  // tokens at least: a segment's sums must be worth the extra pass

// The decay over a segment: a^(unmasked tokens).
inline float segment_decay(const LinearArgs& p, int64_t bh, int64_t start, int64_t stop) {
  int64_t tokens = stop - start;
  if (p.mask) {
    tokens = 0;
    for (int64_t i = start; i < stop; ++i) tokens += p.mask[(bh / p.heads) * p.length + i] != 0.0f;
  }
  return float(__builtin_pow(double(p.decay[bh % p.heads]), double(tokens)));
}

constexpr int64_t kTogether = 224 << 10;  // bytes of states and values: with one head's features they fit a cache of 512 KB

// Heads of one job: as many as fit the cache, or fewer if threads would otherwise wait longer for each other.
inline int64_t heads_together(const LinearArgs& p, int64_t columns) {
  const int64_t threads = p.threads > 1 ? p.threads : 1, room = kTogether / (4 * (p.features + kChunk) * columns);
  auto longest = [&](int64_t each) {  // heads that the busiest thread computes
    const int64_t jobs = p.batches * ((p.heads + each - 1) / each);
    return (jobs + threads - 1) / threads * each;
  };
  for (int64_t each = room < p.heads ? room : p.heads; each > 1; --each) {
    if (longest(each) <= longest(1)) return each;
  }
  return 1;
}

void linear_attention(const LinearArgs& p) {
  const int64_t heads = p.batches * p.heads, n = p.features, matrix = n * p.head_dim;
  if (heads == 0 || p.head_dim == 0) return;
  const int64_t all = round_up(p.head_dim, kW);
  const int64_t work = heads * (p.length + 1) * 2 * n * p.head_dim;
  int64_t slices = 1, segments = 1;
  if (heads < p.threads && work >= kWorthThreads) {
    slices = (p.threads + heads - 1) / heads;
    if (slices > all / kW) slices = all / kW;
    segments = p.threads / (heads * slices);
    if (segments > p.length / kSegment) segments = p.length / kSegment;
    if (segments < 1) segments = 1;
  }
  const int64_t columns = round_up((all + slices - 1) / slices, kW);
  slices = (all + columns - 1) / columns;
  const int64_t chunks = (p.length + kChunk - 1) / kChunk, each = (chunks + segments - 1) / segments * kChunk;
  if (each > 0) segments = (p.length + each - 1) / each;
  if (segments < 1) segments = 1;
  const int64_t group = segments > 1 || slices > 1 ? 1 : heads_together(p, columns);
  const int64_t groups = (p.heads + group - 1) / group, jobs = p.batches * groups * slices;
  const int threads = threads_for(jobs * segments, work, p.threads);
  const LinearScratch at(n, p.dim, columns, group, p.decay != nullptr);
  const int64_t held = segments > 1 ? heads * (matrix + n) : 0;  // floats of one segment's sums
  float* memory = jrt::scratch(size_t(at.total * threads + held * (segments - 1)));
  float* sums = memory + at.total * threads;
  jrt::large_pages(p.y, size_t(p.batches * p.length * p.heads * p.head_dim * (p.dtype == jrt::kFloat32 ? 4 : 2)));

  auto kv_of = [&](int64_t g, int64_t bh) { return sums + g * held + bh * (matrix + n); };
  auto run = [&](int64_t job, int thread, bool summing) {
    const int64_t g = job / jobs, row = job % jobs / slices, first = job % slices * columns;
    const int64_t batch = row / groups, head = row % groups * group, bh = batch * p.heads + head;
    const int64_t together = p.heads - head < group ? p.heads - head : group;
    const bool last = g == segments - 1;
    Segment part{g * each, last ? p.length : (g + 1) * each, nullptr, nullptr, nullptr, nullptr, false};
    if (summing) {
      part.kv_out = kv_of(g, bh);
      part.k_out = p.taylor ? part.kv_out + matrix : nullptr;
    } else {
      part.outputs = p.q.data != nullptr;
      if (!part.outputs && !last) return;  // its sums are all that was wanted
      part.kv_in = g > 0 ? kv_of(g - 1, bh) : p.kv_in ? p.kv_in + bh * matrix : nullptr;
      part.k_in = g > 0 ? kv_of(g - 1, bh) + matrix : p.k_in ? p.k_in + bh * n : nullptr;
      part.kv_out = last ? p.kv_out + bh * matrix : nullptr;
      part.k_out = last && p.k_out ? p.k_out + bh * n : nullptr;
    }
    float* mine = memory + at.total * thread;
    if (p.taylor) linear_job<true>(p, batch, head, together, part, first, columns, at, mine);
    else linear_job<false>(p, batch, head, together, part, first, columns, at, mine);
  };
  if (segments > 1) {
    parallel_for(jobs * (segments - 1), threads, [&](int64_t job, int thread) { run(job, thread, true); });
    // Sums of segments become states: the initial state of segment g + 1 replaces the sums of segment g.
    parallel_for(heads, threads, [&](int64_t bh, int) {
      for (int64_t g = 0; g + 1 < segments; ++g) {
        const float* before = g > 0 ? kv_of(g - 1, bh) : p.kv_in ? p.kv_in + bh * matrix : nullptr;
        const float* k_before = g > 0 ? kv_of(g - 1, bh) + matrix : p.k_in ? p.k_in + bh * n : nullptr;
        const float rate = p.decay ? segment_decay(p, bh, g * each, (g + 1) * each) : 1.0f;
        float *kv = kv_of(g, bh), *k = kv + matrix;
        for (int64_t i = 0; before && i < matrix; ++i) kv[i] += rate * before[i];
        for (int64_t i = 0; p.taylor && k_before && i < n; ++i) k[i] += k_before[i];
      }
    });
  }
  parallel_for(jobs * segments, threads, [&](int64_t job, int thread) { run(job, thread, false); });
}

}  // namespace
