// The CUDA kernels as a plain shared library: see emulate.hpp.
#include "cuda/errors.cu"
#include "short_conv/launch.cu"
#include "taylor_linear_attention/launch.cu"

extern "C" {
int emulated_linear(const jrt_cuda::LinearArgs* a, int kernel) {
  return jrt_cuda::linear_attention(*a, jrt_cuda::Kernel(kernel), nullptr);
}
int emulated_conv(const jrt_cuda::ConvArgs* a) { return jrt_cuda::short_conv(*a, nullptr); }
int emulated_step(const jrt_cuda::StepArgs* a) { return jrt_cuda::taylor_linear_attention_step(*a, nullptr); }
}
