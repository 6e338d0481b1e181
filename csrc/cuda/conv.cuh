// silu(depthwise causal convolution of a) * b. Memory-bound: neighbouring threads take neighbouring channels, and a thread walks over
// a run of tokens, so that all but the first inputs of its window come from the cache.
#pragma once
#include "args.hpp"
#include "device.cuh"

namespace jrt_cuda {

constexpr int kConvThreads = 128;
constexpr int kRun = 16;

template <typename T>
__global__ void conv_kernel(const ConvArgs a) {
  const int64_t channel = int64_t(blockIdx.x) * kConvThreads + threadIdx.x;
  const int64_t b = blockIdx.z;
  if (channel >= a.channels) return;
  const int width = int(a.width), past = width - 1;
  const T* x = static_cast<const T*>(a.a.data) + b * a.a.batch + channel * a.a.dim;
  const T* gate = static_cast<const T*>(a.b.data) + b * a.b.batch + channel * a.b.dim;
  const T* taps = static_cast<const T*>(a.weight) + channel * width;
  const float bias = a.bias ? to_float(static_cast<const T*>(a.bias)[channel]) : 0.f;
  const float* before = a.state_in ? a.state_in + b * past * a.channels + channel : nullptr;
  // The input at a token; negative tokens are the state's.
  auto input = [&](int64_t token) {
    if (token >= 0) return to_float(x[token * a.a.length]);
    return before ? before[(token + past) * a.channels] : 0.f;
  };
  const int64_t first = int64_t(blockIdx.y) * kRun;
  const int64_t stop = first + kRun < a.length ? first + kRun : a.length;
  for (int64_t token = first; token < stop; ++token) {
    float sum = bias;
    for (int tap = 0; tap < width; ++tap) sum = fmaf(to_float(taps[tap]), input(token - past + tap), sum);
    const float y = sum / (1.f + expf(-sum)) * to_float(gate[token * a.b.length]);
    static_cast<T*>(a.y)[(b * a.length + token) * a.channels + channel] = from_float<T>(y);
  }
  if (blockIdx.y == 0) {
    // The last inputs of this row. Slot i takes what stood i + count slots further; ascending order lets the state be its own source
    // (only this thread reads this channel's, unless the row has several runs, and then the state must be another).
    const int64_t count = a.lengths ? a.lengths[b] : a.length;
    float* after = a.state_out + b * past * a.channels + channel;
    for (int i = 0; i < past; ++i) after[i * a.channels] = input(count - past + i);
  }
}

}  // namespace jrt_cuda
