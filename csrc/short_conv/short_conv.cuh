// silu(depthwise causal convolution of a) * b. Memory-bound: neighbouring threads take neighbouring channels, and a thread processes
// a run of tokens. If the channels are aligned pieces of 16 bytes, a thread takes one piece, keeps the last inputs in registers and loads
// four tokens ahead; otherwise it takes one channel, and all inputs but the newest come from the cache.
#pragma once
#include "cuda/args.hpp"
#include "cuda/device.cuh"

namespace jrt_cuda {

constexpr int kConvThreads = 128;
constexpr int kRun = 16;
constexpr int kWideRun = 64, kAhead = 4;  // tokens

// One channel's inputs by token; negative tokens are the state's.
template <typename T>
struct Inputs {
  const T* x;
  const float* before;
  int64_t step, channels, past;

  JRT_DEVICE Inputs(const ConvArgs& a, int64_t b, int64_t channel)
      : x(static_cast<const T*>(a.a.data) + b * a.a.batch + channel * a.a.dim),
        before(a.state_in ? a.state_in + b * (a.width - 1) * a.channels + channel : nullptr),
        step(a.a.length),
        channels(a.channels),
        past(a.width - 1) {}
  JRT_DEVICE float operator()(int64_t token) const {
    if (token >= 0) return to_float(x[token * step]);
    return before ? before[(token + past) * channels] : 0.f;
  }
};

// Writes the last inputs of a row to the state. Slot i gets the input of slot i + count. Ascending order allows the same tensor as source
// and destination if the row has one run: then only this thread reads this channel's.
template <typename T>
JRT_DEVICE void keep_inputs(const ConvArgs& a, const Inputs<T>& input, int64_t b, int64_t channel) {
  const int64_t count = a.lengths ? a.lengths[b] : a.length;
  float* after = a.state_out + b * input.past * a.channels + channel;
  for (int64_t i = 0; i < input.past; ++i) after[i * a.channels] = input(count - input.past + i);
}

template <typename T>
JRT_DEVICE float silu(float x) { return x * reciprocal(1.f + fast_exp(-x)); }
template <>
JRT_DEVICE float silu<float>(float x) { return x / (1.f + expf(-x)); }

template <typename T>
__global__ void conv_kernel(const ConvArgs a) {
  const int64_t channel = int64_t(blockIdx.x) * kConvThreads + threadIdx.x;
  const int64_t b = blockIdx.z;
  if (channel >= a.channels) return;
  const int width = int(a.width), past = width - 1;
  const T* gate = static_cast<const T*>(a.b.data) + b * a.b.batch + channel * a.b.dim;
  const T* taps = static_cast<const T*>(a.weight) + channel * width;
  const float bias = a.bias ? to_float(static_cast<const T*>(a.bias)[channel]) : 0.f;
  const Inputs<T> input(a, b, channel);
  const int64_t first = int64_t(blockIdx.y) * kRun;
  const int64_t stop = first + kRun < a.length ? first + kRun : a.length;
  for (int64_t token = first; token < stop; ++token) {
    float sum = bias;
    for (int tap = 0; tap < width; ++tap) sum = fmaf(to_float(taps[tap]), input(token - past + tap), sum);
    const float y = silu<T>(sum) * to_float(gate[token * a.b.length]);
    static_cast<T*>(a.y)[(b * a.length + token) * a.channels + channel] = from_float<T>(y);
  }
  if (blockIdx.y == 0) keep_inputs(a, input, b, channel);
}

template <typename T, int width>
__global__ void wide_conv_kernel(const ConvArgs a) {
  constexpr int wide = 16 / sizeof(T), past = width - 1;
  const int64_t channel = (int64_t(blockIdx.x) * kConvThreads + threadIdx.x) * wide;
  const int64_t b = blockIdx.z;
  if (channel >= a.channels) return;
  const T* x = static_cast<const T*>(a.a.data) + b * a.a.batch + channel;
  const T* gate = static_cast<const T*>(a.b.data) + b * a.b.batch + channel;
  T* y = static_cast<T*>(a.y) + b * a.length * a.channels + channel;
  const int64_t first = int64_t(blockIdx.y) * kWideRun;
  const int64_t stop = first + kWideRun < a.length ? first + kWideRun : a.length;

  float taps[width][wide], bias[wide], seen[past][wide];  // seen: the inputs before the token at hand
#pragma unroll
  for (int c = 0; c < wide; ++c) {
    const Inputs<T> input(a, b, channel + c);
    bias[c] = a.bias ? to_float(static_cast<const T*>(a.bias)[channel + c]) : 0.f;
#pragma unroll
    for (int tap = 0; tap < width; ++tap) taps[tap][c] = to_float(static_cast<const T*>(a.weight)[(channel + c) * width + tap]);
#pragma unroll
    for (int i = 0; i < past; ++i) seen[i][c] = input(first - past + i);
  }
  for (int64_t token = first; token < stop; token += kAhead) {
    uint4 inputs[kAhead], gates[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const bool there = token + n < stop;
      inputs[n] = there ? *reinterpret_cast<const uint4*>(x + (token + n) * a.a.length) : make_uint4(0u, 0u, 0u, 0u);
      gates[n] = there ? *reinterpret_cast<const uint4*>(gate + (token + n) * a.b.length) : make_uint4(0u, 0u, 0u, 0u);
    }
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      T now[wide], gated[wide], out[wide];
      memcpy(now, &inputs[n], 16);
      memcpy(gated, &gates[n], 16);
#pragma unroll
      for (int c = 0; c < wide; ++c) {
        const float newest = to_float(now[c]);
        float sum = bias[c];
#pragma unroll
        for (int i = 0; i < past; ++i) sum = fmaf(taps[i][c], seen[i][c], sum);
        sum = fmaf(taps[past][c], newest, sum);
#pragma unroll
        for (int i = 0; i + 1 < past; ++i) seen[i][c] = seen[i + 1][c];
        seen[past - 1][c] = newest;
        out[c] = from_float<T>(silu<T>(sum) * to_float(gated[c]));
      }
      uint4 packed;
      memcpy(&packed, out, 16);
      if (token + n < stop) *reinterpret_cast<uint4*>(y + (token + n) * a.channels) = packed;
    }
  }
  if (blockIdx.y == 0) {
#pragma unroll
    for (int c = 0; c < wide; ++c) keep_inputs(a, Inputs<T>(a, b, channel + c), b, channel + c);
  }
}

}  // namespace jrt_cuda
