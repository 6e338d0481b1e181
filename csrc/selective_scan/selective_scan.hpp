// selective_scan: the recurrence of Mamba (arXiv 2312.00752, section 3.2), channels in lanes and the states of a channel in registers.
//
// A job is some channels of a row. It loops over chunks of tokens, in a chunk over vectors of channels (a token's neighbouring channels
// share cache lines), and for each vector over the chunk's tokens with up to 16 states of each channel in registers. A state costs an exponential (8 instructions), a product and two multiply-adds per token. B and C are broadcast.
#pragma once
#include "common/math.hpp"
#include "common/pack.hpp"
#include "common/parallel.hpp"
#include "selective_scan/args.hpp"

namespace {

using jrt::SelectiveScanArgs;

constexpr int64_t kScanTokens = 64;     // a chunk
constexpr int64_t kScanChannels = 128;  // a job's, at most
constexpr int kScanStates = kW == 16 ? 16 : 8;  // in registers at once

template <int D>
JRT_INLINE Vec read_any(const View& x, int64_t at, int n) {
  return x.dim == 1 ? read<D>(x.data, at, n) : read_strided<D>(x.data, at, x.dim, n);
}

// Adds h . c to y over a chunk, for S states of one vector of channels. a: in units of log2(e). b, c: rows of `pitch` floats.
template <int S>
JRT_INLINE void scan_states(int64_t tokens, const float* dt, const float* drive, const float* a, const float* b, const float* c,
                            int64_t pitch, float* h, float* y) {
  Vec state[S];
  JRT_UNROLL for (int n = 0; n < S; ++n) state[n] = load(h + n * kW);
  for (int64_t t = 0; t < tokens; ++t) {
    const Vec step = load(dt + t * kW), in = load(drive + t * kW);
    const float *bt = b + t * pitch, *ct = c + t * pitch;
    Vec even = load(y + t * kW), odd = zero();
    JRT_UNROLL for (int n = 0; n < S; ++n) {
      state[n] = fma(exp2(mul(step, load(a + n * kW))), state[n], mul(in, set1(bt[n])));
      if (n % 2) odd = fma(state[n], set1(ct[n]), odd);
      else even = fma(state[n], set1(ct[n]), even);
    }
    store(y + t * kW, add(even, odd));
  }
  JRT_UNROLL for (int n = 0; n < S; ++n) store(h + n * kW, state[n]);
}

template <int S>
void scan_all_states(int64_t states, int64_t tokens, const float* dt, const float* drive, const float* a, const float* b,
                     const float* c, int64_t pitch, float* h, float* y) {
  int64_t n = 0;
  for (; states - n >= S; n += S) scan_states<S>(tokens, dt, drive, a + n * kW, b + n, c + n, pitch, h + n * kW, y);
  if constexpr (S > 1) {
    if (n < states)
      scan_all_states<S / 2>(states - n, tokens, dt, drive, a + n * kW, b + n, c + n, pitch, h + n * kW, y);
  }
}

// dt of one vector of channels, from the projected input.
JRT_INLINE Vec time_step(Vec raw, Vec bias, bool positive) {
  const Vec x = add(raw, bias);
  return positive ? softplus(x) : x;
}

template <int D>
void scan_channels(const SelectiveScanArgs& p, int64_t batch, int64_t group, int64_t first, int64_t last) {
  const int64_t width = last - first, vectors = (width + kW - 1) / kW, states = p.states, pitch = round_up(states, kW);
  const int64_t count = p.lengths ? jrt::within(p.lengths[batch], p.length) : p.length;
  const int64_t per_vector = states * kW;
  float* h = jrt::scratch(size_t(2 * vectors * per_vector + 2 * vectors * kW + kScanTokens * (2 * pitch + 3 * kW)));
  float* a = h + vectors * per_vector;
  float* d = a + vectors * per_vector;
  float* bias = d + vectors * kW;
  float* b = bias + vectors * kW;
  float* c = b + kScanTokens * pitch;
  float *dt = c + kScanTokens * pitch, *drive = dt + kScanTokens * kW, *y = drive + kScanTokens * kW;
  // [vector][state][lane], zeros in lanes that are no channels
  std::memset(h, 0, sizeof(float) * size_t(2 * vectors * per_vector + 2 * vectors * kW));
  const int64_t row = batch * p.channels + first;
  for (int64_t i = 0; i < width; ++i) {
    float* lane = a + i / kW * per_vector + i % kW;
    for (int64_t n = 0; n < states; ++n) lane[n * kW] = p.a[(first + i) * states + n] * kLog2E;
    if (p.state_in) {
      float* held = h + i / kW * per_vector + i % kW;
      for (int64_t n = 0; n < states; ++n) held[n * kW] = p.state_in[(row + i) * states + n];
    }
    if (p.d) d[i] = p.d[first + i];
    if (p.dt_bias) bias[i] = p.dt_bias[first + i];
  }
  for (int64_t start = 0; start < count; start += kScanTokens) {
    const int64_t tokens = count - start < kScanTokens ? count - start : kScanTokens;
    pack_rows(p.dtype, p.b.data, batch * p.b.batch + start * p.b.length + group * p.b.head, p.b.length, p.b.dim, tokens, states, b, pitch);
    pack_rows(p.dtype, p.c.data, batch * p.c.batch + start * p.c.length + group * p.c.head, p.c.length, p.c.dim, tokens, states, c, pitch);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t channel = first + v * kW;
      const int n = int(last - channel < kW ? last - channel : kW);
      for (int64_t t = 0; t < tokens; ++t) {
        const Vec x = read_any<D>(p.x, batch * p.x.batch + (start + t) * p.x.length + channel * p.x.dim, n);
        const Vec raw = read_any<D>(p.dt, batch * p.dt.batch + (start + t) * p.dt.length + channel * p.dt.dim, n);
        const Vec step = time_step(raw, load(bias + v * kW), p.softplus);
        store(dt + t * kW, step);
        store(drive + t * kW, mul(step, x));
        store(y + t * kW, mul(load(d + v * kW), x));
      }
      scan_all_states<kScanStates>(states, tokens, dt, drive, a + v * per_vector, b, c, pitch, h + v * per_vector, y);
      for (int64_t t = 0; t < tokens; ++t) {
        Vec out = load(y + t * kW);
        if (p.z.data)
          out = mul(out, silu(read_any<D>(p.z, batch * p.z.batch + (start + t) * p.z.length + channel * p.z.dim, n)));
        write<D>(p.y, (batch * p.length + start + t) * p.channels + channel, out, n);
      }
    }
  }
  for (int64_t t = count; t < p.length; ++t) {  // padding
    for (int64_t channel = first; channel < last; channel += kW)
      write<D>(p.y, (batch * p.length + t) * p.channels + channel, zero(), int(last - channel < kW ? last - channel : kW));
  }
  for (int64_t i = 0; i < width; ++i) {
    const float* held = h + i / kW * per_vector + i % kW;
    for (int64_t n = 0; n < states; ++n) p.state_out[(row + i) * states + n] = held[n * kW];
  }
}

template <int D>
void selective_scan_of(const SelectiveScanArgs& p) {
  const int64_t width = p.channels / p.groups, pieces = (width + kScanChannels - 1) / kScanChannels;
  const int64_t jobs = p.batches * p.groups * pieces;
  // a state costs about a dozen instructions per token
  const int threads = threads_for(jobs, p.batches * p.length * p.channels * p.states * 12, p.threads);
  parallel_for(jobs, threads, [&](int64_t job, int) {
    const int64_t piece = job % pieces, group = job / pieces % p.groups;
    const int64_t first = group * width + piece * kScanChannels, end = (group + 1) * width;
    scan_channels<D>(p, job / pieces / p.groups, group, first, first + kScanChannels < end ? first + kScanChannels : end);
  });
}

// One token, in place: the states of a channel are adjacent in memory, so here they are the lanes.
template <int D>
void scan_step_channels(const SelectiveScanArgs& p, int64_t batch, int64_t group, int64_t first, int64_t last) {
  const int64_t states = p.states, pitch = round_up(states, kW);
  float* b = jrt::scratch(size_t(2 * pitch));
  float* c = b + pitch;
  pack_rows(p.dtype, p.b.data, batch * p.b.batch + group * p.b.head, 0, p.b.dim, 1, states, b, pitch);
  pack_rows(p.dtype, p.c.data, batch * p.c.batch + group * p.c.head, 0, p.c.dim, 1, states, c, pitch);
  for (int64_t channel = first; channel < last; channel += kW) {
    const int n = int(last - channel < kW ? last - channel : kW);
    const Vec x = read_any<D>(p.x, batch * p.x.batch + channel * p.x.dim, n);
    const Vec raw = read_any<D>(p.dt, batch * p.dt.batch + channel * p.dt.dim, n);
    const Vec step = time_step(raw, p.dt_bias ? load_n(p.dt_bias + channel, n) : zero(), p.softplus);
    float dt[kW], drive[kW], y[kW] = {};
    store(dt, step);
    store(drive, mul(step, x));
    for (int i = 0; i < n; ++i) {
      const float* a = p.a + (channel + i) * states;
      const float* in = p.state_in + (batch * p.channels + channel + i) * states;
      float* out = p.state_out + (batch * p.channels + channel + i) * states;
      Vec total = zero();
      for (int64_t s = 0; s < states; s += kW) {
        const int m = int(states - s < kW ? states - s : kW);
        const Vec decay = exp2(mul(set1(dt[i] * kLog2E), load_n(a + s, m)));
        const Vec h = fma(decay, load_n(in + s, m), mul(set1(drive[i]), load(b + s)));
        store_n(out + s, h, m);
        total = fma(h, load(c + s), total);
      }
      y[i] = sum(total);
    }
    Vec out = load(y);
    if (p.d) out = fma(load_n(p.d + channel, n), x, out);
    if (p.z.data) out = mul(out, silu(read_any<D>(p.z, batch * p.z.batch + channel * p.z.dim, n)));
    write<D>(p.y, batch * p.channels + channel, out, n);
  }
}

template <int D>
void selective_scan_step_of(const SelectiveScanArgs& p) {
  const int64_t width = p.channels / p.groups, pieces = (width + kScanChannels - 1) / kScanChannels;
  const int64_t jobs = p.batches * p.groups * pieces;
  const int threads = threads_for(jobs, p.batches * p.channels * p.states * 4, p.threads);
  parallel_for(jobs, threads, [&](int64_t job, int) {
    const int64_t piece = job % pieces, group = job / pieces % p.groups;
    const int64_t first = group * width + piece * kScanChannels, end = (group + 1) * width;
    scan_step_channels<D>(p, job / pieces / p.groups, group, first, first + kScanChannels < end ? first + kScanChannels : end);
  });
}

void selective_scan(const SelectiveScanArgs& p) {
  if (p.dtype == jrt::kFloat32) selective_scan_of<jrt::kFloat32>(p);
  else if (p.dtype == jrt::kBFloat16) selective_scan_of<jrt::kBFloat16>(p);
  else selective_scan_of<jrt::kFloat16>(p);
}

void selective_scan_step(const SelectiveScanArgs& p) {
  if (p.dtype == jrt::kFloat32) selective_scan_step_of<jrt::kFloat32>(p);
  else if (p.dtype == jrt::kBFloat16) selective_scan_step_of<jrt::kBFloat16>(p);
  else selective_scan_step_of<jrt::kFloat16>(p);
}

}  // namespace
