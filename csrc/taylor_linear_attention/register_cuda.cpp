// taylor_linear_attention, its sums and its decode step on a GPU, for Python.
#include "cuda/bindings.hpp"
#include "taylor_linear_attention/binding.hpp"

namespace py = pybind11;
using jrt::Tensor;
using jrt_cuda::StreamAddress;
using py::arg;

namespace {

void prefill(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_enc, const Tensor& v_enc, const Tensor& kv,
             const Tensor& k_sum, const Tensor& mask, const Tensor& mask_enc, const Tensor& decay, const Tensor& y,
             const Tensor& denominator, const Tensor& kv_out, const Tensor& k_sum_out, const Tensor& scratch, int64_t segments,
             int64_t segments_enc, int kernel, StreamAddress stream) {
  auto p = jrt::linear_args<jrt_cuda::LinearArgs>(q, k, v, kv, kv_out);
  p.k_enc = k_enc.view(), p.v_enc = v_enc.view(), p.length_enc = v_enc.shape[1];
  p.k_in = k_sum.as<float>(), p.k_out = k_sum_out.as<float>();
  p.mask = mask.as<float>(), p.mask_enc = mask_enc.as<float>(), p.decay = decay.as<float>();
  p.y = y.data, p.denominator = denominator.as<float>();
  p.scratch = scratch.as<float>(), p.segments = segments, p.segments_enc = segments_enc;
  p.taylor = true;
  jrt_cuda::check(jrt_cuda::linear_attention(p, jrt_cuda::Kernel(kernel), jrt_cuda::stream_at(stream)));
}

void step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv, const Tensor& k_sum, const Tensor& decay, const Tensor& y,
          StreamAddress stream) {
  const auto p = jrt::step_args<jrt_cuda::StepArgs>(q, k, v, kv, k_sum, decay, y);
  jrt_cuda::check(jrt_cuda::taylor_linear_attention_step(p, jrt_cuda::stream_at(stream)));
}

}  // namespace

void jrt_cuda::register_taylor_linear_attention(py::module_& m) {
  m.def("taylor_linear_attention", &prefill, arg("q"), arg("k"), arg("v"), arg("k_enc"), arg("v_enc"), arg("kv"), arg("k_sum"),
        arg("mask"), arg("mask_enc"), arg("decay"), arg("y"), arg("denominator"), arg("kv_out"), arg("k_sum_out"), arg("scratch"),
        arg("segments"), arg("segments_enc"), arg("kernel"), arg("stream"),
        "Causal linear attention with Taylor features from the state kv, k_sum (None: zeros), or after an encoder's k_enc and v_enc.\n\n"
        "q (None: only the final state is wanted), k, v, k_enc, v_enc (batch, length, heads, dim) of any strides; mask, mask_enc\n"
        "(batch, length) and decay (heads), float32 and contiguous, or None. A row is cut into `segments` parts and its encoder's tokens\n"
        "into `segments_enc`; scratch has (batch * heads, parts, features * (head_dim + 1)) floats if there is more than one. kernel: 0\n"
        "for any sizes, 1 for tensor cores, 2 for Hopper; decay is for 0 and an encoder for 2. Writes y (like v, contiguous),\n"
        "denominator (batch, length, heads) or None, kv_out (batch, heads, features, head_dim) and k_sum_out, float32.");
  m.def("taylor_linear_attention_step", &step, arg("q"), arg("k"), arg("v"), arg("kv"), arg("k_sum"), arg("decay"), arg("y"),
        arg("stream"), "A decode step: updates kv and k_sum in place and writes y (batch, heads, head_dim), contiguous.");
}
