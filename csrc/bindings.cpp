// The Python module _kernels. Its functions take tensors by name, which jrt_eval/kernels/<operator>/cpu.py has checked and allocated,
// and release the GIL while a kernel runs. No header of PyTorch is needed: see common/tensor.hpp.
#include "bindings.hpp"

#include <string>

#include "common/cpu.hpp"
#include "common/tensor.hpp"

namespace py = pybind11;

namespace {

const jrt::Table* current = nullptr;

// "avx512", "avx2" or "portable" if this machine can run it, "" for the best one. Returns what is in use.
std::string select_isa(const std::string& name) {
  const jrt::Table* tables[] = {jrt::has_avx512() ? jrt::table_avx512() : nullptr, jrt::has_avx2() ? jrt::table_avx2() : nullptr,
                                jrt::table_portable()};
  for (const jrt::Table* table : tables) {
    if (table && (name.empty() || name == table->isa)) {
      current = table;
      return table->isa;
    }
  }
  return "";
}

}  // namespace

const jrt::Table& jrt::kernels() { return *current; }

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Compiled kernels of jrt-eval; call them through jrt_eval.kernels.";
  // Raised by one whenever a signature changes, so that a stale build is named instead of crashing.
  m.attr("ABI") = 7;
#ifdef _OPENMP
  m.attr("OPENMP") = true;
#else
  m.attr("OPENMP") = false;
#endif
  select_isa("");
  m.def("select_isa", &select_isa, py::arg("name"),
        "Use the kernels of one instruction set: avx512, avx2 or portable; '' for the best. Returns the one in use, '' if it is "
        "not available here.");
  m.def("use_exchange_table", &jrt::use_exchange_table, py::arg("capsule"),
        "Read tensors through torch.Tensor.__dlpack_c_exchange_api__, or by their attributes if it is None.");
  jrt::register_taylor_linear_attention(m);
  jrt::register_causal_dot_product(m);
  jrt::register_sliding_window_attention(m);
  jrt::register_short_conv(m);
  jrt::register_selective_scan(m);
  jrt::register_ssd(m);
  jrt::register_gated_linear_attention(m);
  jrt::register_gated_delta_rule(m);
}
