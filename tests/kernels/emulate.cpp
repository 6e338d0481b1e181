// The CUDA kernels as a plain shared library: see emulate.hpp.
#include "kernels.cu"

extern "C" {
int emulated_linear(const jrt_cuda::LinearArgs* a, int kernel) { return jrt_cuda::linear(*a, jrt_cuda::Kernel(kernel), nullptr); }
int emulated_conv(const jrt_cuda::ConvArgs* a) { return jrt_cuda::conv(*a, nullptr); }
int emulated_step(const jrt_cuda::StepArgs* a) { return jrt_cuda::step(*a, nullptr); }
}
