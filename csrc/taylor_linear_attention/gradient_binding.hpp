// The arguments of the gradients of taylor_linear_attention and causal_dot_product on a CPU, filled from tensors.
#pragma once
#include "common/args.hpp"
#include "taylor_linear_attention/binding.hpp"

namespace jrt {

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
