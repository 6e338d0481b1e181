// A tensor as the bindings take it: address, sizes, strides and dtype, read from the Python object without PyTorch's headers.
//
// With DLPack's C exchange interface (PyTorch from 2.10 on) this takes about 20 nanoseconds; without it, Python is asked for each
// attribute. None becomes an empty Tensor with a null address. Lazily negated views must be resolved before.
#pragma once
#include <pybind11/pybind11.h>

#include "common/view.hpp"

namespace jrt {

struct Tensor {
  void* data = nullptr;  // also null where there are no elements
  int64_t dims = 0;
  int64_t shape[4] = {}, stride[4] = {};  // strides in elements
  int dtype = -1;                         // kFloat32, kBFloat16, kFloat16, or -1 for any other

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }

  // (batch, length, heads, dim); or, of a decode step, (batch, heads, dim).
  View view() const {
    if (dims == 4) return {data, stride[0], stride[1], stride[2], stride[3]};
    return {data, stride[0], 0, stride[1], stride[2]};
  }

  // (batch, length, channels); or, of a decode step, (batch, channels).
  View channels() const {
    if (dims == 3) return {data, stride[0], stride[1], 0, stride[2]};
    return {data, stride[0], 0, 0, stride[1]};
  }

  // (batch, length, heads); or, of a decode step, (batch, heads).
  View per_head() const {
    if (dims == 3) return {data, stride[0], stride[1], stride[2], 0};
    return {data, stride[0], 0, stride[1], 0};
  }
};

// Offers DLPack's exchange table of a tensor type, a capsule or None.
void use_exchange_table(pybind11::object capsule);

// Fills `to`; returns false, without a Python error, if the object is not a tensor.
bool read_tensor(pybind11::handle object, Tensor& to);

}  // namespace jrt

template <>
struct pybind11::detail::type_caster<jrt::Tensor> {
  PYBIND11_TYPE_CASTER(jrt::Tensor, const_name("torch.Tensor | None"));
  bool load(handle source, bool) { return source.is_none() || jrt::read_tensor(source, value); }
};
