// The arguments of short_conv, filled from tensors. `Args` is the structure of the kernels for CPUs (common/args.hpp) or for GPUs
// (cuda/args.hpp).
#pragma once
#include "common/tensor.hpp"

namespace jrt {

template <class Args>
Args conv_args(const Tensor& x, const Tensor& gate, const Tensor& weight, const Tensor& bias, const Tensor& state, const Tensor& lengths,
               const Tensor& y, const Tensor& state_out) {
  Args p{};
  p.a = x.channels();
  if (gate.data) p.b = gate.channels();
  p.y = y.data;
  p.weight = weight.data, p.bias = bias.data;
  p.state_in = state.as<float>(), p.state_out = state_out.as<float>(), p.lengths = lengths.as<int64_t>();
  p.batches = x.shape[0], p.length = x.shape[1], p.channels = x.shape[2], p.width = weight.shape[weight.dims - 1];
  p.dtype = x.dtype;
  return p;
}

}  // namespace jrt
