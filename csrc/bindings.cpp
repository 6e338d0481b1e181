// The compiled half of jrt_eval.kernels. No libtorch: every operator takes raw pointers, sizes and strides.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Compiled kernels of jrt-eval; call them through jrt_eval.kernels.";
  // Raised by one whenever a signature changes, so that a stale build is named instead of crashing.
  m.attr("ABI") = 1;
}
