// Launches of short_conv on a GPU.
#include <algorithm>

#include "short_conv/short_conv.cuh"

namespace jrt_cuda {
namespace {

template <typename T, int width>
int wide_conv(const ConvArgs& a, cudaStream_t stream) {
  constexpr int channels = kConvThreads * 16 / sizeof(T);
  const int64_t runs = std::max<int64_t>(1, (a.length + kWideRun - 1) / kWideRun);
  const dim3 grid(unsigned((a.channels + channels - 1) / channels), unsigned(runs), unsigned(a.batches));
  JRT_LAUNCH((wide_conv_kernel<T, width>), grid, kConvThreads, 0, stream, a);
  return cudaGetLastError();
}

template <typename T>
int conv_as(const ConvArgs& a, cudaStream_t stream) {
  constexpr int wide = 16 / sizeof(T);
  const auto whole = [](const View& x) {
    return x.dim == 1 && x.batch % wide == 0 && x.length % wide == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  };
  if (a.length >= kAhead && a.channels % wide == 0 && whole(a.a) && whole(a.b) && reinterpret_cast<uintptr_t>(a.y) % 16 == 0) {
    if (a.width == 2) return wide_conv<T, 2>(a, stream);
    if (a.width == 3) return wide_conv<T, 3>(a, stream);
    if (a.width == 4) return wide_conv<T, 4>(a, stream);
  }
  const int64_t runs = std::max<int64_t>(1, (a.length + kRun - 1) / kRun);
  const dim3 grid(unsigned((a.channels + kConvThreads - 1) / kConvThreads), unsigned(runs), unsigned(a.batches));
  JRT_LAUNCH((conv_kernel<T>), grid, kConvThreads, 0, stream, a);
  return cudaGetLastError();
}

}  // namespace

int short_conv(const ConvArgs& a, Stream stream) {
  if (a.dtype == kFloat32) return conv_as<float>(a, static_cast<cudaStream_t>(stream));
  if (a.dtype == kBFloat16) return conv_as<bf16>(a, static_cast<cudaStream_t>(stream));
  return conv_as<f16>(a, static_cast<cudaStream_t>(stream));
}

}  // namespace jrt_cuda
