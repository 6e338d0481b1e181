// The compiled half of jrt_eval.kernels. No libtorch: every operator takes raw pointers (as integers, 0 for none), strides and
// sizes, which jrt_eval/kernels/cpu.py has checked. The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>

#include <new>
#include <string>
#include <tuple>

#include "common/cpu.hpp"
#include "selective_scan/args.hpp"
#include "ssd/args.hpp"
#include "taylor_linear_attention/quick_step.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace jrt {

const Table* current = nullptr;
void register_gated_linear_attention(py::module_& m);

}  // namespace jrt

namespace {

using jrt::Table;
using jrt::View;

using jrt::current;

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// "avx512", "avx2" or "portable" if this machine can run it, "" for the best one. Returns what is in use.
std::string select_isa(const std::string& name) {
  const Table* tables[] = {jrt::has_avx512() ? jrt::table_avx512() : nullptr, jrt::has_avx2() ? jrt::table_avx2() : nullptr,
                           jrt::table_portable()};
  for (const Table* table : tables) {
    if (table && (name.empty() || name == table->isa)) {
      current = table;
      return table->isa;
    }
  }
  return "";
}

using Address = std::uintptr_t;
using Int = std::int64_t;

void linear_attention(Address q, Int qb, Int ql, Int qh, Int qd, Address k, Int kb, Int kl, Int kh, Int kd, Address v, Int vb, Int vl,
                      Int vh, Int vd, Address y, Address denominator, Address kv_in, Address k_in, Address kv_out, Address k_out,
                      Address mask, Address decay, Int batches, Int length, Int heads, Int dim, Int features, Int head_dim, int dtype,
                      bool taylor, int threads) {
  const jrt::LinearArgs p{{pointer<void>(q), qb, ql, qh, qd},
                          {pointer<void>(k), kb, kl, kh, kd},
                          {pointer<void>(v), vb, vl, vh, vd},
                          pointer<void>(y),
                          pointer<float>(denominator),
                          pointer<float>(kv_in),
                          pointer<float>(k_in),
                          pointer<float>(kv_out),
                          pointer<float>(k_out),
                          pointer<float>(mask),
                          pointer<float>(decay),
                          batches,
                          length,
                          heads,
                          dim,
                          features,
                          head_dim,
                          dtype,
                          taylor,
                          threads};
  const py::gil_scoped_release unlocked;
  current->linear(p);
}

void linear_backward(Address q, Int qb, Int ql, Int qh, Int qd, Address k, Int kb, Int kl, Int kh, Int kd, Address v, Int vb, Int vl,
                     Int vh, Int vd, Address y, Int yb, Int yl, Int yh, Int yd, Address gy, Int gb, Int gl, Int gh, Int gd,
                     Address denominator, Address kv_in, Address k_in, Address g_kv, Address g_k, Address gq, Address gk, Address gv,
                     Address g_kv_in, Address g_k_in, Address mask, Int batches, Int length, Int heads, Int dim, Int features,
                     Int head_dim, int dtype, bool taylor, int threads) {
  const jrt::LinearGradArgs p{{pointer<void>(q), qb, ql, qh, qd},
                              {pointer<void>(k), kb, kl, kh, kd},
                              {pointer<void>(v), vb, vl, vh, vd},
                              {pointer<void>(y), yb, yl, yh, yd},
                              {pointer<void>(gy), gb, gl, gh, gd},
                              pointer<float>(denominator),
                              pointer<float>(kv_in),
                              pointer<float>(k_in),
                              pointer<float>(g_kv),
                              pointer<float>(g_k),
                              pointer<float>(gq),
                              pointer<float>(gk),
                              pointer<float>(gv),
                              pointer<float>(g_kv_in),
                              pointer<float>(g_k_in),
                              pointer<float>(mask),
                              batches,
                              length,
                              heads,
                              dim,
                              features,
                              head_dim,
                              dtype,
                              taylor,
                              threads};
  const py::gil_scoped_release unlocked;
  current->linear_grad(p);
}

void taylor_step(Address q, Int qb, Int qh, Int qd, Address k, Int kb, Int kh, Int kd, Address v, Int vb, Int vh, Int vd, Address y,
                 Address kv, Address k_sum, Address decay, Int batches, Int heads, Int dim, Int features, Int head_dim, int dtype,
                 int threads) {
  const jrt::StepArgs p{{pointer<void>(q), qb, 0, qh, qd},
                        {pointer<void>(k), kb, 0, kh, kd},
                        {pointer<void>(v), vb, 0, vh, vd},
                        pointer<void>(y),
                        pointer<float>(kv),
                        pointer<float>(k_sum),
                        pointer<float>(decay),
                        batches,
                        heads,
                        dim,
                        features,
                        head_dim,
                        dtype,
                        threads};
  const jrt::Overlap found = jrt::overlap(p);
  if (found.read) {
    const std::string name = found.read;
    throw py::value_error("taylor_step: " + name + " overlaps " + found.written + " in memory, which is updated in place; pass " +
                          name + ".clone()");
  }
  const py::gil_scoped_release unlocked;
  current->step(p);
}

jrt::QuickStep quick;

// Whether steps can be taken so with this type of tensor: torch.Tensor, and its __dlpack_c_exchange_api__ or None.
bool prepare_quick_step(py::object type, py::object capsule) {
  quick.set(type.ptr(), capsule.ptr());
  return quick.ready();
}

// (q, k, v, kv, k_sum, decay or None, y, threads) -> whether the step was taken. Called as Python calls its own functions: pybind11's
// choice among overloads costs as much as the rest of this.
PyObject* quick_step(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  jrt::StepArgs p;
  if (!quick.ready() || count != 8 || !quick.read(arguments, p)) Py_RETURN_FALSE;
  p.threads = int(PyLong_AsLong(arguments[7]));
  if (PyErr_Occurred()) return nullptr;
  PyThreadState* held = PyEval_SaveThread();
  bool failed = false;
  try {
    current->step(p);
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  PyEval_RestoreThread(held);
  if (failed) return PyErr_NoMemory();
  Py_RETURN_TRUE;
}

PyMethodDef quick_methods[] = {
    {"quick_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&quick_step)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

void window_attention(Address q, Int qb, Int ql, Int qh, Int qd, Address k, Int kb, Int kl, Int kh, Int kd, Address v, Int vb, Int vl,
                      Int vh, Int vd, Address y, Address ring_k_in, Address ring_v_in, Address seen, Address lengths,
                      Address ring_k_out, Address ring_v_out, Address seen_out, Int batches, Int length, Int heads, Int dim, Int window,
                      int dtype, int threads) {
  const jrt::WindowArgs p{{pointer<void>(q), qb, ql, qh, qd},
                          {pointer<void>(k), kb, kl, kh, kd},
                          {pointer<void>(v), vb, vl, vh, vd},
                          pointer<void>(y),
                          pointer<void>(ring_k_in),
                          pointer<void>(ring_v_in),
                          pointer<Int>(seen),
                          pointer<Int>(lengths),
                          pointer<void>(ring_k_out),
                          pointer<void>(ring_v_out),
                          pointer<Int>(seen_out),
                          batches,
                          length,
                          heads,
                          dim,
                          window,
                          dtype,
                          threads};
  const py::gil_scoped_release unlocked;
  current->window(p);
}

void window_step(Address q, Int qb, Int qh, Int qd, Address k, Int kb, Int kh, Int kd, Address v, Int vb, Int vh, Int vd, Address y,
                 Address ring_k, Address ring_v, Address seen, Int batches, Int heads, Int dim, Int window, int dtype, int threads) {
  const jrt::WindowStepArgs p{{pointer<void>(q), qb, 0, qh, qd},
                              {pointer<void>(k), kb, 0, kh, kd},
                              {pointer<void>(v), vb, 0, vh, vd},
                              pointer<void>(y),
                              pointer<void>(ring_k),
                              pointer<void>(ring_v),
                              pointer<Int>(seen),
                              batches,
                              heads,
                              dim,
                              window,
                              dtype,
                              threads};
  const py::gil_scoped_release unlocked;
  current->window_step(p);
}

void conv(Address a, Int ab, Int al, Int ac, Address b, Int bb, Int bl, Int bc, Address y, Address weight, Address bias,
          Address state_in, Address state_out, Address lengths, Int batches, Int length, Int channels, Int width, bool silu, int dtype,
          int threads) {
  const jrt::ConvArgs p{{pointer<void>(a), ab, al, 0, ac},
                        {pointer<void>(b), bb, bl, 0, bc},
                        pointer<void>(y),
                        pointer<void>(weight),
                        pointer<void>(bias),
                        pointer<float>(state_in),
                        pointer<float>(state_out),
                        pointer<Int>(lengths),
                        batches,
                        length,
                        channels,
                        width,
                        silu,
                        dtype,
                        threads};
  const py::gil_scoped_release unlocked;
  current->conv(p);
}

// A tensor as (address, *strides), or None.
View view3(const py::object& t) {
  if (t.is_none()) return {};
  const auto v = t.cast<std::tuple<Address, Int, Int, Int>>();
  return {pointer<void>(std::get<0>(v)), std::get<1>(v), std::get<2>(v), 0, std::get<3>(v)};
}

View view4(const py::object& t) {
  if (t.is_none()) return {};
  const auto v = t.cast<std::tuple<Address, Int, Int, Int, Int>>();
  return {pointer<void>(std::get<0>(v)), std::get<1>(v), std::get<2>(v), std::get<3>(v), std::get<4>(v)};
}

void selective_scan(const py::object& x, const py::object& dt, const py::object& z, const py::object& b, const py::object& c, Address a,
                    Address d, Address dt_bias, Address state_in, Address state_out, Address y, Address lengths, Int batches, Int length,
                    Int channels, Int states, Int groups, bool softplus, int dtype, int threads, bool step) {
  const jrt::SelectiveScanArgs p{view3(x), view3(dt), view3(z), view4(b), view4(c), pointer<float>(a), pointer<float>(d),
                                 pointer<float>(dt_bias), pointer<float>(state_in), pointer<float>(state_out), pointer<void>(y),
                                 pointer<Int>(lengths), batches, length, channels, states, groups, softplus, dtype, threads};
  const py::gil_scoped_release unlocked;
  (step ? current->selective_scan_step : current->selective_scan)(p);
}

void ssd(const py::object& x, const py::object& z, const py::object& dt, const py::object& b, const py::object& c, Address a, Address d,
         Address dt_bias, Address state_in, Address state_out, Address y, Address lengths, Int batches, Int length, Int heads, Int dim,
         Int states, Int groups, float dt_min, float dt_max, bool d_per_dim, bool softplus, int dtype, int threads, bool step) {
  View times = view3(dt);
  times.head = times.dim, times.dim = 0;
  const jrt::SsdArgs p{view4(x), view4(z), times, view4(b), view4(c), pointer<float>(a), pointer<float>(d), pointer<float>(dt_bias),
                       pointer<float>(state_in), pointer<float>(state_out), pointer<void>(y), pointer<Int>(lengths), batches, length,
                       heads, dim, states, groups, dt_min, dt_max, d_per_dim, softplus, dtype, threads};
  const py::gil_scoped_release unlocked;
  (step ? current->ssd_step : current->ssd)(p);
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Compiled kernels of jrt-eval; call them through jrt_eval.kernels.";
  // Raised by one whenever a signature changes, so that a stale build is named instead of crashing.
  m.attr("ABI") = 6;
#ifdef _OPENMP
  m.attr("OPENMP") = true;
#else
  m.attr("OPENMP") = false;
#endif
  select_isa("");
  m.def("select_isa", &select_isa, py::arg("name"),
        "Use the kernels of one instruction set: avx512, avx2 or portable; '' for the best. Returns the one in use, '' if it is "
        "not available here.");
  m.def("linear_attention", &linear_attention);
  m.def("linear_backward", &linear_backward);
  m.def("taylor_step", &taylor_step);
  m.def("prepare_quick_step", &prepare_quick_step);
  if (PyModule_AddFunctions(m.ptr(), quick_methods) != 0) throw py::error_already_set();
  m.def("window_attention", &window_attention);
  m.def("window_step", &window_step);
  m.def("conv", &conv);
  m.def("selective_scan", &selective_scan);
  m.def("ssd", &ssd);
  jrt::register_gated_linear_attention(m);
}
