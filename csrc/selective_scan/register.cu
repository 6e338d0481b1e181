// selective_scan in Python. A tensor is a tuple (address, strides in elements...), () where there is none.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "selective_scan/selective_scan.cuh"

namespace py = pybind11;

namespace jrt_cuda {
namespace {

using Tensor = std::vector<std::int64_t>;

template <class T>
T* pointer(const Tensor& t) {
  return t.empty() ? nullptr : reinterpret_cast<T*>(t[0]);
}

std::int64_t stride(const Tensor& t, std::size_t i) { return t.empty() ? 0 : t.at(i + 1); }

void run(const Tensor& x, const Tensor& dt, const Tensor& z, const Tensor& b, const Tensor& c, const Tensor& a, const Tensor& d,
         const Tensor& dt_bias, const Tensor& state_in, const Tensor& state_out, const Tensor& y, const Tensor& lengths, const Tensor& ends,
         const Tensor& sums, const std::vector<std::int64_t>& sizes, bool softplus, int dtype, std::uintptr_t stream) {
  const SelectiveScanArgs p{pointer<void>(x),
                            pointer<void>(dt),
                            pointer<void>(z),
                            pointer<void>(b),
                            pointer<void>(c),
                            pointer<float>(a),
                            pointer<float>(d),
                            pointer<float>(dt_bias),
                            pointer<float>(state_in),
                            pointer<float>(state_out),
                            pointer<void>(y),
                            pointer<std::int64_t>(lengths),
                            pointer<float>(ends),
                            pointer<float>(sums),
                            sizes.at(0),
                            sizes.at(1),
                            sizes.at(2),
                            sizes.at(3),
                            sizes.at(4),
                            sizes.at(5),
                            stride(x, 0),
                            stride(x, 1),
                            stride(dt, 0),
                            stride(dt, 1),
                            stride(z, 0),
                            stride(z, 1),
                            stride(b, 0),
                            stride(b, 1),
                            stride(c, 0),
                            stride(c, 1),
                            softplus,
                            dtype};
  const cudaError_t error = selective_scan(p, reinterpret_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) throw std::runtime_error(std::string("selective_scan: ") + cudaGetErrorString(error));
}

}  // namespace

void register_selective_scan(py::module_& m) {
  m.def("selective_scan", &run, py::arg("x"), py::arg("dt"), py::arg("z"), py::arg("b"), py::arg("c"), py::arg("a"), py::arg("d"),
        py::arg("dt_bias"), py::arg("state_in"), py::arg("state_out"), py::arg("y"), py::arg("lengths"), py::arg("ends"),
        py::arg("sums"), py::arg("sizes"), py::arg("softplus"), py::arg("dtype"), py::arg("stream"),
        "Mamba's recurrence for up to 16 states and an even number of channels. A tensor is (address, strides...), () if absent. sizes: "
        "batch, length, channels, states, segments, tokens of a segment.");
}

}  // namespace jrt_cuda
