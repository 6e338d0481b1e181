// The CUDA kernels as a plain shared library: see emulate.hpp.
#include "kernels.cu"

extern "C" {
int emulated_prefill(const jrt_cuda::LinearArgs* a) { return jrt_cuda::prefill(*a, nullptr); }
int emulated_generic(const jrt_cuda::LinearArgs* a) { return jrt_cuda::generic(*a, nullptr); }
int emulated_step(const jrt_cuda::StepArgs* a) { return jrt_cuda::step(*a, nullptr); }
}
