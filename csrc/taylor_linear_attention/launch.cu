// Launches of linear attention on a GPU: which kernel, its grid and its shared memory.
#include <algorithm>
#include <cmath>

#include "taylor_linear_attention/generic.cuh"
#include "taylor_linear_attention/hopper.cuh"
#include "taylor_linear_attention/tensor_cores.cuh"
#include "taylor_linear_attention/step.cuh"

namespace jrt_cuda {
namespace {

cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

template <typename Kernel>
int allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
}

bool aligned(const View& x) {
  return x.dim == 1 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.batch % 8 == 0 && x.length % 8 == 0 && x.head % 8 == 0;
}

template <typename T, int F>
struct TensorCores {
  template <bool outputs>
  static int launch(const PrefillParams& p, int64_t segments, cudaStream_t stream) {
    const size_t bytes = sizeof(PrefillShared<T, F>);
    if (const int error = allow_shared(prefill_kernel<T, F, outputs>, bytes)) return error;
    const dim3 grid(unsigned(p.a.batches * p.a.heads), unsigned(segments));
    JRT_LAUNCH((prefill_kernel<T, F, outputs>), grid, F * 2, bytes, stream, p);
    return cudaGetLastError();
  }
};

#ifdef JRT_HOPPER
struct Hopper {
  template <bool outputs, bool masked>
  static int launch_as(const PrefillParams& p, int64_t segments, cudaStream_t stream) {
    const size_t bytes = outputs ? sizeof(HopperShared) : sizeof(LoneSums);
    if (const int error = allow_shared(hopper_kernel<outputs, masked>, bytes)) return error;
    const LinearArgs& a = p.a;
    HopperParams params{p, {}, {}, {}, {}, {}};
    const auto map = [&](TensorMap& to, const View& x, int64_t dim, int64_t length, int columns) {
      return x.data ? make_tensor_map(to, x, dim, a.heads, length, a.batches, columns) : int(cudaSuccess);
    };
    if (const int error = map(params.q, a.q, a.dim, a.length, int(a.dim))) return error;
    if (const int error = map(params.k, a.k, a.dim, a.length, int(a.dim))) return error;
    if (const int error = map(params.v, a.v, a.head_dim, a.length, kColumns)) return error;
    if (const int error = map(params.k_enc, a.k_enc, a.dim, a.length_enc, int(a.dim))) return error;
    if (const int error = map(params.v_enc, a.v_enc, a.head_dim, a.length_enc, kColumns)) return error;
    const dim3 grid(unsigned(a.batches * a.heads), unsigned(segments), unsigned((a.head_dim + kColumns - 1) / kColumns));
    JRT_LAUNCH((hopper_kernel<outputs, masked>), grid, kHopperThreads, bytes, stream, params);
    return cudaGetLastError();
  }
  template <bool outputs>
  static int launch(const PrefillParams& p, int64_t segments, cudaStream_t stream) {
    if (p.a.mask || p.a.mask_enc) return launch_as<outputs, true>(p, segments, stream);
    return launch_as<outputs, false>(p, segments, stream);
  }
};
#endif

// A row as one block walks over it, or cut into segments: the sums of each but the last, then what comes before each, then the outputs.
// An encoder's tokens are then further segments in front, of which only the sums are wanted.
template <typename Kernel>
int prefill(const LinearArgs& a, cudaStream_t stream) {
  const int64_t heads = a.batches * a.heads, kv = a.features * a.head_dim, both = kv + a.features;
  PrefillParams p{};
  p.a = a;
  const float root = 1.f / std::sqrt(float(a.dim));
  p.q_scale = std::exp2(std::round(std::log2(root)));
  p.correction = root / p.q_scale;
  p.wide_copies = a.dim == 16 && a.head_dim % 8 == 0 && (!a.q.data || aligned(a.q)) && aligned(a.k) && aligned(a.v);
  const int64_t chunks = (a.length + kChunk - 1) / kChunk;
  p.segment = (chunks + a.segments - 1) / a.segments * kChunk;
  const int64_t segments = std::max<int64_t>(1, (a.length + p.segment - 1) / p.segment);
  const int64_t chunks_enc = (a.length_enc + kChunk - 1) / kChunk;
  p.segment_enc = a.segments_enc > 0 ? (chunks_enc + a.segments_enc - 1) / a.segments_enc * kChunk : 0;
  p.a.segments_enc = p.segment_enc > 0 ? (a.length_enc + p.segment_enc - 1) / p.segment_enc : 0;
  const int64_t before = p.a.segments_enc, all = before + segments;
  const bool outputs = a.q.data != nullptr;
  p.kv_in = a.kv_in;
  p.k_in = a.k_in;
  p.kv_in_head = kv;
  p.k_in_head = a.features;
  p.kv_out = a.kv_out;
  p.k_out = a.k_out;
  p.kv_out_head = kv;
  p.k_out_head = a.features;
  p.only_last_out = true;
  if (all == 1) {
    return outputs ? Kernel::template launch<true>(p, 1, stream) : Kernel::template launch<false>(p, 1, stream);
  }
  PrefillParams sums = p;
  sums.kv_in = sums.k_in = nullptr;
  sums.kv_out = a.scratch;
  sums.k_out = a.scratch + kv;
  sums.kv_out_head = sums.k_out_head = all * both;
  sums.kv_out_segment = sums.k_out_segment = both;
  sums.only_last_out = false;
  const int64_t filled = outputs ? all - 1 : all;
  if (const int error = Kernel::template launch<false>(sums, filled, stream)) return error;
  const dim3 grid(unsigned(heads), unsigned((both + 255) / 256));
  JRT_LAUNCH((prefix_sums), grid, 256, 0, stream, a.scratch, a.kv_in, a.k_in, outputs ? nullptr : a.kv_out, outputs ? nullptr : a.k_out,
                                        int(filled), int(outputs ? before : all), int(all), int(both), int(kv));
  if (const int error = cudaGetLastError()) return error;
  if (!outputs) return cudaSuccess;
  if (before) {  // in the states already
    p.a.k_enc.data = p.a.v_enc.data = nullptr;
    p.a.mask_enc = nullptr;
  }
  p.kv_in = a.scratch + before * both;
  p.k_in = p.kv_in + kv;
  p.kv_in_head = p.k_in_head = all * both;
  p.kv_in_segment = p.k_in_segment = both;
  return Kernel::template launch<true>(p, segments, stream);
}

template <typename T>
int prefill_as(const LinearArgs& a, cudaStream_t stream) {
  if (a.head_dim <= 32) return prefill<TensorCores<T, 32>>(a, stream);
  if (a.head_dim <= 64) return prefill<TensorCores<T, 64>>(a, stream);
  return prefill<TensorCores<T, 128>>(a, stream);
}

template <typename T>
int generic_as(const LinearArgs& a, cudaStream_t stream) {
  const size_t bytes = size_t(generic_shared(a.dim, a.features, a.taylor));
  if (const int error = allow_shared(generic_kernel<T>, bytes)) return error;
  const dim3 grid(unsigned(a.batches * a.heads), unsigned((a.head_dim + kSlice - 1) / kSlice));
  JRT_LAUNCH((generic_kernel<T>), grid, kGenericThreads, bytes, stream, a);
  return cudaGetLastError();
}

template <typename T>
int step_as(const StepArgs& a, cudaStream_t stream) {
  const unsigned blocks = unsigned(a.batches * a.heads);
  if (a.head_dim % 4 == 0 && reinterpret_cast<uintptr_t>(a.kv) % 16 == 0) {
    JRT_LAUNCH((step_kernel<T, 4>), blocks, kStepThreads, 0, stream, a);
  } else {
    JRT_LAUNCH((step_kernel<T, 1>), blocks, kStepThreads, 0, stream, a);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t generic_shared(int64_t dim, int64_t features, bool taylor) {
  return int64_t(GenericLayout(int(dim), int(features), taylor).total) * int64_t(sizeof(float));
}

bool has_hopper() {
#ifdef JRT_HOPPER
  return true;
#else
  return false;
#endif
}

int linear_attention(const LinearArgs& a, Kernel kernel, Stream stream) {
  if (kernel == kTensorCores) {
    if (a.dtype == kBFloat16) return prefill_as<bf16>(a, stream_of(stream));
    return prefill_as<f16>(a, stream_of(stream));
  }
  if (kernel == kHopper) {
#ifdef JRT_HOPPER
    return prefill<Hopper>(a, stream_of(stream));
#else
    return cudaErrorNotSupported;
#endif
  }
  if (a.dtype == kFloat32) return generic_as<float>(a, stream_of(stream));
  if (a.dtype == kBFloat16) return generic_as<bf16>(a, stream_of(stream));
  return generic_as<f16>(a, stream_of(stream));
}

int taylor_linear_attention_step(const StepArgs& a, Stream stream) {
  if (a.dtype == kFloat32) return step_as<float>(a, stream_of(stream));
  if (a.dtype == kBFloat16) return step_as<bf16>(a, stream_of(stream));
  return step_as<f16>(a, stream_of(stream));
}

}  // namespace jrt_cuda
