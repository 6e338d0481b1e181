// The arguments of taylor_linear_attention and causal_dot_product, filled from tensors: the two share their kernels.
#pragma once
#include "common/tensor.hpp"

namespace jrt {

// Sizes are those of k (batch, length, heads, dim) and of the final state kv_out (batch, heads, features, head_dim).
inline LinearArgs linear_args(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv_in, const Tensor& kv_out, int threads) {
  LinearArgs p{};
  p.q = q.view(), p.k = k.view(), p.v = v.view();
  p.kv_in = kv_in.as<float>(), p.kv_out = kv_out.as<float>();
  p.batches = k.shape[0], p.length = k.shape[1], p.heads = k.shape[2], p.dim = k.shape[3];
  p.features = kv_out.shape[2], p.head_dim = kv_out.shape[3];
  p.dtype = k.dtype;
  p.threads = threads;
  return p;
}

inline LinearGradArgs linear_grad_args(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv_in, const Tensor& grad_y,
                                       const Tensor& grad_kv, const Tensor& out_q, const Tensor& out_k, const Tensor& out_v,
                                       const Tensor& out_kv, int threads) {
  LinearGradArgs p{};
  p.q = q.view(), p.k = k.view(), p.v = v.view(), p.gy = grad_y.view();
  p.kv_in = kv_in.as<float>(), p.g_kv = grad_kv.as<float>();
  p.gq = out_q.as<float>(), p.gk = out_k.as<float>(), p.gv = out_v.as<float>(), p.g_kv_in = out_kv.as<float>();
  p.batches = k.shape[0], p.length = k.shape[1], p.heads = k.shape[2], p.dim = k.shape[3];
  p.features = out_kv.shape[2], p.head_dim = out_kv.shape[3];
  p.dtype = k.dtype;
  p.threads = threads;
  return p;
}

}  // namespace jrt
