// short_conv on a GPU, for Python; a decode step is a call of one token.
#include "cuda/bindings.hpp"
#include "short_conv/binding.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

void short_conv(const Tensor& x, const Tensor& gate, const Tensor& weight, const Tensor& bias, const Tensor& state,
                const Tensor& lengths, const Tensor& y, const Tensor& state_out, jrt_cuda::StreamAddress stream) {
  const auto p = jrt::conv_args<jrt_cuda::ConvArgs>(x, gate, weight, bias, state, lengths, y, state_out);
  jrt_cuda::check(jrt_cuda::short_conv(p, jrt_cuda::stream_at(stream)));
}

}  // namespace

void jrt_cuda::register_short_conv(py::module_& m) {
  m.def("short_conv", &::short_conv, arg("x"), arg("gate"), arg("weight"), arg("bias"), arg("state"), arg("lengths"), arg("y"),
        arg("state_out"), arg("stream"),
        "silu(causal depthwise convolution of x + bias) * gate.\n\n"
        "x and gate (batch, length, channels) of any strides; weight (channels, width) and bias (channels) or None, contiguous and of\n"
        "x's dtype; state (batch, width - 1, channels) float32, or None: zeros; lengths (batch) int64, or None. Writes y (like x,\n"
        "contiguous) and state_out, which may be state if the length is 1.");
}
