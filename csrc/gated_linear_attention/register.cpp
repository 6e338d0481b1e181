// gated_linear_attention and gated_delta_rule in Python. A tensor is a tuple (address, strides in elements...), () where there is none.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "common/cpu.hpp"

namespace py = pybind11;

namespace jrt {
namespace {

using Tensor = std::vector<std::int64_t>;

// A view of (batch, length, heads, dim), or of (batch, length, heads) with dim 0.
View view(const Tensor& t) {
  View v{nullptr, 0, 0, 0, 0};
  if (t.empty()) return v;
  v.data = reinterpret_cast<const void*>(t[0]);
  v.batch = t[1], v.length = t[2], v.head = t[3], v.dim = t.size() > 4 ? t[4] : 0;
  return v;
}

template <class T>
T* pointer(const Tensor& t) {
  return t.empty() ? nullptr : reinterpret_cast<T*>(t[0]);
}

void run(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& beta, const Tensor& y, const Tensor& state_in,
         const Tensor& state_out, const Tensor& lengths, const std::vector<std::int64_t>& sizes, float scale, int dtype, int threads) {
  const GatedArgs p{view(q),
                    view(k),
                    view(v),
                    view(g),
                    view(beta),
                    pointer<void>(y),
                    pointer<float>(state_in),
                    pointer<float>(state_out),
                    pointer<std::int64_t>(lengths),
                    sizes.at(0),
                    sizes.at(1),
                    sizes.at(2),
                    sizes.at(3),
                    sizes.at(4),
                    sizes.at(5),
                    scale,
                    g.empty() ? kGateNone : g.size() > 4 ? kGatePerChannel : kGatePerHead,
                    dtype,
                    threads};
  const py::gil_scoped_release unlocked;
  if (beta.empty()) current->gated_linear_attention(p);
  else current->gated_delta_rule(p);
}

}  // namespace

void register_gated_linear_attention(py::module_& m) {
  m.def("gated_linear_attention", &run, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("g"), py::arg("beta"), py::arg("y"),
        py::arg("state_in"), py::arg("state_out"), py::arg("lengths"), py::arg("sizes"), py::arg("scale"), py::arg("dtype"),
        py::arg("threads"),
        "Linear attention over a gated state, or with beta the gated delta rule. A tensor is (address, strides...), () if absent; g "
        "with four strides is a gate per key channel. sizes: batch, length, heads, key heads, key dim, head dim.");
}

}  // namespace jrt
