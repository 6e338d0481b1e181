// DLPack's C exchange interface (DLPack 1.3), which describes a tensor without a Python call for each attribute. It is a table of functions
// that the tensor's type offers: torch.Tensor.__dlpack_c_exchange_api__ from PyTorch 2.10 on. Its layout is fixed, so no header of PyTorch
// is needed.
#pragma once
#include <Python.h>

#include <cstdint>

namespace jrt {

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;  // of an element's type
  uint16_t lanes;
  int64_t *shape, *strides;  // strides in elements
  uint64_t byte_offset;
};

constexpr int32_t kDLCPU = 1;
constexpr uint8_t kDLFloat = 2, kDLBfloat = 4;

struct ExchangeApi {
  uint32_t major, minor;
  void *older_api, *allocate, *managed_from_object, *object_from_managed;
  int (*look)(void* object, DLTensor* out);  // fills `out`, valid while the object lives; may be null
  void* stream;
};

// The table in a capsule; null for None and for a table that this code does not know.
inline const ExchangeApi* exchange_table(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, "dlpack_exchange_api")) return nullptr;
  auto* api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  return api->major == 1 && api->look ? api : nullptr;
}

}  // namespace jrt
