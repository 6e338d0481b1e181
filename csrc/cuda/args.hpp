// Arguments of the CUDA kernels: device pointers, strides in elements, sizes, a stream. Python has checked them. Each function enqueues
// its kernels on the stream and returns cudaSuccess or the error of cudaGetLastError.
#pragma once
#include "common/view.hpp"

namespace jrt_cuda {

using jrt::kBFloat16;
using jrt::kFloat16;
using jrt::kFloat32;
using jrt::View;

// Which kernel computes causal linear attention: generic.cuh (any sizes), tensor_cores.cuh (16-bit inputs, feature dims
// to 16) or hopper.cuh.
enum Kernel : int { kGeneric = 0, kTensorCores = 1, kHopper = 2 };

// Causal linear attention over a state.
struct LinearArgs {
  View q, k, v;        // q.data null: only the final state is wanted
  View k_enc, v_enc;   // an encoder's tokens, summed up before the first, instead of kv_in; data null: none; kHopper with q only
  void* y;             // (batch, length, heads, head_dim), contiguous
  float* denominator;  // (batch, length, heads), or null
  const float* kv_in;  // (batch, heads, features, head_dim), or null: zeros
  const float* k_in;   // (batch, heads, features), or null
  float* kv_out;       // or null: not wanted
  float* k_out;        // null where nothing is normalised
  const float* mask;   // (batch, length), or null
  const float* mask_enc;  // (batch, length_enc), or null
  const float* decay;  // (heads), or null; generic only
  float* scratch;      // (batch * heads, segments_enc + segments, features * (head_dim + 1)), or null where that is one part
  int64_t batches, length, length_enc, heads, dim, features, head_dim;
  int64_t segments;    // into how many parts a row is cut, each by its own block; 1 for generic
  int64_t segments_enc;  // the same of an encoder's tokens; 0: not by blocks of their own (where segments is 1), or none
  int dtype;
  bool taylor;         // Taylor features of q and k, normalised; else q and k are the features
};

struct StepArgs {
  View q, k, v;        // length stride unused
  void* y;             // (batch, heads, head_dim), contiguous
  float* kv;           // (batch, heads, features, head_dim), updated
  float* k_sum;        // (batch, heads, features), updated
  const float* decay;  // (heads), or null
  int64_t batches, heads, dim, features, head_dim;
  int dtype;
};

struct ConvArgs {
  View a, b;                  // dim: channels; head stride unused
  void* y;                    // (batch, length, channels), contiguous
  const void *weight, *bias;  // (channels, width) contiguous; (channels) or null; of the inputs' dtype
  const float* state_in;      // (batch, width - 1, channels), or null: zeros
  float* state_out;           // may be state_in where length is 1
  const int64_t* lengths;     // (batch), or null
  int64_t batches, length, channels, width;
  int dtype;
};

// h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t, y_t = (h_t . c_t + d x_t) silu(z_t); one group. Channels are even, and adjacent; every
// address and every stride of a token is a multiple of two elements.
struct SelectiveScanArgs {
  View x, dt, z;                 // (batch, length, channels), head stride unused; z.data null: no gate
  View b, c;                     // (batch, length, 1, states), adjacent states
  const float *a, *d, *dt_bias;  // (channels, states), (channels) or null, (channels) or null
  const float* state_in;         // (batch, channels, states), or null: zeros
  float* state_out;
  void* y;                       // (batch, length, channels), contiguous
  const int64_t* lengths;        // (batch), or null
  float *ends, *sums;            // (batch, segments, channels, states), (batch, segments, channels); null for one segment
  int64_t batches, length, channels, states;
  int64_t segments, segment_length;
  bool softplus;
  int dtype;
};

using Stream = void*;  // a cudaStream_t

// cudaErrorNotSupported for a kernel that this build does not have.
int linear_attention(const LinearArgs&, Kernel, Stream);
int taylor_linear_attention_step(const StepArgs&, Stream);
int short_conv(const ConvArgs&, Stream);
int selective_scan(const SelectiveScanArgs&, Stream);

// Whether kHopper is in this build.
bool has_hopper();

// The message of an error number that the functions above return.
const char* error_name(int error);

// Shared memory that generic() needs for these sizes, in bytes.
int64_t generic_shared(int64_t dim, int64_t features, bool taylor);

}  // namespace jrt_cuda
