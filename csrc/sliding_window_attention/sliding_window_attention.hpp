// sliding_window_attention and its decode step: softmax over the last `window` keys, O(length * window).
//
// A job is 64 queries of one head and the window - 1 + 64 keys they see between them. Scores are kept transposed, [key][query],
// so that maximum, exponential and sum run over queries in lanes, and the product with V reads them without a copy (gemm.hpp).
#pragma once
#include "taylor_linear_attention/features.hpp"
#include "common/parallel.hpp"

namespace {

using jrt::WindowArgs;
using jrt::WindowStepArgs;

constexpr float kLowest = -3.0e38f;
constexpr int64_t kMostTokens = int64_t(1) << 48;  // no sum of these overflows

inline int64_t seen_by(const int64_t* seen, int64_t batch) { return seen ? jrt::within(seen[batch], kMostTokens) : 0; }

// Keys [first, first + count) of a row, the earlier ones from the ring, the others from this call's tensor.
inline void window_keys(const WindowArgs& p, const View& x, const void* ring, int64_t batch, int64_t head, int64_t seen,
                        int64_t first, int64_t count, float* to, int64_t ld) {
  for (int64_t r = 0; r < count;) {
    const int64_t token = first + r;
    if (token < seen) {
      const int64_t slot = token % p.window;
      pack_rows(p.dtype, ring, ((batch * p.window + slot) * p.heads + head) * p.dim, 0, 1, 1, p.dim, to + r * ld, ld);
      ++r;
    } else {
      pack_rows(p.dtype, x.data, batch * x.batch + (token - seen) * x.length + head * x.head, x.length, x.dim, count - r, p.dim,
                to + r * ld, ld);
      break;
    }
  }
}

void window_job(const WindowArgs& p, int64_t batch, int64_t head, int64_t start, float* memory, int64_t room, int64_t columns) {
  const int64_t seen = seen_by(p.seen, batch);
  const int64_t tokens = p.length - start < kChunk ? p.length - start : kChunk;
  const int64_t position = seen + start;  // of the first query
  int64_t first = position - p.window + 1;
  if (first < 0) first = 0;
  const int64_t count = position + tokens - first;
  float *q = memory, *k = q + columns * kPitch, *v = k + room * columns, *s = v + room * columns;
  float* inverse = s + room * kPitch;
  const float scale = float(1.0 / __builtin_sqrt(double(p.dim)));
  pack_transposed(p.dtype, p.q.data, batch * p.q.batch + start * p.q.length + head * p.q.head, p.q.length, p.q.dim, tokens, p.dim,
                  scale, q, kPitch);
  window_keys(p, p.k, p.ring_k_in, batch, head, seen, first, count, k, columns);
  window_keys(p, p.v, p.ring_v_in, batch, head, seen, first, count, v, columns);
  const int64_t width = round_up(tokens, kW);
  Assign scores{s, kPitch};
  gemm<true>(0, count, 0, width, Depth{p.dim, 0}, k, columns, q, kPitch, scores);
  for (int64_t i = 0; i < width; i += kW) {
    // The query of lane l is at position + i + l and sees the key at first + j if 0 <= query - key < window.
    const int64_t gap = position + i - first;  // of lane 0 to key 0
    auto low = [&](int64_t j) { return int(j - gap < 0 ? 0 : j - gap > kW ? kW : j - gap); };
    auto high = [&](int64_t j) { return int(j - gap + p.window < 0 ? 0 : j - gap + p.window > kW ? kW : j - gap + p.window); };
    Vec most = set1(kLowest);
    for (int64_t j = 0; j < count; ++j) {
      const int lo = low(j), hi = high(j);
      Vec x = load(s + j * kPitch + i);
      if (lo > 0 || hi < kW) x = keep(x, lo, hi, set1(kLowest));
      most = max(most, x);
    }
    Vec total = zero();
    for (int64_t j = 0; j < count; ++j) {
      const int lo = low(j), hi = high(j);
      Vec x = zero();
      if (lo < hi) {
        x = exponential(sub(load(s + j * kPitch + i), most));
        if (lo > 0 || hi < kW) x = keep(x, lo, hi, zero());
        total = add(total, x);
      }
      store(s + j * kPitch + i, x);
    }
    store(inverse + i, div(set1(1.0f), total));
  }
  WriteRows rows{p.y, p.dtype, ((batch * p.length + start) * p.heads + head) * p.dim, p.heads * p.dim, p.dim, inverse};
  if (all_finite(v, count * columns)) {
    gemm<false>(0, tokens, 0, columns, Depth{count, 0}, s, kPitch, v, columns, rows);
    return;
  }
  // 0 * NaN is NaN: each query visits the keys of its own window only.
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t last = position + i - first, low = last - p.window + 1 < 0 ? 0 : last - p.window + 1;
    gemm<false>(i, i + 1, 0, columns, Depth{last + 1 - low, 0}, s + low * kPitch, kPitch, v + low * columns, columns, rows);
  }
}

// Slot s of a row's ring has the latest of its tokens t with t % window == s.
void window_ring(const WindowArgs& p, int64_t batch) {
  const int64_t seen = seen_by(p.seen, batch);
  const int64_t total = seen + (p.lengths ? jrt::within(p.lengths[batch], p.length) : p.length);
  const int64_t size = p.dtype == jrt::kFloat32 ? 4 : 2, line = p.heads * p.dim * size;
  auto copy = [&](const View& x, const void* ring, void* out) {
    for (int64_t slot = 0; slot < p.window; ++slot) {
      char* to = static_cast<char*>(out) + (batch * p.window + slot) * line;
      const int64_t back = total - 1 - slot;
      const int64_t token = total == 0 || back < 0 ? -1 : total - 1 - back % p.window;
      if (token < 0) {
        std::memset(to, 0, size_t(line));
      } else if (token < seen) {
        std::memcpy(to, static_cast<const char*>(ring) + (batch * p.window + slot) * line, size_t(line));
      } else {
        const char* from = static_cast<const char*>(x.data) + (batch * x.batch + (token - seen) * x.length) * size;
        for (int64_t h = 0; h < p.heads; ++h, to += p.dim * size) {
          if (x.dim == 1) {
            std::memcpy(to, from + h * x.head * size, size_t(p.dim * size));
          } else {
            for (int64_t c = 0; c < p.dim; ++c) std::memcpy(to + c * size, from + (h * x.head + c * x.dim) * size, size_t(size));
          }
        }
      }
    }
  };
  copy(p.k, p.ring_k_in, p.ring_k_out);
  copy(p.v, p.ring_v_in, p.ring_v_out);
  p.seen_out[batch] = total;
}

void sliding_window_attention(const WindowArgs& p) {
  const int64_t blocks = (p.length + kChunk - 1) / kChunk, jobs = p.batches * p.heads * blocks;
  if (jobs > 0 && p.dim > 0) {
    int64_t room = p.window - 1 + kChunk, most = p.length;
    if (p.seen) {  // at most as many keys as there are tokens, for any window
      int64_t seen = 0;
      for (int64_t b = 0; b < p.batches; ++b) seen = seen_by(p.seen, b) > seen ? seen_by(p.seen, b) : seen;
      most += seen;
    }
    if (most < room) room = most;
    const int64_t columns = round_up(p.dim, kW);
    const int64_t each = round_up(columns * kPitch + 2 * room * columns + room * kPitch + kChunk, 16) + 16;
    const int threads = threads_for(jobs, jobs * kChunk * room * 2 * p.dim, p.threads);
    float* memory = jrt::scratch(size_t(each * threads));
    parallel_for(jobs, threads, [&](int64_t job, int thread) {
      const int64_t bh = job / blocks;
      window_job(p, bh / p.heads, bh % p.heads, (job % blocks) * kChunk, memory + each * thread, room, columns);
    });
  }
  parallel_for(p.batches, 1, [&](int64_t batch, int) { window_ring(p, batch); });
}

void sliding_window_attention_step(const WindowStepArgs& p) {
  const int64_t heads = p.batches * p.heads;
  const int64_t size = p.dtype == jrt::kFloat32 ? 4 : 2;
  const int64_t columns = round_up(p.dim, kW), scores = round_up(p.window, kW);
  const int64_t each = round_up(2 * columns + scores, 16) + 16;
  const int threads = threads_for(heads, 2 * heads * p.window * p.dim, p.threads);
  float* memory = jrt::scratch(size_t(each * threads));
  parallel_for(heads, threads, [&](int64_t bh, int thread) {
    const int64_t batch = bh / p.heads, head = bh % p.heads;
    const int64_t seen = seen_by(p.seen, batch), slot = seen % p.window;
    const int64_t held = seen + 1 < p.window ? seen + 1 : p.window;  // slots 0..held have keys, in any order
    float *q = memory + each * thread, *y = q + columns, *s = y + columns;
    const int64_t line = p.heads * p.dim, ring = batch * p.window * line + head * p.dim;
    auto put = [&](const View& x, void* out) {
      char* to = static_cast<char*>(out) + (ring + slot * line) * size;
      const char* from = static_cast<const char*>(x.data) + (batch * x.batch + head * x.head) * size;
      for (int64_t c = 0; c < p.dim; ++c) std::memcpy(to + c * size, from + c * x.dim * size, size_t(size));
    };
    put(p.k, p.ring_k);
    put(p.v, p.ring_v);
    pack_rows(p.dtype, p.q.data, batch * p.q.batch + head * p.q.head, 0, p.q.dim, 1, p.dim, q, columns);
    const float scale = float(1.0 / __builtin_sqrt(double(p.dim)));
    auto at = [&](const void* x, int64_t j, int64_t c) {
      const int left = int(p.dim - c < kW ? p.dim - c : kW);
      const int64_t offset = ring + j * line + c;
      if (p.dtype == jrt::kFloat32) return read<jrt::kFloat32>(x, offset, left);
      if (p.dtype == jrt::kBFloat16) return read<jrt::kBFloat16>(x, offset, left);
      return read<jrt::kFloat16>(x, offset, left);
    };
    float most = kLowest;
    for (int64_t j = 0; j < held; ++j) {
      Vec dot = zero();
      for (int64_t c = 0; c < p.dim; c += kW) dot = fma(load(q + c), at(p.ring_k, j, c), dot);
      s[j] = sum(dot) * scale;
      most = s[j] > most ? s[j] : most;
    }
    float total = 0.0f;
    for (int64_t j = 0; j < held; j += kW) {
      const int left = int(held - j < kW ? held - j : kW);
      const Vec x = keep(exponential(sub(load_n(s + j, left), set1(most))), 0, left, zero());
      store(s + j, x);
      total += sum(x);
    }
    for (int64_t c = 0; c < columns; c += kW) store(y + c, zero());
    for (int64_t j = 0; j < held; ++j) {
      const Vec x = set1(s[j]);
      for (int64_t c = 0; c < p.dim; c += kW) store(y + c, fma(x, at(p.ring_v, j, c), load(y + c)));
    }
    const Vec inverse = set1(1.0f / total);
    for (int64_t c = 0; c < p.dim; c += kW) {
      write(p.dtype, p.y, bh * p.dim + c, mul(load(y + c), inverse), int(p.dim - c < kW ? p.dim - c : kW));
    }
  });
  for (int64_t b = 0; b < p.batches; ++b) ++p.seen[b];
}

}  // namespace
