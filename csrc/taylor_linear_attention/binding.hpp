// The arguments of taylor_linear_attention and causal_dot_product, filled from tensors: the two share their kernels. `Args` is the
// structure of the kernels for CPUs (common/args.hpp) or for GPUs (cuda/args.hpp).
#pragma once
#include <string>

#include "common/tensor.hpp"
#include "taylor_linear_attention/overlap.hpp"

namespace jrt {

// Sizes are those of k (batch, length, heads, dim) and of the final state kv_out (batch, heads, features, head_dim).
template <class Args>
Args linear_args(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv_in, const Tensor& kv_out) {
  Args p{};
  p.q = q.view(), p.k = k.view(), p.v = v.view();
  p.kv_in = kv_in.as<float>(), p.kv_out = kv_out.as<float>();
  p.batches = k.shape[0], p.length = k.shape[1], p.heads = k.shape[2], p.dim = k.shape[3];
  p.features = kv_out.shape[2], p.head_dim = kv_out.shape[3];
  p.dtype = k.dtype;
  return p;
}

// A decode step's. Throws ValueError for an input that overlaps the state, which the step updates while it reads.
template <class Args>
Args step_args(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv, const Tensor& k_sum, const Tensor& decay,
               const Tensor& y) {
  Args p{};
  p.q = q.view(), p.k = k.view(), p.v = v.view();
  p.y = y.data;
  p.kv = kv.as<float>(), p.k_sum = k_sum.as<float>(), p.decay = decay.as<float>();
  p.batches = q.shape[0], p.heads = q.shape[1], p.dim = q.shape[2];
  p.features = kv.shape[2], p.head_dim = kv.shape[3];
  p.dtype = v.dtype;
  const Overlap found = overlap(p);
  if (found.read) {
    const std::string name = found.read;
    throw pybind11::value_error("taylor_linear_attention_step: " + name + " overlaps " + found.written +
                                " in memory, which is updated in place; pass " + name + ".clone()");
  }
  return p;
}

}  // namespace jrt
