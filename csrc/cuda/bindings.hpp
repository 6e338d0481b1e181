// What the bindings of the CUDA kernels share. An operator's are in its register_cuda.cpp.
#pragma once
#include <cstdint>

#include "common/tensor.hpp"
#include "cuda/args.hpp"

namespace jrt_cuda {

using StreamAddress = std::uintptr_t;  // a cudaStream_t as Python has it

inline Stream stream_at(StreamAddress address) { return reinterpret_cast<Stream>(address); }

// Raises RuntimeError for an error that CUDA returned.
void check(int error);

void register_taylor_linear_attention(pybind11::module_& m);
void register_causal_dot_product(pybind11::module_& m);
void register_short_conv(pybind11::module_& m);
void register_selective_scan(pybind11::module_& m);

}  // namespace jrt_cuda
