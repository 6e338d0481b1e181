// selective_scan and its decode step, for Python.
#include "bindings.hpp"
#include "selective_scan/args.hpp"
#include "selective_scan/binding.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

template <bool Step>
void selective_scan(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d,
                    const Tensor& z, const Tensor& dt_bias, const Tensor& state, const Tensor& lengths, bool softplus, const Tensor& y,
                    const Tensor& state_out, int threads) {
  auto p = jrt::selective_scan_args<jrt::SelectiveScanArgs>(x, dt, a, b, c, d, z, dt_bias, state, lengths, softplus, y, state_out);
  p.groups = b.shape[b.dims - 2];
  p.threads = threads;
  const py::gil_scoped_release unlocked;
  (Step ? jrt::kernels().selective_scan_step : jrt::kernels().selective_scan)(p);
}

template <bool Step>
void define(py::module_& m, const char* name, const char* doc) {
  m.def(name, &selective_scan<Step>, arg("x"), arg("dt"), arg("a"), arg("b"), arg("c"), arg("d"), arg("z"), arg("dt_bias"), arg("state"),
        arg("lengths"), arg("softplus"), arg("y"), arg("state_out"), arg("threads"), doc);
}

}  // namespace

void jrt::register_selective_scan(py::module_& m) {
  define<false>(m, "selective_scan",
                "h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t, y_t = (h_t . c_t + d x_t) silu(z_t).\n\n"
                "x, dt and z (batch, length, channels), b and c (batch, length, groups, states), of any strides; a (channels, states),\n"
                "d and dt_bias (channels) and state (batch, channels, states), float32 and contiguous; d, z, dt_bias, state (zeros) and\n"
                "lengths (batch, int64) may be None. Writes y (like x, contiguous) and state_out.");
  define<true>(m, "selective_scan_step", "One token: x, dt, z (batch, channels), b, c (batch, groups, states); state_out may be state.");
}
