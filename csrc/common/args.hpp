// Arguments of the kernels for CPUs: pointers, strides in elements, sizes. Python has checked them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/view.hpp"

namespace jrt {

// Causal linear attention over a chunk-wise state; see taylor_linear_attention/taylor_linear_attention.hpp.
struct LinearArgs {
  View q, k, v;            // q.data null: only the final state is wanted
  void* y;                 // (batch, length, heads, head_dim), contiguous
  float* denominator;      // (batch, length, heads), or null
  const float* kv_in;      // (batch, heads, features, head_dim), or null: zeros
  const float* k_in;       // (batch, heads, features), or null
  float* kv_out;
  float* k_out;            // null where nothing is normalised
  const float* mask;       // (batch, length), or null
  const float* decay;      // (heads), or null
  int64_t batches, length, heads, dim, features, head_dim;
  int dtype;
  bool taylor;             // Taylor features of q and k, normalised; else q and k are the features
  int threads;
};

// Gradients of the above without decay; see taylor_linear_attention/backward.hpp.
struct LinearGradArgs {
  View q, k, v, y, gy;        // y only where normalised; gy in the inputs' dtype
  const float* denominator;
  const float *kv_in, *k_in;    // initial state, or null
  const float *g_kv, *g_k;      // gradients of the final state, or null
  float *gq, *gk, *gv;          // (batch, length, heads, .), contiguous, float32
  float *g_kv_in, *g_k_in;      // (batch, heads, features, head_dim), (batch, heads, features)
  const float* mask;
  int64_t batches, length, heads, dim, features, head_dim;
  int dtype;
  bool taylor;
  int threads;
};

struct StepArgs {
  View q, k, v;            // length stride unused
  void* y;                 // (batch, heads, head_dim), contiguous
  float* kv;               // (batch, heads, features, head_dim), updated
  float* k_sum;            // (batch, heads, features), updated
  const float* decay;      // (heads), or null
  int64_t batches, heads, dim, features, head_dim;
  int dtype;
  int threads;
};

struct WindowArgs {
  View q, k, v;
  void* y;                 // (batch, length, heads, dim), contiguous
  const void *ring_k_in, *ring_v_in;  // (batch, window, heads, dim), or null: nothing seen
  const int64_t* seen;     // (batch), or null with the rings
  const int64_t* lengths;  // (batch), 0 to length, or null: all of length
  void *ring_k_out, *ring_v_out;
  int64_t* seen_out;
  int64_t batches, length, heads, dim, window;
  int dtype;
  int threads;
};

struct WindowStepArgs {
  View q, k, v;
  void* y;
  void *ring_k, *ring_v;   // (batch, window, heads, dim), updated
  int64_t* seen;           // (batch), updated
  int64_t batches, heads, dim, window;
  int dtype;
  int threads;
};

struct ConvArgs {
  View a, b;               // dim: channels; head stride unused; b.data null: no gate
  void* y;                 // (batch, length, channels), contiguous
  const void *weight, *bias;  // (channels, width) contiguous; (channels) or null; of the inputs' dtype
  const float* state_in;   // (batch, width - 1, channels), or null: zeros
  float* state_out;        // may be state_in when length is 1
  const int64_t* lengths;
  int64_t batches, length, channels, width;
  bool silu;               // of the convolution, before the gate
  int dtype;
  int threads;
};

enum Gate : int { kGateNone = 0, kGatePerHead = 1, kGatePerChannel = 2 };

// Linear attention or the delta rule over a gated state; see gated_linear_attention/recurrence.hpp.
struct GatedArgs {
  View q, k, v;            // q and k have key_heads heads
  View g;                  // float32 log decay (batch, length, heads, dim) or without dim, as `gate` says
  View beta;               // float32 (batch, length, heads); the delta rule's alone
  void* y;                 // (batch, length, heads, head_dim), contiguous
  const float* state_in;   // (batch, heads, dim, head_dim), or null: zeros
  float* state_out;        // may be state_in
  const int64_t* lengths;  // (batch), or null
  int64_t batches, length, heads, key_heads, dim, head_dim;
  float scale;
  int gate;
  int dtype;               // of q, k, v and y
  int threads;
};

// Counts come from tensors whose values may be unchecked. Out of range they may give wrong numbers, but must not read foreign memory.
inline int64_t within(int64_t count, int64_t most) { return count < 0 ? 0 : count > most ? most : count; }

struct SelectiveScanArgs;
struct SsdArgs;

// The kernels of one instruction set.
struct Table {
  const char* isa;
  void (*linear_attention)(const LinearArgs&);
  void (*linear_attention_backward)(const LinearGradArgs&);
  void (*taylor_linear_attention_step)(const StepArgs&);
  void (*sliding_window_attention)(const WindowArgs&);
  void (*sliding_window_attention_step)(const WindowStepArgs&);
  void (*short_conv)(const ConvArgs&);
  void (*selective_scan)(const SelectiveScanArgs&);
  void (*selective_scan_step)(const SelectiveScanArgs&);
  void (*ssd)(const SsdArgs&);
  void (*ssd_step)(const SsdArgs&);
  void (*gated_linear_attention)(const GatedArgs&);
  void (*gated_delta_rule)(const GatedArgs&);
};

// One per translation unit of kernels.cpp; null where this build or this architecture has no such code.
const Table* table_avx512();
const Table* table_avx2();
const Table* table_portable();

// Scratch memory of the calling thread: `floats` floats, 64-byte aligned, kept for the next call. Throws std::bad_alloc.
float* scratch(std::size_t floats);

// Requests large pages for an output of many megabytes. New memory otherwise costs a page fault per 4 KB, as much time as the
// arithmetic. It is a hint; some systems ignore it.
void large_pages(void* data, std::size_t bytes);

}  // namespace jrt
