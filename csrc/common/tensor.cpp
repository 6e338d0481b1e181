#include "common/tensor.hpp"

#include <string>

#include "common/dlpack.hpp"

namespace py = pybind11;

namespace jrt {
namespace {

const ExchangeApi* exchange = nullptr;

bool read_exchange(py::handle object, Tensor& to) {
  DLTensor x;
  if (!exchange || exchange->look(object.ptr(), &x) != 0) {
    PyErr_Clear();
    return false;
  }
  if (x.ndim > 4) return false;
  to.data = x.data ? static_cast<char*>(x.data) + x.byte_offset : nullptr;
  to.dims = x.ndim;
  for (int i = 0; i < x.ndim; ++i) to.shape[i] = x.shape[i], to.stride[i] = x.strides[i];
  if (x.code == kDLFloat && x.bits == 32) to.dtype = kFloat32;
  else if (x.code == kDLBfloat && x.bits == 16) to.dtype = kBFloat16;
  else if (x.code == kDLFloat && x.bits == 16) to.dtype = kFloat16;
  return true;
}

bool read_attributes(py::handle object, Tensor& to) {
  if (!py::hasattr(object, "data_ptr")) return false;
  const py::tuple shape = object.attr("shape"), stride = object.attr("stride")();
  if (shape.size() > 4) return false;
  to.data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<std::uintptr_t>());
  to.dims = int64_t(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) to.shape[i] = shape[i].cast<int64_t>(), to.stride[i] = stride[i].cast<int64_t>();
  const std::string dtype = py::str(object.attr("dtype"));
  to.dtype = dtype == "torch.float32" ? kFloat32 : dtype == "torch.bfloat16" ? kBFloat16 : dtype == "torch.float16" ? kFloat16 : -1;
  return true;
}

}  // namespace

void use_exchange_table(py::object capsule) { exchange = exchange_table(capsule.ptr()); }

bool read_tensor(py::handle object, Tensor& to) { return read_exchange(object, to) || read_attributes(object, to); }

}  // namespace jrt
