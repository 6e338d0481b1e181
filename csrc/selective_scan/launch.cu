// Launches of selective_scan on a GPU.
#include "selective_scan/selective_scan.cuh"

namespace jrt_cuda {

int selective_scan(const SelectiveScanArgs& p, Stream stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (p.dtype == kFloat32) return scan::launch<float>(p, on);
  if (p.dtype == kBFloat16) return scan::launch<__nv_bfloat16>(p, on);
  return scan::launch<__half>(p, on);
}

}  // namespace jrt_cuda
