#include "cuda/args.hpp"
#include "cuda/device.cuh"

namespace jrt_cuda {

const char* error_name(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace jrt_cuda
