// gated_delta_rule, for Python; a decode step is a call without a length. The kernels are in gated_linear_attention/recurrence.hpp.
#include "bindings.hpp"
#include "gated_linear_attention/binding.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

void gated_delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& beta, const Tensor& state,
                      float scale, const Tensor& lengths, const Tensor& y, const Tensor& state_out, int threads) {
  jrt::GatedArgs p = jrt::gated_args(q, k, v, g, state, scale, lengths, y, state_out, threads);
  p.beta = beta.per_head();
  const py::gil_scoped_release unlocked;
  jrt::kernels().gated_delta_rule(p);
}

}  // namespace

void jrt::register_gated_delta_rule(py::module_& m) {
  m.def("gated_delta_rule", &gated_delta_rule, arg("q"), arg("k"), arg("v"), arg("g"), arg("beta"), arg("state"), arg("scale"),
        arg("lengths"), arg("y"), arg("state_out"), arg("threads"),
        "S_t = S' + beta_t k_t (v_t - k_t.S')^T with S' = exp(g_t) S_{t-1}, y_t = scale q_t.S_t, from the state S_0 (None: zeros).\n\n"
        "beta (batch, length, heads), float32, of any strides; the others as in gated_linear_attention.");
}
