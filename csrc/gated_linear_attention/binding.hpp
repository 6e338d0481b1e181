// The arguments of gated_linear_attention and gated_delta_rule, filled from tensors: the two share their kernels.
#pragma once
#include "common/args.hpp"
#include "common/tensor.hpp"

namespace jrt {

// q, k and v (batch, length, heads, dim), or of a decode step (batch, heads, dim). g has the dimensions of v (a gate per key channel) or
// one less (a gate per head), or is absent.
inline GatedArgs gated_args(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& state, float scale,
                            const Tensor& lengths, const Tensor& y, const Tensor& state_out, int threads) {
  GatedArgs p{};
  p.q = q.view(), p.k = k.view(), p.v = v.view();
  p.gate = g.dims == 0 ? kGateNone : g.dims == v.dims ? kGatePerChannel : kGatePerHead;
  if (p.gate != kGateNone) p.g = p.gate == kGatePerChannel ? g.view() : g.per_head();
  p.y = y.data;
  p.state_in = state.as<float>(), p.state_out = state_out.as<float>();
  p.lengths = lengths.as<int64_t>();
  p.batches = v.shape[0], p.length = v.dims == 4 ? v.shape[1] : 1, p.heads = v.shape[v.dims - 2], p.head_dim = v.shape[v.dims - 1];
  p.key_heads = q.shape[q.dims - 2], p.dim = q.shape[q.dims - 1];
  p.scale = scale;
  p.dtype = v.dtype;
  p.threads = threads;
  return p;
}

}  // namespace jrt
