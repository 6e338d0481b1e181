// short_conv, for Python; a decode step is a call of one token.
#include "bindings.hpp"
#include "short_conv/binding.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

void short_conv(const Tensor& x, const Tensor& gate, const Tensor& weight, const Tensor& bias, const Tensor& state,
                const Tensor& lengths, bool silu, const Tensor& y, const Tensor& state_out, int threads) {
  auto p = jrt::conv_args<jrt::ConvArgs>(x, gate, weight, bias, state, lengths, y, state_out);
  p.silu = silu;
  p.threads = threads;
  const py::gil_scoped_release unlocked;
  jrt::kernels().short_conv(p);
}

}  // namespace

void jrt::register_short_conv(py::module_& m) {
  m.def("short_conv", &short_conv, arg("x"), arg("gate"), arg("weight"), arg("bias"), arg("state"), arg("lengths"), arg("silu"),
        arg("y"), arg("state_out"), arg("threads"),
        "silu(causal depthwise convolution of x + bias) * gate.\n\n"
        "x and gate (None: 1) (batch, length, channels) of any strides; weight (channels, width) and bias, contiguous and of x's dtype;\n"
        "state (batch, width - 1, channels) float32, or None: zeros; lengths (batch) int64, or None. Writes y (like x, contiguous) and\n"
        "state_out, which may be state if the length is 1.");
}
