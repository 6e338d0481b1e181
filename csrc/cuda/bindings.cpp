// The Python module _cuda. Its functions take tensors by name, which jrt_eval/kernels/<operator>/cuda.py has checked and allocated, and
// enqueue kernels on a stream. No header of PyTorch is needed: see common/tensor.hpp.
#include "cuda/bindings.hpp"

#include <stdexcept>
#include <string>

namespace py = pybind11;

void jrt_cuda::check(int error) {
  if (error) throw std::runtime_error("jrt-eval's CUDA kernels: " + std::string(error_name(error)));
}

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of jrt-eval; call them through jrt_eval.kernels.";
  // Raised by one whenever a signature changes, so that a stale build is named instead of crashing.
  m.attr("ABI") = 5;
  m.attr("HOPPER") = jrt_cuda::has_hopper();
  m.def("use_exchange_table", &jrt::use_exchange_table, py::arg("capsule"),
        "Read tensors through torch.Tensor.__dlpack_c_exchange_api__, or by their attributes if it is None.");
  m.def("generic_shared", &jrt_cuda::generic_shared, py::arg("dim"), py::arg("features"), py::arg("taylor"),
        "Bytes of shared memory that the generic kernel needs.");
  jrt_cuda::register_taylor_linear_attention(m);
  jrt_cuda::register_causal_dot_product(m);
  jrt_cuda::register_short_conv(m);
  jrt_cuda::register_selective_scan(m);
}
