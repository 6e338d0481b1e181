// causal_dot_product and its gradient, for Python. The kernels are those of taylor_linear_attention, with q and k as features.
#include "bindings.hpp"
#include "taylor_linear_attention/gradient_binding.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

void prefill(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state, const Tensor& y, const Tensor& state_out,
             int threads) {
  auto p = jrt::linear_args<jrt::LinearArgs>(q, k, v, state, state_out);
  p.y = y.data;
  p.threads = threads;
  const py::gil_scoped_release unlocked;
  jrt::kernels().linear_attention(p);
}

void backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state, const Tensor& grad_y, const Tensor& grad_state,
              const Tensor& out_q, const Tensor& out_k, const Tensor& out_v, const Tensor& out_state, int threads) {
  const jrt::LinearGradArgs p =
      jrt::linear_grad_args(q, k, v, state, grad_y, grad_state, out_q, out_k, out_v, out_state, threads);
  const py::gil_scoped_release unlocked;
  jrt::kernels().linear_attention_backward(p);
}

}  // namespace

void jrt::register_causal_dot_product(py::module_& m) {
  m.def("causal_dot_product", &prefill, arg("q"), arg("k"), arg("v"), arg("state"), arg("y"), arg("state_out"), arg("threads"),
        "y_i = q_i.S_0 + sum_{j<=i} (q_i.k_j) v_j, from the state S_0 (None: zeros).\n\n"
        "q, k, v (batch, length, heads, dim) of any strides. Writes y (like v, contiguous) and state_out (batch, heads, features,\n"
        "head_dim), float32.");
  m.def("causal_dot_product_backward", &backward, arg("q"), arg("k"), arg("v"), arg("state"), arg("grad_y"), arg("grad_state"),
        arg("out_q"), arg("out_k"), arg("out_v"), arg("out_state"), arg("threads"),
        "Gradients of causal_dot_product, written to out_*, contiguous and float32.");
}
