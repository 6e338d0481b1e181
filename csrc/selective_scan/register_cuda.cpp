// selective_scan on a GPU, for Python.
#include "cuda/bindings.hpp"
#include "selective_scan/binding.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

void selective_scan(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d,
                    const Tensor& z, const Tensor& dt_bias, const Tensor& state, const Tensor& lengths, bool softplus, const Tensor& y,
                    const Tensor& state_out, const Tensor& ends, const Tensor& sums, int64_t segments, int64_t segment_length,
                    jrt_cuda::StreamAddress stream) {
  auto p = jrt::selective_scan_args<jrt_cuda::SelectiveScanArgs>(x, dt, a, b, c, d, z, dt_bias, state, lengths, softplus, y, state_out);
  p.ends = ends.as<float>(), p.sums = sums.as<float>();
  p.segments = segments, p.segment_length = segment_length;
  jrt_cuda::check(jrt_cuda::selective_scan(p, jrt_cuda::stream_at(stream)));
}

}  // namespace

void jrt_cuda::register_selective_scan(py::module_& m) {
  m.def("selective_scan", &::selective_scan, arg("x"), arg("dt"), arg("a"), arg("b"), arg("c"), arg("d"), arg("z"), arg("dt_bias"),
        arg("state"), arg("lengths"), arg("softplus"), arg("y"), arg("state_out"), arg("ends"), arg("sums"), arg("segments"),
        arg("segment_length"), arg("stream"),
        "h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t, y_t = (h_t . c_t + d x_t) silu(z_t), for up to 16 states and even channels.\n\n"
        "x, dt and z (batch, length, channels) and b and c (batch, length, 1, states), adjacent in the last dimension; the others as in\n"
        "the function for CPUs. A row is cut into `segments` parts of `segment_length` tokens; ends (batch, segments, channels, states)\n"
        "and sums (batch, segments, channels), float32, are scratch memory, None for one segment.");
}
