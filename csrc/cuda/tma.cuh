// TMA loads of tiles of a (batch, length, heads, dim) tensor of bf16 into shared memory, and the mbarriers that signal their arrival. One
// thread issues the loads of a chunk. The hardware computes addresses, swizzles, and fills elements outside the tensor with zeros.
//
// A tile is 64 tokens of one row and head by 16 or 64 columns; its 32- or 128-byte rows are swizzled as in wgmma.cuh.
#pragma once
#include "cuda/args.hpp"
#include "cuda/device.cuh"

#ifndef JRT_EMULATE
#include <cuda.h>
#endif

namespace jrt_cuda {

constexpr int kTileTokens = 64;

#ifndef JRT_EMULATE
using TensorMap = CUtensorMap;
using Mbarrier = uint64_t;  // in shared memory

JRT_DEVICE void mbarrier_init(Mbarrier& at) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&at)) : "memory"); }
JRT_DEVICE void mbarrier_invalidate(Mbarrier& at) { asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(&at)) : "memory"); }
// After the last mbarrier_init and before __syncthreads.
JRT_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Sets how many bytes the next tiles of an mbarrier have in total.
JRT_DEVICE void expect_bytes(Mbarrier& at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&at)), "r"(bytes) : "memory");
}
JRT_DEVICE void tma_load(void* to, const TensorMap& map, Mbarrier& at, int column, int head, int token, int row) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(&map), "r"(shared_address(&at)), "r"(column), "r"(head), "r"(token), "r"(row)
               : "memory");
}
// Waits until the tiles of the mbarrier's phase `parity` (0, 1, 0, ...) have arrived.
JRT_DEVICE void mbarrier_wait(Mbarrier& at, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;\n}\n" ::"r"(shared_address(&at)),
      "r"(parity)
      : "memory");
}

// The tensor map for tiles of x with `columns` columns; cudaErrorNotSupported if the driver has no tensor maps.
inline int make_tensor_map(TensorMap& map, const View& x, int64_t dim, int64_t heads, int64_t length, int64_t batches, int columns) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (!encode) return cudaErrorNotSupported;
  // The stride of a dimension of size 1 is never used, and PyTorch sets it to any value.
  const auto bytes = [](int64_t step, int64_t count) { return cuuint64_t(count == 1 ? 16 : step * 2); };
  const cuuint64_t sizes[4] = {cuuint64_t(dim), cuuint64_t(heads), cuuint64_t(length), cuuint64_t(batches)};
  const cuuint64_t steps[3] = {bytes(x.head, heads), bytes(x.length, length), bytes(x.batch, batches)};
  const cuuint32_t box[4] = {cuuint32_t(columns), 1, kTileTokens, 1}, each[4] = {1, 1, 1, 1};
  const CUtensorMapSwizzle swizzle = columns == 16 ? CU_TENSOR_MAP_SWIZZLE_32B : CU_TENSOR_MAP_SWIZZLE_128B;
  const CUresult error = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(x.data), sizes, steps, box, each,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return error == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
#endif

}  // namespace jrt_cuda
