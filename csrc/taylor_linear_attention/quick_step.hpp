// A decode step that reads its arguments directly from tensors. At batch 1 the step computes for about 15 microseconds, and reading shape,
// strides, dtype, device and address of five tensors in Python would take 3 more.
//
// Rejects unusual input; Python then falls back to the fully checked path, which raises the error. Gradients and tracing are checked in
// Python before.
#pragma once
#include "common/dlpack.hpp"
#include "taylor_linear_attention/overlap.hpp"

namespace jrt {

class QuickStep {
 public:
  // Sets the tensors' type and its exchange table. Without a table that this code understands every step is rejected.
  void set(PyObject* type, PyObject* capsule) {
    type_ = type;
    api_ = nullptr;
    Py_CLEAR(is_neg_);
    is_neg_ = PyObject_GetAttrString(type, "is_neg");
    if (!is_neg_) {
      PyErr_Clear();
      return;
    }
    api_ = exchange_table(capsule);
  }

  bool ready() const { return api_ != nullptr; }

  // q, k, v, kv, k_sum, decay (or None), y: fills `p` and returns true if these are the arguments of a step.
  bool read(PyObject* const* tensors, StepArgs& p) const {
    DLTensor q, k, v, kv, k_sum, decay, y;
    if (!look(tensors[2], 3, v) || !look(tensors[0], 3, q) || !look(tensors[1], 3, k) || !look(tensors[3], 4, kv) ||
        !look(tensors[4], 3, k_sum) || !look(tensors[6], 3, y)) {
      return false;
    }
    if (v.code == kDLFloat && v.bits == 32) p.dtype = kFloat32;
    else if (v.code == kDLBfloat && v.bits == 16) p.dtype = kBFloat16;
    else if (v.code == kDLFloat && v.bits == 16) p.dtype = kFloat16;
    else return false;
    p.batches = q.shape[0], p.heads = q.shape[1], p.dim = q.shape[2], p.head_dim = v.shape[2];
    p.features = (p.dim + 1) * (p.dim + 2) / 2;
    auto sized = [&](const DLTensor& x, int64_t third) {
      return x.shape[0] == p.batches && x.shape[1] == p.heads && x.shape[2] == third;
    };
    auto typed = [&](const DLTensor& x) { return x.code == v.code && x.bits == v.bits; };
    if (q.strides[2] != 1 || k.strides[2] != 1 || v.strides[2] != 1) return false;
    if (!sized(k, p.dim) || !sized(v, p.head_dim) || !sized(y, p.head_dim) || !typed(q) || !typed(k) || !typed(y)) return false;
    if (!sized(kv, p.features) || kv.shape[3] != p.head_dim || !sized(k_sum, p.features)) return false;
    // A lazily negated view has memory of the opposite sign. PyTorch's public functions make them as imaginary parts, whose strides
    // are not 1; a state may also have come from elsewhere.
    if (!positive(tensors[3]) || !positive(tensors[4])) return false;
    if (!single(kv) || !single(k_sum) || !contiguous(kv) || !contiguous(k_sum) || !contiguous(y)) return false;
    p.decay = nullptr;
    if (tensors[5] != Py_None) {
      if (!look(tensors[5], 1, decay) || decay.shape[0] != p.heads || !single(decay) || !contiguous(decay)) return false;
      if (!positive(tensors[5])) return false;
      p.decay = static_cast<const float*>(decay.data);
    }
    p.q = view(q), p.k = view(k), p.v = view(v);
    p.y = y.data;
    p.kv = static_cast<float*>(kv.data), p.k_sum = static_cast<float*>(k_sum.data);
    return overlap(p).read == nullptr;
  }

 private:
  // Whether a tensor is not a lazily negated view. Asking PyTorch costs 60 nanoseconds, so the answers of recent tensors are kept.
  bool positive(PyObject* tensor) const {
    PyObject*& known = known_[(reinterpret_cast<std::uintptr_t>(tensor) >> 4) % kKnown];
    if (known && referent(known) == tensor) return true;
    PyObject* negative = PyObject_CallOneArg(is_neg_, tensor);
    if (!negative) PyErr_Clear();
    Py_XDECREF(negative);
    if (negative != Py_False) return false;
    Py_XDECREF(known);
    known = PyWeakref_NewRef(tensor, nullptr);
    if (!known) PyErr_Clear();
    return true;
  }

  // The referent of a weak reference, borrowed: the caller owns it. Null if there is none.
  static PyObject* referent(PyObject* weak) {
#if PY_VERSION_HEX >= 0x030d0000
    PyObject* found = nullptr;
    if (PyWeakref_GetRef(weak, &found) < 0) PyErr_Clear();
    Py_XDECREF(found);
    return found;
#else
    return PyWeakref_GetObject(weak);
#endif
  }

  // Accepts a torch.Tensor (of no subclass) in CPU memory with `dims` dimensions and at least one element.
  bool look(PyObject* object, int dims, DLTensor& x) const {
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != type_) return false;
    if (api_->look(object, &x) != 0) {
      PyErr_Clear();
      return false;
    }
    return x.ndim == dims && x.device_type == kDLCPU && x.data && x.byte_offset == 0 && x.lanes == 1;
  }

  static bool single(const DLTensor& x) { return x.code == kDLFloat && x.bits == 32; }

  static bool contiguous(const DLTensor& x) {
    int64_t expected = 1;
    for (int i = x.ndim; i-- > 0;) {
      if (x.shape[i] != 1 && x.strides[i] != expected) return false;
      expected *= x.shape[i];
    }
    return true;
  }

  static View view(const DLTensor& x) { return {x.data, x.strides[0], 0, x.strides[1], x.strides[2]}; }

  PyObject* type_ = nullptr;  // borrowed: torch.Tensor outlives this module's use
  static constexpr std::size_t kKnown = 256;
  PyObject* is_neg_ = nullptr;            // torch.Tensor.is_neg
  mutable PyObject* known_[kKnown] = {};  // weak references to tensors that are not negated
  const ExchangeApi* api_ = nullptr;
};

}  // namespace jrt
