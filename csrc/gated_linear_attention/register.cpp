// gated_linear_attention, for Python; a decode step is a call without a length.
#include "bindings.hpp"
#include "gated_linear_attention/binding.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

void gated_linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& state, float scale,
                            const Tensor& lengths, const Tensor& y, const Tensor& state_out, int threads) {
  const jrt::GatedArgs p = jrt::gated_args(q, k, v, g, state, scale, lengths, y, state_out, threads);
  const py::gil_scoped_release unlocked;
  jrt::kernels().gated_linear_attention(p);
}

}  // namespace

void jrt::register_gated_linear_attention(py::module_& m) {
  m.def("gated_linear_attention", &gated_linear_attention, arg("q"), arg("k"), arg("v"), arg("g"), arg("state"), arg("scale"),
        arg("lengths"), arg("y"), arg("state_out"), arg("threads"),
        "S_t = exp(g_t) S_{t-1} + k_t v_t^T, y_t = scale q_t.S_t, from the state S_0 (None: zeros).\n\n"
        "q, k (batch, length, key heads, dim) and v (batch, length, heads, head_dim), or without length for one token; g, a log decay,\n"
        "(batch, length, heads, dim) or (batch, length, heads), float32, or None; all of any strides. lengths (batch) int64, or None.\n"
        "Writes y (like v, contiguous) and state_out (batch, heads, dim, head_dim), float32, which may be state.");
}
