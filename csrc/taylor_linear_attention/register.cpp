// taylor_linear_attention, its gradient and its decode step, and encode_prefix, for Python.
#include <new>

#include "bindings.hpp"
#include "taylor_linear_attention/gradient_binding.hpp"
#include "taylor_linear_attention/quick_step.hpp"

namespace py = pybind11;
using jrt::Tensor;
using py::arg;

namespace {

void prefill(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv, const Tensor& k_sum, const Tensor& mask,
             const Tensor& decay, const Tensor& y, const Tensor& denominator, const Tensor& kv_out, const Tensor& k_sum_out, int threads) {
  auto p = jrt::linear_args<jrt::LinearArgs>(q, k, v, kv, kv_out);
  p.k_in = k_sum.as<float>(), p.k_out = k_sum_out.as<float>();
  p.mask = mask.as<float>(), p.decay = decay.as<float>();
  p.y = y.data, p.denominator = denominator.as<float>();
  p.taylor = true;
  p.threads = threads;
  const py::gil_scoped_release unlocked;
  jrt::kernels().linear_attention(p);
}

void encode(const Tensor& k, const Tensor& v, const Tensor& mask, const Tensor& kv_out, const Tensor& k_sum_out, int threads) {
  prefill({}, k, v, {}, {}, mask, {}, {}, {}, kv_out, k_sum_out, threads);
}

void backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv, const Tensor& k_sum, const Tensor& mask,
              const Tensor& y, const Tensor& denominator, const Tensor& grad_y, const Tensor& grad_kv, const Tensor& grad_k_sum,
              const Tensor& out_q, const Tensor& out_k, const Tensor& out_v, const Tensor& out_kv, const Tensor& out_k_sum, int threads) {
  jrt::LinearGradArgs p = jrt::linear_grad_args(q, k, v, kv, grad_y, grad_kv, out_q, out_k, out_v, out_kv, threads);
  p.y = y.view();
  p.denominator = denominator.as<float>();
  p.k_in = k_sum.as<float>(), p.g_k = grad_k_sum.as<float>(), p.g_k_in = out_k_sum.as<float>();
  p.mask = mask.as<float>();
  p.taylor = true;
  const py::gil_scoped_release unlocked;
  jrt::kernels().linear_attention_backward(p);
}

void step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv, const Tensor& k_sum, const Tensor& decay,
          const Tensor& y, int threads) {
  auto p = jrt::step_args<jrt::StepArgs>(q, k, v, kv, k_sum, decay, y);
  p.threads = threads;
  const py::gil_scoped_release unlocked;
  jrt::kernels().taylor_linear_attention_step(p);
}

jrt::QuickStep quick;

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
    jrt::kernels().taylor_linear_attention_step(p);
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  PyEval_RestoreThread(held);
  if (failed) return PyErr_NoMemory();
  Py_RETURN_TRUE;
}

PyMethodDef quick_methods[] = {
    {"quick_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&quick_step)), METH_FASTCALL,
     "A decode step if its arguments are usual: (q, k, v, kv, k_sum, decay, y, threads) -> whether it was taken."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void jrt::register_taylor_linear_attention(py::module_& m) {
  m.def("taylor_linear_attention", &prefill, arg("q"), arg("k"), arg("v"), arg("kv"), arg("k_sum"), arg("mask"), arg("decay"), arg("y"),
        arg("denominator"), arg("kv_out"), arg("k_sum_out"), arg("threads"),
        "Causal linear attention with Taylor features from the state kv, k_sum (None: zeros).\n\n"
        "q, k, v (batch, length, heads, dim) of any strides; mask (batch, length) and decay (heads), float32 and contiguous, or None.\n"
        "Writes y (like v, contiguous), denominator (batch, length, heads) or None, kv_out (batch, heads, features, head_dim) and\n"
        "k_sum_out (batch, heads, features), float32.");
  m.def("taylor_linear_attention_backward", &backward, arg("q"), arg("k"), arg("v"), arg("kv"), arg("k_sum"), arg("mask"), arg("y"),
        arg("denominator"), arg("grad_y"), arg("grad_kv"), arg("grad_k_sum"), arg("out_q"), arg("out_k"), arg("out_v"), arg("out_kv"),
        arg("out_k_sum"), arg("threads"),
        "Gradients of taylor_linear_attention without decay, written to out_*, contiguous and float32.");
  m.def("encode_prefix", &encode, arg("k"), arg("v"), arg("mask"), arg("kv_out"), arg("k_sum_out"), arg("threads"),
        "The sums over a prefix, written to kv_out and k_sum_out.");
  m.def("taylor_linear_attention_step", &step, arg("q"), arg("k"), arg("v"), arg("kv"), arg("k_sum"), arg("decay"), arg("y"),
        arg("threads"), "A decode step: updates kv and k_sum in place and writes y (batch, heads, head_dim), contiguous.");
  m.def("prepare_quick_step", &prepare_quick_step, arg("type"), arg("capsule"),
        "Whether quick_step can read tensors of this type: torch.Tensor, and its __dlpack_c_exchange_api__ or None.");
  if (PyModule_AddFunctions(m.ptr(), quick_methods) != 0) throw py::error_already_set();
}
