// ssd and its decode step, for Python.
#include "bindings.hpp"
#include "common/tensor.hpp"
#include "ssd/args.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

template <bool Step>
void ssd(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d, const Tensor& z,
         const Tensor& dt_bias, const Tensor& state, const Tensor& lengths, bool softplus, float dt_min, float dt_max, const Tensor& y,
         const Tensor& state_out, int threads) {
  jrt::SsdArgs p{};
  p.x = x.view(), p.dt = dt.per_head();
  if (z.data) p.z = z.view();
  p.b = b.view(), p.c = c.view();
  p.a = a.as<float>(), p.d = d.as<float>(), p.dt_bias = dt_bias.as<float>();
  p.state_in = state.as<float>(), p.state_out = state_out.as<float>();
  p.y = y.data, p.lengths = lengths.as<int64_t>();
  p.batches = x.shape[0], p.length = Step ? 1 : x.shape[1];
  p.heads = state_out.shape[1], p.dim = state_out.shape[2], p.states = state_out.shape[3], p.groups = b.shape[b.dims - 2];
  p.dt_min = dt_min, p.dt_max = dt_max;
  p.d_per_dim = d.dims == 2, p.softplus = softplus;
  p.dtype = x.dtype;
  p.threads = threads;
  const py::gil_scoped_release unlocked;
  (Step ? jrt::kernels().ssd_step : jrt::kernels().ssd)(p);
}

template <bool Step>
void define(py::module_& m, const char* name, const char* doc) {
  m.def(name, &ssd<Step>, arg("x"), arg("dt"), arg("a"), arg("b"), arg("c"), arg("d"), arg("z"), arg("dt_bias"), arg("state"),
        arg("lengths"), arg("softplus"), arg("dt_min"), arg("dt_max"), arg("y"), arg("state_out"), arg("threads"), doc);
}

}  // namespace

void jrt::register_ssd(py::module_& m) {
  define<false>(m, "ssd",
                "h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T, y_t = (h_t c_t + d x_t) silu(z_t).\n\n"
                "x and z (batch, length, heads, dim), dt (batch, length, heads), b and c (batch, length, groups, states), of any strides;\n"
                "a and dt_bias (heads), d (heads) or (heads, dim), state (batch, heads, dim, states), float32 and contiguous; d, z,\n"
                "dt_bias, state (zeros) and lengths (batch, int64) may be None. Writes y (like x, contiguous) and state_out.");
  define<true>(m, "ssd_step",
               "One token: x, z (batch, heads, dim), dt (batch, heads), b, c (batch, groups, states); state_out may be state.");
}
