// causal_dot_product on a GPU, for Python. The kernel is taylor_linear_attention's for any sizes, with q and k as features.
#include "cuda/bindings.hpp"
#include "taylor_linear_attention/binding.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

void prefill(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state, const Tensor& y, const Tensor& state_out,
             jrt_cuda::StreamAddress stream) {
  auto p = jrt::linear_args<jrt_cuda::LinearArgs>(q, k, v, state, state_out);
  p.y = y.data;
  p.segments = 1;
  jrt_cuda::check(jrt_cuda::linear_attention(p, jrt_cuda::kGeneric, jrt_cuda::stream_at(stream)));
}

}  // namespace

void jrt_cuda::register_causal_dot_product(py::module_& m) {
  m.def("causal_dot_product", &prefill, arg("q"), arg("k"), arg("v"), arg("state"), arg("y"), arg("state_out"), arg("stream"),
        "y_i = q_i.S_0 + sum_{j<=i} (q_i.k_j) v_j, from the state S_0 (None: zeros).\n\n"
        "q, k, v (batch, length, heads, dim) of any strides. Writes y (like v, contiguous) and state_out (batch, heads, features,\n"
        "head_dim), float32.");
}
