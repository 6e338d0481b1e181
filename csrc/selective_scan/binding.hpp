// The arguments of selective_scan, filled from tensors. `Args` is the structure of the kernels for CPUs (args.hpp) or for GPUs
// (cuda/args.hpp).
#pragma once
#include "common/tensor.hpp"

namespace jrt {

template <class Args>
Args selective_scan_args(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d,
                         const Tensor& z, const Tensor& dt_bias, const Tensor& state, const Tensor& lengths, bool softplus,
                         const Tensor& y, const Tensor& state_out) {
  Args p{};
  p.x = x.channels(), p.dt = dt.channels();
  if (z.data) p.z = z.channels();
  p.b = b.view(), p.c = c.view();
  p.a = a.as<float>(), p.d = d.as<float>(), p.dt_bias = dt_bias.as<float>();
  p.state_in = state.as<float>(), p.state_out = state_out.as<float>();
  p.y = y.data, p.lengths = lengths.as<int64_t>();
  p.batches = x.shape[0], p.length = x.dims == 3 ? x.shape[1] : 1;
  p.channels = a.shape[0], p.states = a.shape[1];
  p.softplus = softplus;
  p.dtype = x.dtype;
  return p;
}

}  // namespace jrt
