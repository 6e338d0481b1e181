// short_conv: y = act(causal depthwise convolution of a) * b, channels in lanes; one pass over a and b. act is SiLU or the identity;
// b may be absent.
//
// Memory traffic is the limit, so nothing is kept but the output: earlier inputs of the few taps are read again from the cache.
#pragma once
#include "common/math.hpp"
#include "common/pack.hpp"
#include "common/parallel.hpp"

namespace {

using jrt::ConvArgs;

constexpr int64_t kConvTokens = 32;  // a job's share of a row

template <int D>
void conv_tokens(const ConvArgs& p, int64_t batch, int64_t start, int64_t stop, const float* weight, const float* bias,
                 int64_t pitch) {
  const int64_t past = p.width - 1;
  auto get = [&](const View& x, int64_t t, int64_t c, int left) {
    const int64_t at = batch * x.batch + t * x.length + c * x.dim;
    return x.dim == 1 ? read<D>(x.data, at, left) : read_strided<D>(x.data, at, x.dim, left);
  };
  for (int64_t t = start; t < stop; ++t) {
    for (int64_t c = 0; c < p.channels; c += kW) {
      const int left = int(p.channels - c < kW ? p.channels - c : kW);
      Vec z = load(bias + c);
      for (int64_t tap = 0; tap < p.width; ++tap) {
        const int64_t source = t - past + tap;
        Vec x;
        if (source >= 0) x = get(p.a, source, c, left);
        else if (p.state_in) x = load_n(p.state_in + (batch * past + past + source) * p.channels + c, left);
        else continue;
        z = fma(x, load(weight + tap * pitch + c), z);
      }
      if (p.silu) z = silu(z);
      if (p.b.data) z = mul(z, get(p.b, t, c, left));
      write<D>(p.y, (batch * p.length + t) * p.channels + c, z, left);
    }
  }
}

// The last width - 1 inputs of a row, oldest first; state_out may be state_in, so a row is shifted from its oldest on.
template <int D>
void conv_state(const ConvArgs& p, int64_t batch) {
  const int64_t past = p.width - 1, count = p.lengths ? jrt::within(p.lengths[batch], p.length) : p.length;
  for (int64_t r = 0; r < past; ++r) {
    const int64_t t = count - past + r;
    float* to = p.state_out + (batch * past + r) * p.channels;
    for (int64_t c = 0; c < p.channels; c += kW) {
      const int left = int(p.channels - c < kW ? p.channels - c : kW);
      Vec x = zero();
      if (t >= 0) {
        const int64_t at = batch * p.a.batch + t * p.a.length + c * p.a.dim;
        x = p.a.dim == 1 ? read<D>(p.a.data, at, left) : read_strided<D>(p.a.data, at, p.a.dim, left);
      } else if (p.state_in) {
        x = load_n(p.state_in + (batch * past + past + t) * p.channels + c, left);
      }
      store_n(to + c, x, left);
    }
  }
}

template <int D>
void conv_of(const ConvArgs& p) {
  const int64_t pitch = round_up(p.channels, kW);
  float* weight = jrt::scratch(size_t((p.width + 1) * pitch + 16));
  float* bias = weight + p.width * pitch;
  for (int64_t tap = 0; tap < p.width; ++tap) pack_rows(p.dtype, p.weight, tap, 0, p.width, 1, p.channels, weight + tap * pitch, pitch);
  if (p.bias) pack_rows(p.dtype, p.bias, 0, 0, 1, 1, p.channels, bias, pitch);
  else std::memset(bias, 0, sizeof(float) * size_t(pitch));
  const int64_t blocks = (p.length + kConvTokens - 1) / kConvTokens, jobs = p.batches * blocks;
  // an element here costs about 16 multiply-adds
  const int threads = threads_for(jobs, jobs * kConvTokens * p.channels * 16, p.threads);
  parallel_for(jobs, threads, [&](int64_t job, int) {
    const int64_t start = (job % blocks) * kConvTokens;
    conv_tokens<D>(p, job / blocks, start, start + kConvTokens < p.length ? start + kConvTokens : p.length, weight, bias, pitch);
  });
  for (int64_t b = 0; b < p.batches; ++b) conv_state<D>(p, b);
}

void short_conv(const ConvArgs& p) {
  if (p.dtype == jrt::kFloat32) conv_of<jrt::kFloat32>(p);
  else if (p.dtype == jrt::kBFloat16) conv_of<jrt::kBFloat16>(p);
  else conv_of<jrt::kFloat16>(p);
}

}  // namespace
